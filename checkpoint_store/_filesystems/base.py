"""What the store asks of a filesystem: bytes under keys `folder/name`, nothing about workflows."""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from .urls import URL

SMALL_BYTES = 64 * 1024 + 1
"""The most bytes that `read_small` reads. It is one more than a record may have, so that a larger
one is noticed."""

HEAD_BYTES = 64 * 1024
"""As many bytes of a file are read before the caller is asked whether it wants the rest."""

PAGE = 1000
"""As many files a page of a list has at most, and as many one `delete` is given. Both are the
limits of S3."""

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | getattr(os, "O_BINARY", 0)
"""The flags with which a new file is opened. They refuse a file or a link that is there already."""

Data = bytes | bytearray | memoryview

_T = TypeVar("_T")


class Contents(Protocol):
    """The contents of a whole file: `bytes`, or an object that reads a slice when asked for it."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


class Source(Protocol):
    """An open file that is read as a stream. `read` returns b"" only at its end."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Stored(NamedTuple):
    """A small file as it was read. A later `swap` compares it with the file that is there then."""

    data: bytes
    etag: str = ""


class Entry(NamedTuple):
    """A file in a folder: its size in bytes, and the time of its last change in seconds since the
    epoch, or None if the storage does not tell."""

    name: str
    size: int = 0
    written: float | None = None


class Page(NamedTuple, Generic[_T]):
    """A part of a list. `more` is what to ask the next page with, or None after the last one."""

    items: list[_T]
    more: Any = None


def page_of(items: Iterator[_T]) -> Page[_T]:
    """The next page of a list whose items come from an iterator."""
    found = list(islice(items, PAGE))
    return Page(found, items if len(found) == PAGE else None)


def pages(list_page: Callable[[Any], Page[_T]]) -> Iterator[list[_T]]:
    """What is on each page of a list. A page may be empty although others follow."""
    page = list_page(None)
    while True:
        yield page.items
        if page.more is None:
            return
        page = list_page(page.more)


class Settings(NamedTuple):
    """What a store was asked for. A kind of storage leaves alone what it has no use for.

    `options` are those of fsspec. `durable` and `max_concurrency` are those of `CheckpointStore`.
    """

    options: Mapping[str, Any]
    durable: bool
    max_concurrency: int


class Upload(ABC):
    """A file being written. It is invisible until `commit`; `discard` leaves no trace.

    An upload that is dropped discards itself, so that an interrupt between any two statements
    leaves nothing behind. A forked child has a copy of the object, but the file belongs to its
    parent: `discard` does nothing in the child.
    """

    _is_over = True  # There is nothing to discard until `__init__` has run.

    def __init__(self) -> None:
        """To be called after all attributes are set, and before anything is made in the storage."""
        self._process = os.getpid()
        self._is_over = False

    def commit(self) -> None:
        self._commit()
        self._is_over = True

    def discard(self) -> None:
        if not self._is_over and self._process == os.getpid():
            self._discard()
            self._is_over = True

    __del__ = discard

    @abstractmethod
    def write(self, data: Data) -> None: ...

    @abstractmethod
    def _commit(self) -> None: ...

    @abstractmethod
    def _discard(self) -> None:
        """Removes what was made in the storage. It may be called again after an interrupt."""


def write_all(descriptor: int, data: Data) -> None:
    """Writes all of `data` to an open file; the system may take less in one call."""
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(descriptor, view[written:])


def upload_all(upload: Upload, parts: Sequence[Data]) -> None:
    """Publishes a file that consists of `parts`, or leaves no trace of it."""
    try:
        for part in parts:
            upload.write(part)
        upload.commit()
    except BaseException:
        upload.discard()
        raise


def anything(_: bytes) -> bool:
    return True


@lru_cache(maxsize=32)
def _connect_again(made_by: bytes) -> Filesystem:
    filesystem: Filesystem = pickle.loads(made_by)()
    return filesystem


