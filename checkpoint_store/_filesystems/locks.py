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
"""Seconds to wait for a lock. A record is changed within milliseconds, so that a process which
holds its lock for longer is stuck."""

LOCKS = 256
"""The number of lock files in a root. All workflows share them, because a lock file is never
removed.

To remove one would not be safe. A process that waits for a lock has the file open. It would get the
lock of the removed file, while another process locks a new file of the same name. Looking at the
name again does not help on a network filesystem that answers from a cache.
"""

_T = TypeVar("_T")

# The locks that threads of this process hold or wait for, each as the device and inode of the
# folder of locks, the name of the lock file, and the thread.
_at_work: set[tuple[int, int, str, int]] = set()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_at_work.clear)


def lock_name(folder: str) -> str:
    """The lock file of a workflow's folder.

    It is the same for upper and lower case, because a disk may take the two for the same folder.
    """
    return f"{zlib.crc32(folder.lower().encode()) % LOCKS:02x}.lock"


def under_lock(locks: str, folder: str, change: Callable[[], _T]) -> _T:
    """Calls `change` while this thread holds the lock of a folder, and returns what it returns.

    The lock is a file in the folder `locks`. `change` must take no other lock, because that might
    be the same file. This is no context manager, because an interrupt on the way into one, or out
    of one, could leave the lock taken.
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
    # Each call makes a lock object of its own, so that a forked child inherits no lock that it
    # would take for its own.
    lock = FileLock(path, timeout=LOCK_TIMEOUT, thread_local=False, is_singleton=False)
    try:
        _at_work.add(mine)
        # A record is changed within a few milliseconds. By default the lock is tried every fifty.
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
            lock.release(force=True)  # An interrupt may have kept the first release from beginning.
