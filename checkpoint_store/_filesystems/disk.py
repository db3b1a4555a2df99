"""What a disk does with files and folders, by their paths."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress

from .base import NOFOLLOW

if sys.platform != "win32":
    import fcntl

READ = os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_bytes(descriptor: int, size: int) -> bytes:
    """Reads `size` bytes, or fewer if the file ends before."""
    data = os.read(descriptor, size)
    while 0 < len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


def temporary_name(folder: str) -> str:
    return f"{folder}~{secrets.token_hex(8)}"


def link(temporary: str, path: str) -> None:
    """Gives a temporary file a second name, or raises `FileExistsError` if that name is taken.

    Of two processes that do this, only one succeeds, also if they are on two hosts.
    """
    try:
        os.link(temporary, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        # The error alone does not tell what happened. NFS sends a request again whose reply was
        # lost and may be told that its own link exists already, sshfs has one error for everything,
        # and for a lack of hard links each system has another error. So the files are looked at.
        if os.stat(temporary).st_nlink == 2:
            return
        if isinstance(error, FileExistsError) or os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        os.replace(temporary, path)


def refuse_link(path: str) -> None:
    try:
        is_link = stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return  # There is nothing, or nothing that can be looked at: who opens it is told so.
    if is_link:
        raise OSError(f"{path} is a symbolic link, which is not followed: replace it by a folder")


def subfolders(path: str) -> Iterator[str]:
    return (entry.name for entry in _entries(path) if entry.is_dir(follow_symlinks=False))


def files_in(path: str) -> Iterator[os.DirEntry[str]]:
    return (entry for entry in _entries(path) if entry.is_file(follow_symlinks=False))


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        entries = os.scandir(path)
    except FileNotFoundError:
        return
    with entries:
        yield from entries


def sweep(path: str) -> None:
    """Removes a temporary file, unless the process that writes it is alive and holds its lock."""
    with suppress(OSError):
        descriptor = os.open(path, READ)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # This is done under the lock: a writer that has just made the file must not lose it.
            os.unlink(path)
        finally:
            os.close(descriptor)


class OpenFile:
    """An open file, of which each slice is read when it is asked for."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._size)
        try:
            if start:
                os.lseek(self._descriptor, start, os.SEEK_SET)
            return read_bytes(self._descriptor, stop - start)
        except BaseException:
            self.close()  # The traceback keeps this object, and so the open file, alive.
            raise

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):  # The file was only read, so nothing can be lost.
                os.close(descriptor)

    __del__ = close
