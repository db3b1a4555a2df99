"""A filesystem whose calls a test can count, make fail, and do something before and after."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from checkpoint_store._filesystems.base import (
    Data,
    Entry,
    Filesystem,
    Page,
    Source,
    Stored,
    Upload,
    anything,
)

MOST_CALLS = 60
"""The most primitive calls that any operation may make, however it fails."""


class CrashError(BaseException):
    """Stands for the death of the process: nothing catches it, and no later call takes effect."""


Hook = Callable[[int, str], None]


def _nothing(number: int, name: str) -> None:
    pass


class Tap:
    """Counts calls, and lets a test do something before and after each of them."""

    def __init__(self, before: Hook = _nothing, after: Hook = _nothing) -> None:
        self.before = before
        self.after = after
        self.calls: list[str] = []
        self.dead = False
        self.refuses = False

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        if self.dead:
            raise CrashError
        number = len(self.calls)
        self.calls.append(name)
        if number > MOST_CALLS:
            pytest.fail(f"more than {MOST_CALLS} calls: {self.calls}")
        self.before(number, name)
        result = call()
        try:
            self.after(number, name)
        except BaseException:
            _release(result)
            raise
        return result


def _release(opened: object) -> None:
    """Closes a file whose reply is lost.

    Else it would stay open until the traceback, which refers to it, is collected.
    """
    if isinstance(opened, Upload):
        opened.discard()
    elif close := getattr(opened, "close", None):
        close()


def fault(kind: str, at: int) -> Tap:
    """A tap at whose call number `at` something fails.

    An error is raised before the call takes effect, or after it, so that its reply is lost. A crash
    ends the process before the call, and so after the call that precedes it. In an outage all later
    calls fail as well. A refusal is an error for one key that a delete returns and does not raise.
    """
    tap = Tap()
    tap.refuses = kind == "refusal"

    def fail(number: int, name: str) -> None:
        if number == at and kind == "crash":
            tap.dead = True
            raise CrashError(name)
        if number == at or (number > at and kind == "outage"):
            raise OSError(errno.EIO, f"{name} failed")

    if kind == "error after":
        tap.after = fail
    else:
        tap.before = fail
    return tap


FAULTS = ("crash", "error before", "error after", "outage", "refusal")


class Tapped(Filesystem):
    """A filesystem that makes all its calls through a tap."""

    conditions = None
    durability = ""

    @classmethod
    def at(cls, *_: object) -> Tapped:
        raise NotImplementedError

    def __init__(self, inner: Filesystem, tap: Tap) -> None:
        self.inner = inner
        self.tap = tap
        self.conditional_writes = inner.conditional_writes
        self.max_concurrency = 1
        self.warned = inner.warned

    def read(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> bytes:
        return bytes(self.tap("read", lambda: self.inner.read(key, is_wanted)))

    def read_small(self, key: str) -> Stored:
        return Stored(*self.tap("read_small", lambda: self.inner.read_small(key)))

    def contains(self, key: str) -> bool:
        return bool(self.tap("contains", lambda: self.inner.contains(key)))

    def write(self, key: str, parts: Sequence[Data]) -> None:
        self.tap("write", lambda: self.inner.write(key, parts))

    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        return bool(self.tap("swap", lambda: self.inner.swap(key, old, data)))

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        # A request for several keys may take effect for only some of them.
        failures: dict[str, str] = {}
        for key in keys:
            try:
                failures |= self.tap("delete", lambda key=key: self.inner.delete([key]))
            except OSError as error:
                if not self.tap.refuses:
                    raise
                failures[key] = str(error)
        return failures

    def list_files(self, folder: str, more: Any = None, sizes: bool = False) -> Page[Entry]:  # noqa: FBT001, FBT002
        page: Page[Entry] = self.tap("page", lambda: self.inner.list_files(folder, more, sizes))
        return page

    def list_folders(self, has: Callable[[str], bool], more: Any = None) -> Page[str]:
        return self.inner.list_folders(has, more)

    def list_leftovers(self, folder: str, more: Any = None) -> Page[str]:
        page: Page[str] = self.tap("leftovers", lambda: self.inner.list_leftovers(folder, more))
        return page

    def open_read(self, key: str) -> Source:
        source: Source = self.tap("open_read", lambda: self.inner.open_read(key))
        return source

    def open_write(self, key: str) -> Upload:
        upload: Upload = self.tap("open_write", lambda: self.inner.open_write(key))
        return TappedUpload(upload, self.tap)

    def detach(self, folder: str, name: str, is_ours: Callable[[str], bool]) -> None:
        self.tap("detach", lambda: self.inner.detach(folder, name, is_ours))


class TappedUpload:
    def __init__(self, inner: Upload, tap: Tap) -> None:
        self.inner = inner
        self.tap = tap

    def write(self, data: Data, /) -> None:
        self.tap("upload.write", lambda: self.inner.write(data))

    def commit(self) -> None:
        self.tap("upload.commit", self.inner.commit)

    def discard(self) -> None:
        if not self.tap.dead:
            self.inner.discard()
        else:
            # A dead process has no open files but leaves its temporary files behind. So the upload
            # is made to look like that of another process, and its file is not removed with it.
            getattr(self.inner, "_close", self.inner.discard)()
            self.inner._process = 0
