"""The format `fp1`: its text, what tells values apart, and which values are refused and where."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict, defaultdict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_store._fingerprint import combine, fingerprint, input_digests
from checkpoint_store.errors import FingerprintError

from ..harness.fingerprints import NAIVE, chain, sha, text

NAN = float("nan")

# Copied from the document of the format, with digests that sha256sum has made of the texts.
GOLDEN: list[tuple[object, str, str]] = [
    (
        None,
        "null",
        "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
    ),
    (
        True,
        "true",
        "b5bea41b6c623f7c09f1bf24dcae58ebab3c0cdd90ad966bc43a45b44867e12b",
    ),
    (
        1,
        "1",
        "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
    ),
    (
        1.0,
        "1.0",
        "d0ff5974b6aa52cf562bea5921840c032a860a91a3512f7fe8f768f6bbe005f6",
    ),
    (
        -0.0,
        "-0.0",
        "c26617c7ccbcaa6631b45d851b8cf56e21d2ca624bdb1193afdbd4b560702cec",
    ),
    (
        1e16,
        "1e+16",
        "a144838520595009e7daf5aff8472573f9ce6a4bcd8c30673675618883464ab0",
    ),
    (
        0.1,
        "0.1",
        "14be4b45f18e0d8c67b4f719b5144eee88497e413709d11d85b096d8e2346310",
    ),
    (
        "1",
        '"1"',
        "391552c099c101b131feaf24c5795a6a15bc8ec82015424e0d2b4274a369a0bf",
    ),
    (
        "é\ud800😀",
        '"\\u00e9\\ud800\\ud83d\\ude00"',
        "305d783c263b772fe5e700c715ac85913e815b863f880eaba8043d5a148f9dfd",
    ),
    (
        float("nan"),
        '{"!float":"nan"}',
        "c05ce4537ecbcb1265b468d3412969bb9a5e9fc1a0185b87b72c8b4dcbe15a5d",
    ),
    (
        float("-inf"),
        '{"!float":"-inf"}',
        "ec57b19d70c317d1eb9afb3716fb50bddad3ca961ea6f76e69c1a1be10261434",
    ),
    (
        2**64,
        '{"!int":"0x10000000000000000"}',
        "e7c3788e33ef1ed397cfe78a52fe374199a03d9cf7392590bf58d34a68fc6994",
    ),
    (
        -(2**70),
        '{"!int":"-0x400000000000000000"}',
        "a992c761fc66e3239e44c18f7df1637643e0a06c02cd1277c5af4649cbc98fba",
    ),
    (
        [1],
        "[1]",
        "080a9ed428559ef602668b4c00f114f1a11c3f6b02a435f0bdc154578e4d7f22",
    ),
    (
        (1,),
        "[1]",
        "080a9ed428559ef602668b4c00f114f1a11c3f6b02a435f0bdc154578e4d7f22",
    ),
    (
        [],
        "[]",
        "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945",
    ),
    (
        {},
        "{}",
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    ),
    (
        {"b": 1, "a": [True, None]},
        '{"a":[true,null],"b":1}',
        "51705a2c9eb3e7e410a58f696a770c3ac3885a0cf43eb7fc88f5e47c11d4d30d",
    ),
    (
        {"!x": 1, "!!y": 2},
        '{"!!!y":2,"!!x":1}',
        "4cbd9ada2b9dee4d36f9ba4869ed37205242086ac4a2e5d8fe5c2a408bdf1756",
    ),
    (
        {1: "x"},
        '{"!map":[[1,"x"]]}',
        "673da342ad63daf17c333ed482d985eeb6e6001abbc2da7e8362724e30820501",
    ),
    (
        {"1": "x"},
        '{"1":"x"}',
        "50258d013c04133cf55f8dc9d9f096c7681c91045eaf870ead85f88b5c05e3ec",
    ),
    (
        {1: "a", "1": "b", None: "c", (1, 2): "d"},
        '{"!map":[["1","b"],[1,"a"],[[1,2],"d"],[null,"c"]]}',
        "ee5e07f3770bc846888be0f2b5ba64a1a3ab6943cd91838652799c23ba1f3ec1",
    ),
    (
        {1, 2, "x"},
        '{"!set":["x",1,2]}',
        "b40e552b93bdd63d25182b5f1a88c9a8cfc96c84b084576f1e6d85a3b0bf8d0a",
    ),
    (
        frozenset({"b", "a"}),
        '{"!set":["a","b"]}',
        "746f2fdbf4c0cf14a802e8b2b7f5447013a80caf32f5de49bfd455455d408080",
    ),
    (
        b"abc",
        '{"!bytes":[3,"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]}',
        "23dfdd9be497fc6524afeac8af9db5a5b8ed9f92e4e24df8554af15199c154eb",
    ),
    (
        bytearray(b"abc"),
        '{"!bytes":[3,"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]}',
        "23dfdd9be497fc6524afeac8af9db5a5b8ed9f92e4e24df8554af15199c154eb",
    ),
    (
        datetime(2024, 1, 1, 12, 30),  # noqa: DTZ001
        '{"!datetime":"2024-01-01T12:30:00.000000"}',
        "0bde2e20ae5b3b5430e1827f2527d042f1bda537d42f71428a4571d2ef776e1d",
    ),
    (
        datetime(2024, 1, 1, 12, 30, tzinfo=UTC),
        '{"!datetime":"2024-01-01T12:30:00.000000Z"}',
        "f38dd93c4190bc76ba5c840418e7242d8920f26fec604e8144f7685e4aea25a1",
    ),
    (
        datetime(2024, 1, 1, 12, 30, tzinfo=timezone(timedelta(hours=2))),
        '{"!datetime":"2024-01-01T12:30:00.000000+7200000000us"}',
        "463081bd66e8d99e2d1c9e07204d6c5fc5df5db95a5854b0d97d8461b414ebac",
    ),
    (
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        '{"!datetime":"2024-10-27T02:30:00.000000[Europe/Berlin];fold=1"}',
        "a7d6a1b348b2d51789e6b843c590a52053c2476efe42118da0a6e8111d88c2c0",
    ),
    (
        date(2024, 1, 1),
        '{"!date":"2024-01-01"}',
        "692c95890f23491f2166c304dfec363bcc746f12dd5b266bd676cad5ba5d7e46",
    ),
    (
        time(12, 30),
        '{"!time":"12:30:00.000000"}',
        "bd38765e392d75238f914e0a75e6d33fe6ae92ecce6eb83157725cb58ea85e00",
    ),
    (
        timedelta(days=1, microseconds=5),
        '{"!timedelta":86400000005}',
        "9b3d5bd3dadfc4861f94bb9dd178839fabded2003faa0cfcc100d0e3dcc1f3fd",
    ),
    (
        UUID(int=1),
        '{"!uuid":"00000000000000000000000000000001"}',
        "e7952b9f88062b4c8b8c5d433c4f2862b74aeff6a5bf20ea36c41aa7575c108e",
    ),
    (
        PurePosixPath("a/b"),
        '{"!path":"a/b"}',
        "7bbd7a43011b826baf00d3c34bbbcabeaacc021b5ad90d3f72b132a5276a6af4",
    ),
    (
        Decimal("1.50"),
        '{"!decimal":[0,"150",-2]}',
        "6a57f95f263b0b9c7df280ad0557d9bb4ba66eb99100305e1ae47f77066d9f87",
    ),
    (
        Decimal("NaN"),
        '{"!decimal":[0,"","n"]}',
        "d3c87443e02ff5195d7f34470fe722fb7765b0544d514aaa54f2a8caee189cc3",
    ),
    (
        Fraction(1, 3),
        '{"!fraction":[1,3]}',
        "ddc8a0e563cc4037dacdce61a2c1751155e0491073f3df54932ccb75408f56b9",
    ),
    (
        1 + 2j,
        '{"!complex":[1.0,2.0]}',
        "67b1acd0f117354cd1b732982408ab6b15912641a8d498c71c26cd540d5aaa10",
    ),
    (
        range(0, 10, 2),
        '{"!range":[0,10,2]}',
        "c16befd2a7c8f78143efb731e9b1575524cc57b3fa615ec95370e558f12d225f",
    ),
    (
        numpy.arange(6, dtype="<i4").reshape(2, 3),
        '{"!ndarray":["<i4",[2,3],"cd9a54ed1f18bf97db08914e280ea7349e11ca2c4885a4d8052552ceba84208d"]}',
        "4a4fb70bdda2b40c69fd96eb9d64f3d7effcb9cfb93417268d7a2750d13c3d81",
    ),
    (
        numpy.arange(6, dtype=">i4").reshape(2, 3)[:, ::-1],
        '{"!ndarray":["<i4",[2,3],"0b77d6d33920cb76e3e07fe1dd3bfab2ce911c8cd3fb363480c9c4fa9bf38b69"]}',
        "1dedbce677c7da1b57d1cdb7a53b21d5c2d650cc4294055fa2d969a79c79efd9",
    ),
]


@pytest.mark.parametrize(("value", "expected", "expected_digest"), GOLDEN)
def test_a_value_has_this_text_and_digest_for_ever(
    value: object, expected: str, expected_digest: str
) -> None:
    assert expected == text(value)
    assert expected_digest == input_digests({"value": value})["value"]
    assert expected_digest == sha(expected.encode("ascii"))


@pytest.mark.parametrize(
    ("inputs", "ignore", "expected"),
    [
        (
            {"date": "2024-01-01", "n": 5},
            (),
            "2fbc0efe13a43c1149aa28bd0e1718e8f0036d84bfcf57b025c03ebd5f5e598d",
        ),
        ([1, 2], (), "02c328e001057480890ff55c1e089cabb9374715c4e1fb569830b927af8aae73"),
        ({}, (), "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
        (
            {"a": 1, "now": 2},
            ("now",),
            "a8bd5d837a9ca07cd623efc1b548824de49cb5c55a4e27f602748e6c73ce54aa",
        ),
        ({"a": 1}, (), "a8bd5d837a9ca07cd623efc1b548824de49cb5c55a4e27f602748e6c73ce54aa"),
    ],
)
def test_inputs_have_this_fingerprint_for_ever(
    inputs: object, ignore: tuple[str, ...], expected: str
) -> None:
    assert f"fp1:sha256:{expected}" == fingerprint(inputs, ignore=ignore)


# Names of inputs


def test_the_fingerprint_can_be_recomputed_from_the_digests() -> None:
    inputs = {"a": [1.5, None], "!b": {1, 2}, "": "x"}
    digests = input_digests(inputs)
    assert set(inputs) == set(digests)
    assert fingerprint(inputs) == combine(digests)
    assert "fp1:sha256:" + sha(text(digests).encode()) == combine(digests)


@pytest.mark.parametrize(
    "inputs",
    [
        OrderedDict(b=2, a=1),
        defaultdict(int, a=1, b=2),
        Counter(a=1, b=2),
        MappingProxyType({"a": 1, "b": 2}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_mapping_that_is_an_object_names_its_inputs(inputs: object) -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint(inputs)


@pytest.mark.parametrize("inputs", [[1], None, "a", {1: 2}, {"a": 1, 2: 3}, {"a"}], ids=repr)
def test_anything_else_is_one_input(inputs: object) -> None:
    assert list(input_digests(inputs)) == ["inputs"]
    assert fingerprint({"inputs": inputs}) == fingerprint(inputs)


def test_ignored_inputs_are_not_even_looked_at() -> None:
    assert fingerprint({"a": 1}) == fingerprint({"a": 1, "lock": threading.Lock()}, ignore={"lock"})


def test_ignoring_an_absent_name_or_none_changes_nothing() -> None:
    assert fingerprint({"a": 1}) == fingerprint({"a": 1}, ignore=["b"])
    assert fingerprint([1]) == fingerprint([1], ignore=[])


def test_ignore_reaches_the_names_of_inputs_only() -> None:
    assert fingerprint({"a": {"now": 1}}, ignore=("now",)) != fingerprint({"a": {}})


@pytest.mark.parametrize("ignore", ["now", b"now", 5, (1,), None], ids=repr)
def test_ignore_must_be_a_collection_of_names(ignore: Any) -> None:
    with pytest.raises(FingerprintError, match=r'such as ignore=\("now",\)'):
        fingerprint({"now": 1}, ignore=ignore)


def test_ignore_needs_inputs_with_names() -> None:
    with pytest.raises(FingerprintError, match="pass a dict with str keys"):
        fingerprint([1], ignore=("now",))


# What others get wrong


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, "1"),
        (1, 1.0),
        (1, True),
        (0, False),
        (0.0, -0.0),
        (None, "null"),
        (NAN, None),
        (NAN, float("inf")),
        (float("inf"), float("-inf")),
        (NAN, "nan"),
        (b"a", "a"),
        (b"", None),
        ({1}, [1]),
        ({1: "x"}, {"1": "x"}),
        ({True: "x"}, {"True": "x"}),
        ({None: "x"}, {"null": "x"}),
        ({1: "x"}, {True: "x"}),
        ({}, []),
        ({}, set()),
        (["a", "b-c"], ["a-b", "c"]),
        (["ab", "c"], ["a", "bc"]),
        ([[1], 2], [1, [2]]),
        ([[]], []),
        ({"a": {"b": 1}}, {"a.b": 1}),
        ({"!set": [1]}, {1}),
        ({"!int": "0x10000000000000000"}, 2**64),
        ({"!!set": [1]}, {"!set": [1]}),
        ({"!": 1}, {"!!": 1}),
        (2**64, 2**64 + 1),
        (2**53, 2**53 + 1),
        (0.1 + 0.2, 0.3),
        ("é", "e\u0301"),
        ("\ud83d", "\ude00"),
        (Decimal("1.5"), Decimal("1.50")),
        (Decimal("NaN"), Decimal("sNaN")),
        (Decimal("Infinity"), Decimal("-Infinity")),
        (Decimal(1), Fraction(1)),
        (1 + 0j, 1.0),
        (complex(0.0, -0.0), 0j),
        (complex(NAN, 0), complex(0, NAN)),
        (range(3), [0, 1, 2]),
        (date(2024, 1, 1), NAIVE),
        (date(2024, 1, 1), "2024-01-01"),
        (NAIVE, NAIVE.replace(tzinfo=UTC)),
        (timedelta(1), 86_400_000_000),
        (UUID(int=1), UUID(int=1).hex),
        (PurePosixPath("a"), "a"),
        (frozenset({1}), frozenset({frozenset({1})})),
        (
            datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
        ),
        (
            datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Paris")),
        ),
    ],
    ids=repr,
)
def test_values_that_differ_have_different_texts(one: object, other: object) -> None:
    assert text(one) != text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, (2,)], (1, [2])),
        ({1, 2}, frozenset({2, 1})),
        (b"ab", memoryview(b"ab")),
        ({"a": 1, "b": 2}, OrderedDict(b=2, a=1)),
        (MappingProxyType({"a": {1}}), {"a": {1}}),
        (MappingProxyType(OrderedDict({1: 2})), {1: 2}),
        (defaultdict(list, {1: 2}), {1: 2}),
        (Counter({2: 1}), {2: 1}),
        (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC"))),
        (timezone(timedelta(0), "GMT"), None),
    ],
    ids=lambda value: "memory" if type(value) is memoryview else repr(value),
)
def test_values_that_are_equal_by_choice_have_one_text(one: object, other: object) -> None:
    if isinstance(one, timezone):
        one, other = (datetime(2024, 1, 1, tzinfo=zone) for zone in (one, UTC))
    assert text(one) == text(other)


def test_sharing_an_object_makes_no_difference() -> None:
    for make in (lambda: [1], lambda: {1}, lambda: {1: {2}}, lambda: [b"x"], lambda: {"a": [b"x"]}):
        shared = make()
        assert text([make(), make()]) == text([shared, shared])
        assert text({"a": make(), "b": [make()]}) == text({"a": shared, "b": [shared]})


def test_interned_strings_make_no_difference() -> None:
    assert text(["ab", "ab"]) == text(["ab", "".join(["a", "b"])])


def test_one_element_in_the_middle_of_many_is_seen() -> None:
    values = list(range(5000))
    changed = [*values]
    changed[2500] = -1
    assert text(values) != text(changed)


def test_what_is_deeply_nested_is_seen() -> None:
    assert text(chain(lambda value: [value], 1, 150)) != text(chain(lambda value: [value], 2, 150))


def test_a_value_deep_in_a_list_is_replaced_in_its_place_only() -> None:
    when, raw = date(2024, 1, 1), b"x"
    value = [1, [2, when], {"a": when, "b": [3], "!c": raw}, (raw,)]
    assert [
        1,
        [2, {"!date": "2024-01-01"}],
        {"a": {"!date": "2024-01-01"}, "b": [3], "!!c": json.loads(text(raw))},
        [json.loads(text(raw))],
    ] == json.loads(text(value))
    assert [1, [2, when], {"a": when, "b": [3], "!c": raw}, (raw,)] == value


def test_the_same_entry_under_two_nans_does_not_depend_on_their_order() -> None:
    one, other = float("nan"), float("nan")
    assert text({one: 1, other: 2}) == text({other: 2, one: 1})
    assert text({one: 1, other: 2, 7: 0}) != text({one: 1, other: 1, 7: 0})
    assert text({one, other}) == '{"!set":[{"!float":"nan"},{"!float":"nan"}]}'


def test_keys_that_begin_alike_are_sorted_by_their_own_text() -> None:
    nan, other = float("nan"), float("nan")
    assert text({10: 0, 1.5: 0, 1: 0}) == '{"!map":[[1,0],[1.5,0],[10,0]]}'
    assert (
        text({-10: 0, other: 2, -1.5: 0, nan: 1, -1: 0})
        == '{"!map":[[-1,0],[-1.5,0],[-10,0],[{"!float":"nan"},1],[{"!float":"nan"},2]]}'
    )


# Properties

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary(max_size=4)
    | st.decimals()
    | st.datetimes()
    | st.timedeltas()
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "!a", "!!a", "", " ", "!set", "é"]), inner)
    ),
    max_leaves=12,
)
keys = st.integers() | st.text(max_size=3) | st.booleans() | st.none() | st.binary(max_size=3)


def exactly(value: object) -> str:
    """A text that is as different as `==` and the types are: the standard library's `repr`."""
    if isinstance(value, dict):
        entries = sorted(f"{exactly(key)}: {exactly(item)}" for key, item in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(exactly, value))}]"
    return repr(value)


