"""The rules of types: those of the standard library, and classes with fields."""

from __future__ import annotations

import enum
import io
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from checkpoint_store._fingerprint_tree import MAX_DEPTH

from ..harness.fingerprints import NAIVE, Color, Point, Slotted, refusal_of, text, tree

T = TypeVar("T")
HERE = __name__


# The standard library


@pytest.mark.parametrize(
    ("zone", "suffix"),
    [
        (None, ""),
        (UTC, "Z"),
        (timezone(timedelta(0), "GMT"), "Z"),
        (ZoneInfo("UTC"), "Z"),
        (timezone(timedelta(hours=2)), "+7200000000us"),
        (timezone(timedelta(hours=-2, microseconds=1)), "-7199999999us"),
        (ZoneInfo("Europe/Berlin"), "[Europe/Berlin]"),
    ],
    ids=str,
)
def test_a_moment_names_its_zone(zone: tzinfo | None, suffix: str) -> None:
    when = datetime(7, 1, 2, 3, 4, 5, 6, tzinfo=zone)
    assert {"!datetime": f"0007-01-02T03:04:05.000006{suffix}"} == tree(when)
    assert {"!time": f"03:04:05.000006{suffix}"} == tree(when.timetz())


def test_fold_counts_in_a_named_zone_only() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert tree(time(2, 30, fold=1, tzinfo=berlin)) == {
        "!time": "02:30:00.000000[Europe/Berlin];fold=1"
    }
    for zone in (None, UTC, timezone(timedelta(hours=1))):
        when = NAIVE.replace(tzinfo=zone)
        assert text(when) == text(when.replace(fold=1))


class OwnZone(tzinfo):
    def utcoffset(self, _when: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def __repr__(self) -> str:
        raise AssertionError("repr was called")


class OwnZoneInfo(ZoneInfo):
    pass


def test_an_unknown_zone_is_refused() -> None:
    # The smallest file of a zone: a header, version 1, and one type of local time.
    counts = (0).to_bytes(4) * 4 + (1).to_bytes(4) + (4).to_bytes(4)
    data = b"TZif" + bytes(16) + counts + bytes(6) + b"UTC\0"
    nameless = ZoneInfo.from_file(io.BytesIO(data))
    assert nameless.key is None
    for zone in (OwnZone(), OwnZoneInfo("Europe/Berlin"), nameless):
        error = refusal_of([NAIVE.replace(tzinfo=zone)])
        assert error.path == "inputs['v'][0]"
        assert error.reason.startswith("unsupported time zone of type ")


def test_a_duration_is_in_whole_microseconds() -> None:
    assert tree(timedelta(microseconds=-1)) == {"!timedelta": -1}
    assert {"!timedelta": {"!int": hex(86_399_999_999_999_999_999)}} == (tree(timedelta.max))


def test_a_number_of_any_size_has_a_text() -> None:
    assert tree(2**64 - 1) == 2**64 - 1
    assert tree(-(2**64) + 1) == -(2**64) + 1
    assert tree(-(2**64)) == {"!int": "-0x10000000000000000"}
    assert {"!int": hex(1 << 100_000)} == tree(1 << 100_000)
    assert {"!fraction": [{"!int": hex(3**99)}, 2]} == tree(Fraction(3**99, 2))
    assert {"!range": [0, {"!int": hex(2**70)}, 1]} == tree(range(2**70))
    assert [1, {"!int": hex(2**64)}, {"!float": "inf"}] == tree([1, 2**64, float("inf")])


def test_complex_numbers_keep_what_json_cannot_say() -> None:
    assert tree(complex(float("nan"), -0.0)) == {"!complex": [{"!float": "nan"}, -0.0]}
    assert text(complex(0.0, -0.0)) == '{"!complex":[0.0,-0.0]}'


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        ("-0", [1, "0", 0]),
        ("1E+3", [0, "1", 3]),
        ("Infinity", [0, "0", "F"]),
        ("-Infinity", [1, "0", "F"]),
        ("sNaN7", [0, "7", "N"]),
    ],
)
def test_a_decimal_keeps_sign_digits_and_exponent(value: str, payload: list[object]) -> None:
    assert {"!decimal": payload} == tree(Decimal(value))


def test_a_path_is_its_text_with_slashes() -> None:
    assert {"!path": "a/b"} == tree(Path("a/b")) == tree(PurePath("a", "b"))
    assert tree(PureWindowsPath(r"c:\a")) == {"!path": "c:/a"}
    assert tree(PurePosixPath(r"a\b")) == {"!path": "a\\b"}


class Shade(enum.IntEnum):
    DARK = 1


class Word(enum.StrEnum):
    YES = "yes"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Mode(enum.IntFlag):
    HUGE = 1 << 70


