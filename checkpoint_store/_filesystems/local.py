"""Files on a local disk, published durably and atomically."""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from typing import Any, Self, TypeVar

from ..errors import ContentionError, InvalidNameError
from .base import (
    CREATE,
    SMALL_BYTES,
    Contents,
    Data,
    Entry,
    Filesystem,
    Page,
    Settings,
    Source,
    Stored,
    Upload,
    anything,
    page_of,
    upload_all,
    write_all,
)
from .disk import (
    READ,
    OpenFile,
    files_in,
    link,
    read_bytes,
    refuse_link,
    subfolders,
    sweep,
    temporary_name,
)
from .locks import under_lock
from .mounts import caveat_of
from .urls import URL, refuse_options

if sys.platform != "win32":
    import fcntl

# From a larger file, slices are read, which saves a copy of the payload.
_WHOLE_BYTES = 1024 * 1024
_TRIES = 10

_T = TypeVar("_T")


class LocalFilesystem(Filesystem):
    """fsspec's own local files are not used: they truncate in place, never sync, create after a
    check, and follow links."""

    conditional_writes = True
    conditions = "lock", "lock"
    durability = "by design, not tried: file and folder are synced before a write ends"
    max_concurrency = 1

    def __init__(self, root: str, *, durable: bool) -> None:
        self.root = root
        self.durable = durable
        self._ancestors_synced = False
        self._made_above: list[str] = []

    @classmethod
    def at(cls, url: URL, settings: Settings) -> Self:
        refuse_options(url.rest, settings.options)
        return cls(url.rest, durable=settings.durable)

    @cached_property
    def caveat(self) -> str | None:
        return caveat_of(self.root)

    def read(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> Contents:  # noqa: ARG002
        descriptor, size = self._open(key)
        if size > _WHOLE_BYTES:
            return OpenFile(descriptor, size)
        try:
            return read_bytes(descriptor, size)
        finally:
            os.close(descriptor)

    def read_small(self, key: str) -> Stored:
        descriptor, size = self._open(key)
        try:
            return Stored(read_bytes(descriptor, min(size, SMALL_BYTES)))
        finally:
            os.close(descriptor)

    def contains(self, key: str) -> bool:
        try:
            found = stat.S_ISREG(os.lstat(self._path(key)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return found and self._spelled(key)

    def write(self, key: str, parts: Sequence[Data]) -> None:
        upload_all(_LocalUpload(self, key), parts)

    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        return self._locked(key.partition("/")[0], lambda: self._swap(key, old, data))

    def _swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        try:
            current: Stored | None = self.read_small(key)
        except FileNotFoundError:
            current = None
        if current != old:
            return False
        if old is not None:
            upload_all(_LocalUpload(self, key, locked=True), [data])
            return True
        # Another process may have made a folder on the way and died before it synced that.
        self._make_folder(key.partition("/")[0])
        self._sync_folder(self.root)
        self._sync_ancestors()
        try:
            upload_all(_LocalUpload(self, key, locked=True, create=True), [data])
        except FileExistsError:
            # Somebody made it through another mount or on another host, where no lock is seen.
            return False
        return True

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        failures = {}
        for key in keys:
            try:
                if self.contains(key):
                    os.unlink(self._path(key))
            except FileNotFoundError:
                pass
            except OSError as error:
                failures[key] = error.strerror or str(error)
        for folder in {key.rpartition("/")[0] for key in keys}:
            with suppress(OSError):
                os.rmdir(os.path.join(self.root, folder))
        return failures

    def list_files(self, folder: str, more: Any = None, sizes: bool = False) -> Page[Entry]:  # noqa: FBT001, FBT002
        return page_of(more or self._list_files(folder, sizes=sizes))

    def _list_files(self, folder: str, *, sizes: bool) -> Iterator[Entry]:
        path = os.path.join(self.root, folder)
        refuse_link(path)
        for entry in files_in(path):
            if not sizes:
                yield Entry(entry.name)
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                yield Entry(entry.name, found.st_size, found.st_mtime)

    def list_folders(self, has: Callable[[str], bool], more: Any = None) -> Page[str]:
        return page_of(more or self._list_folders(has))

    def _list_folders(self, has: Callable[[str], bool]) -> Iterator[str]:
        removed: dict[str, list[str]] = {}
        for name in subfolders(os.path.join(self.root, ".tmp")):
            removed.setdefault(name.partition("~")[0], []).append(f".tmp/{name}")
        for folder in subfolders(self.root):
            if any(map(has, self._names([folder, *removed.pop(folder, ())]))):
                yield folder
        for folder, paths in removed.items():
            if any(map(has, self._names(paths))):
                yield folder

    def open_read(self, key: str) -> Source:
        descriptor, _ = self._open(key)
        return io.FileIO(descriptor)

    def open_write(self, key: str) -> Upload:
        return _LocalUpload(self, key)

    def detach(self, folder: str, name: str, is_ours: Callable[[str], bool]) -> None:
        """Renames the whole folder away, so that no writer can disturb its removal."""
        self._locked(folder, lambda: self._detach(folder, name, is_ours))

    def _detach(self, folder: str, name: str, is_ours: Callable[[str], bool]) -> None:
        path = os.path.join(self.root, folder)
        refuse_link(path)
        try:
            with os.scandir(path) as entries:
                kept = not all(
                    is_ours(entry.name) and entry.is_file(follow_symlinks=False)
                    for entry in entries
                )
        except FileNotFoundError:
            return
        if not self._spelled(folder):
            raise InvalidNameError(
                f"the folder {folder} has another name but for upper and lower case, which this "
                "disk does not tell apart: use its exact name"
            )
        if kept:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))
            self._sync_folder(path)
        else:
            self._make_folder(".tmp")
            try:
                os.rename(path, os.path.join(self.root, ".tmp", temporary_name(folder)))
            except FileNotFoundError:
                # A concurrent delete has removed the folder, because it had become empty.
                if os.path.lexists(path):
                    raise
        self._sync_folder(self.root)

    def list_leftovers(self, folder: str, more: Any = None) -> Page[str]:
        """The files in folders that `detach` renamed away. On the way, temporary files whose writer
        is dead are removed."""
        return page_of(more or self._list_leftovers(folder))

    def _list_leftovers(self, folder: str) -> Iterator[str]:
        tmp = os.path.join(self.root, ".tmp")
        refuse_link(tmp)
        try:
            names = [name for name in os.listdir(tmp) if name.startswith(f"{folder}~")]
        except FileNotFoundError:
            return
        for name in names:
            path = os.path.join(tmp, name)
            if os.path.isdir(path) and not os.path.islink(path):
                for file in files_in(path):
                    yield f".tmp/{name}/{file.name}"
                # Here an empty folder goes. Any other goes with the last of its files, in `delete`.
                with suppress(OSError):
                    os.rmdir(path)
            else:
                sweep(path)

    def remove_all(self) -> None:
        if os.path.lexists(self.root):
            shutil.rmtree(self.root)
        with suppress(OSError):
            while self._made_above:
                os.rmdir(self._made_above.pop())

    def _names(self, folders: Sequence[str]) -> Iterator[str]:
        files = chain.from_iterable(files_in(os.path.join(self.root, path)) for path in folders)
        return (entry.name for entry in files)

    def _path(self, key: str) -> str:
        *folders, name = key.split("/")
        path = self.root
        for folder in folders:
            path = f"{path}{os.sep}{folder}"
            refuse_link(path)
        return f"{path}{os.sep}{name}"

    def _open(self, key: str) -> tuple[int, int]:
        """Opens a file for reading, and returns its descriptor and its size."""
        descriptor = os.open(self._path(key), READ)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError("not a regular file: move it away")
            return descriptor, found.st_size
        except BaseException:
            os.close(descriptor)
            raise

    def _locked(self, folder: str, change: Callable[[], _T]) -> _T:
        self._make_folder(".locks")
        return under_lock(os.path.join(self.root, ".locks"), folder, change)

    def _make_folder(self, folder: str) -> None:
        path = os.path.join(self.root, folder)
        refuse_link(path)
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(path)
                if len(path) < len(self.root):
                    self._made_above.append(path)
            self._sync_folder(os.path.dirname(path))

    def _sync_ancestors(self) -> None:
        if not self._ancestors_synced:
            path = self.root
            while path != (path := os.path.dirname(path)):
                with suppress(OSError):  # Not every user may open all the folders above.
                    self._sync_folder(path)
            self._ancestors_synced = True

    def _sync_folder(self, path: str) -> None:
        if self.durable and sys.platform != "win32":
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                return  # The folder was cleared meanwhile, so there is nothing to sync.
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def publish(
        self, temporary: str, key: str, place: Callable[[str, str], None], *, locked: bool
    ) -> None:
        """Moves a complete temporary file to its key with `place`, and syncs the folder."""
        folder = key.partition("/")[0]
        if self._folds_case and not locked:
            return self._locked(folder, lambda: self.publish(temporary, key, place, locked=True))
        for _ in range(_TRIES):
            path = self._path(key)
            if self._folds_case and os.path.lexists(path) and not self._spelled(key):
                raise InvalidNameError(
                    f"the file {key} would replace one whose name differs only in upper and "
                    "lower case, which this disk does not tell apart: choose another name"
                )
            try:
                place(temporary, path)
                return self._sync_folder(os.path.dirname(path))
            except FileNotFoundError:
                # A concurrent clear has taken the folder away, and may do so again.
                if not os.path.lexists(temporary):
                    break
                self._make_folder(folder)
        raise ContentionError(
            f"{key} could not be published, because somebody removed its folder or .tmp while it "
            "was written: find out who, and write it again"
        )

    @cached_property
    def _folds_case(self) -> bool:
        """Whether this disk takes upper and lower case for the same. It needs the folder `.tmp`."""
        return os.path.isdir(os.path.join(self.root, ".TMP"))

    def _spelled(self, key: str) -> bool:
        """Whether an existing file or folder has exactly this name, in this case of letters."""
        folder, _, name = key.rpartition("/")
        path = os.path.join(self.root, folder)
        # If the other case is not found, the disk tells them apart, and the folder is not listed.
        return not os.path.lexists(os.path.join(path, name.swapcase())) or name in os.listdir(path)


class _LocalUpload(Upload):
    """A temporary file on the same disk. Its lock tells `list_leftovers` that it has a writer."""

    def __init__(
        self, filesystem: LocalFilesystem, key: str, *, locked: bool = False, create: bool = False
    ) -> None:
        self._filesystem = filesystem
        self._key = key
        self._locked = locked
        self._place = link if create else os.replace
        self._folder = key.partition("/")[0]
        self._descriptor = -1
        # The name is set before the file is made, so that no interrupt leaves it without one.
        self._path = self._temporary_path()
        super().__init__()
        try:
            while not self._create():
                self._path = self._temporary_path()
        except BaseException:
            self.discard()
            raise

    def _temporary_path(self) -> str:
        return self._filesystem._path(f".tmp/{temporary_name(self._folder)}")

    def _create(self) -> bool:
        """Makes the file and locks it. Returns False if it was swept away before it was locked."""
        try:
            self._descriptor = os.open(self._path, CREATE, 0o666)
        except FileNotFoundError:
            self._filesystem._make_folder(".tmp")
            self._descriptor = os.open(self._path, CREATE, 0o666)
        if sys.platform == "win32":  # On Windows nobody can remove an open file.
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        if os.fstat(self._descriptor).st_nlink:
            return True
        self._close()
        return False

    def write(self, data: Data) -> None:
        write_all(self._descriptor, data)

    def _commit(self) -> None:
        if self._filesystem.durable:
            os.fsync(self._descriptor)
        if sys.platform == "win32":
            self._close()
        self._filesystem.publish(self._path, self._key, self._place, locked=self._locked)
        if self._place is link:
            self._discard()
        self._close()

    def _discard(self) -> None:
        self._close()
        # The file may never have been made. One that stays is swept later.
        with suppress(OSError):
            os.unlink(self._path)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
