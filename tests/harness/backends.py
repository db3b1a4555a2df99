"""The kinds of storage that the contract is tested on.

Each `Backend` makes stores of one kind and looks at what they stored by another way than the code
under test: `pathlib`, the dict inside fsspec's memory filesystem, boto3, or the clients of Azure
and Google. Whoever adds a kind adds its class here, its server to `servers`, and to `conftest` a
fixture that starts the server.
"""

from __future__ import annotations

import itertools
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from checkpoint_store import CheckpointStore

from .buckets import Bucket, s3_client

KINDS = ("memory", "local", "moto", "ministack", "generic")
"""The kinds that every promise is tested on."""

EMULATORS = ("azure", "google") if find_spec("adlfs") or find_spec("gcsfs") else ()
"""The kinds that some tests run on as well. There are none where neither package is installed."""

large_bodies = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
"""Silences a warning of aiohttp: the clients of the emulators send large bodies in one piece."""

RECORD = ".fingerprint"

SIBLINGS = {
    "wf1": "wf1",
    "wf-1": "wf-1",
    "wf.": "wf%2E",
    "WF": "WF",
    "wf/t": "wf%2Ft",
    "wf%2Ft": "wf%252Ft",
    "wf*": "wf%2A",
    "wf@x": "wf%40x",
    "w": "w",
}
"""Workflows beside `wf` that a careless prefix, glob or encoding would take for it, with the folder
of each."""

_numbers = itertools.count()


class PlainFileSystem(LocalFileSystem):
    """An fsspec filesystem that this library has never heard of. It makes no parent folders."""

    protocol = "plain"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        # In old versions of fsspec this method strips no protocol but that of local files.
        if isinstance(path, str):
            path = path.removeprefix("plain://")
        return super()._strip_protocol(path)


fsspec.register_implementation("plain", PlainFileSystem, clobber=True)


class Backend(ABC):
    """A root, `url`, in a storage that has other files, too."""

    kind: ClassVar[str]
    conditional_writes: ClassVar[bool | None]
    storage_options: Mapping[str, Any] | None = None
    folds_case = False
    url: str

    def store(self, **options: Any) -> CheckpointStore:
        return CheckpointStore(self.url, storage_options=self.storage_options, **options)

    def files(self) -> dict[str, bytes]:
        """All files under the root by their keys there, without the lock files of a local disk."""
        return {
            key.removeprefix(self.inside): data
            for key, data in self.everything().items()
            if key.startswith(self.inside) and not key.startswith(f"{self.inside}.locks/")
        }

    def outside(self) -> dict[str, bytes]:
        """All files of this storage that are not under the root."""
        everything = self.everything()
        return {key: data for key, data in everything.items() if not key.startswith(self.inside)}

    def distinct(self, names: Iterable[str]) -> list[str]:
        """The names without those that would share a file because the disk folds case."""
        by_file = {name.casefold() if self.folds_case else name: name for name in names}
        return list(by_file.values())

    def unfinished_uploads(self) -> list[str]:
        """The keys of uploads that were begun and neither completed nor aborted."""
        return []

    def forget(self) -> None:
        """Removes what would outlive the test and take up room; a server is stopped anyway."""
        return

    @property
    @abstractmethod
    def inside(self) -> str:
        """The prefix that the keys of files under the root have in `everything`."""

    @abstractmethod
    def everything(self) -> dict[str, bytes]:
        """All files of the storage, under the root and beside it."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Makes or replaces the file at `key` under the root."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Removes the file at `key` under the root, which must exist."""


