"""Any other fsspec filesystem, without conditional writes."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Self

import fsspec

from . import loop  # noqa: F401 - after a fork it resets fsspec's
from .base import (
    CREATE,
    SMALL_BYTES,
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
    write_all,
)
from .urls import URL, check_path, refuse

# These filesystems answer from local copies, which nobody keeps up to date.
_CACHING = {"blockcache", "cached", "filecache", "simplecache"}


class GenericFilesystem(Filesystem):
    """Only methods that take a path literally are called: fsspec's `rm`, `cat` and `get` expand
    globs, and its `exists` hides errors."""

    conditional_writes: bool | None = False
    conditions: tuple[str, str] | None = None
    durability = "unknown: up to the server behind this protocol"

    extra = ""
    """The extra of this package that installs the implementation, if there is one."""

    def __init__(
        self, protocol: str, path: str, options: Mapping[str, Any], *, max_concurrency: int
    ) -> None:
        self._protocol = protocol
        self._url_path = path
        self._options = dict(options)
        # Each process has an instance of its own: an inherited one is not safe to use after a fork,
        # and it is kept, because some need a second to be dropped.
        self._instances: dict[int, Any] = {}
        is_async = getattr(fsspec.get_filesystem_class(protocol), "async_impl", False)
        self.max_concurrency = max_concurrency if is_async else 1

    @classmethod
    def at(cls, url: URL, settings: Settings) -> Self:
        check_path(url)
        if url.protocol in _CACHING:
            refuse(url.text, "is a cache, which may be out of date: give the URL of what it caches")
        try:
            implementation = fsspec.get_filesystem_class(url.protocol)
        except ImportError as error:
            if not cls.extra:
                raise
            raise ImportError(
                f"{url.protocol}:// needs pip install 'checkpoint-store[{cls.extra}]'"
            ) from error
        # An AttributeError comes from a package that no longer has the protocol.
        except (AttributeError, ValueError):
            why = f"has a protocol that fsspec does not know, {url.protocol}: check its spelling"
            refuse(url.text, why)
        plain = f"{url.protocol}://{url.rest}"
        try:
            # The URL itself may say where the server is, such as its host and port.
            options = {**implementation._get_kwargs_from_urls(plain), **settings.options}
            path = str(implementation._strip_protocol(plain)).rstrip("/")
        except Exception:  # noqa: BLE001
            why = f"is not what fsspec expects of a URL with {url.protocol}: correct it"
            refuse(url.text, why)
        return cls(url.protocol, path, options, max_concurrency=settings.max_concurrency)

    @property
    def _fs(self) -> Any:
        process = os.getpid()
        return self._instances.get(process) or self._instances.setdefault(process, self._connect())

    def _connect(self) -> Any:
        # An instance of our own, so that no cache or transaction of somebody else is involved.
        fs = fsspec.filesystem(self._protocol, skip_instance_cache=True, **self._options)
        fs.dircache.use_listings_cache = False
        return fs

    def _path(self, key: str = "") -> str:
        return f"{self._url_path}/{key}".rstrip("/")

    def read(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> bytes:  # noqa: ARG002
        return bytes(self._fs.cat_file(self._path(key)))

    def read_small(self, key: str) -> Stored:
        path = self._path(key)
        try:
            data = self._fs.cat_file(path, start=0, end=SMALL_BYTES)
        except FileNotFoundError:
            raise
        except Exception:
            # Many filesystems refuse to read a range of an empty file.
            if self._fs.info(path)["size"] != 0:
                raise
            data = b""
        return Stored(bytes(data[:SMALL_BYTES]))  # Some filesystems ignore the limits.

    def contains(self, key: str) -> bool:
        try:
            return bool(self._fs.info(self._path(key))["type"] == "file")
        except FileNotFoundError:
            return False

    def write(self, key: str, parts: Sequence[Data]) -> None:
        data = b"".join(parts)
        self._publish(key, lambda path: self._fs.pipe_file(path, data))

    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        try:
            current: Stored | None = self.read_small(key)
        except FileNotFoundError:
            current = None
        if current != old:
            return False
        self.write(key, [data])
        return True

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        failures = {}
        for key in keys:
            try:
                self._fs.rm_file(self._path(key))
            except FileNotFoundError:
                pass
            except Exception as error:  # noqa: BLE001
                failures[key] = str(error) or type(error).__name__
        return failures

    def list_files(self, folder: str, more: Any = None, sizes: bool = False) -> Page[Entry]:  # noqa: FBT001, FBT002
        return page_of(more or self._files(folder, sizes=sizes))

    def list_folders(self, has: Callable[[str], bool], more: Any = None) -> Page[str]:
        return page_of(more or self._list_folders(has))

    def _list_folders(self, has: Callable[[str], bool]) -> Iterator[str]:
        for entry in self._list(self._path()):
            if entry["type"] == "directory":
                folder = _name(entry)
                if any(has(file.name) for file in self._files(folder)):
                    yield folder

    def remove_all(self) -> None:
        folders = list(self._list_folders(bool))
        super().remove_all()
        # Some filesystems have no folders, or none that can be removed.
        for path in [*map(self._path, folders), self._path()]:
            with suppress(Exception):
                self._fs.rmdir(path)

    def open_read(self, key: str) -> Source:
        source: Source = self._fs.open(self._path(key), "rb")
        return source

    def open_write(self, key: str) -> Upload:
        return _SpooledUpload(self, key)

    def put(self, local_path: str, key: str) -> None:
        self._publish(key, lambda path: self._fs.put_file(local_path, path))

    def _files(self, folder: str, *, sizes: bool = False) -> Iterator[Entry]:
        for entry in self._list(self._path(folder)):
            if entry["type"] != "file":
                continue
            if sizes:
                yield Entry(_name(entry), entry.get("size") or 0, _written(entry))
            else:
                yield Entry(_name(entry))

    def _list(self, path: str) -> list[dict[str, Any]]:
        fs = self._fs
        fs.invalidate_cache()
        try:
            return list(fs.ls(path, detail=True))
        except FileNotFoundError:
            return []

    def _publish(self, key: str, send: Callable[[str], object]) -> None:
        path = self._path(key)
        try:
            send(path)
        except FileNotFoundError:
            try:
                self._make_folders(path.rpartition("/")[0])
                send(path)
            except FileNotFoundError as error:
                raise OSError(f"{path} cannot be created: {error}") from error

    def _make_folders(self, path: str) -> None:
        # The first level is never made: on an object store it is the bucket.
        parts = path.split("/")
        first = 2 if path.startswith("/") else 1
        for count in range(first + 1, len(parts) + 1):
            with suppress(FileExistsError):
                self._fs.mkdir("/".join(parts[:count]), create_parents=False)


class _SpooledUpload(Upload):
    """Collects a stream in a local temporary file, because few filesystems can discard one.

    It is no `tempfile.TemporaryFile`: a forked child that drops one of those writes its buffer into
    the parent's file, and deletes it.
    """

    def __init__(self, filesystem: GenericFilesystem, key: str) -> None:
        self._filesystem = filesystem
        self._key = key
        self._descriptor = -1
        # The name is set before the file is made, so that no interrupt leaves it without one.
        self._path = os.path.join(tempfile.gettempdir(), f"checkpoint-{secrets.token_hex(16)}")
        super().__init__()
        self._descriptor = os.open(self._path, CREATE, 0o600)

    def write(self, data: Data) -> None:
        write_all(self._descriptor, data)

    def _commit(self) -> None:
        self._filesystem.put(self._path, self._key)
        self._discard()

    def _discard(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        with suppress(OSError):  # The file may never have been made.
            os.unlink(self._path)


def _written(entry: Mapping[str, Any]) -> float | None:
    # fsspec has no common name for the time of the last change.
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        match entry.get(name):
            case datetime() as when:
                return when.timestamp()
            case int() | float() as seconds:
                return float(seconds)
            case str() as text:
                with suppress(ValueError):
                    return datetime.fromisoformat(text).timestamp()
    return None


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]
