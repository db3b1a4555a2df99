"""From a URL to the filesystem that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from .base import Filesystem, Settings
from .urls import (
    AZURE,
    GOOGLE,
    LOCAL,
    S3,
    Location,
    UPath,
    split,
    text_of,
)

__all__ = ["Filesystem", "Location", "connect", "text_of"]

_REGISTRY = {
    **dict.fromkeys(LOCAL, ("local", "LocalFilesystem")),
    "memory": ("memory", "MemoryFilesystem"),
    **dict.fromkeys(S3, ("s3", "S3Filesystem")),
    **dict.fromkeys(AZURE, ("conditional", "AzureFilesystem")),
    **dict.fromkeys(GOOGLE, ("conditional", "GoogleFilesystem")),
}
"""For each protocol the module and the class of its filesystem, which are imported when needed."""

_ANY_OTHER = ("generic", "GenericFilesystem")


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
    own_options = url.storage_options if isinstance(url, UPath) else {}
    options = {**own_options, **(storage_options or {})}
    parts = split(text)
    module, name = _REGISTRY.get(parts.protocol, _ANY_OTHER)
    kind: type[Filesystem] = getattr(import_module(f".{module}", __name__), name)
    filesystem = kind.at(parts, Settings(options, durable, max_concurrency))
    # From another working folder a relative path would lead elsewhere.
    filesystem.url = parts.rest if parts.protocol in LOCAL else text
    filesystem.made_by = partial(
        connect, filesystem.url, options, durable=durable, max_concurrency=max_concurrency
    )
    return filesystem
