"""Tables and columns, given as expressions, and the columns that they should become.

Values are expressions, so that a library that is missing or too old costs only the tests of the
values that it cannot make. The rules of the format are applied here with nothing but `struct`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from .fingerprints import sha, tree

LIBRARIES = ("numpy", "pandas", "polars", "pyarrow")
NAMES = {kind.__name__: kind for kind in (Decimal, ZoneInfo, date, datetime, time, timedelta)}
NAMES |= {"timezone": timezone, "nan": float("nan")}


def libraries_of(expression: str) -> dict[str, Any]:
    """The libraries that the expression names; the test is skipped where one is missing."""
    used = [name for name in LIBRARIES if re.search(rf"\b{name}\b", expression)]
    return {name: pytest.importorskip(name) for name in used}


def value_of(expression: str, **more: object) -> Any:
    """The value of the expression; the test is skipped where it cannot be made."""
    found = libraries_of(expression)
    try:
        return eval(expression, NAMES | found | more)
    except (AttributeError, ImportError, NotImplementedError) as error:
        pytest.skip(f"too old: {error}")


def column_of(value: object) -> Any:
    [[tag, content]] = tree(value).items()
    return content if tag == "!column" else content[1]


CODES = {"int8": "b", "uint16": "H", "int32": "i", "int64": "q", "uint64": "Q"}
CODES |= {"float16": "e", "float32": "f", "float64": "d", "date32[day]": "i", "time32[s]": "i"}


def bits(flags: Sequence[object]) -> bytes:
    return bytes(
        sum(bool(flag) << i for i, flag in enumerate(flags[start : start + 8]))
        for start in range(0, len(flags), 8)
    )


def expected(kind: str, values: Sequence[Any], *more: object) -> list[Any]:
    """The column that these values should become, of which None is missing.

    `more` are the columns within it.
    """
    present = [value is not None for value in values]
    start = [kind, len(values), None if all(present) else sha(bits(present))]
    if kind in ("string", "binary", "list", "map"):
        items = [value or "" for value in values]
        if kind == "string":
            items = [item.encode("utf-8", "surrogatepass") for item in items]
        start.append(sha(struct.pack(f"<{len(items)}I", *map(len, items))))
        return [*start, *more] if more else [*start, sha(b"".join(item or b"" for item in items))]
    if more:
        return [*start, *more]
    if kind == "bool":
        return [*start, sha(bits(values))]
    if kind.startswith(("decimal", "int128", "uint128")):
        data = [
            int(value or 0).to_bytes(16, "little", signed=kind != "uint128") for value in values
        ]
        return [*start, sha(b"".join(data))]
    code = CODES.get(kind, "q")
    return [
        *start,
        sha(
            struct.pack(
                f"<{len(values)}{code}", *(0 if value is None else value for value in values)
            )
        ),
    ]