class _OnDisk(Backend):
    inside = "root/"

    def forget(self) -> None:
        shutil.rmtree(self.folder)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        (folder / "root1").mkdir()
        (folder / "root1" / "beside").write_bytes(b"beside")

    def everything(self) -> dict[str, bytes]:
        return {
            (Path(folder) / name).relative_to(self.folder).as_posix(): (
                Path(folder) / name
            ).read_bytes()
            for folder, _, names in os.walk(self.folder)
            for name in names
        }

    def put(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def remove(self, key: str) -> None:
        (self.root / key).unlink()


class LocalBackend(_OnDisk):
    kind = "local"
    conditional_writes = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = str(self.root)
        (folder / "case").touch()
        self.folds_case = (folder / "CASE").exists()
        (folder / "case").unlink()


class GenericBackend(_OnDisk):
    kind = "generic"
    conditional_writes = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = f"plain://{self.root.as_posix()}"


class MemoryBackend(Backend):
    kind = "memory"
    conditional_writes = True

    def __init__(self) -> None:
        self.area = f"/contract-{os.getpid()}-{next(_numbers)}/"
        self.url = f"memory:/{self.area}root"
        MemoryFileSystem().pipe_file(f"{self.area}root1/beside", b"beside")

    @property
    def inside(self) -> str:
        return f"{self.area}root/"

    def everything(self) -> dict[str, bytes]:
        files = tuple(MemoryFileSystem.store.items())
        return {path: file.getvalue() for path, file in files if path.startswith(self.area)}

    def put(self, key: str, data: bytes) -> None:
        MemoryFileSystem().pipe_file(self.inside + key, data)

    def remove(self, key: str) -> None:
        del MemoryFileSystem.store[self.inside + key]

    def forget(self) -> None:
        for path in [path for path in MemoryFileSystem.store if path.startswith(self.area)]:
            del MemoryFileSystem.store[path]


class S3Backend(Backend):
    """A bucket of its own on a server at `endpoint`."""

    conditional_writes = True
    inside = "some/root/"

    def __init__(self, endpoint: str, *, through: str | None = None) -> None:
        """Stores use the endpoint `through` if there is one; the helpers always use `endpoint`."""
        self.storage_options = {
            "key": "contract-key",
            "secret": "contract-secret",
            "endpoint_url": through or endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }
        self.client = s3_client(endpoint)
        self.bucket = f"contract-{os.getpid()}-{next(_numbers)}"
        self._seen = Bucket(endpoint, self.bucket, self.client)
        self.client.create_bucket(Bucket=self.bucket)
        self.client.put_object(Bucket=self.bucket, Key="some/root1/beside", Body=b"beside")
        self.url = f"s3://{self.bucket}/some/root"

    def keys(self) -> list[str]:
        return self._seen.keys()

    def everything(self) -> dict[str, bytes]:
        return {key: self._seen.get(key) for key in self.keys()}

    def put(self, key: str, data: bytes) -> None:
        self._seen.put(self.inside + key, data)

    def remove(self, key: str) -> None:
        self.client.head_object(Bucket=self.bucket, Key=self.inside + key)
        self.client.delete_object(Bucket=self.bucket, Key=self.inside + key)

    def unfinished_uploads(self) -> list[str]:
        return [upload["Key"] for upload in self._seen.uploads()]


class MotoBackend(S3Backend):
    kind = "moto"


class MinistackBackend(S3Backend):
    kind = "ministack"


class SFTPBackend(GenericBackend):
    """The same folder through an SFTP server on this machine."""

    kind = "sftp"

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder)
        self.url = f"sftp://127.0.0.1:{port}{self.root.as_posix()}"
        self.storage_options: Mapping[str, Any] = {
            "username": "contract",
            "password": "contract-secret",
            "allow_agent": False,
            "look_for_keys": False,
        }


class EmulatedBackend(Backend):
    """A bucket or container of its own on an emulator at `endpoint`."""

    conditional_writes = True
    inside = "some/root/"
    scheme: ClassVar[str]

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.storage_options = self.options(endpoint)
        self.bucket = f"contract-{os.getpid()}-{next(_numbers)}"
        self.url = f"{self.scheme}://{self.bucket}/some/root"

    @abstractmethod
    def options(self, endpoint: str) -> dict[str, str]:
        """What a store needs to go through this endpoint."""

    @abstractmethod
    def buckets(self) -> set[str]: ...


class AzureBackend(EmulatedBackend):
    kind = "azure"
    scheme = "abfs"

    def __init__(self, endpoint: str) -> None:
        from azure.storage.blob import BlobServiceClient

        super().__init__(endpoint)
        connection = self.options(endpoint)["connection_string"]
        self.service = BlobServiceClient.from_connection_string(connection)
        self.container = self.service.create_container(self.bucket)
        self.container.upload_blob("some/root1/beside", b"beside")

    def options(self, endpoint: str) -> dict[str, str]:
        # Every Azurite has this account.
        account = "devstoreaccount1"
        key = (
            "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/"
            "K1SZFPTOtr/KBHBeksoGMGw=="
        )
        return {
            "connection_string": f"DefaultEndpointsProtocol=http;AccountName={account};"
            f"AccountKey={key};BlobEndpoint={endpoint}/{account};"
        }

    def buckets(self) -> set[str]:
        return {container.name for container in self.service.list_containers()}

    def everything(self) -> dict[str, bytes]:
        names = list(self.container.list_blob_names())
        return {name: self.container.download_blob(name).readall() for name in names}

    def put(self, key: str, data: bytes) -> None:
        self.container.upload_blob(self.inside + key, data, overwrite=True)

    def remove(self, key: str) -> None:
        self.container.delete_blob(self.inside + key)


