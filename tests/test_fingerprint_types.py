"""The rules of types: the standard library's, classes with fields, numpy, and the caller's own."""

from __future__ import annotations

import enum
import hashlib
import io
import json
import types
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import attrs
import msgspec
import numpy
import pydantic
import pytest

from checkpoint_store import _fingerprint, _fingerprint_numpy
from checkpoint_store._fingerprint import MAX_DEPTH, fingerprint, register
from checkpoint_store.errors import FingerprintError

T = TypeVar("T")
NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001
HERE = __name__


def tree(value: object) -> Any:
    return json.loads(text(value))


def text(value: object) -> str:
    return _fingerprint._text(_fingerprint._Walk().tree(value, MAX_DEPTH))


def refusal(value: object) -> FingerprintError:
    with pytest.raises(FingerprintError) as caught:
        fingerprint({"v": value})
    return caught.value


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
        error = refusal([NAIVE.replace(tzinfo=zone)])
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


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796
    ODD = float("nan")

    def __repr__(self) -> str:
        raise AssertionError("repr was called")


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
    assert {"!enum": [f"{HERE}:Color", "RED"]} == tree(Color.RED) == tree(Color.CRIMSON)
    assert {"!enum": [f"{HERE}:Color", "ODD"]} == tree(Color.ODD)
    assert {"!enum": [f"{HERE}:Shade", "DARK"]} == tree(Shade.DARK)
    assert {"!enum": [f"{HERE}:Word", "YES"]} == tree(Word.YES)
    assert {"!flag": [f"{HERE}:Access", 3]} == tree(Access.READ | Access.WRITE)
    assert {"!flag": [f"{HERE}:Access", 0]} == tree(Access(0))
    assert {"!flag": [f"{HERE}:Mode", {"!int": hex(1 << 70)}]} == tree(Mode.HUGE)
    assert {"!map": [[{"!enum": [f"{HERE}:Word", "YES"]}, 1]]} == tree({Word.YES: 1})


# Classes with fields


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
    assert {"!object": [f"{HERE}:{name}", fields]} == tree(value)


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
    error = refusal([value])
    assert error.path == "inputs['v'][0]"
    assert "which has more than its fields (more)" in error.reason


@pytest.mark.parametrize("value", [Table(), Failed()], ids=lambda v: type(v).__name__)
def test_fields_on_top_of_a_builtin_are_refused(value: object) -> None:
    assert f"unsupported type {HERE}.{type(value).__name__}" == refusal(value).reason


def test_a_field_that_cannot_be_read_is_refused_with_the_cause() -> None:
    missing = Slotted.__new__(Slotted)
    error = refusal([missing])
    assert error.path == "inputs['v'][0]"
    assert f"a field of {HERE}.Slotted raised AttributeError" == error.reason
    assert isinstance(error.__cause__, AttributeError)
    assert "raised ValueError" in refusal(tuple.__new__(Pair, (1,))).reason


def test_the_path_goes_through_fields() -> None:
    value = Point([Attrs(Pair(0, Struct(Bare(x={"k": object()}))))])
    assert refusal(value).path == "inputs['v'].x[0].x.y.x.x['k']"
    private = Model()
    private._private = [object()]
    assert refusal(private).path == "inputs['v'].__pydantic_private__['_private'][0]"


def test_objects_are_told_apart_by_class_and_field() -> None:
    values = [Point(1), Slotted(1), Undecorated(1), Attrs(1), Bare(x=1), Struct(1), Pair(1, 2)]
    values += [Typed(1), Typed(2), {"x": 1, "y": 2}, (1, 2), Point(2), Point("1")]
    assert len(values) == len({text(value) for value in values})


def test_a_long_chain_of_objects_fits() -> None:
    value: object = 0
    for _ in range(MAX_DEPTH):
        value = Slotted(value)
    assert text(value)
    assert refusal(Slotted(value)).reason.startswith("nested deeper")


def test_a_cycle_through_an_object_is_reported() -> None:
    point = Point(1)
    point.y = {"k": (point,)}
    assert refusal(point).path == "inputs['v'].y['k'][0]"
    assert refusal(point).reason == "it contains itself"


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
        error = refusal([value])
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
    assert f"unsupported type {HERE}.Loud" == refusal([{"a": {1: Loud()}}]).reason


