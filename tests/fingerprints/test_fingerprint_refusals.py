"""What the format `fp1` refuses, where it says so, and how deep and how often it looks."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict, defaultdict
from datetime import date, datetime
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy
import pytest

from checkpoint_store import _fingerprint_tree
from checkpoint_store._fingerprint import fingerprint
from checkpoint_store.errors import FingerprintError

from ..harness.fingerprints import chain, refusal, text

# Refusals: where, why, and what to do


def test_the_message_says_where_why_and_what_to_do() -> None:
    error = refusal({"model": {"layers": [0, 1, threading.Lock()]}})
    assert error.path == "inputs['model']['layers'][2]"
    assert error.reason == "unsupported type _thread.lock"
    assert str(error) == (
        "cannot fingerprint inputs['model']['layers'][2]: unsupported type _thread.lock: register "
        "it with checkpoint_store.register(lock, ...), or pass a value that identifies it "
        "(a version or digest; a path does not tell of contents)"
    )


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


class Items(list[object]):
    pass


class Entries(dict[str, object]):
    pass


class Default(defaultdict[str, int]):
    pass


class Raw(bytes):
    pass


class Day(date):
    pass


class Moment(datetime):
    pass


class Place(PurePosixPath):
    pass


UNSUPPORTED: list[object] = [
    object(),
    len,
    lambda: 0,
    int,
    json,
    threading.Lock(),
    (item for item in "ab"),
    Ellipsis,
    NotImplemented,
    ValueError("x"),
    slice(1),
    Text("a"),
    Number(1),
    Real(1),
    Items(),
    Entries(),
    Default(),
    Raw(),
    Day(2024, 1, 1),
    Moment(2024, 1, 1),
    Place("a"),
]


@pytest.mark.parametrize("value", UNSUPPORTED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: value, "inputs"),
        (lambda value: {"a": value}, "inputs['a']"),
        (lambda value: [1, value], "inputs[1]"),
        (lambda value: {"a": (0, {"b": value})}, "inputs['a'][1]['b']"),
        (lambda value: {"a": {"!b": value, "c": {1: value}}}, "inputs['a']['!b']"),
        (lambda value: {1: value}, "inputs[1]"),
        (lambda value: {(1, 2): [value]}, "inputs[<tuple>][0]"),
        (lambda value: {2**64: value}, "inputs[<int>]"),
        (lambda value: OrderedDict(a=[value]), "inputs['a'][0]"),
    ],
)
def test_an_unsupported_value_is_refused_where_it_stands(
    value: object, wrap: Any, path: str
) -> None:
    error = refusal(wrap(value))
    assert path == error.path
    assert error.reason.startswith("unsupported type ")
    assert str(error).startswith(f"cannot fingerprint {path}: {error.reason}: ")


def test_a_key_or_an_item_of_a_set_is_refused_without_its_value() -> None:
    assert refusal({Text("secret"): 1}).path == "inputs[<key>]"
    assert refusal({(1, Number(1)): 1}).path == "inputs[<key>][1]"
    assert refusal({"s": {Text("secret")}}).path == "inputs['s'][<item>]"
    assert "secret" not in str(refusal({"s": {Text("secret")}}))


def test_no_value_is_echoed() -> None:
    secrets: list[Any] = [{"k": "hunter2"}, "hunter2", b"hunter2", Text("hunter2"), object()]
    error = refusal({"a": secrets, 7: {("hunter2",): 1}})
    assert "hunter2" not in str(error) + error.path + error.reason


def test_a_long_path_and_a_long_key_are_shortened_in_the_middle() -> None:
    error = refusal(chain(lambda value: {"key": value}, {"last": object()}, 100))
    assert len(error.path) == 200
    assert error.path.startswith("inputs['key']['key']")
    assert error.path.endswith("['key']['last']")
    assert "…" in error.path
    assert len(refusal({"x" * 1000: object()}).path) - len("inputs") == 64
    assert refusal({"\ud800\n": object()}).path == "inputs['\\ud800\\n']"


def test_a_proxy_of_a_users_mapping_is_refused() -> None:
    for proxy in (MappingProxyType(Entries(a=1)), MappingProxyType(MappingProxyType({}))):
        assert "a mappingproxy of" in refusal({"a": proxy}).reason
        assert "a mappingproxy of" in refusal(proxy).reason


@pytest.mark.parametrize("make", [OrderedDict, Counter])
def test_a_mapping_with_attributes_is_refused(make: Any) -> None:
    value = make(a=1)
    value.hidden = 2
    for inputs in (value, [value]):
        assert "has attributes beside its items" in refusal(inputs).reason


def test_a_memoryview_must_be_contiguous_and_alive() -> None:
    released = memoryview(b"ab")
    released.release()
    for view in (memoryview(b"abcd")[::2], released):
        assert refusal({"a": view}).reason == "a memoryview released or not contiguous"


def test_a_memoryview_counts_as_the_bytes_it_shows() -> None:
    grid = memoryview(b"abcdef").cast("B", (2, 3))
    assert text(b"abcdef") == text(grid)
    assert text(b"") == text(memoryview(b""))
    assert text(b"\1\0\2\0") == text(memoryview(b"\1\0\2\0").cast("H"))


# Depth, cycles and sharing

CONTAINERS: list[Any] = [
    lambda value: [value],
    lambda value: (value,),
    lambda value: {"a": value},
    lambda value: {1: value},
    lambda value: frozenset({value}),
    lambda value: OrderedDict(a=value),
    lambda value: {"!": value},
]


@pytest.mark.parametrize("step", CONTAINERS)
def test_two_hundred_levels_pass_and_one_more_does_not(step: Any) -> None:
    assert text(chain(step, 0, 200))
    error = refusal({"a": chain(step, 0, 201)})
    assert error.reason.startswith("nested deeper than 200 levels")
    assert error.path.startswith("inputs['a'][")


def test_nesting_that_no_stack_holds_is_refused() -> None:
    deep = chain(lambda value: [value], [], 100_000)
    assert refusal(deep).reason.startswith("nested deeper")
    while deep:  # the interpreter, too, would free it recursively
        deep = deep.pop()


def test_a_recursion_error_never_escapes() -> None:
    value = chain(lambda inner: {1: inner}, 0, 150)

    def deeper() -> FingerprintError:
        try:
            return deeper()
        except RecursionError:
            return refusal({"a": value})

    assert deeper().path == "inputs['a']"
    assert refusal_near_the_limit([value]).path == "inputs"


def refusal_near_the_limit(value: object) -> FingerprintError:
    try:
        return refusal_near_the_limit(value)
    except RecursionError:
        return refusal(value)


def test_a_cycle_is_reported_where_it_closes() -> None:
    items: list[object] = [0]
    items.append(items)
    assert (refusal(items).path, refusal(items).reason) == ("inputs[1]", "it contains itself")
    assert refusal({"a": items}).path == "inputs['a'][1]"
    entries: dict[str, object] = {}
    entries["x"] = {"y": (1, entries)}
    assert refusal(entries).path == "inputs['x']['y'][1]"
    mapping: dict[int, object] = {}
    mapping[1] = [OrderedDict(a=mapping)]
    assert refusal({"m": mapping}).path == "inputs['m'][1][0]['a']"


@pytest.mark.parametrize(
    "step",
    [
        lambda value: [value, value],
        lambda value: {"a": value, "b": value},
        lambda value: {1: value, 2: value},
        lambda value: [value] * 1000,
        lambda value: [{value, (value,)}] if isinstance(value, int) else [value, value],
    ],
)
@pytest.mark.parametrize("leaf", [0, b""])
def test_shared_references_are_no_cycle_but_end_somewhere(
    step: Any, leaf: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fingerprint_tree, "MAX_WORK", 100_000)
    assert text(chain(step, leaf, 1))
    error = refusal(chain(step, leaf, 100))
    assert error.reason == "too many values, counting shared ones each time"


def test_all_inputs_of_a_call_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fingerprint_tree, "MAX_WORK", 1_000)
    values = list(range(600))
    assert fingerprint({"a": values})
    assert refusal({"a": values, "b": values}).path == "inputs['b']"


def test_a_shared_value_is_encoded_once_but_not_deeper_than_it_may() -> None:
    shared = chain(lambda value: [value], b"", 150)
    assert text([shared, [shared], shared])
    error = refusal([shared, chain(lambda value: [value], shared, 60)])
    assert error.path.startswith("inputs[1][0]")


def test_numpy_in_this_process_changes_nothing_for_others() -> None:
    assert '{"a":[1,{"!bytes":[0,"' in text({"a": [1, b""]})
    assert numpy.float64(1.0) == 1.0
    assert text(numpy.float64(1.0)) != text(1.0)
