"""fsspec's process-wide `memory://` files, under one lock."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

from ..errors import ContentionError
from .base import Data, Filesystem, Settings, Source, Stored, Upload, anything
from .generic import GenericFilesystem
from .urls import URL, check_path, refuse_options

_lock = threading.RLock()
_swapping = False


def _renew_lock() -> None:
    global _lock, _swapping
    _lock = threading.RLock()
    _swapping = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class MemoryFilesystem(GenericFilesystem):
    """All calls take one lock. It makes `swap` atomic, and a listing does not fail while another
    thread writes."""

    conditional_writes = True
    conditions = "lock", "lock"
    durability = "not promised: memory is gone with this process"
    is_of_one_process = True

    def __init__(self, path: str, *, process: int | None = None) -> None:
        super().__init__("memory", path, {}, max_concurrency=1)
        # Only a pickle names the process. A forked child has a copy of the files, and may use it.
        self._process = process

    @classmethod
    def at(cls, url: URL, settings: Settings) -> Self:
        refuse_options(url.text, settings.options)
        path = check_path(url)
        return cls(f"/{path}" if path else "")

    def __reduce__(self) -> tuple[Callable[..., Filesystem], tuple[Any, ...]]:
        process = self._process or os.getpid()
        return partial(MemoryFilesystem, self._url_path, process=process), ()

    @property
    def _fs(self) -> Any:
        if self._process not in (None, os.getpid()):
            raise OSError(
                "memory:// is the memory of the process that made the run, and this is another: "
                "use a folder or a remote URL"
            )
        return super()._fs

    def read(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> bytes:
        with _lock:
            return super().read(key, is_wanted)

    def read_small(self, key: str) -> Stored:
        with _lock:
            return super().read_small(key)

    def contains(self, key: str) -> bool:
        with _lock:
            return super().contains(key)

    def write(self, key: str, parts: Sequence[Data]) -> None:
        with _lock:
            super().write(key, parts)

    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        global _swapping
        with _lock:
            _refuse_within_swap()
            try:
                _swapping = True
                return super().swap(key, old, data)
            finally:
                _swapping = False

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        with _lock:
            _refuse_within_swap()
            return super().delete(keys)

    def open_read(self, key: str) -> Source:
        # fsspec's open memory files cannot be used: all readers of a file share one position.
        return io.BytesIO(self.read(key))

    def open_write(self, key: str) -> Upload:
        return _MemoryUpload(self, key)

    def _list(self, path: str) -> list[dict[str, Any]]:
        with _lock:
            return super()._list(path)


def _refuse_within_swap() -> None:
    # The lock is held here, so it is this very thread that is within a swap. What it has compared
    # must not change.
    if _swapping:
        raise ContentionError(
            "a record is being changed by a call of this very thread, which a signal handler or a "
            "callback interrupts: make this change after that call has returned"
        )


class _MemoryUpload(Upload):
    def __init__(self, filesystem: MemoryFilesystem, key: str) -> None:
        self._filesystem = filesystem
        self._key = key
        self._buffer = io.BytesIO()
        super().__init__()

    def write(self, data: Data) -> None:
        self._buffer.write(data)

    def _commit(self) -> None:
        with self._buffer.getbuffer() as data:
            self._filesystem.write(self._key, [data])

    def _discard(self) -> None:
        # It is not closed: a traceback may still hold what `getbuffer` returned.
        self._buffer = io.BytesIO()