def test_a_key_that_is_an_object_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Slotted(1)
    monkeypatch.setattr(Slotted, "__hash__", lambda _: 1)
    entries, ordered = {key: 1}, OrderedDict({key: 1})
    monkeypatch.undo()
    with pytest.raises(TypeError, match="unhashable"):
        hash(key)
    expected = {"!map": [[{"!object": [f"{HERE}:Slotted", {"x": 1}]}, 1]]}
    assert expected == tree(entries) == tree(ordered)


class Strange(type):
    __hash__ = None


class Garbage:
    __dataclass_fields__ = 5


def test_a_class_that_is_too_strange_is_refused() -> None:
    assert "raised TypeError" in refusal(Strange("S", (), {})()).reason
    assert "raised AttributeError" in refusal(Garbage()).reason


# numpy


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("dtype", "portable"),
    [
        ("?", "|b1"),
        ("i1", "|i1"),
        (">u2", "<u2"),
        ("<i8", "<i8"),
        (">f2", "<f2"),
        ("<f4", "<f4"),
        (">f8", "<f8"),
        (">c8", "<c8"),
        ("<c16", "<c16"),
        (">M8[ns]", "<M8[ns]"),
        ("<m8[3D]", "<m8[3D]"),
        ("S3", "|S3"),
        (">U3", "<U3"),
    ],
)
def test_an_array_is_its_dtype_shape_and_little_endian_bytes(dtype: str, portable: str) -> None:
    base = (numpy.arange(24).reshape(2, 3, 4) % 2).astype(dtype)
    for array in (
        base,
        base.T,
        numpy.asfortranarray(base),
        base[:, ::-1],
        base[::-1, 1:, ::2],
        base[0, 0, 0:1],
        numpy.broadcast_to(base[0], (3, 3, 4)),
        base[:0],
        numpy.array(base[0, 0, 1], base.dtype),
    ):
        data = array.astype(portable).tobytes("C")
        assert {"!ndarray": [portable, list(array.shape), sha(data)]} == tree(array)


def test_a_large_array_is_hashed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    array = numpy.arange(1000.0).reshape(10, 100).T
    whole = sha(array.tobytes("C"))
    for size in (1, 24, 4096):
        monkeypatch.setattr(_fingerprint_numpy, "CHUNK_BYTES", size)
        assert whole == tree(array)["!ndarray"][2]


def test_hashing_does_not_change_or_need_to_write_an_array() -> None:
    array = numpy.arange(6, dtype=">i4").reshape(2, 3)
    array.flags.writeable = False
    before = array.tobytes()
    assert text(array) == text(array.astype("<i4"))
    assert before == array.tobytes()


def test_arrays_that_differ_have_different_texts() -> None:
    base = numpy.arange(6, dtype="i4").reshape(2, 3)
    arrays = [base, base.T, base.reshape(6), base.reshape(3, 2), base.astype("i8"), base + 1]
    arrays += [base.astype("u4"), base.tolist(), numpy.zeros((0, 3)), numpy.zeros((3, 0))]
    arrays += [numpy.array(0.0), numpy.array(-0.0), numpy.array([0.0]), numpy.array("a")]
    arrays += [numpy.array(b"a"), numpy.array(["a", "b-c"], "O"), numpy.array(["a-b", "c"], "O")]
    assert len(arrays) == len({text(array) for array in arrays})
    many = numpy.zeros(5000)
    other = many.copy()
    other[2500] = 1e-300
    assert text(many) != text(other)


def test_an_object_array_is_walked_item_by_item() -> None:
    array = numpy.array([[1, "a"], [None, {2}]], dtype=object)
    assert tree(array) == {"!ndobject": [[2, 2], [1, "a", None, {"!set": [2]}]]}
    assert text(array) == text(numpy.asfortranarray(array))
    array[1, 0] = object()
    assert refusal(array).path == "inputs['v'].flat[2]"
    assert tree(array[:0]) == {"!ndobject": [[0, 2], []]}
    array[1, 0] = array
    assert refusal(array).reason == "it contains itself"
    array[1, 0] = None


def test_a_structured_array_is_its_fields_without_padding() -> None:
    packed = numpy.dtype([("a", "<i2"), ("b", [("c", "S1"), ("d", "<f8", (2,))])])
    padded = numpy.dtype(packed.descr, align=True)
    assert packed.itemsize < padded.itemsize
    one, other = numpy.ones(3, packed), numpy.ones(3, padded)
    other.view("u1").reshape(3, -1)[:, 2:8] = 7
    other["b"]["c"], other["a"] = one["b"]["c"], 1
    assert text(one["a"]) == text(other["a"])
    assert text(numpy.ones(3, packed)) == text(numpy.ones(3, padded))
    [shape, fields] = tree(one)["!ndfields"]
    assert (shape, [name for name, _ in fields]) == ([3], ["a", "b"])
    assert {"!ndarray": ["<i2", [3], sha(b"\1\0" * 3)]} == fields[0][1]
    assert fields[1][1]["!ndfields"][1][1][1]["!ndarray"][1] == [3, 2]
    objects = numpy.array([(1, object())], [("a", "i4"), ("o", "O")])
    assert refusal(objects).path == "inputs['v']['o'].flat[0]"


