"""Tables and columns as expressions, and what a column should be, computed once more.

An expression that a library is missing for, or too old, costs no more than the values it cannot
make. The rules are applied with nothing but `struct`.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from checkpoint_store import _fingerprint
from checkpoint_store._fingerprint import MAX_DEPTH, fingerprint
from checkpoint_store.errors import FingerprintError

LIBRARIES = ("numpy", "pandas", "polars", "pyarrow")
NAMES = {kind.__name__: kind for kind in (Decimal, ZoneInfo, date, datetime, time, timedelta)}
NAMES |= {"timezone": timezone, "nan": float("nan")}


def value_of(expression: str, **more: object) -> Any:
    """What the expression makes; the test is skipped where it cannot be made."""
    used = [name for name in LIBRARIES if re.search(rf"\b{name}\b", expression)]
    found = {name: pytest.importorskip(name) for name in used}
    try:
        return eval(expression, NAMES | found | more)
    except (AttributeError, ImportError, NotImplementedError) as error:
        pytest.skip(f"too old: {error}")


def tree(value: object) -> Any:
    return _fingerprint._Walk().tree(value, MAX_DEPTH)


def column_of(value: object) -> Any:
    [[tag, content]] = tree(value).items()
    # A list is a tuple's equal by choice, and stays one in the tree.
    return json.loads(json.dumps(content if tag == "!column" else content[1]))


def refusal(value: object) -> FingerprintError:
    with pytest.raises(FingerprintError) as caught:
        fingerprint({"v": value})
    return caught.value


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


CODES = {"int8": "b", "uint16": "H", "int32": "i", "int64": "q", "uint64": "Q"}
CODES |= {"float16": "e", "float32": "f", "float64": "d", "date32[day]": "i", "time32[s]": "i"}


def bits(flags: Sequence[object]) -> bytes:
    return bytes(
        sum(bool(flag) << i for i, flag in enumerate(flags[start : start + 8]))
        for start in range(0, len(flags), 8)
    )


def expected(kind: str, values: Sequence[Any], *more: object) -> list[Any]:
    """The column of these values, which None is missing from; `more` are its inner columns."""
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
