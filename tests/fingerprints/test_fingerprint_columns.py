"""Columns of pandas, polars and pyarrow: their texts, and that no layout in memory changes them."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_store import _fingerprint_tables

from ..harness.fingerprints import sha
from ..harness.tables import column_of, expected, value_of

DAY = 19_723  # 2024-01-01
SECOND = 86_400 * DAY
NS = 10**9
WORDS = expected("string", ["x", None, "é\U0001f600", ""])
TWO_WORDS = expected("string", ["b", "a"])

COLUMNS: list[tuple[list[Any], list[str]]] = [
    (
        expected("int64", [1, 2, 3]),
        [
            "pandas.Series([1, 2, 3])",
            "pandas.Series([1, 2, 3], [5, 5, 7], dtype='Int64')",
            "pandas.Series([1, 2, 3], dtype='int64[pyarrow]')",
            "pandas.DataFrame(numpy.arange(1, 7).reshape(3, 2) // 2 + 1)[0]",
            "polars.Series([1, 2, 3])",
            "polars.concat([polars.Series([1]), polars.Series([2, 3])], rechunk=False)",
            "pyarrow.array([1, 2, 3])",
            "pyarrow.chunked_array([[1], [], [2, 3]])",
            "pyarrow.array([7, 1, 2, 3, 7]).slice(1, 3)",
        ],
    ),
    (
        expected("int64", [1, None, 3]),
        [
            "pandas.Series([1, None, 3], dtype='Int64')",
            "pandas.Series([1, None, 3], dtype='int64[pyarrow]')",
            (
                "pandas.Series(pandas.arrays.IntegerArray("
                "numpy.array([1, 9, 3]), numpy.array([False, True, False])))"
            ),
            "polars.Series([1, None, 3])",
            "polars.Series([9, 1, None, 3, 9])[1:4]",
            "pyarrow.array([1, None, 3])",
            "pyarrow.array(numpy.array([1, 9, 3]), mask=numpy.array([False, True, False]))",
            "pyarrow.chunked_array([[1, None], [3]])",
        ],
    ),
    (
        expected("int8", [-1, None]),
        [
            "pandas.Series([-1, None], dtype='Int8')",
            "polars.Series([-1, None], dtype=polars.Int8)",
            "pyarrow.array([-1, None], 'int8')",
        ],
    ),
    (
        expected("uint16", [65535]),
        [
            "pandas.Series([65535], dtype='uint16')",
            "polars.Series([65535], dtype=polars.UInt16)",
            "pyarrow.array([65535], 'uint16')",
        ],
    ),
    (expected("uint64", [2**64 - 1, 0]), ["pandas.Series([2**64 - 1, 0], dtype='uint64')"]),
    (
        expected("int128", [-(2**100), None]),
        ["polars.Series([-2**100, None], dtype=polars.Int128)"],
    ),
    (
        expected("float64", [0.0, -0.0, None]),
        [
            "pandas.Series([0.0, -0.0, None], dtype='Float64')",
            "pandas.Series([0.0, -0.0, None], dtype='double[pyarrow]')",
            "polars.Series([0.0, -0.0, None])",
            "pyarrow.array([0.0, -0.0, None])",
        ],
    ),
    (
        expected("float64", [1.5, float("nan")]),
        [
            "pandas.Series([1.5, None])",
            "pandas.Series([1.5, nan])",
            "polars.Series([1.5, nan])",
            "pyarrow.array([1.5, nan])",
        ],
    ),
    (
        expected("float32", [1.5, None]),
        [
            "pandas.Series([1.5, None], dtype='Float32')",
            "polars.Series([1.5, None], dtype=polars.Float32)",
            "pyarrow.array([1.5, None], 'float32')",
        ],
    ),
    (
        expected("float16", [1.5]),
        [
            "pandas.Series([1.5], dtype='float16')",
            "polars.Series([1.5], dtype=polars.Float16)",
            "pyarrow.array(numpy.array([1.5], 'f2'))",
        ],
    ),
    (
        ["complex64", 1, None, sha(struct.pack("<2f", 1, 2))],
        ["pandas.Series([1 + 2j], dtype='complex64')"],
    ),
    (
        expected("bool", [True, False, True]),
        [
            "pandas.Series([True, False, True])",
            "pandas.Series([True, False, True], dtype='boolean')",
            "pandas.Series([True, False, True], dtype='bool[pyarrow]')",
            "polars.Series([True, False, True])",
            "polars.Series([False] * 5 + [True, False, True])[5:]",
            "pyarrow.array([True, False, True])",
            "pyarrow.array([True, False, True, True]).slice(0, 3)",
            "pyarrow.array([False] * 5 + [True, False, True, True]).slice(5, 3)",
        ],
    ),
    (
        expected("bool", [True, None, False]),
        [
            "pandas.Series([True, None, False], dtype='boolean')",
            "polars.Series([True, None, False])",
            "pyarrow.chunked_array([[True], [None, False]])",
        ],
    ),
    (
        WORDS,
        [
            "pandas.Series(['x', None, 'é\U0001f600', ''], dtype=object)",
            "pandas.Series(['x', nan, 'é\U0001f600', ''], dtype=object)",
            "pandas.Series(['x', pandas.NA, 'é\U0001f600', ''], dtype=object)",
            "pandas.Series(['x', None, 'é\U0001f600', ''])",
            "pandas.Series(['x', None, 'é\U0001f600', ''], dtype='string[python]')",
            "pandas.Series(['x', None, 'é\U0001f600', ''], dtype='string[pyarrow]')",
            (
                "pandas.Series(['x', None, 'é\U0001f600', ''],"
                " dtype=pandas.ArrowDtype(pyarrow.large_string()))"
            ),
            "polars.Series(['x', None, 'é\U0001f600', ''])",
            "pyarrow.array(['x', None, 'é\U0001f600', ''])",
            "pyarrow.array(['x', None, 'é\U0001f600', ''], pyarrow.large_string())",
            "pyarrow.array(['x', None, 'é\U0001f600', ''], pyarrow.string_view())",
            "pyarrow.chunked_array([['x', None], [], ['é\U0001f600', '']])",
            "pyarrow.array(['no', 'x', None, 'é\U0001f600', '', 'no']).slice(1, 4)",
            # A byte lies under the null.
            (
                "pyarrow.StringArray.from_buffers(4,"
                " pyarrow.array([0, 1, 2, 8, 8], 'int32').buffers()[1],"
                " pyarrow.py_buffer('x?é\U0001f600'.encode()), pyarrow.py_buffer(b'\\x0d'))"
            ),
        ],
    ),
    (
        expected("string", ["\ud800", "a"]),
        ["pandas.Series(['\\ud800', 'a'], dtype=object)"],
    ),
    (
        expected("binary", [b"x\xff", None, b""]),
        [
            "pandas.Series([b'x\\xff', None, b''], dtype='binary[pyarrow]')",
            "polars.Series([b'x\\xff', None, b''])",
            "pyarrow.array([b'x\\xff', None, b''])",
            "pyarrow.array([b'x\\xff', None, b''], pyarrow.large_binary())",
            "pyarrow.array([b'x\\xff', None, b''], pyarrow.binary_view())",
        ],
    ),
    (
        ["fixed_size_binary[2]", 2, sha(b"\x01"), sha(b"ab\0\0")],
        ["pyarrow.array([b'ab', None], pyarrow.binary(2))"],
    ),
    (
        expected("timestamp[ns]", [SECOND * NS + 1, None]),
        [
            "pandas.Series(['2024-01-01T00:00:00.000000001', None], dtype='M8[ns]')",
            (
                "pandas.Series(['2024-01-01T00:00:00.000000001', None], dtype='M8[ns]')"
                ".astype('timestamp[ns][pyarrow]')"
            ),
            "polars.Series([19723 * 86400 * 10**9 + 1, None]).cast(polars.Datetime('ns'))",
            "pyarrow.array([19723 * 86400 * 10**9 + 1, None], pyarrow.timestamp('ns'))",
        ],
    ),
    (
        expected("timestamp[us, tz=Europe/Berlin]", [SECOND * 10**6]),
        [
            (
                "pandas.Series(['2024-01-01'], dtype='M8[us]').dt.tz_localize('UTC')"
                ".dt.tz_convert('Europe/Berlin')"
            ),
            (
                "polars.Series([datetime(2024, 1, 1)]).dt.replace_time_zone('UTC')"
                ".dt.convert_time_zone('Europe/Berlin')"
            ),
            "pyarrow.array([datetime(2024, 1, 1)], pyarrow.timestamp('us', 'Europe/Berlin'))",
        ],
    ),
    (
        expected("timestamp[s, tz=UTC]", [SECOND, None]),
        [
            "pandas.Series(['2024-01-01', None], dtype='M8[s]').dt.tz_localize('UTC')",
            "pandas.Series(['2024-01-01', None], dtype='M8[s]').dt.tz_localize(timezone.utc)",
            "pandas.Series(['2024-01-01', None], dtype='M8[s]').dt.tz_localize(ZoneInfo('UTC'))",
            "pyarrow.array([datetime(2024, 1, 1), None], pyarrow.timestamp('s', 'UTC'))",
        ],
    ),
    (
        expected("timestamp[s, tz=-03:30]", [SECOND]),
        [
            (
                "pandas.Series(['2024-01-01'], dtype='M8[s]').dt.tz_localize('UTC')"
                ".dt.tz_convert(timezone(timedelta(hours=-3.5), 'name'))"
            ),
            "pyarrow.array([datetime(2024, 1, 1)], pyarrow.timestamp('s', '-03:30'))",
        ],
    ),
    (
        expected("duration[ns]", [NS, None]),
        [
            "pandas.Series([10**9, 'NaT'], dtype='m8[ns]')",
            "polars.Series([10**9, None]).cast(polars.Duration('ns'))",
            "pyarrow.array([10**9, None], pyarrow.duration('ns'))",
        ],
    ),
    (
        expected("date32[day]", [DAY, None]),
        [
            "pandas.Series([date(2024, 1, 1), None], dtype='date32[pyarrow]')",
            "polars.Series([date(2024, 1, 1), None])",
            "pyarrow.array([date(2024, 1, 1), None])",
        ],
    ),
    (expected("date64[ms]", [SECOND * 1000]), ["pyarrow.array([date(2024, 1, 1)], 'date64')"]),
    (expected("time32[s]", [1, None]), ["pyarrow.array([1, None], pyarrow.time32('s'))"]),
    (
        expected("time64[ns]", [3600 * NS, None]),
        ["polars.Series([time(1), None])", "pyarrow.array([time(1), None], pyarrow.time64('ns'))"],
    ),
    (
        expected("decimal128(38, 2)", [-150, None]),
        [
            (
                "pandas.Series([Decimal('-1.5'), None],"
                " dtype=pandas.ArrowDtype(pyarrow.decimal128(38, 2)))"
            ),
            "polars.Int128 and polars.Series([Decimal('-1.5'), None], dtype=polars.Decimal(38, 2))",
            "pyarrow.array([Decimal('-1.50'), None], pyarrow.decimal128(38, 2))",
        ],
    ),
    (["null", 2], ["polars.Series([None, None])", "pyarrow.nulls(2)"]),
    (
        expected("list", [[1, 2], None, [], [None]], expected("int64", [1, 2, None])),
        [
            "polars.Series([[1, 2], None, [], [None]])",
            "polars.Series([[7], [1, 2], None, [], [None], [7]])[1:5]",
            "pyarrow.array([[1, 2], None, [], [None]])",
            "pyarrow.array([[1, 2], None, [], [None]], pyarrow.large_list(pyarrow.int64()))",
            "pyarrow.array([[1, 2], None, [], [None]], pyarrow.list_view(pyarrow.int64()))",
            "pyarrow.chunked_array([[[1, 2], None], [[], [None]]])",
            "pyarrow.array([[7], [1, 2], None, [], [None], [7]]).slice(1, 4)",
            # An item lies under the null.
            (
                "pyarrow.ListArray.from_arrays(pyarrow.array([0, 2, 3, 3, 4], 'int32'),"
                " pyarrow.array([1, 2, 7, None]), mask=pyarrow.array([False, True, False, False]))"
            ),
        ],
    ),
    (
        expected("fixed_size_list[2]", [1, None, 1], expected("float64", [1.0, 2.0, 3.0, None])),
        [
            "polars.Series([[1.0, 2], None, [3, None]], dtype=polars.Array(polars.Float64, 2))",
            "pyarrow.array([[1.0, 2], None, [3, None]], pyarrow.list_(pyarrow.float64(), 2))",
            (
                "pyarrow.array([[7, 7], [1.0, 2], None, [3, None]],"
                " pyarrow.list_(pyarrow.float64(), 2)).slice(1)"
            ),
        ],
    ),
    (
        expected(
            "struct",
            [1, None, 1],
            [
                ["!a", expected("int64", [1, None, None])],
                ["b", expected("string", ["x", None, ""])],
            ],
        ),
        [
            "polars.Series([{'!a': 1, 'b': 'x'}, None, {'!a': None, 'b': ''}])",
            "pyarrow.array([{'!a': 1, 'b': 'x'}, None, {'!a': None, 'b': ''}])",
            (
                "pyarrow.StructArray.from_arrays([pyarrow.array([1, 7, None]),"
                " pyarrow.array(['x', '?', ''])], ['!a', 'b'],"
                " mask=pyarrow.array([False, True, False]))"
            ),
            "pyarrow.array([{}, {'!a': 1, 'b': 'x'}, None, {'!a': None, 'b': ''}]).slice(1)",
        ],
    ),
    (
        expected(
            "map",
            ["x", None, ""],
            expected(
                "struct",
                [1],
                [["key", expected("string", ["k"])], ["value", expected("int64", [None])]],
            ),
        ),
        [
            (
                "pyarrow.array([[('k', None)], None, []],"
                " pyarrow.map_(pyarrow.string(), pyarrow.int64()))"
            )
        ],
    ),
    (
        ["dictionary", 3, expected("string", ["b", None, "a"])],
        [
            "polars.Series(['b', None, 'a'], dtype=polars.Categorical)",
            "pyarrow.array(['b', None, 'a']).dictionary_encode()",
            "pyarrow.DictionaryArray.from_arrays([2, None, 0], ['a', 'unused', 'b'])",
            (
                "pyarrow.DictionaryArray.from_arrays([1, 0, 2], ['no', 'b', 'a']).take("
                "pyarrow.array([0, None, 2]))"
            ),
            (
                "pyarrow.chunked_array([pyarrow.array(['b', None]).dictionary_encode(),"
                " pyarrow.array(['a']).dictionary_encode()])"
            ),
        ],
    ),
    (
        ["categorical", 3, True, sha(struct.pack("<3i", 1, -1, 0)), TWO_WORDS],
        [
            "pandas.Series(pandas.Categorical(['a', None, 'b'], ['b', 'a'], ordered=True))",
            (
                "pandas.Series(pandas.Categorical(['a', None, 'b'],"
                " pandas.Index(['b', 'a'], dtype=object), ordered=True))"
            ),
            "polars.Series(['a', None, 'b'], dtype=polars.Enum(['b', 'a']))",
        ],
    ),
    (
        ["categorical", 2, False, sha(struct.pack("<2i", 0, 1)), expected("int64", [0, 1])],
        ["pandas.Series([0, 1], dtype='category')"],
    ),
    (
        ["interval[right]", 1, expected("int64", [0]), expected("int64", [2])],
        ["pandas.Series(pandas.arrays.IntervalArray.from_tuples([(0, 2)]))"],
    ),
    (
        ["object", 4, [1, "x", None, {"!float": "nan"}]],
        ["pandas.Series([1, 'x', None, nan], dtype=object)"],
    ),
    (
        ["object", 3, [{"a": [1]}, {"!date": "2024-01-01"}, True]],
        ["pandas.Series([{'a': (1,)}, date(2024, 1, 1), True], dtype=object)"],
    ),
    (["object", 2, [None, None]], ["pandas.Series([None, None], dtype=object)"]),
    (["object", 0, []], ["pandas.Series([], dtype=object)"]),
    (
        expected("float64", []),
        [
            "pandas.Series([], dtype='float64')",
            "polars.Series([], dtype=polars.Float64)",
            "pyarrow.array([], 'float64')",
            "pyarrow.chunked_array([], 'float64')",
        ],
    ),
    (
        expected("string", []),
        [
            "pandas.Series([], dtype='string[python]')",
            "polars.Series([], dtype=polars.String)",
            "pyarrow.array([], 'string')",
            "pyarrow.chunked_array([], 'large_string')",
        ],
    ),
    (
        expected("list", [], expected("bool", [])),
        [
            "polars.Series([], dtype=polars.List(polars.Boolean))",
            "pyarrow.chunked_array([], pyarrow.list_(pyarrow.bool_()))",
        ],
    ),
]


@pytest.mark.parametrize(
    ("column", "expression"),
    [(column, expression) for column, expressions in COLUMNS for expression in expressions],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_column_is_its_type_and_its_values(column: list[Any], expression: str) -> None:
    assert column == column_of(value_of(expression))


def test_columns_that_differ_have_different_texts() -> None:
    texts = [json.dumps(column) for column, _ in COLUMNS]
    assert len(texts) == len(set(texts))


# Any values, however they are held

SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint16": st.integers(0, 2**16 - 1),
    "float64": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    "binary": st.binary(max_size=20),
}


@st.composite
def columns(draw: st.DrawFn) -> tuple[str, list[Any], list[int], list[Any]]:
    kind = draw(st.sampled_from(sorted(SCALARS)))
    nullable = draw(st.sampled_from([SCALARS[kind], st.none() | SCALARS[kind]]))
    values = draw(st.lists(nullable, max_size=40))
    cuts = sorted(draw(st.lists(st.integers(0, len(values)), max_size=3)))
    # What may lie under the nulls.
    garbage = draw(st.lists(SCALARS[kind], min_size=len(values), max_size=len(values)))
    return kind, values, [0, *cuts, len(values)], garbage


def chunks(values: Sequence[Any], cuts: list[int]) -> Iterator[Any]:
    return (values[start:stop] for start, stop in pairwise(cuts))


@settings(max_examples=150, deadline=None)
@given(columns(), st.integers(0, 9))
def test_a_column_of_pyarrow_does_not_depend_on_its_layout(
    column: tuple[str, list[Any], list[int], list[Any]], offset: int
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    kind, values, cuts, garbage = column

    def hidden(part: Sequence[Any], under: Sequence[Any]) -> Any:
        """The values between others, and with garbage under the nulls."""
        shown = [lie if value is None else value for value, lie in zip(part, under, strict=True)]
        filler = garbage[:offset]
        data = pyarrow.array([*filler, *shown, *filler], kind)
        flags = [True] * len(filler)
        flags = [*flags, *(value is not None for value in part), *flags]
        bitmap = pyarrow.array(flags, "bool").buffers()[1]
        buffers = [bitmap, *data.buffers()[1:]]
        return pyarrow.Array.from_buffers(data.type, len(data), buffers).slice(
            len(filler), len(part)
        )

    want = expected(kind, values)
    parts = [
        hidden(*pair) for pair in zip(chunks(values, cuts), chunks(garbage, cuts), strict=True)
    ]
    for size in (8, 1 << 16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_fingerprint_tables, "PIECE_ROWS", size)
            assert want == column_of(pyarrow.array(values, kind))
            assert want == column_of(pyarrow.chunked_array(parts, kind))


@settings(max_examples=100, deadline=None)
@given(columns())
def test_a_column_of_polars_does_not_depend_on_its_layout(
    column: tuple[str, list[Any], list[int], list[Any]],
) -> None:
    polars = pytest.importorskip("polars")
    kind, values, cuts, garbage = column
    name = {"int64": "Int64", "uint16": "UInt16", "float64": "Float64", "bool": "Boolean"}
    dtype = getattr(polars, name.get(kind, kind.capitalize()))
    whole = polars.Series([*garbage, *values], dtype=dtype)[len(garbage) :]
    parts = [polars.Series(part, dtype=dtype) for part in chunks(values, cuts)]
    with pytest.MonkeyPatch.context() as patch:
        for size in (8, 1 << 16):
            patch.setattr(_fingerprint_tables, "PIECE_ROWS", size)
            assert expected(kind, values) == column_of(whole)
            assert expected(kind, values) == column_of(polars.concat(parts, rechunk=False))
        patch.setitem(sys.modules, "numpy", None)
        assert expected(kind, values) == column_of(whole)


@settings(max_examples=100, deadline=None)
@given(columns())
def test_a_column_of_pandas_does_not_depend_on_its_layout(
    column: tuple[str, list[Any], list[int], list[Any]],
) -> None:
    pandas = pytest.importorskip("pandas")
    kind, values, _, garbage = column
    name = {"int64": "Int64", "uint16": "UInt16", "float64": "Float64", "bool": "boolean"}
    if kind == "binary":
        return
    whole = pandas.Series([*garbage, *values], dtype=name.get(kind, kind))
    twice = pandas.Series([value for value in values for _ in "ab"], dtype=name.get(kind, kind))
    with pytest.MonkeyPatch.context() as patch:
        for size in (8, 1 << 16):
            patch.setattr(_fingerprint_tables, "PIECE_ROWS", size)
            assert expected(kind, values) == column_of(whole[len(garbage) :])
            assert expected(kind, values) == column_of(twice[::2])
