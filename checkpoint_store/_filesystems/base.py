"""What the store asks of a filesystem: bytes under keys `folder/name`, nothing about workflows."""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

SMALL_BYTES = 64 * 1024 + 1
"""How much `read_small` reads at most: one byte more than a file that is swapped may have."""

HEAD_BYTES = 64 * 1024
"""How much of a file is read before the caller is asked whether the rest is wanted."""

PAGE = 1000
"""How many files a page of a list has at most, and how many are deleted at once, as on S3."""

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | getattr(os, "O_BINARY", 0)
"""Flags for a new file of our own, whatever lies in its place."""

Data = bytes | bytearray | memoryview

_T = TypeVar("_T")


class Contents(Protocol):
    """A whole file: its bytes, or what reads each slice when it is asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


class Source(Protocol):
    """Where a stream is read from. `read` returns b"" only at the end."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Stored(NamedTuple):
    """A small file as it was read, for a later `swap`."""

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
    """The next page of a list that is made an item at a time."""
    found = list(islice(items, PAGE))
    return Page(found, items if len(found) == PAGE else None)


class Upload(ABC):
    """A file being written. It is invisible until `commit`; `discard` leaves no trace.

    One that is dropped discards itself, so that an interrupt between any two steps leaves nothing
    behind. A forked child has a copy of it, but the file is its parent's: `discard` does nothing
    there.
    """

    _is_over = True  # Until `__init__` has run: there is nothing to discard before.

    def __init__(self) -> None:
        """Called once all attributes are set, and before anything is made that needs discarding."""
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
        """May be called again if it was interrupted."""


def write_all(descriptor: int, data: Data) -> None:
    """Writes to an open file, however much of it the system takes at a time."""
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(descriptor, view[written:])


def upload_all(upload: Upload, parts: Sequence[Data]) -> None:
    """Publishes a file made of `parts`, or leaves no trace."""
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
    """The primitives. Each raises `FileNotFoundError` for a missing key and for nothing else."""

    conditional_writes: bool | None
    """Whether `swap` is atomic among all writers; None until it has refused one."""

    conditions: tuple[str, str] | None
    """What refuses to create a file that is there, and to swap one that has changed; None if this
    kind of storage has nothing that does. The words are for people."""

    durability: str
    """When a write survives a crash of the storage, for people to read."""

    max_concurrency: int
    """How many calls at once pay off and are safe."""

    blocks = True
    """Whether a call holds up its thread; `LoopFilesystem` can be awaited, too."""

    is_of_one_process = False
    """Whether another process would see other files under the same URL."""

    in_pieces = False
    """Whether `list_folders` may name a folder again after others."""

    warned = False
    """Whether somebody was told that there are no conditional writes, or of the caveat."""

    _threads: tuple[int, ThreadPoolExecutor] | None = None
    """A pool of threads, and the process that it belongs to."""

    url: str
    """Where it is: an absolute path, or a URL. `connect` sets it."""

    made_by: Callable[[], Filesystem]
    """The call of `connect` that would make it again, in another process, too."""

    @property
    def caveat(self) -> str | None:
        """What of the promises could not be tried from this machine, in one sentence, or None.

        It is for people to read: nothing is decided by it. The first time it may look at the
        system, never at the storage.
        """
        return None

    def __reduce__(self) -> tuple[Callable[..., Filesystem], tuple[Any, ...]]:
        # Connections stay behind. Copies in one process share theirs, or a worker that is handed
        # a run with each task would connect for each.
        return _connect_again, (pickle.dumps(self.made_by),)

    @abstractmethod
    def read(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> Contents:
        """A whole file.

        Once as much as `HEAD_BYTES` of it has been read, `is_wanted` is given that much; where it
        says no, the rest may be left unread, and the contents end there.
        """

    @abstractmethod
    def read_small(self, key: str) -> Stored:
        """At most `SMALL_BYTES` of a file."""

    @abstractmethod
    def contains(self, key: str) -> bool: ...

    @abstractmethod
    def write(self, key: str, parts: Sequence[Data]) -> None:
        """Publishes a file made of `parts`, whole or not at all where the storage can."""

    @abstractmethod
    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        """Replaces a file that is still `old` (None: absent) with `data`.

        False if it was refused. Any exception leaves open whether it has, or yet will, take effect.
        """

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Deletes up to `PAGE` files in order, and returns those it could not with the reason.

        Missing ones count as deleted.
        """

    @abstractmethod
    def list_files(self, folder: str, more: Any = None, sizes: bool = False) -> Page[Entry]:  # noqa: FBT001, FBT002
        """The files in a folder, none if there is no folder; sizes and times if they are asked for
        or cost nothing."""

    @abstractmethod
    def list_folders(self, has: Callable[[str], bool], more: Any = None) -> Page[str]:
        """The folders with a file whose name `has` accepts. A page may be empty and not the last.

        With `in_pieces` a folder may come again on a later page.
        """

    def list_leftovers(self, folder: str, more: Any = None) -> Page[str]:  # noqa: ARG002
        """Keys that interrupted operations on a folder left outside it."""
        return Page([])

    @abstractmethod
    def open_read(self, key: str) -> Source: ...

    @abstractmethod
    def open_write(self, key: str) -> Upload: ...

    def detach(self, folder: str, name: str, is_ours: Callable[[str], bool]) -> None:  # noqa: ARG002
        """Removes the file `name` of a folder, and where it can the whole folder in one step.

        A folder with files that are not `is_ours` keeps them.
        """
        for reason in self.delete([f"{folder}/{name}"]).values():
            raise OSError(f"the record could not be deleted: {reason}")

    def remove_all(self) -> None:
        """Removes all files in the folders under the root, and the folders that were made here."""
        folders = []
        page = Page[str]([], None)
        while True:
            page = self.list_folders(lambda _: True, page.more)
            folders += page.items
            if page.more is None:
                break
        for folder in dict.fromkeys(folders):
            self._remove_files(folder)
        if self.list_folders(lambda _: True).items:
            raise OSError("files are still listed after they were deleted")

    def _remove_files(self, folder: str) -> None:
        page = self.list_files(folder)
        while page.items:
            for key, reason in self.delete(
                [f"{folder}/{file.name}" for file in page.items]
            ).items():
                raise OSError(f"{key}: {reason}")
            page = self.list_files(folder, page.more) if page.more else Page([])

    async def perform(self, verb: str, arguments: Sequence[Any]) -> Any:
        """What a verb returns, awaited from any event loop."""
        return await self.in_thread(getattr(self, verb), *arguments)

    async def in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """What a blocking call returns, made in a thread of this filesystem's own.

        Whoever is cancelled meanwhile is so once the call has ended: what is written next must not
        be overtaken.
        """
        import asyncio  # Here because a local store needs none of it.

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