@pytest.mark.parametrize(
    ("scalar", "dtype", "data"),
    [
        (numpy.float64(1.5), "<f8", b"\0\0\0\0\0\0\xf8?"),
        (numpy.int16(1), "<i2", b"\1\0"),
        (numpy.bool_(1), "|b1", b"\1"),
        (numpy.str_("é"), "<U1", b"\xe9\0\0\0"),
        (numpy.str_(""), "<U0", b""),
        (numpy.str_("\0"), "<U1", b"\0\0\0\0"),
        (numpy.bytes_(b"ab"), "|S2", b"ab"),
        (numpy.datetime64(1, "s"), "<M8[s]", b"\1" + bytes(7)),
        (numpy.timedelta64("NaT", "s"), "<m8[s]", bytes(7) + b"\x80"),
        (numpy.complex64(1), "<c8", b"\0\0\x80?" + bytes(4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_scalar_is_its_dtype_and_bytes(scalar: object, dtype: str, data: bytes) -> None:
    assert {"!npscalar": [dtype, sha(data)]} == tree(scalar)
    assert {"!map": [[{"!npscalar": [dtype, sha(data)]}, 1]]} == tree({scalar: 1})


class OwnFloat(numpy.float64):
    pass


class OwnArray(numpy.ndarray[Any, Any]):
    pass


@pytest.mark.parametrize(
    "value",
    [
        OwnFloat(1),
        numpy.zeros(2).view(OwnArray),
        numpy.ma.masked_array([1, 2], [True, False]),
        numpy.memmap(__file__, "u1", "r"),
        numpy.rec.array([(1,)], dtype=[("a", "i4")]),
        numpy.dtype("i4"),
        numpy.random.default_rng(0),
        numpy.add,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_like_numpy_but_more_is_refused(value: object) -> None:
    assert refusal(value).reason.startswith("unsupported type ")


@pytest.mark.parametrize(
    "value",
    [
        numpy.longdouble(1),
        numpy.zeros(1, numpy.longdouble),
        numpy.zeros(1, numpy.clongdouble),
        numpy.zeros(1, "V3"),
        numpy.void(b"abc"),
        numpy.zeros(1, [("a", "i4")])[0],
        numpy.zeros(1, [("a", numpy.longdouble)]),
    ],
    ids=repr,
)
def test_a_dtype_that_means_another_thing_elsewhere_is_refused(value: object) -> None:
    assert refusal(value).reason.startswith("unsupported numpy dtype ")


def test_a_numpy_that_is_still_being_imported_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(_fingerprint_numpy.sys.modules, "numpy", types.ModuleType("numpy"))
    _fingerprint._rule_of.cache_clear()
    assert text(Slotted(1))
    assert refusal(object()).reason == "unsupported type object"


# The caller's own


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
    assert f"unsupported type {HERE}.NoLonger" == refusal(NoLonger(lambda: 1)).reason


def test_what_it_returns_is_checked_like_any_other_value() -> None:
    error = refusal([Custom(lambda: {"k": object()})])
    assert error.path == "inputs['v'][0].__fingerprint__()['k']"
    assert error.reason == "unsupported type object"


def test_what_it_raises_is_the_cause() -> None:
    def fail() -> object:
        raise KeyError("secret")

    error = refusal([Custom(fail)])
    assert error.path == "inputs['v'][0]"
    assert f"__fingerprint__ of {HERE}.Custom raised KeyError" == error.reason
    assert isinstance(error.__cause__, KeyError)
    assert "secret" not in str(error)
    inner = refusal(Custom(lambda: fingerprint(object())))
    assert isinstance(inner.__cause__, FingerprintError)


def test_a_value_that_stands_for_itself_is_a_cycle() -> None:
    value = Custom(lambda: value)
    assert refusal(value).reason == "it contains itself"
    assert refusal(value).path == "inputs['v'].__fingerprint__()"
    endless = Custom(lambda: Custom(endless.result))
    assert refusal(endless).reason.startswith("nested deeper")


def test_objects_made_on_the_fly_are_not_taken_for_each_other() -> None:
    values = [Custom(lambda n=n: [{n}]) for n in range(100)]
    assert [[{"!set": [n]}] for n in range(100)] == [
        custom["!custom"][1] for custom in tree(values)
    ]


def test_an_instance_attribute_is_no_encoding() -> None:
    value = types.SimpleNamespace(__fingerprint__=lambda: 1)
    assert refusal(value).reason == "unsupported type types.SimpleNamespace"


def test_inputs_that_change_meanwhile_are_refused() -> None:
    entries: dict[str, object] = {}
    entries["a"] = Custom(lambda: entries.setdefault("b", 1))
    error = refusal(entries)
    assert error.path == "inputs['v']"
    assert error.reason == "reading it raised RuntimeError"
    checked: list[object] = [1.5]
    other = [checked, Custom(lambda: checked.append(float("nan")))]
    assert refusal(other).reason == "reading it raised ValueError"
    checked = [1.5]
    other = [checked, Custom(lambda: checked.append(object()))]
    assert refusal(other).reason == "reading it raised TypeError"
    replaced: list[object] = []
    replaced.append(Custom(lambda: replaced.clear() or object()))
    assert refusal(replaced).path == "inputs['v'][None].__fingerprint__()"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fingerprint, "_tags", dict(_fingerprint._tags))
    for kind in (Foreign, Point, Color):
        monkeypatch.setitem(_fingerprint._RULES, kind, None)
        monkeypatch.delitem(_fingerprint._RULES, kind)


class Foreign:
    def __init__(self, x: object) -> None:
        self.x = x


class ForeignSub(Foreign):
    pass


class Unrelated:
    pass


@pytest.mark.usefixtures("registry")
def test_a_function_can_be_registered_for_a_class() -> None:
    assert f"unsupported type {HERE}.Foreign" == refusal(Foreign(1)).reason
    register(Foreign, lambda value: {"x": value.x})
    assert {"!custom": [f"{HERE}:Foreign", {"x": 1}]} == tree(Foreign(1))
    register(Foreign, lambda value: [value.x], tag="acme.Foreign/2")
    assert tree(Foreign(1)) == {"!custom": ["acme.Foreign/2", [1]]}
    assert f"unsupported type {HERE}.ForeignSub" == refusal(ForeignSub(1)).reason
    assert refusal(Foreign(object())).path == "inputs['v'].<acme.Foreign/2>[0]"


@pytest.mark.usefixtures("registry")
def test_a_registered_function_goes_before_what_the_class_says() -> None:
    assert text(Point(1))
    assert text(Color.RED)
    register(Point, lambda value: value.x, tag="P")
    register(Color, lambda value: value.value)
    assert tree(Point(1)) == {"!custom": ["P", 1]}
    assert {"!custom": [f"{HERE}:Color", 1]} == tree(Color.RED)


@pytest.mark.usefixtures("registry")
def test_what_a_registered_function_raises_is_the_cause() -> None:
    register(Foreign, lambda value: value.missing)
    error = refusal(Foreign(1))
    assert f"the function registered for {HERE}.Foreign raised AttributeError" == error.reason
    assert isinstance(error.__cause__, AttributeError)


@pytest.mark.usefixtures("registry")
def test_importing_a_module_again_may_register_again() -> None:
    again = type("Foreign", (), {"__module__": HERE, "__qualname__": "Foreign"})
    for kind in (Foreign, again, Foreign):
        register(kind, lambda _: 1, tag="acme/1")
    assert {"!custom": ["acme/1", 1]} == tree(Foreign(1)) == tree(again())
    del _fingerprint._RULES[again]


@pytest.mark.usefixtures("registry")
def test_two_classes_cannot_share_a_tag() -> None:
    register(Foreign, lambda value: value.x, tag="acme/1")
    for kind in (Unrelated, ForeignSub):
        with pytest.raises(FingerprintError, match=f"the tag 'acme/1' is that of {HERE}:Foreign"):
            register(kind, lambda _: 1, tag="acme/1")
    assert f"unsupported type {HERE}.Unrelated" == refusal(Unrelated()).reason


def test_a_local_class_needs_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local:
        pass

    monkeypatch.setattr(_fingerprint, "_tags", {})
    with pytest.raises(FingerprintError, match="give it a tag"):
        register(Local, lambda _: 1)
    register(Local, lambda _: 1, tag="local")
    assert tree(Local()) == {"!custom": ["local", 1]}
    del _fingerprint._RULES[Local]


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
    assert Unrelated not in _fingerprint._RULES
