"""What stands for a value because its class says so, or a function that somebody registered."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import numpy
import pytest

from checkpoint_store import _fingerprint, _fingerprint_rules
from checkpoint_store._fingerprint import fingerprint, register
from checkpoint_store.errors import FingerprintError

from ..harness.fingerprints import Color, Point, refusal_of, text, tree

HERE = __name__


class Custom:
    def __init__(self, result: Callable[[], object]) -> None:
        self.result = result

    def __fingerprint__(self) -> object:
        return self.result()

    def __repr__(self) -> str:
        raise AssertionError("repr was called")

    __str__ = __repr__

    def __hash__(self) -> int:
        raise AssertionError("hash was called")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("eq was called")


class SubCustom(Custom):
    pass


class NoLonger(Custom):
    __fingerprint__ = None


class CustomList(list[object]):
    def __fingerprint__(self) -> object:
        return list(self)


@dataclass
class CustomPoint:
    x: object

    def __fingerprint__(self) -> object:
        return "point"


def test_a_class_can_say_what_stands_for_its_values() -> None:
    assert {"!custom": [f"{HERE}:Custom", [1, {"!set": [2]}]]} == tree(Custom(lambda: (1, {2})))
    assert {"!custom": [f"{HERE}:SubCustom", None]} == tree(SubCustom(lambda: None))
    assert {"!custom": [f"{HERE}:CustomList", [1]]} == tree(CustomList([1]))
    assert {"!custom": [f"{HERE}:CustomPoint", "point"]} == tree(CustomPoint(object()))
    assert text(1) != text(Custom(lambda: 1))
    assert f"unsupported type {HERE}.NoLonger" == refusal_of(NoLonger(lambda: 1)).reason


def test_what_it_returns_is_checked_like_any_other_value() -> None:
    error = refusal_of([Custom(lambda: {"k": object()})])
    assert error.path == "inputs['v'][0].__fingerprint__()['k']"
    assert error.reason == "unsupported type object"


def test_what_it_raises_is_the_cause() -> None:
    def fail() -> object:
        raise KeyError("secret")

    error = refusal_of([Custom(fail)])
    assert error.path == "inputs['v'][0]"
    assert f"__fingerprint__ of {HERE}.Custom raised KeyError" == error.reason
    assert isinstance(error.__cause__, KeyError)
    assert "secret" not in str(error)
    inner = refusal_of(Custom(lambda: fingerprint(object())))
    assert isinstance(inner.__cause__, FingerprintError)


def test_a_value_that_stands_for_itself_is_a_cycle() -> None:
    value = Custom(lambda: value)
    assert refusal_of(value).reason == "it contains itself"
    assert refusal_of(value).path == "inputs['v'].__fingerprint__()"
    endless = Custom(lambda: Custom(endless.result))
    assert refusal_of(endless).reason.startswith("nested deeper")


def test_objects_made_on_the_fly_are_not_taken_for_each_other() -> None:
    values = [Custom(lambda n=n: [{n}]) for n in range(100)]
    assert [[{"!set": [n]}] for n in range(100)] == [
        custom["!custom"][1] for custom in tree(values)
    ]


def test_an_instance_attribute_is_no_encoding() -> None:
    value = types.SimpleNamespace(__fingerprint__=lambda: 1)
    assert refusal_of(value).reason == "unsupported type types.SimpleNamespace"


def test_inputs_that_change_meanwhile_are_refused() -> None:
    entries: dict[str, object] = {}
    entries["a"] = Custom(lambda: entries.setdefault("b", 1))
    error = refusal_of(entries)
    assert error.path == "inputs['v']"
    assert error.reason == "reading it raised RuntimeError"
    checked: list[object] = [1.5]
    other = [checked, Custom(lambda: checked.append(float("nan")))]
    assert refusal_of(other).reason == "reading it raised ValueError"
    checked = [1.5]
    other = [checked, Custom(lambda: checked.append(object()))]
    assert refusal_of(other).reason == "reading it raised TypeError"
    replaced: list[object] = []
    replaced.append(Custom(lambda: replaced.clear() or object()))
    assert refusal_of(replaced).path == "inputs['v'][None].__fingerprint__()"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fingerprint, "_tags", dict(_fingerprint._tags))
    for kind in (Foreign, Point, Color):
        monkeypatch.setitem(_fingerprint_rules.RULES, kind, None)
        monkeypatch.delitem(_fingerprint_rules.RULES, kind)


class Foreign:
    def __init__(self, x: object) -> None:
        self.x = x


class ForeignSub(Foreign):
    pass


class Unrelated:
    pass


@pytest.mark.usefixtures("registry")
def test_a_function_can_be_registered_for_a_class() -> None:
    assert f"unsupported type {HERE}.Foreign" == refusal_of(Foreign(1)).reason
    register(Foreign, lambda value: {"x": value.x})
    assert {"!custom": [f"{HERE}:Foreign", {"x": 1}]} == tree(Foreign(1))
    register(Foreign, lambda value: [value.x], tag="acme.Foreign/2")
    assert tree(Foreign(1)) == {"!custom": ["acme.Foreign/2", [1]]}
    assert f"unsupported type {HERE}.ForeignSub" == refusal_of(ForeignSub(1)).reason
    assert refusal_of(Foreign(object())).path == "inputs['v'].<acme.Foreign/2>[0]"


@pytest.mark.usefixtures("registry")
def test_a_registered_function_goes_before_what_the_class_says() -> None:
    assert text(Point(1))
    assert text(Color.RED)
    register(Point, lambda value: value.x, tag="P")
    register(Color, lambda value: value.value)
    assert tree(Point(1)) == {"!custom": ["P", 1]}
    assert {"!custom": [f"{Color.__module__}:Color", 1]} == tree(Color.RED)


@pytest.mark.usefixtures("registry")
def test_what_a_registered_function_raises_is_the_cause() -> None:
    register(Foreign, lambda value: value.missing)
    error = refusal_of(Foreign(1))
    assert f"the function registered for {HERE}.Foreign raised AttributeError" == error.reason
    assert isinstance(error.__cause__, AttributeError)


@pytest.mark.usefixtures("registry")
def test_importing_a_module_again_may_register_again() -> None:
    again = type("Foreign", (), {"__module__": HERE, "__qualname__": "Foreign"})
    for kind in (Foreign, again, Foreign):
        register(kind, lambda _: 1, tag="acme/1")
    assert {"!custom": ["acme/1", 1]} == tree(Foreign(1)) == tree(again())
    del _fingerprint_rules.RULES[again]


@pytest.mark.usefixtures("registry")
def test_two_classes_cannot_share_a_tag() -> None:
    register(Foreign, lambda value: value.x, tag="acme/1")
    for kind in (Unrelated, ForeignSub):
        with pytest.raises(FingerprintError, match=f"the tag 'acme/1' is that of {HERE}:Foreign"):
            register(kind, lambda _: 1, tag="acme/1")
    assert f"unsupported type {HERE}.Unrelated" == refusal_of(Unrelated()).reason


def test_a_local_class_needs_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local:
        pass

    monkeypatch.setattr(_fingerprint, "_tags", {})
    with pytest.raises(FingerprintError, match="give it a tag"):
        register(Local, lambda _: 1)
    register(Local, lambda _: 1, tag="local")
    assert tree(Local()) == {"!custom": ["local", 1]}
    del _fingerprint_rules.RULES[Local]


@pytest.mark.parametrize(
    "kind",
    [
        *(type(None), bool, str, int, float, list, dict, set, datetime, Decimal, memoryview),
        *(types.MappingProxyType, PurePosixPath, numpy.ndarray, numpy.float64, numpy.str_),
    ],
)
def test_a_type_with_a_rule_of_its_own_cannot_be_registered(kind: type) -> None:
    with pytest.raises(FingerprintError, match="it has a rule already"):
        register(kind, lambda _: 1, tag="mine")


@pytest.mark.parametrize(
    "arguments",
    [
        (5, lambda _: 1, None),
        (Unrelated, 5, None),
        (Unrelated, lambda _: 1, ""),
        (Unrelated, id, 5),
    ],
)
def test_registering_nonsense_is_refused(arguments: tuple[Any, Any, Any]) -> None:
    kind, encode, tag = arguments
    with pytest.raises(FingerprintError, match="register"):
        register(kind, encode, tag=tag)
    assert Unrelated not in _fingerprint_rules.RULES
