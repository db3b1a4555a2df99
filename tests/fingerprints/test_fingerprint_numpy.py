"""The rules of numpy: arrays, their scalars and dtypes."""

from __future__ import annotations

import types
from typing import Any

import numpy
import pytest

from checkpoint_store import _fingerprint_numpy, _fingerprint_rules

from ..harness.fingerprints import Slotted, refusal_of, sha, text, tree


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
    assert refusal_of(array).path == "inputs['v'].flat[2]"
    assert tree(array[:0]) == {"!ndobject": [[0, 2], []]}
    array[1, 0] = array
    assert refusal_of(array).reason == "it contains itself"
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
    assert refusal_of(objects).path == "inputs['v']['o'].flat[0]"


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
    assert refusal_of(value).reason.startswith("unsupported type ")


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
    assert refusal_of(value).reason.startswith("unsupported numpy dtype ")


def test_a_numpy_that_is_still_being_imported_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(_fingerprint_numpy.sys.modules, "numpy", types.ModuleType("numpy"))
    _fingerprint_rules._class_rule.cache_clear()
    assert text(Slotted(1))
    assert refusal_of(object()).reason == "unsupported type object"
