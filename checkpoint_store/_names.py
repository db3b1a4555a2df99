"""Turns workflow ids and task names into segments of keys, and back.

A segment consists of ASCII letters, digits, `_`, `-` and `.` (none leading or trailing); everything
else is `%XX` of its UTF-8. The encoding is injective and only its canonical form decodes, so two
names never share a key, none leaves the root, and a foreign file is never taken for ours.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from .errors import InvalidNameError

RECORD = ".fingerprint"
"""The name of the record in a workflow's folder. No encoded name starts with a dot."""

MAX_SEGMENT_BYTES = 200
"""File systems allow names of 255 bytes. A task's file is named `segment@token`, and the names of
temporary files need some bytes, too."""

_SEGMENT = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
_UNSAFE = re.compile(r"\A\.|\.\Z|[^A-Za-z0-9_.-]")
_TOKEN = re.compile(r"[0-9a-f]{16,64}")


def encode_name(name: str, what: str) -> str:
    """The key segment of `name`; `what` ("workflow id", "task name") is for the error message."""
    if not isinstance(name, str):
        raise InvalidNameError(f"a {what} must be a str, not {type(name).__name__}: convert it")
    if not name:
        raise InvalidNameError(f"a {what} must not be empty: give it a name")
    # An instance of a subclass may print as another text than it holds.
    segment = _segment(str.__str__(name))
    if len(segment) > MAX_SEGMENT_BYTES:
        raise InvalidNameError(
            f"the {what} {name[:24]!r}… is too long: encoded as a key it takes {len(segment)} "
            f"bytes of at most {MAX_SEGMENT_BYTES} (ASCII letters and digits take 1 each, other "
            "characters 3 to 12, so about 22 of Chinese or Japanese fit); shorten it"
        )
    return segment


def decode_name(segment: str) -> str | None:
    """The name whose segment this is, or None if it is not the canonical segment of any name."""
    try:
        name = unquote_to_bytes(segment).decode("utf-8", "surrogatepass")
        return name if encode_name(name, "name") == segment else None
    except (UnicodeError, InvalidNameError):
        return None


def fold_alike(one: str, other: str) -> bool:
    """Whether two names share a file on a disk that does not tell upper from lower case."""
    return _segment(one).lower() == _segment(other).lower()


def is_token(text: object) -> bool:
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None


def file_name(task_segment: str, token: str) -> str:
    return f"{task_segment}@{token}"


def parse_file_name(name: str) -> tuple[str, str] | None:
    """The task and the token in the name of a checkpoint file; None for any other name."""
    segment, _, token = name.rpartition("@")
    task = decode_name(segment)
    return (task, token) if task is not None and is_token(token) else None


def is_ours(name: str) -> bool:
    """Whether a file in a workflow's folder is its record or a checkpoint."""
    return name == RECORD or parse_file_name(name) is not None


@lru_cache(maxsize=1024)
def _segment(name: str) -> str:
    return name if _SEGMENT.fullmatch(name) else _UNSAFE.sub(_escape, name)


def _escape(match: re.Match[str]) -> str:
    encoded = match[0].encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in encoded)
