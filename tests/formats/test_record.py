"""The record's encoding: what is written comes back, and nothing else is ever believed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkpoint_store._names import encode_name, is_token
from checkpoint_store._record import (
    MAX_FINGERPRINT_BYTES,
    MAX_RECORD_BYTES,
    Record,
    check_fingerprint,
    decode_record,
    encode_record,
    label,
    new_record,
    overlay,
    with_keys,
)
from checkpoint_store.errors import (
    CorruptRecordError,
    FingerprintError,
    InvalidNameError,
    InvalidTaskError,
    UnsupportedFormatError,
)

from ..harness.records import sealed

DIGEST = "0123456789abcdef" * 4
RECORD = Record(
    workflow="orders",
    fingerprint=f"fp1:sha256:{DIGEST}",
    token="a1b2c3d4e5f60718",
    base="0011223344556677",
    nonce="00112233445566778899aabbccddeeff",
    inputs={"day": DIGEST, "model": DIGEST[::-1]},
    created="2026-11-23T12:00:00+00:00",
    updated="2026-11-24T12:00:00+00:00",
)
DATA = encode_record(RECORD)

KEYS = [f"{number:064x}" for number in range(1_000)]
WITH_TASKS = RECORD._replace(tasks={KEYS[0]: "e" * 16}, base_tasks={KEYS[1]: "d" * 16})
TASKED = encode_record(WITH_TASKS)

of_both_versions = pytest.mark.parametrize("record", [RECORD, WITH_TASKS], ids=["1", "2"])

text = st.text(st.characters(exclude_categories=()), max_size=40)
hexadecimal = st.binary(min_size=8, max_size=32).map(bytes.hex)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def task_tokens(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, str]]:
    """The tokens of the keys of a record, and of those of its base. No token occurs twice."""
    tokens = st.binary(min_size=8, max_size=8).map(lambda data: f"7{data.hex()}")
    pairs = draw(
        st.lists(st.tuples(digests, tokens), max_size=6, unique_by=(lambda p: p[0], lambda p: p[1]))
    )
    half = draw(st.integers(0, len(pairs)))
    return dict(pairs[:half]), dict(pairs[half:])


records = st.builds(
    lambda tokens, base, **others: Record(
        tasks=tokens[0], base=base, base_tasks=tokens[1] if base else {}, **others
    ),
    task_tokens(),
    workflow=text.filter(lambda name: 0 < len(repr(name.encode("utf-8", "surrogatepass"))) < 60),
    fingerprint=st.none() | text.filter(bool),
    token=hexadecimal.map("a{}".format).map(lambda token: token[:64]),
    base=st.none() | hexadecimal.map("b{}".format).map(lambda token: token[:64]),
    nonce=hexadecimal,
    inputs=st.none() | st.dictionaries(text, digests, max_size=8),
    created=st.just(RECORD.created),
    updated=st.just(RECORD.updated),
)
many = settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def fields(record: Record = RECORD, **changes: Any) -> dict[str, Any]:
    parsed = json.loads(encode_record(record))
    del parsed["checksum"]
    return {**parsed, **changes}


def tasked(**changes: Any) -> bytes:
    return sealed(fields(WITH_TASKS, **changes))


def assert_quotable(error: Exception) -> None:
    """A message goes into logs, so content that nobody vouches for must not flood or forge them."""
    message = str(error)
    assert message.isprintable()
    assert len(message) < 1_000


@pytest.mark.slow
@many
@given(records)
@example(RECORD._replace(workflow="\ud83d\ude00"))
@example(RECORD._replace(fingerprint="\ud83d\ude00"))
@example(RECORD._replace(inputs={"\ud83d\ude00": DIGEST, "\U0001f600": DIGEST}))
@example(RECORD._replace(workflow="\ud800", inputs={}))
def test_a_record_comes_back_as_it_was_written(record: Record) -> None:
    data = encode_record(record)
    assert len(data) <= MAX_RECORD_BYTES
    assert record == decode_record(data, record.workflow)


def test_a_record_is_small_readable_json() -> None:
    parsed = json.loads(DATA)
    assert parsed["checkpoint_store"] == 1
    assert next(iter(parsed)) == "checkpoint_store"
    assert (parsed["workflow"], parsed["fingerprint"]) == (RECORD.workflow, RECORD.fingerprint)
    assert (parsed["token"], parsed["base"]) == (RECORD.token, RECORD.base)
    assert DATA.count(b"\n") > 5
    assert DATA.endswith(b"}\n")
    assert DATA.replace(b"\n", b" ").decode("utf-8").isprintable()


def test_a_record_may_be_without_fingerprint_base_and_digests() -> None:
    record = RECORD._replace(fingerprint=None, base=None, inputs=None)
    assert record == decode_record(encode_record(record), RECORD.workflow)


def test_a_record_is_sealed_as_documented() -> None:
    assert json.loads(sealed(fields())) == json.loads(DATA)


# Damage


@of_both_versions
def test_a_truncated_record_is_corrupt(record: Record) -> None:
    data = encode_record(record)
    for size in range(len(data) - 1):
        assert outcome(data[:size]) is CorruptRecordError
    assert outcome(data[:-1]) == record  # Only the line feed is missing.


def damaged_by_a_bit(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        for bit in range(8):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def damaged_by_a_byte(data: bytes) -> Iterator[bytes]:
    for place in range(len(data) + 1):
        for byte in (b"0", b"a", b" ", b'"', b"\\", b"\0", b"\xff", b",", b"{"):
            yield data[:place] + byte + data[place:]
        if place < len(data):
            yield data[:place] + data[place + 1 :]


def outcome(data: bytes) -> object:
    try:
        return decode_record(data, RECORD.workflow)
    except (CorruptRecordError, UnsupportedFormatError, InvalidNameError) as error:
        assert_quotable(error)
        return type(error)


@of_both_versions
def test_no_flipped_bit_makes_another_record(record: Record) -> None:
    outcomes = [outcome(data) for data in damaged_by_a_bit(encode_record(record))]
    assert [found for found in outcomes if isinstance(found, Record) and found != record] == []


@of_both_versions
def test_no_inserted_or_lost_byte_makes_another_record(record: Record) -> None:
    outcomes = [outcome(data) for data in damaged_by_a_byte(encode_record(record))]
    assert [found for found in outcomes if isinstance(found, Record) and found != record] == []


@of_both_versions
def test_a_flipped_bit_is_corrupt_or_looks_like_another_format_and_is_nothing_else(
    record: Record,
) -> None:
    outcomes = [outcome(data) for data in damaged_by_a_bit(encode_record(record))]
    kinds = {kind for kind in outcomes if isinstance(kind, type)}
    assert kinds == {CorruptRecordError, UnsupportedFormatError}


# Hostile content


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "a newline": b"\n",
    "spaces only": b" " * MAX_RECORD_BYTES,
    "NUL bytes": bytes(512),
    "all bytes": bytes(range(256)),
    "bad UTF-8": DATA.replace(b"orders", b"ord\xff\xfe"),
    "overlong UTF-8": DATA.replace(b"orders", b"ord\xc0\xaf"),
    "UTF-16": DATA.decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + DATA,
    "null": b"null\n",
    "a list": b"[]\n",
    "a number": b"1\n",
    "a string": b'"orders"\n',
    "an empty object": b"{}\n",
    "two objects": DATA + DATA,
    "something after it": DATA + b"x",
    "deep lists": b"[" * 60_000,
    "deep objects": b'{"a":' * 10_000,
    "deep within a field": b'{"checkpoint_store": 1, "inputs": ' + b"[" * 60_000 + b"]" * 5 + b"}",
    "a 5,000-digit version": b'{"checkpoint_store": ' + b"9" * 5_000 + b"}",
    "a 60,000-digit version": b'{"checkpoint_store": ' + b"9" * 60_000 + b"}",
    "a huge float": DATA.replace(b'"orders"', b"1e999"),
    "a duplicate key": DATA.replace(b'"token"', b'"token": "0123456789abcdef", "token"', 1),
    "a duplicate workflow": DATA.replace(b'"workflow"', b'"workflow": "x", "workflow"', 1),
    "a duplicate input": DATA.replace(b'"day"', b'"model": "x", "day"', 1),
    "NaN": DATA.replace(b'"orders"', b"NaN"),
    "Infinity": DATA.replace(b'"orders"', b"-Infinity"),
    "a raw control character": DATA.replace(b"orders", b"ord\ners"),
    "single quotes": DATA.replace(b'"', b"'"),
    "too large": DATA + b" " * (MAX_RECORD_BYTES - len(DATA) + 1),
    "far too large": DATA + b" " * 10_000_000,
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
    "no version": sealed({k: v for k, v in fields().items() if k != "checkpoint_store"}),
    "no workflow": sealed({k: v for k, v in fields().items() if k != "workflow"}),
    "no token": sealed({k: v for k, v in fields().items() if k != "token"}),
    "no nonce": sealed({k: v for k, v in fields().items() if k != "nonce"}),
    **{
        f"version {version!r}": sealed(fields(checkpoint_store=version))
        for version in (0, -1, -(10**30), 1.0, 1.5, True, False, None, "1", [1], {"1": 1})
    },
    **{
        f"{key} {value!r}": sealed(fields(**{key: value}))
        for key in ("workflow", "token", "nonce", "created", "updated")
        for value in (None, 5, 1.5, True, [], {}, ["x"])
    },
    **{
        f"{key} {value!r}": sealed(fields(**{key: value}))
        for key in ("fingerprint", "base", "inputs")
        for value in (5, -1, 1.5, True, False, [], [DIGEST], ["day", DIGEST])
    },
    **{
        f"{key} {value!r:.24}": sealed(fields(**{key: value}))
        for key in ("token", "base")
        for value in ("", "../../x", "/", "0" * 15, "0" * 65, "A" * 16, f"{'0' * 16}\n", "*", {})
    },
    **{
        f"digest {value!r:.24}": sealed(fields(inputs={"day": value}))
        for value in ("", "0" * 63, "0" * 65, "A" * 64, f"{'0' * 64}\n", None, 5, {}, [DIGEST])
    },
    "an empty fingerprint": sealed(fields(fingerprint="")),
    "a fingerprint nobody could have given": sealed(fields(fingerprint="x" * 1_025)),
    "a huge fingerprint": sealed(fields(fingerprint="x" * 50_000)),
    "the record of another": sealed(fields(workflow="invoices")),
    "the record of a huge name": sealed(fields(workflow="x" * 50_000)),
    "the record of a forged log line": sealed(fields(workflow="x\nERROR root: all lost")),
    "version 2 without tasks": sealed(fields(checkpoint_store=2)),
    "a key in tasks twice": TASKED.replace(b'"tasks": {', b'"tasks": {"x": "y", "x": "z", '),
    "tasks twice": TASKED.replace(b'"tasks"', b'"tasks": {}, "tasks"', 1),
    "a 5,000-digit token": TASKED.replace(b'"eeeeeeeeeeeeeeee"', b"9" * 5_000),
    "deep tasks": TASKED.replace(b'"eeeeeeeeeeeeeeee"', b'{"a":' * 10_000),
    "keys of a base without a base": tasked(base=None),
    "a key twice, in tasks and base_tasks": tasked(base_tasks={KEYS[0]: "d" * 16}),
    "a token twice, in tasks": tasked(tasks={KEYS[0]: "e" * 16, KEYS[2]: "e" * 16}),
    "a token twice, in tasks and base_tasks": tasked(tasks={KEYS[0]: "d" * 16}),
    "the token of the generation in tasks": tasked(tasks={KEYS[0]: RECORD.token}),
    "the token of the base in tasks": tasked(tasks={KEYS[0]: RECORD.base}),
    "the token of the generation in base_tasks": tasked(base_tasks={KEYS[1]: RECORD.token}),
    "the token of the base in base_tasks": tasked(base_tasks={KEYS[1]: RECORD.base}),
    "one token for generation and base": tasked(base=RECORD.token),
    **{
        f"no {name}": sealed(
            {key: value for key, value in fields(WITH_TASKS).items() if key != name}
        )
        for name in ("tasks", "base_tasks")
    },
    **{
        f"{name} {value!r:.24}": tasked(**{name: value})
        for name in ("tasks", "base_tasks")
        for value in (None, 5, 10**4_000, 1.5, True, "x", [], [KEYS[0]], [[KEYS[0], "e" * 16]])
    },
    **{
        f"{name} with the key {key!r:.24}": tasked(**{name: {key: "c" * 16}})
        for name in ("tasks", "base_tasks")
        for key in ("", "x", "0" * 63, "0" * 65, "A" * 64, f"{KEYS[2]}\n", "0" * 60_000, "../../x")
    },
    **{
        f"{name} with the token {token!r:.24}": tasked(**{name: {KEYS[2]: token}})
        for name in ("tasks", "base_tasks")
        for token in (
            *("", "../../x", "*", "c" * 15, "c" * 65, "C" * 16, f"{'c' * 16}\n"),
            *(None, 7, 10**4_000, 1.5, False, [], ["c" * 16], {}, {KEYS[2]: "c" * 16}),
        )
    },
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_a_corrupt_record(data: bytes) -> None:
    with pytest.raises(CorruptRecordError, match="'orders'") as caught:
        decode_record(data, RECORD.workflow)
    assert_quotable(caught.value)


@settings(max_examples=2_000, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_corrupt_record(data: bytes) -> None:
    with pytest.raises(CorruptRecordError):
        decode_record(data, RECORD.workflow)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=8), values, max_size=4)
    ),
    max_leaves=10,
)


@many
@given(st.sampled_from(sorted(fields(WITH_TASKS))), json_values)
def test_any_json_in_any_field_is_our_error_or_a_record(key: str, value: object) -> None:
    decoded = outcome(tasked(**{key: value}))
    if isinstance(decoded, Record):
        assert all(map(is_token, decoded.live))
        assert decoded.workflow == RECORD.workflow


a_few_tokens = st.sampled_from(["c" * 16, "d" * 16, "e" * 16, "f" * 16, "0" * 16, "1" * 16])
of_a_few_keys = st.dictionaries(st.sampled_from(KEYS[:5]), a_few_tokens, max_size=3)


@many
@given(a_few_tokens, st.none() | a_few_tokens, of_a_few_keys, of_a_few_keys)
def test_no_key_and_no_token_of_a_record_occurs_twice(
    token: str, base: str | None, tasks: dict[str, str], base_tasks: dict[str, str]
) -> None:
    tokens = [token, *([base] if base else ()), *tasks.values(), *base_tasks.values()]
    keys = [*tasks, *base_tasks]
    is_right = len({*tokens}) == len(tokens) and len({*keys}) == len(keys)
    if base_tasks and base is None:
        is_right = False
    record = RECORD._replace(token=token, base=base, tasks=tasks, base_tasks=base_tasks)
    found = outcome(tasked(token=token, base=base, tasks=tasks, base_tasks=base_tasks))
    assert found == (record if is_right else CorruptRecordError)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2), st.dictionaries(text, json_values, max_size=4))
def test_any_object_with_the_right_checksum_is_a_corrupt_record(
    version: int, content: dict[str, Any]
) -> None:
    assert outcome(sealed({**content, "checkpoint_store": version})) is CorruptRecordError


@pytest.mark.parametrize("version", [3, 4, 99, 10**18])
@pytest.mark.parametrize("kept", ["everything", "nothing"])
def test_a_newer_format_is_told_from_a_corrupt_one(version: int, kept: str) -> None:
    changes = {"checkpoint_store": version}
    data = sealed(fields(**changes) if kept == "everything" else changes)
    with pytest.raises(UnsupportedFormatError, match="upgrade") as caught:
        decode_record(data, RECORD.workflow)
    assert_quotable(caught.value)


def test_an_absurd_version_does_not_flood_the_message() -> None:
    with pytest.raises((CorruptRecordError, UnsupportedFormatError)) as caught:
        decode_record(sealed(fields(checkpoint_store=10**4_000)), RECORD.workflow)
    assert_quotable(caught.value)


def test_the_message_names_the_workflow_and_both_remedies() -> None:
    with pytest.raises(CorruptRecordError, match="'orders'") as caught:
        decode_record(b"", "orders")
    assert 'on_input_change="reset"' in str(caught.value)
    assert "clear" in str(caught.value)


# Sizes


def named(count: int, name: str = "input{:05}") -> dict[str, str]:
    return {name.format(number): DIGEST for number in range(count)}


def test_the_digests_are_left_out_as_soon_as_the_record_would_be_too_large() -> None:
    sizes = {}
    for count in (0, 1, 100, 700, 900, 10_000):
        data = encode_record(RECORD._replace(inputs=named(count)))
        decoded = decode_record(data, RECORD.workflow)
        sizes[count] = len(data)
        assert decoded in (
            RECORD._replace(inputs=named(count)),
            RECORD._replace(inputs=None),
        )
        assert (decoded.inputs is None) == (count >= 900)
    assert max(sizes.values()) <= MAX_RECORD_BYTES
    assert sizes[10_000] < 1_000


def test_the_last_byte_that_fits_is_used() -> None:
    def encoded(padding: int) -> bytes:
        return encode_record(RECORD._replace(inputs={"x" * padding: DIGEST}))

    room = MAX_RECORD_BYTES - len(encoded(1)) + 1
    assert len(encoded(room)) == MAX_RECORD_BYTES
    assert decode_record(encoded(room), RECORD.workflow).inputs is not None
    assert decode_record(encoded(room + 1), RECORD.workflow).inputs is None


@pytest.mark.parametrize("char", ["x", "\x01", "\x7f", "é", "名", "😀", "\ud800"])
def test_the_longest_name_and_fingerprint_always_fit(char: str) -> None:
    width = len(char.encode("utf-8", "surrogatepass"))
    workflow = char * (200 // len(encode_name(char, "workflow id")))
    fingerprint = check_fingerprint(char * (MAX_FINGERPRINT_BYTES // width))
    record = overlay(new_record(workflow, fingerprint, named(100_000)))
    data = encode_record(record)
    assert len(data) < 16_384
    assert record._replace(inputs=None) == decode_record(data, workflow)


def test_reader_and_writer_agree_on_the_limit() -> None:
    padded = DATA + b" " * (MAX_RECORD_BYTES - len(DATA))
    assert len(padded) == MAX_RECORD_BYTES
    assert outcome(padded) in (RECORD, CorruptRecordError)
    with pytest.raises(CorruptRecordError, match="larger than 65536 bytes"):
        decode_record(padded + b" ", RECORD.workflow)


@pytest.mark.parametrize("fingerprint", ["x", "x" * 1_024, "é" * 512, "\0", "\ud800", " ", "fp1:"])
def test_an_explicit_fingerprint_of_up_to_a_kibibyte_is_kept_as_it_is(fingerprint: str) -> None:
    assert fingerprint == check_fingerprint(fingerprint)


@pytest.mark.parametrize("fingerprint", ["", "x" * 1_025, "é" * 513, "名" * 342, "x" * 10_000_000])
def test_an_explicit_fingerprint_of_another_size_is_refused(fingerprint: str) -> None:
    with pytest.raises(FingerprintError, match="1 to 1024 bytes") as caught:
        check_fingerprint(fingerprint)
    assert_quotable(caught.value)


@pytest.mark.parametrize("fingerprint", [None, 5, b"x", {"day": 1}, ["x"], object()])
def test_an_explicit_fingerprint_that_is_not_a_str_is_refused(fingerprint: object) -> None:
    with pytest.raises(FingerprintError, match=f"not {type(fingerprint).__name__}.*inputs"):
        check_fingerprint(fingerprint)  # type: ignore[arg-type]


def test_a_str_subclass_as_a_fingerprint_becomes_a_plain_str() -> None:
    class Version(str):
        __slots__ = ()

    checked = check_fingerprint(Version("v1"))
    assert checked == "v1"
    assert type(checked) is str


# Identity


def test_the_record_of_another_workflow_is_corrupt() -> None:
    with pytest.raises(CorruptRecordError, match=r"'orders2'.*'orders'"):
        decode_record(DATA, "orders2")


@pytest.mark.parametrize("workflow", ["Orders", "ORDERS"])
def test_a_disk_that_folds_case_is_told_from_a_moved_file(workflow: str) -> None:
    with pytest.raises(InvalidNameError, match="choose another workflow id"):
        decode_record(DATA, workflow)


@pytest.mark.parametrize(
    ("stored", "asked"), [("straße", "strasse"), ("\u0131", "I"), ("É", "é"), ("\ufb01", "fi")]
)
def test_names_whose_keys_differ_are_not_blamed_on_the_disk(stored: str, asked: str) -> None:
    keys = [encode_name(name, "workflow id").lower() for name in (stored, asked)]
    assert keys[0] != keys[1]
    with pytest.raises(CorruptRecordError):
        decode_record(encode_record(RECORD._replace(workflow=stored)), asked)


# Versions


def test_a_new_record_is_a_generation_of_its_own() -> None:
    made = [new_record("orders", "v1", {"day": DIGEST}) for _ in range(100)]
    assert len({record.token for record in made}) == 100
    assert len({record.nonce for record in made}) == 100
    for record in made:
        assert is_token(record.token)
        assert re.fullmatch(r"[0-9a-f]{32}", record.nonce)
        assert (record.workflow, record.fingerprint, record.base) == ("orders", "v1", None)
        assert record.inputs == {"day": DIGEST}
        assert record.created == record.updated


def test_an_overlay_reads_through_to_the_generation_before_and_keeps_its_fingerprint() -> None:
    before = RECORD._replace(base=None)
    after = overlay(before)
    assert before.token == after.base
    assert after.token not in (before.token, None)
    assert after.nonce != before.nonce
    assert after.updated != before.updated
    kept = after._replace(token=before.token, base=None, nonce=before.nonce, updated=before.updated)
    assert before == kept


def test_a_label_changes_the_fingerprint_and_the_version_and_nothing_else() -> None:
    before = RECORD._replace(fingerprint=None, base=None, inputs=None)
    after = label(before, "v1")
    assert after.nonce != before.nonce
    assert before._replace(fingerprint="v1") == after._replace(
        nonce=before.nonce, updated=before.updated
    )


# Records with the keys of tasks, which are of version 2


def test_only_a_record_with_tasks_is_of_the_second_version() -> None:
    assert json.loads(DATA)["checkpoint_store"] == 1
    assert "tasks" not in json.loads(DATA)
    for record in (RECORD._replace(tasks={KEYS[0]: "e" * 16}), WITH_TASKS):
        data = encode_record(record)
        assert json.loads(data)["checkpoint_store"] == 2
        assert decode_record(data, "orders") == record


def test_fields_that_nobody_knows_are_ignored_and_so_are_tasks_in_the_first_version() -> None:
    assert decode_record(tasked(), "orders") == WITH_TASKS
    assert decode_record(tasked(more={"x": [1]}), "orders") == WITH_TASKS
    assert decode_record(tasked(checkpoint_store=1), "orders") == RECORD
    assert decode_record(tasked(tasks={}, base_tasks={}), "orders") == RECORD


def test_about_700_keys_fit_and_more_are_told_how_to_become_fewer() -> None:
    def encoded(count: int) -> bytes:
        return encode_record(new_record("orders", RECORD.fingerprint, named(10), KEYS[:count]))

    assert len(encoded(2)) - len(encoded(1)) == 90
    assert len(encoded(714)) <= MAX_RECORD_BYTES
    with pytest.raises(
        InvalidTaskError, match=r"10 inputs and 715 .* declare tasks alike"
    ) as caught:
        encoded(715)
    assert_quotable(caught.value)


def test_the_last_byte_that_fits_is_used_and_digests_that_tasks_use_are_never_left_out() -> None:
    def encoded(padding: int) -> bytes:
        return encode_record(WITH_TASKS._replace(inputs={"x" * padding: DIGEST}))

    room = MAX_RECORD_BYTES - len(encoded(1)) + 1
    assert len(encoded(room)) == MAX_RECORD_BYTES
    assert decode_record(encoded(room), "orders").inputs == {"x" * room: DIGEST}
    with pytest.raises(InvalidTaskError, match=r"would take 65537 bytes .* put inputs together"):
        encoded(room + 1)


def test_keys_that_nobody_declares_make_room() -> None:
    full = new_record("orders", "v1", {}, KEYS[:600])
    assert with_keys(full, KEYS[:600]) is full
    more = with_keys(full, KEYS[500:800])
    assert more.tasks.keys() == set(KEYS[500:800])
    assert all(full.tasks[key] == more.tasks[key] for key in KEYS[500:600])
    laid = overlay(full, KEYS[550:750], KEYS[400:500])
    assert laid.base_tasks.keys() == {*KEYS[550:600], *KEYS[400:500]}
    assert laid.tasks.keys() == set(KEYS[600:750])
    for record in (more, laid):
        assert decode_record(encode_record(record), "orders") == record
    with pytest.raises(InvalidTaskError, match=r"1000 different keys .* declare tasks alike"):
        encode_record(overlay(full, KEYS[600:], KEYS[:600]))


def test_keys_stay_where_others_are_added() -> None:
    first = new_record("orders", "v1", {}, KEYS[:2])
    laid = overlay(first, KEYS[1:3])
    assert with_keys(first, KEYS[1:4]).tasks.items() > first.tasks.items()
    assert with_keys(laid, KEYS[1:4]).tasks.items() > laid.tasks.items()
    assert with_keys(laid, KEYS[1:4]).base_tasks == first.tasks


def test_every_version_has_a_nonce_of_its_own() -> None:
    first = new_record("orders", "v1", {}, KEYS[:1])
    versions = [first, with_keys(first, KEYS[:2]), overlay(first, KEYS[:2]), label(first, "v2")]
    assert len({version.nonce for version in versions}) == len(versions)


def test_a_reset_keeps_the_tokens_of_keys_that_it_is_told_to_keep_and_no_others() -> None:
    old = new_record("orders", "v1", {}, KEYS[:3])
    new = new_record("orders", "v2", {}, KEYS[1:4], old.pure)
    assert [old.tasks.get(key) == new.tasks[key] for key in KEYS[1:4]] == [True, True, False]
    assert new.live.isdisjoint({old.token, old.tasks[KEYS[0]]})


def test_of_a_mixture_only_the_keys_of_its_base_are_pure() -> None:
    laid = overlay(new_record("orders", "v1", {}, KEYS[:2]), KEYS[1:3])
    assert laid.pure.keys() == set(KEYS[:2])
    assert laid.tasks.keys() == {KEYS[2]}
    assert laid.live == {laid.token, laid.base, *laid.tasks.values(), *laid.base_tasks.values()}
