"""What the store asks of a filesystem: bytes under keys `folder/name`, nothing about workflows."""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypeVar

from .._frame import Contents, Data, Source

SMALL_BYTES = 64 * 1024 + 1
"""As much of a record as is ever read: one byte more than it may have."""

PAGE = 1000
"""Names a page, as S3 lists and deletes them."""

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | getattr(os, "O_BINARY", 0)
"""Flags for a new file of our own, whatever lies in its place."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class Stored(NamedTuple):
    """A small file as it was read, for a later `swap`."""

    data: bytes
    etag: str = ""


class Entry(NamedTuple):
    """A file in a folder: its size in bytes, and the time of its last change since the epoch in
    seconds, or None if the storage does not tell."""

    name: str
    size: int
    written: float | None


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


def _finished(running: dict[Future[_R], int]) -> Iterator[tuple[int, _R]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        yield running.pop(future), future.result()


@lru_cache(maxsize=32)
def _rebuild(arguments: bytes) -> Filesystem:
    kind, args, kwargs = pickle.loads(arguments)
    filesystem: Filesystem = kind(*args, **kwargs)
    return filesystem


class Filesystem(ABC):
    """The primitives. Each raises `FileNotFoundError` for a missing key and for nothing else."""

    conditional_writes: bool | None
    """Whether `swap` is atomic among all writers; None until it has refused one."""

    max_concurrency: int
    """How many calls at once pay off and are safe."""

    warned = False
    """Whether somebody was told that there are no conditional writes, or of the caveat."""

    in_pieces = False
    """Whether `folders` may name a folder several times, each time with others of its files."""

    _arguments: tuple[object, ...]

    @property
    def caveat(self) -> str | None:
        """What of the promises could not be tried from this machine, in one sentence, or None.

        It is for people to read: nothing is decided by it. The first time it may look at the
        system, never at the storage.
        """
        return None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self._arguments = (cls, args, kwargs)
        return self

    def __reduce__(self) -> tuple[Callable[[bytes], Filesystem], tuple[bytes]]:
        # Connections stay behind. Copies in one process share theirs, or a worker that is handed
        # a run with each task would connect for each.
        return _rebuild, (pickle.dumps(self._arguments),)

    @abstractmethod
    def read(self, key: str) -> Contents: ...

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
    def pages(self, folder: str) -> Iterator[list[str]]:
        """The names of the files in a folder, a page at a time; none if there is no folder."""

    @abstractmethod
    def entries(self, folder: str) -> Iterator[Entry]:
        """The files in a folder; none if there is no folder."""

    @abstractmethod
    def folders(self) -> Iterator[tuple[str, Iterator[str]]]:
        """Every folder, lazily, with the names of its files, to be read before the next folder.

        With `in_pieces` a folder comes as often as the storage's list returns to it.
        """

    @abstractmethod
    def open_read(self, key: str) -> Source: ...

    @abstractmethod
    def open_write(self, key: str) -> Upload: ...

    def read_many(self, keys: Iterable[str]) -> Iterator[tuple[int, Contents | Exception]]:
        """What `read` returns or raises for `each` key."""
        return self.each(self.read, keys)

    def write_many(
        self, files: Iterable[tuple[str, Sequence[Data]]]
    ) -> Iterator[tuple[int, Exception | None]]:
        """What `write` returns or raises for `each` file."""
        return self.each(lambda file: self.write(*file), files)

    def each(
        self, call: Callable[[_T], _R], items: Iterable[_T], *, at_most: int | None = None
    ) -> Iterator[tuple[int, _R | Exception]]:
        """What `call` returns or raises for each item, with its position, as it becomes known.

        Up to `max_concurrency` calls are made at once, and items are taken as calls can begin.
        """

        def outcome(item: _T) -> _R | Exception:
            try:
                return call(item)
            except Exception as error:  # noqa: BLE001
                return error

        workers = min(self.max_concurrency, at_most or self.max_concurrency)
        if workers == 1:
            try:
                yield from enumerate(map(outcome, items))
            finally:
                del items  # An error's traceback keeps this frame, and it would keep files open.
            return
        pool = ThreadPoolExecutor(workers, thread_name_prefix="checkpoint_store")
        running: dict[Future[_R | Exception], int] = {}
        try:
            for index, item in enumerate(items):
                running[pool.submit(outcome, item)] = index
                if len(running) == workers:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            pool.shutdown(cancel_futures=True)

    def detach(self, folder: str, record: str) -> None:
        """The moment in which a folder is cleared: its record goes, before or with its files."""
        failures = self.delete([f"{folder}/{record}"])
        for reason in failures.values():
            raise OSError(f"the record could not be deleted: {reason}")

    def leftovers(self, folder: str) -> Iterator[list[str]]:  # noqa: ARG002
        """Keys that interrupted operations on a folder left outside it, a page at a time."""
        return iter(())

    def close(self) -> None:  # noqa: B027
        """Releases connections. The next call would open new ones."""
