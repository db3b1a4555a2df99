"""Reading small JSON objects that nobody vouches for."""

from __future__ import annotations

import json
from typing import Any


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise ValueError("a key occurs twice")
    return parsed


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, or `ValueError`, whatever the bytes are."""
    try:
        parsed = _decoder.decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if type(parsed) is not dict:
        raise ValueError("not a JSON object")
    return parsed


def format_version(parsed: dict[str, Any]) -> int:
    """The format version that every record and header carries first, or `ValueError`."""
    version = parsed.get("checkpoint_store")
    if type(version) is not int or version < 1:
        raise ValueError("no format version")
    return version


def string(parsed: dict[str, Any], key: str) -> str:
    value = parsed.get(key)
    if type(value) is not str:
        raise ValueError(f"{key!r} is not a string")
    return value


def optional_string(parsed: dict[str, Any], key: str) -> str | None:
    return None if parsed.get(key) is None else string(parsed, key)
