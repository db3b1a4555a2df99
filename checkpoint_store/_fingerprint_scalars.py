"""What stands for a value without parts in the tree of a fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from hashlib import sha256
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from ._fingerprint_refusal import RefusedError
from ._modules import type_name

BIG = 1 << 64
SMALL = -BIG
"""An integer that lies between these two, neither included, stands for itself."""

AS_IS = frozenset({str, bool, NoneType})
"""The types whose values always stand for themselves."""


def _integer(value: int) -> object:
    return value if SMALL < value < BIG else {"!int": hex(value)}


def _float(value: float) -> object:
    return value if value - value == 0.0 else {"!float": repr(value)}


def _bytes(value: bytes | bytearray | memoryview) -> object:
    return {"!bytes": [len(value), sha256(value).hexdigest()]}


def _memory(value: memoryview) -> object:
    try:
        # A shape with a zero cannot be cast.
        return _bytes(value.cast("B") if value.nbytes else b"")
    except (TypeError, ValueError) as error:
        raise RefusedError("a memoryview released or not contiguous", "pass its bytes") from error


def _microseconds(value: timedelta) -> int:
    return value // timedelta(microseconds=1)


def _moment(value: datetime | time) -> str:
    return value.replace(tzinfo=None).isoformat(timespec="microseconds") + _zone(value)


def _zone(value: datetime | time) -> str:
    zone: Any = value.tzinfo
    kind = type(zone)
    if zone is None:
        return ""
    if kind is timezone:
        offset = _microseconds(zone.utcoffset(None))
        return f"{offset:+d}us" if offset else "Z"
    if kind is ZoneInfo and type(zone.key) is str:
        return "Z" if zone.key == "UTC" else f"[{zone.key}]" + (";fold=1" if value.fold else "")
    raise RefusedError(
        f"unsupported time zone of type {type_name(kind)}",
        "use zoneinfo.ZoneInfo with a key, or datetime.timezone",
    )


def _decimal(value: Decimal) -> object:
    sign, digits, exponent = value.as_tuple()
    return {"!decimal": [sign, "".join(map(str, digits)), exponent]}


def _path(value: PurePosixPath | PureWindowsPath) -> object:
    return {"!path": value.as_posix()}


SCALARS: dict[type, Callable[[Any], Any]] = {
    int: _integer,
    float: _float,
    complex: lambda value: {"!complex": [_float(value.real), _float(value.imag)]},
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _memory,
    datetime: lambda value: {"!datetime": _moment(value)},
    time: lambda value: {"!time": _moment(value)},
    date: lambda value: {"!date": value.isoformat()},
    timedelta: lambda value: {"!timedelta": _integer(_microseconds(value))},
    UUID: lambda value: {"!uuid": value.hex},
    Decimal: _decimal,
    Fraction: lambda v: {"!fraction": [_integer(v.numerator), _integer(v.denominator)]},
    range: lambda v: {"!range": [_integer(v.start), _integer(v.stop), _integer(v.step)]},
    PurePosixPath: _path,
    PureWindowsPath: _path,
    PosixPath: _path,
    WindowsPath: _path,
}
"""For each other type without parts, the function that makes what stands for a value."""
