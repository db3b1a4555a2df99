"""What the tests of fingerprints share: texts of values, refusals, and classes with fields."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar

import pytest

from checkpoint_store._fingerprint import fingerprint
from checkpoint_store._fingerprint_rules import rule_of
from checkpoint_store._fingerprint_tree import MAX_DEPTH, Walk, text_of
from checkpoint_store.errors import FingerprintError

NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001


def text(value: object) -> str:
    """The text of which the fingerprint of a value is the digest."""
    return text_of(Walk(rule_of).tree(value, MAX_DEPTH))


def tree(value: object) -> Any:
    """The text of a value, read as JSON."""
    return json.loads(text(value))


def refusal(inputs: object) -> FingerprintError:
    """The error with which these inputs are refused."""
    with pytest.raises(FingerprintError) as caught:
        fingerprint(inputs)
    return caught.value


def refusal_of(value: object) -> FingerprintError:
    """The error with which a value is refused if it is the only input, `v`."""
    return refusal({"v": value})


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chain(step: Callable[[Any], Any], value: object, times: int) -> Any:
    """The value that `step` makes of `value` when it is applied that many times."""
    for _ in range(times):
        value = step(value)
    return value


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796
    ODD = float("nan")

    def __repr__(self) -> str:
        raise AssertionError("repr was called")


@dataclass
class Point:
    x: object
    y: object = 0
    note: object = field(default=None, compare=False)
    kind: ClassVar[str] = "point"
    scale: InitVar[int] = 1

    @cached_property
    def norm(self) -> float:
        return 1.5

    def __repr__(self) -> str:
        raise AssertionError("repr was called")

    def __hash__(self) -> int:
        raise AssertionError("hash was called")


@dataclass(slots=True)
class Slotted:
    x: object = 0
