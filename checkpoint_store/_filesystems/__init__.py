"""From a URL to the filesystem that serves it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

from ..errors import InvalidURLError
from .base import Filesystem

if TYPE_CHECKING:
    from .local import LocalFilesystem

__all__ = ["Filesystem", "Location", "connect", "text_of"]

MAX_PREFIX_BYTES = 512
"""S3 allows keys of 1,024 bytes, and a workflow with a task and its token may take 467."""

# A single letter before a colon is the drive of a Windows path, and no scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
# Digits after a host's colon are a port. Anything else may be a password, also one with slashes.
_USERINFO = re.compile(r"[^/]*@|[^/]*:(?!\d*(/|\Z)).*@", re.DOTALL)
# On Azure the part before the @ is no user name: it names the container, and the host the account.
_CONTAINER = re.compile(r"[a-z0-9-]+@[a-z0-9]+\.(dfs|blob)\.core\.windows\.net(/|\Z)")
# The ARN of an access point takes the place of a bucket. botocore has the same rules.
_ARN = re.compile(
    r"arn:aws[a-z-]*:(?:"
    # The region is empty if the access point spans several.
    r"s3:[a-z0-9-]*:\d{12}:accesspoint[/:][A-Za-z0-9.-]{1,63}|"
    r"s3-object-lambda:[a-z0-9-]+:\d{12}:accesspoint[/:][A-Za-z0-9-]{1,63}|"
    r"s3-outposts:[a-z0-9-]+:\d{12}:outpost[/:][A-Za-z0-9-]{1,63}[/:]accesspoint[/:][A-Za-z0-9-]{1,63}"
    r")(?![^/?#])",
    re.ASCII,
)
_S3 = ("s3", "s3a")
# Which extra of this package installs what a protocol needs.
_EXTRAS = {**dict.fromkeys(("abfs", "abfss", "az"), "azure"), **dict.fromkeys(("gs", "gcs"), "gcs")}
# These filesystems answer from local copies, which nobody keeps up to date.
_CACHING = {"blockcache", "cached", "filecache", "simplecache"}


@runtime_checkable
class _UPath(Protocol):
    """The attributes by which a `UPath` of universal_pathlib is told: a remote one is no
    `os.PathLike`."""

    @property
    def protocol(self) -> str: ...
    @property
    def storage_options(self) -> Mapping[str, Any]: ...


Location = str | os.PathLike[str] | _UPath


def text_of(url: Location) -> str:
    """The URL or path as text. That of a `UPath` does not tell its options."""
    if isinstance(url, _UPath):
        text = str(url)
        if url.protocol not in ("", "file", "local") and "://" not in text:
            _refuse(text, "is relative to a URL and would become a folder here: join the two")
        return text
    text = os.fspath(url) if isinstance(url, os.PathLike) else url
    if not isinstance(text, str):
        raise InvalidURLError(f"a URL must be a str or a path, not a {type(url).__name__}")
    return text


def connect(
    url: Location,
    storage_options: Mapping[str, Any] | None = None,
    *,
    durable: bool = True,
    max_concurrency: int = 32,
) -> Filesystem:
    """The filesystem at `url`. Nothing is read or written yet."""
    text = text_of(url)
    if not isinstance(storage_options, Mapping | None):
        raise TypeError(f"storage_options must be a dict, not {type(storage_options).__name__}")
    own_options = url.storage_options if isinstance(url, _UPath) else {}
    options = {**own_options, **(storage_options or {})}
    scheme, rest = _split(text)
    filesystem: Filesystem
    if scheme in ("file", "local"):
        filesystem = local = _local(rest, options, durable=durable)
        text = local.root  # From another working folder a relative path would lead elsewhere.
    else:
        filesystem = _remote(text, scheme, rest, options, max_concurrency)
    filesystem.url = text
    filesystem.made_by = partial(
        connect, text, options, durable=durable, max_concurrency=max_concurrency
    )
    return filesystem


def _remote(
    text: str, scheme: str, rest: str, options: Mapping[str, Any], max_concurrency: int
) -> Filesystem:
    path = rest.rstrip("/")
    parts = path.split("/")
    if re.search(r"[?#\x00-\x1f\x7f]", path):
        _refuse(text, "holds '?', '#' or a control character: leave them out")
    if ("" in parts[1:] and parts[0]) or {".", ".."} & set(parts):
        _refuse(text, "holds an empty, '.' or '..' segment, which storage takes literally")
    if scheme == "memory":
        from .memory import MemoryFilesystem

        _refuse_options(text, options)
        return MemoryFilesystem(f"/{path}" if path else "")
    if scheme in _S3:
        from .s3 import S3Filesystem

        arn = _ARN.match(path)
        bucket = arn[0] if arn else parts[0]
        if not bucket:
            _refuse(text, "names no bucket: write s3://bucket/prefix")
        prefix = path[len(bucket) + 1 :]
        if len(prefix.encode("utf-8", "surrogatepass")) > MAX_PREFIX_BYTES:
            _refuse(text, f"is too long: S3 keys leave {MAX_PREFIX_BYTES} bytes for the prefix")
        return S3Filesystem(bucket, prefix, options, max_concurrency=max_concurrency)
    return _generic(text, scheme, rest, options, max_concurrency=max_concurrency)


def _split(text: str) -> tuple[str, str]:
    if not text or "\0" in text:
        _refuse(text, "is empty or holds a NUL: name a folder or a URL")
    match = _SCHEME.match(text)
    if match is None:
        if "://" in text:
            _refuse(text, "is neither a path nor a URL: correct what stands before '://'")
        try:
            return "file", os.path.abspath(os.path.expanduser(text))
        except (OSError, ValueError):
            _refuse(text, "leads to no folder: give an absolute path")
    scheme, rest = match[1].lower(), text[match.end() :]
    checked = rest
    if scheme in _S3 and rest.startswith("//arn:"):
        arn = _ARN.match(rest, 2)
        if arn is None:
            _refuse(
                text,
                "has an ARN that is none of an access point: write the name of the bucket in its "
                "place, or arn:aws:s3:region:account:accesspoint/name with the account's 12 digits",
            )
        # The colons within the ARN neither chain filesystems nor set off a password.
        checked = f"//{rest[arn.end() :]}"
    if "::" in f"{scheme}:{checked}":
        _refuse(text, "chains filesystems with '::': give the URL of the last one alone")
    if not rest.startswith("//"):
        _refuse(text, f"is neither a path nor a URL: write {scheme}://… or begin a path with ./")
    is_container = _EXTRAS.get(scheme) == "azure" and _CONTAINER.match(rest[2:])
    if _USERINFO.match(checked[2:]) and not is_container:
        _refuse(text, "holds a user name or password: give them in storage_options")
    return scheme, rest[2:]


def _local(path: str, options: Mapping[str, Any], *, durable: bool) -> LocalFilesystem:
    from .local import LocalFilesystem

    _refuse_options(path, options)
    if not os.path.isabs(path):
        _refuse(f"file://{path}", "is not absolute: write file:///…, or the path alone")
    return LocalFilesystem(os.path.normpath(path), durable=durable)


def _generic(
    text: str, scheme: str, rest: str, options: Mapping[str, Any], *, max_concurrency: int
) -> Filesystem:
    import fsspec

    from .conditional import AzureFilesystem, GoogleFilesystem
    from .generic import GenericFilesystem

    if scheme in _CACHING:
        _refuse(text, "is a cache, which may be out of date: give the URL of what it caches")
    try:
        implementation = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        if extra := _EXTRAS.get(scheme):
            raise ImportError(
                f"{scheme}:// needs pip install 'checkpoint-store[{extra}]'"
            ) from error
        raise
    except (
        AttributeError,
        ValueError,
    ):  # An AttributeError comes from a package that no longer has the protocol.
        _refuse(text, f"has a protocol that fsspec does not know, {scheme}: check its spelling")
    url = f"{scheme}://{rest}"
    try:
        # The URL itself may say where the server is, such as its host and port.
        options = {**implementation._get_kwargs_from_urls(url), **options}
        path = str(implementation._strip_protocol(url)).rstrip("/")
    except Exception:  # noqa: BLE001
        _refuse(text, f"is not what fsspec expects of a URL with {scheme}: correct it")
    kinds: dict[str, type[GenericFilesystem]] = {"azure": AzureFilesystem, "gcs": GoogleFilesystem}
    kind = kinds.get(_EXTRAS.get(scheme, ""), GenericFilesystem)
    return kind(scheme, path, options, max_concurrency=max_concurrency)


def _refuse_options(text: str, options: Mapping[str, Any]) -> None:
    if options:
        _refuse(text, f"takes no storage_options, but was given {', '.join(sorted(options))}")


def _refuse(text: str, why: str) -> NoReturn:
    # The parts before an @ and after a ? are not repeated: they might be secrets.
    _, at, behind = text.rpartition("@")
    shown = (f"…@{behind}" if at else behind).partition("?")[0]
    raise InvalidURLError(f"{shown!r} {why}") from None
