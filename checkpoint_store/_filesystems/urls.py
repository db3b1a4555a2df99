"""What a URL means, and which are refused because they would mean something else than they seem
to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

from ..errors import InvalidURLError

LOCAL = ("file", "local")
S3 = ("s3", "s3a")
AZURE = ("abfs", "abfss", "az")
GOOGLE = ("gs", "gcs")
"""The protocols of one kind of storage each."""

# A single letter before a colon is the drive of a Windows path, and no scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
# Digits after a host's colon are a port. Anything else may be a password, also one with slashes.
_USERINFO = re.compile(r"[^/]*@|[^/]*:(?!\d*(/|\Z)).*@", re.DOTALL)
# On Azure the part before the @ is no user name: it names the container, and the host the account.
_CONTAINER = re.compile(r"[a-z0-9-]+@[a-z0-9]+\.(dfs|blob)\.core\.windows\.net(/|\Z)")
# The ARN of an access point takes the place of a bucket. botocore has the same rules.
ARN = re.compile(
    r"arn:aws[a-z-]*:(?:"
    # The region is empty if the access point spans several.
    r"s3:[a-z0-9-]*:\d{12}:accesspoint[/:][A-Za-z0-9.-]{1,63}|"
    r"s3-object-lambda:[a-z0-9-]+:\d{12}:accesspoint[/:][A-Za-z0-9-]{1,63}|"
    r"s3-outposts:[a-z0-9-]+:\d{12}:outpost[/:][A-Za-z0-9-]{1,63}[/:]accesspoint[/:][A-Za-z0-9-]{1,63}"
    r")(?![^/?#])",
    re.ASCII,
)


class URL(NamedTuple):
    """A URL as it was given, its protocol, and what follows the two slashes; of a local path,
    all."""

    text: str
    protocol: str
    rest: str


@runtime_checkable
class UPath(Protocol):
    """The attributes by which a `UPath` of universal_pathlib is told: a remote one is no
    `os.PathLike`."""

    @property
    def protocol(self) -> str: ...
    @property
    def storage_options(self) -> Mapping[str, Any]: ...


Location = str | os.PathLike[str] | UPath


def text_of(url: Location) -> str:
    """The URL or path as text. That of a `UPath` does not tell its options."""
    if isinstance(url, UPath):
        text = str(url)
        if url.protocol not in ("", "file", "local") and "://" not in text:
            refuse(text, "is relative to a URL and would become a folder here: join the two")
        return text
    text = os.fspath(url) if isinstance(url, os.PathLike) else url
    if not isinstance(text, str):
        raise InvalidURLError(f"a URL must be a str or a path, not a {type(url).__name__}")
    return text


def split(text: str) -> URL:
    """The parts of a URL or of a local path."""
    if not text or "\0" in text:
        refuse(text, "is empty or holds a NUL: name a folder or a URL")
    match = _SCHEME.match(text)
    if match is None:
        if "://" in text:
            refuse(text, "is neither a path nor a URL: correct what stands before '://'")
        try:
            return URL(text, "file", os.path.abspath(os.path.expanduser(text)))
        except (OSError, ValueError):
            refuse(text, "leads to no folder: give an absolute path")
    scheme, rest = match[1].lower(), text[match.end() :]
    checked = rest
    if scheme in S3 and rest.startswith("//arn:"):
        arn = ARN.match(rest, 2)
        if arn is None:
            refuse(
                text,
                "has an ARN that is none of an access point: write the name of the bucket in its "
                "place, or arn:aws:s3:region:account:accesspoint/name with the account's 12 digits",
            )
        # The colons within the ARN neither chain filesystems nor set off a password.
        checked = f"//{rest[arn.end() :]}"
    if "::" in f"{scheme}:{checked}":
        refuse(text, "chains filesystems with '::': give the URL of the last one alone")
    if not rest.startswith("//"):
        refuse(text, f"is neither a path nor a URL: write {scheme}://… or begin a path with ./")
    is_container = scheme in AZURE and _CONTAINER.match(rest[2:])
    if _USERINFO.match(checked[2:]) and not is_container:
        refuse(text, "holds a user name or password: give them in storage_options")
    if scheme not in LOCAL:
        return URL(text, scheme, rest[2:])
    if not os.path.isabs(rest[2:]):
        refuse(text, "is not absolute: write file:///…, or the path alone")
    return URL(text, scheme, os.path.normpath(rest[2:]))


def check_path(url: URL) -> str:
    """The path of a remote URL, without slashes at its end."""
    path = url.rest.rstrip("/")
    parts = path.split("/")
    if re.search(r"[?#\x00-\x1f\x7f]", path):
        refuse(url.text, "holds '?', '#' or a control character: leave them out")
    if "" in parts[1:] or {".", ".."} & set(parts):
        refuse(url.text, "holds an empty, '.' or '..' segment, which storage takes literally")
    return path


def refuse_options(text: str, options: Mapping[str, Any]) -> None:
    if options:
        refuse(text, f"takes no storage_options, but was given {', '.join(sorted(options))}")


def refuse(text: str, why: str) -> NoReturn:
    # The parts before an @ and after a ? are not repeated: they might be secrets.
    _, at, behind = text.rpartition("@")
    shown = (f"…@{behind}" if at else behind).partition("?")[0]
    raise InvalidURLError(f"{shown!r} {why}") from None