def test_a_member_of_an_enum_is_its_name_and_of_a_flag_its_bits() -> None:
    assert {"!enum": [f"{Color.__module__}:Color", "RED"]} == tree(Color.RED) == tree(Color.CRIMSON)
    assert {"!enum": [f"{Color.__module__}:Color", "ODD"]} == tree(Color.ODD)
    assert {"!enum": [f"{HERE}:Shade", "DARK"]} == tree(Shade.DARK)
    assert {"!enum": [f"{HERE}:Word", "YES"]} == tree(Word.YES)
    assert {"!flag": [f"{HERE}:Access", 3]} == tree(Access.READ | Access.WRITE)
    assert {"!flag": [f"{HERE}:Access", 0]} == tree(Access(0))
    assert {"!flag": [f"{HERE}:Mode", {"!int": hex(1 << 70)}]} == tree(Mode.HUGE)
    assert {"!map": [[{"!enum": [f"{HERE}:Word", "YES"]}, 1]]} == tree({Word.YES: 1})


# Classes with fields


@dataclass
class Sub(Point):
    z: int = 3


class Undecorated(Point):
    pass


class Bag(Slotted):
    """No slots of its own, so its objects have a `__dict__`."""


class Hidden(Slotted):
    __slots__ = ("more",)


@dataclass
class Box(Generic[T]):
    item: T


@dataclass
class Table(dict[str, int]):
    x: int = 0


@dataclass
class Failed(Exception):  # noqa: N818
    x: int = 0


@attrs.define
class Attrs:
    x: object
    _y: object = 2
    note: object = attrs.field(default=None, eq=False)

    @cached_property
    def norm(self) -> float:
        return 1.5


@attrs.define(slots=False, unsafe_hash=True, cache_hash=True)
class AttrsHashed:
    x: int


@attrs.define(unsafe_hash=True, cache_hash=True)
class AttrsSlottedHashed:
    x: int


class Model(pydantic.BaseModel):
    x: Any = 1
    _private: Any = pydantic.PrivateAttr(default=None)

    @cached_property
    def norm(self) -> float:
        return 1.5


class Bare(pydantic.BaseModel):
    x: Any = 1


class Open(pydantic.BaseModel, extra="allow"):
    x: int = 1


class Root(pydantic.RootModel[list[int]]):
    pass


class ModelBox(pydantic.BaseModel, Generic[T]):
    item: T


@pydantic.dataclasses.dataclass
class Checked:
    x: int


class Struct(msgspec.Struct):
    x: object
    y: object = 2


class OpenStruct(msgspec.Struct, dict=True):
    x: object


Pair = namedtuple("Pair", "x y")  # noqa: PYI024


class Typed(NamedTuple):
    x: object
    y: object = 2


class Methods(Typed):
    """A namedtuple whose `x` looks otherwise than it is, and with a `__dict__`."""

    x = property(lambda _: 0)

    def __iter__(self) -> Iterator[object]:
        raise AssertionError("iter was called")


