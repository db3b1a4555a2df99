"""Tables of pandas, polars and pyarrow: their texts, what does not change them, what is refused.

Each value is an expression, so that a library that is missing, or too old for one, costs no more
than the values it cannot make. What a column should be is computed once more in `harness.tables`.
Single columns are tested in `test_fingerprint_columns`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from datetime import timedelta, tzinfo
from typing import Any

import pytest

from checkpoint_store import (
    _fingerprint,
    _fingerprint_refusal,
    _fingerprint_tables,
    _fingerprint_tree,
)
from checkpoint_store._fingerprint import fingerprint, register
from checkpoint_store.errors import FingerprintError

from ..harness import PACKAGE
from ..harness.fingerprints import refusal_of, sha, text
from ..harness.tables import LIBRARIES, value_of

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
    expected = json.dumps(expected_tree, sort_keys=True, separators=(",", ":"))
    assert expected == text(value)
    assert expected_digest == sha(expected.encode())
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


# What is refused


class Unknown:
    pass


class OwnZone(tzinfo):
    key = "Own/Zone"

    def utcoffset(self, _: object) -> timedelta:
        return timedelta(0)

    dst = utcoffset


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
    error = refusal_of(value_of(expression, Unknown=Unknown, OwnZone=OwnZone))
    assert "inputs['v']" + path == error.path
    assert reason in str(error.reason)


def test_a_zone_with_neither_a_name_nor_one_offset_is_refused() -> None:
    class Nameless(OwnZone):
        __module__, key = "zoneinfo", ""

        def utcoffset(self, moment: object) -> Any:
            return moment

    with pytest.raises(_fingerprint_refusal.RefusedError, match="time zone of type Nameless"):
        _fingerprint_tables._zone(Nameless())


def test_a_subclass_of_a_table_is_refused() -> None:
    pandas = pytest.importorskip("pandas")

    class Frame(pandas.DataFrame):
        pass

    assert refusal_of(Frame({"a": [1]})).reason == (
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
        assert refusal_of(series.to_frame()).path == "inputs['v']['a']"
    polars.unregister_extension_type("acme.length")


def test_a_column_of_pandas_with_a_type_of_somebody_else_is_refused() -> None:
    pandas, numpy = pytest.importorskip("pandas"), pytest.importorskip("numpy")
    dtype = type("Int64Dtype", (pandas.Int64Dtype,), {"__module__": "acme", "name": "Metre"})
    metres = type("Metres", (pandas.arrays.IntegerArray,), {"dtype": dtype()})
    series = pandas.Series(metres(numpy.array([1]), numpy.array([True])))
    error = refusal_of(series.to_frame("a"))
    assert (error.path, error.reason) == ("inputs['v']['a']", "unsupported column type Metre")


def test_memory_of_an_unknown_width_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    polars = pytest.importorskip("polars")
    monkeypatch.delitem(_fingerprint_tables._CODES, "int64")
    assert refusal_of(polars.DataFrame({"a": [1]})).reason == "unsupported column type Int64"


def test_what_a_library_raises_is_the_cause_and_has_a_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    polars = pytest.importorskip("polars")
    monkeypatch.setattr(polars.Series, "null_count", lambda _: 1 / 0)
    error = refusal_of(polars.DataFrame({"a": [1]}))
    assert (error.path, error.reason) == ("inputs['v']['a']", "reading it raised ZeroDivisionError")
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_objects_within_a_column_count_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr(_fingerprint_tree, "MAX_WORK", 1000)
    too_many = pandas.Series([None] * 1001, dtype=object)
    assert refusal_of(too_many).reason.startswith("too many values")
    fingerprint(pandas.Series(range(1001)))


def test_a_cycle_through_a_column_is_reported() -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series([None, 1], dtype=object)
    series.iloc[0] = [series]
    error = refusal_of(series)
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
    folder = PACKAGE.parent
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
    assert refusal_of(kind()).reason == f"unsupported type {library}.core.Half"
