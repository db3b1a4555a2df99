"""Small JSON objects: readable for people, and read with the care that unknown bytes need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import UnsupportedFormatError


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise ValueError("a key occurs twice")
    return parsed


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# json.dumps would make an encoder for each call.
_encoder = json.JSONEncoder(ensure_ascii=False)
_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def encode(fields: Mapping[str, object], indent: int | None = None) -> bytes:
    """Encodes as UTF-8, and so that any two different `str` differ, also with lone surrogates."""
    encoder = _encoder if indent is None else json.JSONEncoder(ensure_ascii=False, indent=indent)
    return encoder.encode(fields).encode("utf-8", "surrogatepass") + b"\n"


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Any other bytes are a `ValueError`."""
    try:
        parsed = _decoder.decode(data.decode("utf-8", "surrogatepass"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if type(parsed) is not dict:
        raise ValueError("not a JSON object")
    return parsed


def check_version(parsed: dict[str, Any], newest: int, subject: object) -> None:
    """Refuses a format that is newer than `newest`. One without a version is a `ValueError`."""
    version = parsed.get("checkpoint_store")
    if type(version) is not int or version < 1:
        raise ValueError("no format version")
    if version > newest:
        raise UnsupportedFormatError(
            f"{subject} was written by a newer version of checkpoint_store, in a format that this "
            f"one does not read (it knows up to {newest}): upgrade checkpoint_store"
        )


def string(parsed: dict[str, Any], key: str) -> str:
    value = parsed.get(key)
    if type(value) is not str:
        raise ValueError(f"{key!r} is not a string")
    return value


def optional_string(parsed: dict[str, Any], key: str) -> str | None:
    return None if parsed.get(key) is None else string(parsed, key)
