"""The locks under which records on a local disk are changed."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from typing import TypeVar

from filelock import FileLock, Timeout

from ..errors import ContentionError

LOCK_TIMEOUT = 60.0
"""Seconds. A record is changed within milliseconds, so whoever holds the lock longer is stuck."""

LOCKS = 256
"""Workflows share so many lock files, or a root would keep one for each that it ever had.

They are never removed. Whoever waits for a lock has its file open, and would get the lock of a file
that is gone while somebody else locks the new one; to look once more does not help where another
host answers from a cache.
"""

_T = TypeVar("_T")

# The locks that threads of this process have or wait for: device, folder, file and thread.
_at_work: set[tuple[int, int, str, int]] = set()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_at_work.clear)


def lock_name(folder: str) -> str:
    """The lock file of a workflow's folder, the same for both cases of letters, since a disk may
    take them for the same folder."""
    return f"{zlib.crc32(folder.lower().encode()) % LOCKS:02x}.lock"


def under_lock(locks: str, folder: str, change: Callable[[], _T]) -> _T:
    """What `change` returns, called while this process has a folder's lock, a file in `locks`.

    `change` may take no other lock: that might be the same file. This is no context manager, on
    whose way in or out an interrupt could leave the lock taken.
    """
    name = lock_name(folder)
    path = os.path.join(locks, name)
    found = os.stat(locks)
    mine = found.st_dev, found.st_ino, name, threading.get_ident()
    if mine in _at_work:
        raise ContentionError(
            f"{path} is held by a call of this very thread, which a signal handler or a callback "
            "has interrupted to change the same workflow, or one that shares its lock: make this "
            "change after that call has returned"
        )
    # A lock of its own for each operation: a forked child inherits descriptors, not intentions.
    lock = FileLock(path, timeout=LOCK_TIMEOUT, thread_local=False, is_singleton=False)
    try:
        _at_work.add(mine)
        # A record is changed within a few milliseconds; the default waits for fifty.
        lock.acquire(poll_interval=0.002)
        return change()
    except Timeout:
        raise ContentionError(
            f"{path} was held by another process for {LOCK_TIMEOUT:.0f} s: find out which one "
            "hangs, and try again"
        ) from None
    finally:
        try:
            lock.release(force=True)
        finally:
            _at_work.discard(mine)
            lock.release(force=True)  # An interrupt may have come before the first could begin.