@given(json_values, json_values)
def test_two_values_have_one_text_only_if_they_are_equal(one: object, other: object) -> None:
    """The text is injective on JSON's values (NaN being one value)."""
    assert (exactly(one) == exactly(other)) == (text(one) == text(other))


@given(json_values)
def test_a_text_is_json_in_canonical_form(value: object) -> None:
    written = text(value)
    assert written.isascii()
    assert written == json.dumps(
        json.loads(written), sort_keys=True, separators=(",", ":"), allow_nan=False
    )


@given(
    st.lists(
        st.integers(-(2**64) + 1, 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
    )
)
def test_plain_values_are_what_json_writes(value: list[object]) -> None:
    assert json.dumps(value, separators=(",", ":")) == text(value)


@given(st.dictionaries(keys, scalars), st.randoms())
def test_the_order_of_entries_does_not_matter(value: dict[Any, object], random: Any) -> None:
    entries = list(value.items())
    random.shuffle(entries)
    assert text(value) == text(dict(entries)) == text(OrderedDict(entries))


@given(st.lists(keys | st.frozensets(keys), max_size=8), st.randoms())
def test_the_order_of_a_set_does_not_matter(items: list[Any], random: Any) -> None:
    # Equal members of different types (1 and True) would leave the choice to the set.
    unique = list({text(item): item for item in items if type(item) is not bool}.values())
    one = set(unique)
    random.shuffle(unique)
    assert text(one) == text(set(unique)) == text(frozenset(unique))


@given(st.integers())
def test_an_integer_is_none_of_its_lookalikes(number: int) -> None:
    lookalikes = [number, str(number), Decimal(number), Fraction(number), [number], {number}]
    if abs(number) < 2**1000:
        lookalikes.append(float(number))
    assert len(lookalikes) == len({text(value) for value in lookalikes})
