"""From a URL to the filesystem that serves it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from ..errors import InvalidURLError
from .base import Filesystem

__all__ = ["Filesystem", "connect"]

MAX_PREFIX_BYTES = 512
"""S3 allows keys of 1,024 bytes, and a workflow with a task and its token may take 467."""

# One letter before a colon is a Windows drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
# They would answer from copies that nobody keeps up to date.
_CACHING = {"blockcache", "cached", "filecache", "simplecache"}


def connect(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    durable: bool = True,
    max_concurrency: int = 32,
) -> Filesystem:
    """The filesystem at `url`, without any input or output yet."""
    text = os.fspath(url)
    if not isinstance(text, str):
        raise InvalidURLError(f"a URL must be a str or a path, not {type(url).__name__}")
    options = dict(storage_options or {})
    scheme, rest = _split(text)
    if scheme in ("file", "local"):
        return _local(rest, options, durable=durable)

    # Whatever it is, it might be a secret: the URL is not repeated in this one message.
    if "@" in rest.partition("/")[0]:
        _refuse(f"{scheme}://…", "holds a user name or password: give them in storage_options")
    path = rest.rstrip("/")
    if re.search(r"[?#\x00-\x1f\x7f]", path):
        _refuse(text, "holds '?', '#' or a control character: leave them out")
    if any(part in ("", ".", "..") for part in path.split("/")[1:]):
        _refuse(text, "holds an empty, '.' or '..' segment, which storage takes literally")
    if scheme == "memory":
        from .memory import MemoryFilesystem

        _refuse_options(text, options)
        return MemoryFilesystem(f"/{path}" if path else "")
    if scheme in ("s3", "s3a"):
        from .s3 import S3Filesystem

        bucket, _, prefix = path.partition("/")
        if not bucket:
            _refuse(text, "names no bucket: write s3://bucket/prefix")
        if len(prefix.encode("utf-8", "surrogatepass")) > MAX_PREFIX_BYTES:
            _refuse(text, f"is too long: S3 keys leave {MAX_PREFIX_BYTES} bytes for the prefix")
        return S3Filesystem(bucket, prefix, options, max_concurrency=max_concurrency)
    return _generic(text, scheme, rest, options, max_concurrency=max_concurrency)


def _split(text: str) -> tuple[str, str]:
    if not text or "\0" in text:
        _refuse(text, "is empty or holds a NUL: name a folder or a URL")
    match = _SCHEME.match(text)
    if match is None:
        return "file", os.path.abspath(os.path.expanduser(text))
    scheme, rest = match[1].lower(), text[match.end() :]
    if not rest.startswith("//"):
        _refuse(text, f"is neither a path nor a URL: write {scheme}://… or ./{text}")
    if "::" in text:
        _refuse(text, "chains filesystems with '::': give the URL of the last one alone")
    return scheme, rest[2:]


def _local(path: str, options: Mapping[str, Any], *, durable: bool) -> Filesystem:
    from .local import LocalFilesystem

    _refuse_options(path, options)
    if not os.path.isabs(path):
        _refuse(f"file://{path}", f"is not absolute: write file:///{path}, or {path!r} alone")
    return LocalFilesystem(os.path.normpath(path), durable=durable)


def _generic(
    text: str, scheme: str, rest: str, options: Mapping[str, Any], *, max_concurrency: int
) -> Filesystem:
    import fsspec

    from .generic import GenericFilesystem

    if scheme in _CACHING:
        _refuse(text, "is a cache, which may be out of date: give the URL of what it caches")
    try:
        implementation = fsspec.get_filesystem_class(scheme)
    except ValueError:
        _refuse(text, f"has a protocol that fsspec does not know: {scheme}")
    url = f"{scheme}://{rest}"
    # What the URL itself says of the server, such as its host.
    options = {**implementation._get_kwargs_from_urls(url), **options}
    path = implementation._strip_protocol(url).rstrip("/")
    return GenericFilesystem(scheme, path, options, max_concurrency=max_concurrency)


def _refuse_options(text: str, options: Mapping[str, Any]) -> None:
    if options:
        _refuse(text, f"takes no storage_options, but was given {', '.join(sorted(options))}")


def _refuse(text: str, why: str) -> NoReturn:
    raise InvalidURLError(f"{text!r} {why}")