@pytest.mark.parametrize(
    ("value", "name", "fields"),
    [
        (Point(1, [2], note=object()), "Point", {"x": 1, "y": [2]}),
        (Slotted(1), "Slotted", {"x": 1}),
        (Sub(1, 2), "Sub", {"x": 1, "y": 2, "z": 3}),
        (Undecorated(1), "Undecorated", {"x": 1, "y": 0}),
        (Bag(1), "Bag", {"x": 1}),
        (Hidden(1), "Hidden", {"x": 1}),
        (Box[int](1), "Box", {"item": 1}),
        (Attrs(1, note=object()), "Attrs", {"x": 1, "_y": 2}),
        (Model(), "Model", {"x": 1, "__pydantic_private__": {"_private": None}}),
        (Bare(x=(1,)), "Bare", {"x": [1]}),
        (Bare(), "Bare", {"x": 1}),
        (Open(x=1), "Open", {"x": 1}),
        (Open(y=[2]), "Open", {"x": 1, "__pydantic_extra__": {"y": [2]}}),
        (Root([1, 2]), "Root", {"root": [1, 2]}),
        (ModelBox[int](item=1), "ModelBox[int]", {"item": 1}),
        (Checked(x=1), "Checked", {"x": 1}),
        (Struct(1), "Struct", {"x": 1, "y": 2}),
        (OpenStruct(1), "OpenStruct", {"x": 1}),
        (Pair(1, (2,)), "Pair", {"x": 1, "y": [2]}),
        (Typed(1), "Typed", {"x": 1, "y": 2}),
        (Methods(1), "Methods", {"x": 1, "y": 2}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, object) else "",
)
def test_an_object_is_its_class_and_the_fields_it_compares(
    value: object, name: str, fields: dict[str, object]
) -> None:
    assert {"!object": [f"{type(value).__module__}:{name}", fields]} == tree(value)


def test_a_cache_is_no_state() -> None:
    for value in (Point(1), Attrs(1), Model()):
        before = text(value)
        assert value.norm == 1.5
        assert before == text(value)
    for hashed in (AttrsHashed(1), AttrsSlottedHashed(1)):
        before = text(hashed)
        hash(hashed)
        assert before == text(hashed)


def test_which_fields_of_a_model_were_given_makes_no_difference() -> None:
    assert text(Bare()) == text(Bare(x=1))
    assert Bare() == Bare(x=1)


def test_private_attributes_of_a_model_count_as_they_do_for_its_equality() -> None:
    one, other = Model(), Model()
    other._private = 1
    assert one != other
    assert text(one) != text(other)


@pytest.mark.parametrize(
    "value",
    [Point(1), Bag(1), Hidden(1), OpenStruct(1), Methods(1)],
    ids=lambda v: type(v).__name__,
)
def test_state_beside_the_fields_is_refused(value: Any) -> None:
    assert text(value)
    value.more = 1
    error = refusal_of([value])
    assert error.path == "inputs['v'][0]"
    assert "which has more than its fields (more)" in error.reason


@pytest.mark.parametrize("value", [Table(), Failed()], ids=lambda v: type(v).__name__)
def test_fields_on_top_of_a_builtin_are_refused(value: object) -> None:
    assert f"unsupported type {HERE}.{type(value).__name__}" == refusal_of(value).reason


def test_a_field_that_cannot_be_read_is_refused_with_the_cause() -> None:
    missing = Slotted.__new__(Slotted)
    error = refusal_of([missing])
    assert error.path == "inputs['v'][0]"
    assert f"a field of {Slotted.__module__}.Slotted raised AttributeError" == error.reason
    assert isinstance(error.__cause__, AttributeError)
    assert "raised ValueError" in refusal_of(tuple.__new__(Pair, (1,))).reason


def test_the_path_goes_through_fields() -> None:
    value = Point([Attrs(Pair(0, Struct(Bare(x={"k": object()}))))])
    assert refusal_of(value).path == "inputs['v'].x[0].x.y.x.x['k']"
    private = Model()
    private._private = [object()]
    assert refusal_of(private).path == "inputs['v'].__pydantic_private__['_private'][0]"


def test_objects_are_told_apart_by_class_and_field() -> None:
    values = [Point(1), Slotted(1), Undecorated(1), Attrs(1), Bare(x=1), Struct(1), Pair(1, 2)]
    values += [Typed(1), Typed(2), {"x": 1, "y": 2}, (1, 2), Point(2), Point("1")]
    assert len(values) == len({text(value) for value in values})


def test_a_long_chain_of_objects_fits() -> None:
    value: object = 0
    for _ in range(MAX_DEPTH):
        value = Slotted(value)
    assert text(value)
    assert refusal_of(Slotted(value)).reason.startswith("nested deeper")


def test_a_cycle_through_an_object_is_reported() -> None:
    point = Point(1)
    point.y = {"k": (point,)}
    assert refusal_of(point).path == "inputs['v'].y['k'][0]"
    assert refusal_of(point).reason == "it contains itself"


def test_a_class_local_to_a_function_is_refused() -> None:
    @dataclass
    class Local:
        x: int = 1

    class LocalEnum(enum.Enum):
        A = 1

    class LocalCustom:
        def __fingerprint__(self) -> int:
            return 1

    for value in (Local(), LocalEnum.A, LocalCustom()):
        error = refusal_of([value])
        assert error.path == "inputs['v'][0]"
        assert f"{type(value).__qualname__} is local to a function" in error.reason


class Loud:
    """A value that refuses to be looked at in any way but by its class."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise AssertionError("repr was called")

    __str__ = __format__ = __bool__ = __len__ = __iter__ = __reduce_ex__ = __repr__
    __getstate__ = __getattr__ = __fspath__ = __index__ = __float__ = __repr__


def test_nothing_of_an_unknown_object_is_called() -> None:
    assert f"unsupported type {HERE}.Loud" == refusal_of([{"a": {1: Loud()}}]).reason


def test_a_key_that_is_an_object_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Slotted(1)
    monkeypatch.setattr(Slotted, "__hash__", lambda _: 1)
    entries, ordered = {key: 1}, OrderedDict({key: 1})
    monkeypatch.undo()
    with pytest.raises(TypeError, match="unhashable"):
        hash(key)
    expected = {"!map": [[{"!object": [f"{Slotted.__module__}:Slotted", {"x": 1}]}, 1]]}
    assert expected == tree(entries) == tree(ordered)


class Strange(type):
    __hash__ = None


class Garbage:
    __dataclass_fields__ = 5


def test_a_class_that_is_too_strange_is_refused() -> None:
    assert "raised TypeError" in refusal_of(Strange("S", (), {})()).reason
    assert "raised AttributeError" in refusal_of(Garbage()).reason
