"""The record's encoding: what is written comes back, and nothing else is ever believed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import xxhash
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

text = st.text(st.characters(exclude_categories=()), max_size=40)
hexadecimal = st.from_regex(r"[0-9a-f]{16,64}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@st.composite
def task_tokens(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, str]]:
    """The tokens of the keys of a record, and of those of its base. No token occurs twice."""
    tokens = st.from_regex(r"7[0-9a-f]{16}", fullmatch=True)
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


def fields(**changes: Any) -> dict[str, Any]:
    parsed = json.loads(DATA)
    del parsed["checksum"]
    return {**parsed, **changes}


def dump(parsed: dict[str, Any]) -> bytes:
    """A record of a hostile writer, who can make everything fit together."""
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(parsed, sort_keys=True).encode())
    return json.dumps({**parsed, "checksum": checksum}, indent=1).encode() + b"\n"


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
    assert json.loads(dump(fields())) == json.loads(DATA)


# Damage


@pytest.mark.parametrize("size", range(len(DATA)))
def test_a_truncated_record_is_corrupt(size: int) -> None:
    try:
        decoded = decode_record(DATA[:size], RECORD.workflow)
    except CorruptRecordError:
        return
    assert decoded == RECORD
    assert DATA[:size].strip() == DATA.strip()


def damaged_by_a_bit() -> Iterator[bytes]:
    for place in range(len(DATA)):
        for bit in range(8):
            yield DATA[:place] + bytes([DATA[place] ^ 1 << bit]) + DATA[place + 1 :]


def damaged_by_a_byte() -> Iterator[bytes]:
    for place in range(len(DATA) + 1):
        for byte in (b"0", b"a", b" ", b'"', b"\\", b"\0", b"\xff", b",", b"{"):
            yield DATA[:place] + byte + DATA[place:]
        if place < len(DATA):
            yield DATA[:place] + DATA[place + 1 :]


def outcome(data: bytes) -> object:
    try:
        return decode_record(data, RECORD.workflow)
    except (CorruptRecordError, UnsupportedFormatError, InvalidNameError) as error:
        assert_quotable(error)
        return type(error)


def test_no_flipped_bit_makes_another_record() -> None:
    unnoticed = [data for data in damaged_by_a_bit() if isinstance(outcome(data), Record)]
    assert [data for data in unnoticed if decode_record(data, RECORD.workflow) != RECORD] == []


def test_no_inserted_or_lost_byte_makes_another_record() -> None:
    unnoticed = [data for data in damaged_by_a_byte() if isinstance(outcome(data), Record)]
    assert [data for data in unnoticed if decode_record(data, RECORD.workflow) != RECORD] == []


def test_a_flipped_bit_is_corrupt_or_looks_like_another_format_and_is_nothing_else() -> None:
    kinds = {kind for data in damaged_by_a_bit() if isinstance(kind := outcome(data), type)}
    assert kinds <= {CorruptRecordError, UnsupportedFormatError}


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
    "no version": dump({k: v for k, v in fields().items() if k != "checkpoint_store"}),
    "no workflow": dump({k: v for k, v in fields().items() if k != "workflow"}),
    "no token": dump({k: v for k, v in fields().items() if k != "token"}),
    "no nonce": dump({k: v for k, v in fields().items() if k != "nonce"}),
    **{
        f"version {version!r}": dump(fields(checkpoint_store=version))
        for version in (0, -1, -(10**30), 1.0, 1.5, True, False, None, "1", [1], {"1": 1})
    },
    **{
        f"{key} {value!r}": dump(fields(**{key: value}))
        for key in ("workflow", "token", "nonce", "created", "updated")
        for value in (None, 5, 1.5, True, [], {}, ["x"])
    },
    **{
        f"{key} {value!r}": dump(fields(**{key: value}))
        for key in ("fingerprint", "base", "inputs")
        for value in (5, -1, 1.5, True, False, [], [DIGEST], ["day", DIGEST])
    },
    **{
        f"{key} {value!r:.24}": dump(fields(**{key: value}))
        for key in ("token", "base")
        for value in ("", "../../x", "/", "0" * 15, "0" * 65, "A" * 16, f"{'0' * 16}\n", "*", {})
    },
    **{
        f"digest {value!r:.24}": dump(fields(inputs={"day": value}))
        for value in ("", "0" * 63, "0" * 65, "A" * 64, f"{'0' * 64}\n", None, 5, {}, [DIGEST])
    },
    "an empty fingerprint": dump(fields(fingerprint="")),
    "a fingerprint nobody could have given": dump(fields(fingerprint="x" * 1_025)),
    "a huge fingerprint": dump(fields(fingerprint="x" * 50_000)),
    "the record of another": dump(fields(workflow="invoices")),
    "the record of a huge name": dump(fields(workflow="x" * 50_000)),
    "the record of a forged log line": dump(fields(workflow="x\nERROR root: all lost")),
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
@given(st.sampled_from(sorted(fields())), json_values)
def test_any_json_in_any_field_is_our_error_or_a_record(key: str, value: object) -> None:
    data = dump(fields(**{key: value}))
    decoded = outcome(data)
    if isinstance(decoded, Record):
        assert is_token(decoded.token)
        assert decoded.workflow == RECORD.workflow


@pytest.mark.parametrize("version", [3, 4, 99, 10**18])
@pytest.mark.parametrize("kept", ["everything", "nothing"])
def test_a_newer_format_is_told_from_a_corrupt_one(version: int, kept: str) -> None:
    changes = {"checkpoint_store": version}
    data = dump(fields(**changes) if kept == "everything" else changes)
    with pytest.raises(UnsupportedFormatError, match="upgrade") as caught:
        decode_record(data, RECORD.workflow)
    assert_quotable(caught.value)


def test_an_absurd_version_does_not_flood_the_message() -> None:
    with pytest.raises((CorruptRecordError, UnsupportedFormatError)) as caught:
        decode_record(dump(fields(checkpoint_store=10**4_000)), RECORD.workflow)
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

KEYS = [f"{number:064x}" for number in range(1_000)]
WITH_TASKS = RECORD._replace(tasks={KEYS[0]: "e" * 16}, base_tasks={KEYS[1]: "d" * 16})


def test_only_a_record_with_tasks_is_of_the_second_version() -> None:
    assert json.loads(DATA)["checkpoint_store"] == 1
    assert "tasks" not in json.loads(DATA)
    for record in (RECORD._replace(tasks={KEYS[0]: "e" * 16}), WITH_TASKS):
        data = encode_record(record)
        assert json.loads(data)["checkpoint_store"] == 2
        assert decode_record(data, "orders") == record


def tasked(**changes: Any) -> bytes:
    parsed = json.loads(encode_record(WITH_TASKS))
    del parsed["checksum"]
    return dump({**parsed, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": None},
        {"tasks": []},
        {"base_tasks": {KEYS[0][1:]: "e" * 16}},
        {"tasks": {KEYS[0].upper() + "A": "e" * 16}},
        {"tasks": {f"{KEYS[0]}\n": "e" * 16}},
        {"tasks": {KEYS[0]: "E" * 16}},
        {"tasks": {KEYS[0]: 7}},
        {"tasks": {KEYS[0]: "e" * 16, KEYS[2]: "e" * 16}},
        {"tasks": {KEYS[0]: "d" * 16}},
        {"tasks": {KEYS[0]: RECORD.token}},
        {"base_tasks": {KEYS[0]: RECORD.base}},
    ],
    ids=repr,
)
def test_keys_that_are_no_digests_and_tokens_that_occur_twice_are_corrupt(
    changes: dict[str, Any],
) -> None:
    assert decode_record(tasked(), "orders") == WITH_TASKS
    with pytest.raises(CorruptRecordError):
        decode_record(tasked(**changes), "orders")


def test_a_record_that_would_be_too_large_says_how_to_make_it_smaller() -> None:
    with pytest.raises(InvalidTaskError, match="declare tasks alike"):
        encode_record(new_record("orders", "v1", {}, KEYS))
    assert encode_record(new_record("orders", "v1", {}, KEYS[:600]))


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
