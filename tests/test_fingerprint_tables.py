"""Tables and columns of pandas, polars and pyarrow: their texts, and what does not change them.

Each value is an expression, so that a library that is missing, or too old for one, costs no more
than the values it cannot make. What a column should be is computed here once more, from the rules
and with nothing but `struct`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint_store
from checkpoint_store import _fingerprint, _fingerprint_tables, _refusal
from checkpoint_store._fingerprint import MAX_DEPTH, fingerprint, register
from checkpoint_store.errors import FingerprintError

LIBRARIES = ("numpy", "pandas", "polars", "pyarrow")
NAMES = {kind.__name__: kind for kind in (Decimal, ZoneInfo, date, datetime, time, timedelta)}
NAMES |= {"timezone": timezone, "nan": float("nan")}


def value_of(expression: str) -> Any:
    used = [name for name in LIBRARIES if re.search(rf"\b{name}\b", expression)]
    found = {name: pytest.importorskip(name) for name in used}
    try:
        return eval(expression, NAMES | found)
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


# What a column should be

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


# Whole values

# The digests are those that sha256sum has made of the texts.
GOLDEN: list[tuple[dict[str, Any], str, list[str]]] = [
    (
        {
            "!table": [
                2,
                [
                    [
                        "n",
                        [
                            "int64",
                            2,
                            "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
                            "4cbbd8ca5215b8d161aec181a74b694f4e24b001d5b081dc0030ed797a8973e0",
                        ],
                    ],
                    [
                        "s",
                        [
                            "string",
                            2,
                            "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
                            "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8",
                            "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
                        ],
                    ],
                ],
            ]
        },
        "734786545554d7b30c4b85e9235ca9b26c9b8add31e81ffcd8e6f204c1b26853",
        [
            "polars.DataFrame({'n': [1, None], 's': ['x', None]})",
            "pyarrow.table({'n': [1, None], 's': ['x', None]})",
            "pyarrow.table({'n': [1, None], 's': pyarrow.array(['x', None], 'large_string')})",
            "pyarrow.RecordBatch.from_pydict({'n': [1, None], 's': ['x', None]})",
        ],
    ),
    (
        {
            "!frame": [
                [[None, ["range", 2]]],
                [
                    [
                        None,
                        [
                            "string",
                            2,
                            None,
                            "64ed86b909d6d0502b64b28db0ea1272ffb358e20e9b1d88b63ccb07fa900cf5",
                            "7bfba6e0021f1fd1183dfefe60216f13140365788780f2a26fd8fc1f08b2aa2c",
                        ],
                    ]
                ],
                [
                    [
                        "int64",
                        2,
                        None,
                        "0c730b69905c5ef7a4ca5269f72365400bde2dd2c04eaf9bbb3d1c4a265a0131",
                    ],
                    [
                        "string",
                        2,
                        "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
                        "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8",
                        "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
                    ],
                ],
            ]
        },
        "d0c29e0cfccadfbb81ed4fdaaf1ed10a09b6e80eb42485e5f9d6ecfebb85ee90",
        [
            "pandas.DataFrame({'n': [1, 2], 's': ['x', None]})",
            "pandas.DataFrame({'n': [1, 2], 's': ['x', None]}, [0, 1])",
            "pandas.DataFrame({'n': [1, 2], 's': ['x', nan]}, dtype=object).astype({'n': 'Int64'})",
            "pandas.DataFrame({'n': [1, 2], 's': ['x', None]}).astype({'s': 'string[pyarrow]'})",
        ],
    ),
    (
        {
            "!series": [
                "x",
                [
                    "float64",
                    2,
                    None,
                    "40886b85354fa67a4485d642aec7cb4e30cd2118ebeac01a06a5477f4ab209b1",
                ],
                [
                    [
                        None,
                        [
                            "string",
                            2,
                            None,
                            "64ed86b909d6d0502b64b28db0ea1272ffb358e20e9b1d88b63ccb07fa900cf5",
                            "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603",
                        ],
                    ]
                ],
            ]
        },
        "b704006db86a0c9c46b79dcfc30c5cc54daa7b9374e5ce9362deeb3676717d34",
        ["pandas.Series([0.5, nan], ['a', 'b'], name='x')"],
    ),
    (
        {
            "!series": [
                ["x", 1],
                [
                    "bool",
                    1,
                    None,
                    "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
                ],
                [
                    [
                        None,
                        [
                            "timestamp[us]",
                            1,
                            None,
                            "94f5994a915fbfaefd52a625b38e2fcb0942d42ea4daa33dd8623c40814e1a53",
                        ],
                    ]
                ],
            ]
        },
        "399e0de642bc61593d05c57842a820b3c1a2f0deaf7895f59260ea1486f29306",
        ["pandas.Series([True], pandas.to_datetime(['2024-01-01']).as_unit('us'), name=('x', 1))"],
    ),
    (
        {
            "!index": [
                [
                    "n",
                    [
                        "int64",
                        2,
                        None,
                        "814dd7b9784d57c15b9c2972e9b4fd6cf7e164f8162a934bdb2452a413dab1f7",
                    ],
                ],
                [
                    None,
                    [
                        "string",
                        2,
                        "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
                        "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8",
                        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
                    ],
                ],
            ]
        },
        "ac3d6bfae77022e087c4929df7163794b103294ae38dbaf4e520fc696b5944bf",
        ["pandas.MultiIndex.from_tuples([(1, 'a'), (1, None)], names=['n', None])"],
    ),
    (
        {"!index": [[None, ["range", 3]]]},
        "76c82d327a12a5abda944850f03131bd9beb2dad9467825b139ad0aa48c9e30b",
        ["pandas.RangeIndex(3)", "pandas.Index([0, 1, 2])"],
    ),
    (
        {
            "!series": [
                "x",
                [
                    "list",
                    2,
                    "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
                    "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8",
                    [
                        "int64",
                        1,
                        None,
                        "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8",
                    ],
                ],
            ]
        },
        "7b5ae32887d55d09cc10b55b064092c4dac4eaa3d267c8a7c749398fdd2fff9b",
        ["polars.Series('x', [[1], None])"],
    ),
    (
        {
            "!column": [
                "struct",
                1,
                None,
                [
                    [
                        "a",
                        [
                            "bool",
                            1,
                            None,
                            "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a",
                        ],
                    ]
                ],
            ]
        },
        "d3d8d62fc0404a9a136b96de6b511e40148f42c8d485434068fc77f8f0454a4f",
        ["pyarrow.array([{'a': True}])", "pyarrow.chunked_array([[{'a': True}]])"],
    ),
    (
        {"!frame": [[[None, ["range", 0]]], [[None, ["range", 0]]], []]},
        "edb68955a99cb9a90b7e7c163d7bdb80aea092136a5dae85da0089d375c62c41",
        ["pandas.DataFrame()"],
    ),
    (
        {"!table": [0, []]},
        "3e257818d400d21a16f15f1f358780c5f304269c0e951acb3d5e027bfe3b375b",
        ["polars.DataFrame()", "pyarrow.table({})"],
    ),
]


@pytest.mark.parametrize(
    ("expected_tree", "expected_digest", "expression"),
    [(*row, expression) for *row, expressions in GOLDEN for expression in expressions],
)
def test_a_value_has_this_text_and_digest_for_ever(
    expected_tree: object, expected_digest: str, expression: str
) -> None:
    value = value_of(expression)
    text = json.dumps(expected_tree, sort_keys=True, separators=(",", ":"))
    assert text == _fingerprint._text(tree(value))
    assert expected_digest == sha(text.encode())
    assert {"inputs": expected_digest} == _fingerprint.input_digests(value)


def test_tables_that_differ_have_different_texts() -> None:
    frame = "pandas.DataFrame({'a': [1, 2], 'b': ['x', 'y']}"
    expressions = [
        frame + ")",
        frame + ", [1, 2])",
        frame + ", [0.0, 1.0])",
        frame + ", numpy.array([0, 1], 'int32'))",
        frame + ", ['0', '1'])",
        frame + ").rename_axis('i')",
        frame + ").rename_axis(columns='i')",
        frame + ").set_index('a')",
        frame + ").set_index('a', append=True)",
        frame + ").set_index(['a', 'b'])",
        frame + ")[['b', 'a']]",
        frame + ")[::-1]",
        frame + ")[:1]",
        frame + ")[:0]",
        frame + ")[['a']]",
        frame + ")['a']",
        frame + ").a.rename(None)",
        frame + ").a.to_numpy()",
        frame + ").astype({'a': 'int32'})",
        frame + ").astype({'a': 'float64'})",
        frame + ").astype({'b': 'category'})",
        frame + ").astype({'b': pandas.CategoricalDtype(['y', 'x'])})",
        frame + ").astype({'b': pandas.CategoricalDtype(['x', 'y'], ordered=True)})",
        frame + ").set_axis(['a', 'a'], axis=1)",
        frame + ").set_axis([0, 1], axis=1)",
        frame + ").set_axis(['0', '1'], axis=1)",
        frame + ").set_axis(pandas.MultiIndex.from_tuples([('a', 1), ('b', 1)]), axis=1)",
        frame + ").replace('x', None)",
        frame + ").a.to_frame().replace(1, None).astype('Int64')",
        frame + ").columns",
        "pandas.Series(pandas.to_datetime(['2024-01-01'])).astype('M8[s]')",
        "pandas.Series(pandas.to_datetime(['2024-01-01'])).astype('M8[ms]')",
        "pandas.Series(pandas.to_datetime(['2024-01-01'])).astype('M8[ms]').dt.tz_localize('UTC')",
    ]
    texts = {fingerprint(value_of(expression)) for expression in expressions}
    assert len(expressions) == len(texts)


@pytest.mark.parametrize("library", ["polars.DataFrame", "pyarrow.table"])
def test_tables_without_an_index_differ_by_names_types_order_and_nulls(library: str) -> None:
    contents = [
        "{'a': [1, 2], 'b': [1, 2]}",
        "{'b': [1, 2], 'a': [1, 2]}",
        "{'a': [1, 2], 'c': [1, 2]}",
        "{'a': [1, 2], 'b': [2, 1]}",
        "{'a': [1, 2], 'b': [1, None]}",
        "{'a': [1, 2], 'b': [1, 0]}",
        "{'a': [1, 2], 'b': [1.0, 2.0]}",
        "{'a': [1, 2], 'b': ['1', '2']}",
        "{'a': [1, 2], 'b': ['12', '']}",
        "{'a': [1, 2], 'b': ['12', None]}",
        "{'a': [1, 2], 'b': [[1], [2]]}",
        "{'a': [1, 2], 'b': [[1, 2], []]}",
        "{'a': [1, 2], 'b': [[1, 2], None]}",
        "{'a': [1, 2], 'b': [[1, None], [2]]}",
        "{'a': [1, 2], 'b': [b'1', b'2']}",
        "{'a': [1, 2]}",
        "{'a': [1]}",
        "{}",
    ]
    texts = {fingerprint(value_of(f"{library}({content})")) for content in contents}
    assert len(contents) == len(texts)


def test_one_value_in_the_middle_of_many_is_seen() -> None:
    pandas, numpy = pytest.importorskip("pandas"), pytest.importorskip("numpy")
    frame = pandas.DataFrame({"a": numpy.zeros(200_000), "b": ["x"] * 200_000})
    before = fingerprint(frame)
    for column, value in (("a", 1e-300), ("b", "y")):
        other = frame.copy()
        other.loc[100_000, column] = value
        assert before != fingerprint(other)


def test_what_describes_a_table_makes_no_difference() -> None:
    pandas = pytest.importorskip("pandas")
    one = pandas.DataFrame({"a": [1.5]}, pandas.DatetimeIndex(["2024-01-01"]))
    other = one.copy()
    other.attrs["source"] = "elsewhere"
    other.index.freq = "D"
    assert fingerprint(one) == fingerprint(other)


def test_the_schema_of_a_table_may_say_more() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    field = pyarrow.field("a", "int64", nullable=False, metadata={"unit": "m"})
    one = pyarrow.table({"a": [1]})
    other = pyarrow.table({"a": [1]}, schema=pyarrow.schema([field], metadata={"by": "me"}))
    assert fingerprint(one) == fingerprint(other)


def test_a_table_and_a_list_of_its_values_differ() -> None:
    polars = pytest.importorskip("polars")
    assert fingerprint(polars.Series([1, 2])) != fingerprint([1, 2])
    assert fingerprint({"a": polars.Series([1])}) != fingerprint(polars.DataFrame({"a": [1]}))


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


# What is refused


class Unknown:
    pass


class OwnZone(tzinfo):
    key = "Own/Zone"

    def utcoffset(self, _: object) -> timedelta:
        return timedelta(0)

    dst = utcoffset


NAMES |= {kind.__name__: kind for kind in (Unknown, OwnZone)}


@pytest.mark.parametrize(
    ("expression", "path", "reason"),
    [
        ("pandas.DataFrame({'a': [1], 'b': [Unknown()]})", "['b'].iloc[0]", "unsupported type"),
        ("pandas.DataFrame({('a', 1): [Unknown()]})", "[<tuple>].iloc[0]", "unsupported type"),
        ("pandas.DataFrame({'a': [1]}, [Unknown()])", ".index.levels[0].iloc[0]", "unsupported"),
        ("pandas.DataFrame({Unknown(): [1]})", ".columns.levels[0].iloc[0]", "unsupported type"),
        ("pandas.Series([1], name=(Unknown(),))", ".name[0]", "unsupported type"),
        ("pandas.Index([1], name=(Unknown(),))", ".names[0][0]", "unsupported type"),
        ("pandas.Series(['x', pandas.NaT], dtype=object)", ".iloc[1]", "unsupported type"),
        ("pandas.DataFrame({'a': pandas.period_range('2024', periods=1)})", "['a']", "period"),
        ("pandas.DataFrame({'a': pandas.arrays.SparseArray([1])})", "['a']", "Sparse"),
        ("pandas.DataFrame({'a': numpy.array([1], numpy.longdouble)})", "['a']", "float128"),
        (
            "pandas.DataFrame({'a': pandas.to_datetime(['2024-01-01']).tz_localize(OwnZone())})",
            "['a']",
            "time zone",
        ),
        ("polars.DataFrame({'a': [1], 'b': [Unknown()]})", "['b']", "Object"),
        ("polars.LazyFrame({'a': [1]})", "", "unsupported type polars."),
        ("pyarrow.table({'a': pyarrow.array([b'x' * 16], pyarrow.uuid())})", "['a']", "uuid"),
        (
            (
                "pyarrow.table({'a': [[1]], 'b': pyarrow.array([[(1, 2, 3)]],"
                " pyarrow.list_(pyarrow.month_day_nano_interval()))})"
            ),
            "['b'][…]",
            "month_day_nano_interval",
        ),
        (
            (
                "pyarrow.array([{'a': (1, 2, 3)}],"
                " pyarrow.struct({'a': pyarrow.month_day_nano_interval()}))"
            ),
            "['a']",
            "month_day_nano_interval",
        ),
        (
            "pyarrow.array(pandas.Categorical(['b'], ordered=True))",
            "",
            "unsupported column type dictionary",
        ),
        ("pyarrow.scalar(1)", "", "unsupported type pyarrow."),
    ],
)
def test_what_has_no_rule_is_refused_where_it_stands(
    expression: str, path: str, reason: str
) -> None:
    error = refusal(value_of(expression))
    assert "inputs['v']" + path == error.path
    assert reason in str(error.reason)


def test_a_zone_with_neither_a_name_nor_one_offset_is_refused() -> None:
    class Nameless(OwnZone):
        __module__, key = "zoneinfo", ""

        def utcoffset(self, moment: object) -> Any:
            return moment

    with pytest.raises(_refusal.RefusedError, match="time zone of type Nameless"):
        _fingerprint_tables._zone(Nameless())


def test_a_subclass_of_a_table_is_refused() -> None:
    pandas = pytest.importorskip("pandas")

    class Frame(pandas.DataFrame):
        pass

    assert refusal(Frame({"a": [1]})).reason == (
        f"unsupported type {__name__}.{Frame.__qualname__}"
    )


def test_a_column_type_of_somebody_else_is_refused() -> None:
    polars = pytest.importorskip("polars")
    if not hasattr(polars, "BaseExtension"):
        pytest.skip("too old for types of somebody else")

    class Length(polars.BaseExtension):
        pass

    for register_it in (lambda *_: None, polars.register_extension_type):
        register_it("acme.length", Length)
        series = polars.Series("a", [1]).ext.to(Length("acme.length", polars.Int64))
        assert refusal(series.to_frame()).path == "inputs['v']['a']"
    polars.unregister_extension_type("acme.length")


def test_a_column_of_pandas_with_a_type_of_somebody_else_is_refused() -> None:
    pandas, numpy = pytest.importorskip("pandas"), pytest.importorskip("numpy")
    dtype = type("Int64Dtype", (pandas.Int64Dtype,), {"__module__": "acme", "name": "Metre"})
    metres = type("Metres", (pandas.arrays.IntegerArray,), {"dtype": dtype()})
    series = pandas.Series(metres(numpy.array([1]), numpy.array([True])))
    error = refusal(series.to_frame("a"))
    assert (error.path, error.reason) == ("inputs['v']['a']", "unsupported column type Metre")


def test_memory_of_an_unknown_width_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    polars = pytest.importorskip("polars")
    monkeypatch.delitem(_fingerprint_tables._CODES, "int64")
    assert refusal(polars.DataFrame({"a": [1]})).reason == "unsupported column type Int64"


def test_what_a_library_raises_is_the_cause_and_has_a_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    polars = pytest.importorskip("polars")
    monkeypatch.setattr(polars.Series, "null_count", lambda _: 1 / 0)
    error = refusal(polars.DataFrame({"a": [1]}))
    assert (error.path, error.reason) == ("inputs['v']['a']", "reading it raised ZeroDivisionError")
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_objects_within_a_column_count_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr(_fingerprint, "MAX_WORK", 1000)
    assert refusal(pandas.Series([None] * 1001, dtype=object)).reason.startswith("too many values")
    fingerprint(pandas.Series(range(1001)))


def test_a_cycle_through_a_column_is_reported() -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series([None, 1], dtype=object)
    series.iloc[0] = [series]
    error = refusal(series)
    series.iloc[0] = None
    assert (error.path, error.reason) == ("inputs['v'].iloc[0][0]", "it contains itself")


@pytest.mark.parametrize(
    "expression",
    ["pandas.DataFrame", "pandas.RangeIndex", "polars.Series", "pyarrow.Table", "pyarrow.Array"],
)
def test_a_type_with_a_rule_of_its_own_cannot_be_registered(expression: str) -> None:
    with pytest.raises(FingerprintError, match="it has a rule already"):
        register(value_of(expression), lambda _: 1, tag="mine")


# What is imported


def loaded_after(expression: str) -> set[str]:
    """The libraries that a process has which fingerprints this."""
    [library] = re.findall(r"^\w+", expression)
    pytest.importorskip(library)
    script = (
        f"import sys, {library}\nfrom checkpoint_store import fingerprint\n"
        f"value = {expression}\nbefore = set(sys.modules)\nfingerprint(value)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    folder = Path(checkpoint_store.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return set(done.stdout.split()) & set(LIBRARIES) - {library}


@pytest.mark.parametrize(
    "expression",
    [
        "pandas.DataFrame({'a': [1, 2.5]}).astype({'a': object})",
        "polars.DataFrame({'a': [1, None], 'b': ['x', None], 'c': [[True], None]})",
        "pyarrow.table({'a': [1, None], 'b': ['x', None], 'c': [[True], None]})",
    ],
)
def test_a_table_loads_no_other_library_but_numpy(expression: str) -> None:
    assert loaded_after(expression) <= {"numpy"}


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_library_that_is_still_being_imported_is_no_obstacle(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, types.ModuleType(library))
    kind = type("Half", (), {"__module__": f"{library}.core"})
    assert refusal(kind()).reason == f"unsupported type {library}.core.Half"