class Filesystem(ABC):
    """The primitives. Each raises `FileNotFoundError` for a missing key and for nothing else.

    They may be called from any thread, and in a forked child, which must not use a connection of
    its parent's or wait for a lock that a thread of its parent's holds.
    """

    conditional_writes: bool | None
    """Whether `swap` is atomic among all writers. None means unknown, until a swap was refused."""

    conditions: tuple[str, str] | None
    """By which means a second creation of a file is refused, and by which a swap of a file that has
    changed: two words for people to read. None if this kind of storage has no such means."""

    durability: str
    """From when on a write survives a crash of the storage, in a sentence for people to read."""

    max_concurrency: int
    """How many calls may be under way at once: more are not safe, or do not pay off."""

    blocks = True
    """Whether all calls block their thread. Those of a `LoopFilesystem` can be awaited as well."""

    is_of_one_process = False
    """Whether only this process has the files, so that another sees none under the same URL."""

    warned = False
    """Whether the warning about missing conditional writes, or about the caveat, was logged."""

    _threads: tuple[int, ThreadPoolExecutor] | None = None
    """The threads of `in_thread`, after the number of the process that they run in."""

    url: str
    """An absolute path, or a URL. `connect` sets it."""

    made_by: Callable[[], Filesystem]
    """Makes this filesystem again, also in another process. It is a call of `connect`."""

    @classmethod
    @abstractmethod
    def at(cls, url: URL, settings: Settings) -> Self:
        """The filesystem at a URL, or `InvalidURLError`. Nothing is read or written yet."""

    @property
    def caveat(self) -> str | None:
        """Which promises cannot be tried from this machine, in a sentence, or None if all can.

        The sentence is for people to read; nothing is decided by it. To find it out, the operating
        system may be asked, but never the storage.
        """
        return None

    def __reduce__(self) -> tuple[Callable[..., Filesystem], tuple[Any, ...]]:
        # A pickle holds no connections. All its copies in one process share one filesystem, because
        # a worker that gets a run with each task would otherwise connect for each task.
        return _connect_again, (pickle.dumps(self.made_by),)

    @abstractmethod
    def read(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> Contents:
        """The contents of a file.

        `is_wanted` may be asked, with the first `HEAD_BYTES` of the file, whether the rest is
        needed. If it says no, the rest may be left out of the contents.
        """

    @abstractmethod
    def read_small(self, key: str) -> Stored:
        """The first `SMALL_BYTES` of a file, which is all of it if it is not too large."""

    @abstractmethod
    def contains(self, key: str) -> bool: ...

    @abstractmethod
    def write(self, key: str, parts: Sequence[Data]) -> None:
        """Stores a file made of `parts`, whole or not at all if the storage can do that."""

    @abstractmethod
    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        """Replaces a file by `data` if it still is as `old` says; None says that there is no file.

        Returns False if the file was another one. After an exception it is open whether the swap
        has taken effect, or will take effect later.
        """

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Deletes up to `PAGE` files, in order, and returns which failed, each with the reason.

        A file that is not there counts as deleted.
        """

    @abstractmethod
    def list_files(self, folder: str, more: Any = None, sizes: bool = False) -> Page[Entry]:  # noqa: FBT001, FBT002
        """A page of the files in a folder. A folder that is not there has none.

        Without `sizes`, sizes and times may be left out where they cost something.
        """

    @abstractmethod
    def list_folders(self, has: Callable[[str], bool], more: Any = None) -> Page[str]:
        """A page of the folders in which there is a file whose name `has` accepts.

        Each is named once. A page may be empty although others follow.
        """

    def list_leftovers(self, folder: str, more: Any = None) -> Page[str]:  # noqa: ARG002
        """A page of the keys of the files that are left of a folder outside of it.

        `detach` has moved them there, or an operation that was interrupted.
        """
        return Page([])

    @abstractmethod
    def open_read(self, key: str) -> Source: ...

    @abstractmethod
    def open_write(self, key: str) -> Upload: ...

    def detach(self, folder: str, name: str, is_ours: Callable[[str], bool]) -> None:  # noqa: ARG002
        """Removes the file `name` of a folder, whose other files are garbage from then on.

        A storage that can do so in one step moves the whole folder away, if `is_ours` accepts the
        names of all its files. `list_leftovers` must then list them, because the caller is going to
        delete and count them.
        """
        for reason in self.delete([f"{folder}/{name}"]).values():
            raise OSError(f"the record could not be deleted: {reason}")

    def remove_all(self) -> None:
        """Removes all files in folders under the root, and all folders that were made here."""
        folders = [folder for page in pages(partial(self.list_folders, bool)) for folder in page]
        for folder in folders:
            for files in pages(partial(self.list_files, folder)):
                keys = [f"{folder}/{file.name}" for file in files]
                for key, reason in self.delete(keys).items():
                    raise OSError(f"{key}: {reason}")
        if any(pages(partial(self.list_folders, bool))):
            raise OSError("files are still listed after they were deleted")

    def connected(self) -> Self:
        """This filesystem for a single operation, which opens no connection after it was closed."""
        return self

    async def perform(self, verb: str, arguments: Sequence[Any]) -> Any:
        """What a verb returns, awaited from any event loop."""
        return await self.in_thread(getattr(self, verb), *arguments)

    async def in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """What a blocking call returns that is made in one of this filesystem's own threads.

        A task that is cancelled meanwhile first waits until the call has ended. Otherwise the call
        could overtake what the same process writes next.
        """
        import asyncio  # It is not imported above, because a blocking store needs none of it.

        process = os.getpid()
        if self._threads is None or self._threads[0] != process:
            pool = ThreadPoolExecutor(self.max_concurrency, thread_name_prefix="checkpoint_store")
            self._threads = process, pool
        future = self._threads[1].submit(call, *arguments)
        waiting = asyncio.ensure_future(asyncio.wrap_future(future))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not future.cancel():
                await asyncio.wait([waiting])
            raise

    def close(self) -> None:
        """Releases connections and threads. The next call would open new ones."""
        if self._threads is not None and self._threads[0] == os.getpid():
            self._threads[1].shutdown(wait=False)
        self._threads = None