class GoogleBackend(EmulatedBackend):
    kind = "google"
    scheme = "gs"

    def __init__(self, endpoint: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        super().__init__(endpoint)
        self.service = Client(
            "project", AnonymousCredentials(), client_options={"api_endpoint": endpoint}
        )
        self.blobs = self.service.create_bucket(self.bucket)
        self.blobs.blob("some/root1/beside").upload_from_string(b"beside")

    def options(self, endpoint: str) -> dict[str, str]:
        return {"endpoint_url": endpoint, "token": "anon"}

    def buckets(self) -> set[str]:
        return {bucket.name for bucket in self.service.list_buckets()}

    def everything(self) -> dict[str, bytes]:
        return {blob.name: blob.download_as_bytes() for blob in self.blobs.list_blobs()}

    def put(self, key: str, data: bytes) -> None:
        self.blobs.blob(self.inside + key).upload_from_string(data)

    def remove(self, key: str) -> None:
        self.blobs.blob(self.inside + key).delete()


class Untouchable:
    """Takes the place of a filesystem that must not be asked for anything."""

    max_concurrency = 1

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        def touch(*_: object) -> NoReturn:
            raise AssertionError(f"the filesystem was asked for {name}")

        return touch


def make_backend(kind: str, folder: Path, request: pytest.FixtureRequest) -> Backend:
    """Makes a storage of that kind. Its server runs for the whole session.

    The test is skipped where there is no such server.
    """
    if kind == "memory":
        return MemoryBackend()
    if kind == "local":
        return LocalBackend(folder)
    if kind == "generic":
        return GenericBackend(folder)
    if kind == "sftp":
        return SFTPBackend(folder, request.getfixturevalue("sftp_server"))
    if kind == "google":
        request.getfixturevalue("google_filesystem")
    if kind in ("moto", "ministack"):
        request.getfixturevalue("no_aws_environment")
    backends: dict[str, Callable[[str], Backend]] = {
        "moto": MotoBackend,
        "ministack": MinistackBackend,
        "azure": AzureBackend,
        "google": GoogleBackend,
    }
    return backends[kind](request.getfixturevalue(f"{kind}_server"))


def also_on(*kinds: str) -> pytest.MarkDecorator:
    """Marks a test that has the fixture `backend`: it is run on `KINDS` and on these kinds, too.

    This must be the last mark above the function, so that the kind comes first in the test's id.
    """
    further = [
        pytest.param(kind, marks=large_bodies if kind in EMULATORS else ()) for kind in kinds
    ]
    return pytest.mark.parametrize("backend", [*KINDS, *further], indirect=True)


_LONGEST = 200

HOSTILE_NAMES = (
    # Names that mean something in a path.
    ".", "..", "...", "./", "../", "../..", "../../..", "../wf", "../wf2/evil", "a/..", "a/../b",
    "a/./b", "a//b", "a/b", "a/", "/", "//", "/abs", "/etc/passwd", "~", "~root", "\\", "..\\..",
    "C:", "C:\\x", "C:/x", "\\\\host\\share", "a\\b",
    # Dots, blanks and case.
    ".a", "a.", ".a.", "a.b", "a..b", "..a", "-", "--help", "-rf", "_", " ", "a ", " a", "a b",
    "Load", "load", "LOAD", "\u0130", "\u0131", "ß", "SS", "\u017f",
    # Globs, escapes and URLs.
    "*", "**", "?", "[12]", "[!a]", "{a,b}", "wf*", "%", "%%", "%2e%2e", "%2E%2E", "%2F", "%2f",
    "%252F", "%00", "%zz", "100%", "#", "a#b", "?versionId=x", "a?versionId=null", "&", "a&b=c",
    "=", "+", "a+b", ";", ",", "!", "$HOME", "$(id)", "`id`", "'", '"', "<", ">", "|", "::",
    "s3://", "s3://bucket/key", "memory://x", "file:///etc/passwd", "simplecache::x", "a:b",
    # Control characters, and characters that cannot be seen.
    "\0", "a\0b", "\n", "a\nb", "\r\n", "\t", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202egpj.exe",
    "\u200b", "\ufeff", "\u00a0", "é", "e\u0301", "\u03a9", "\u2126", "\ufb01", "日本語",
    "😀", "👨\u200d👩\u200d👧", "\ud800", "\udfff", "\ud800a", "\ufffd", "\uffff", "\U0010ffff",
    "\ud83d\ude00", "a\ud83d\ude00b",
    # Names that this library and other programs give to files of their own.
    ".fingerprint", "fingerprint", "wf/.fingerprint", ".tmp", ".locks", ".tmp/x", "tmp~0123",
    "t@0123456789abcdef", "t@", "@", "@0123456789abcdef", "a@b@c", "wf.lock", "CON", "con.txt",
    "NUL", "aux", "COM1", "LPT1", "Thumbs.db", ".DS_Store", ".git", "lost+found", "desktop.ini",
    # The longest names that are allowed.
    "a" * _LONGEST, "." + "a" * (_LONGEST - 4) + "b", "日" * 22, "/" * 66, "😀" * 16,
)  # fmt: skip
"""Names that are all allowed. Each must end up in a file of its own, inside the root."""

TOO_LONG_NAMES = (
    "a" * (_LONGEST + 1), "a" * 255, "a" * 256, "a" * 1024, "a" * 4096, "日" * 23, "/" * 67,
    "." * (_LONGEST - 3), "\ud800" * 23,
)  # fmt: skip
UNUSABLE_NAMES = ("", None, 1, b"bytes", Path("path"), ["list"], object())
