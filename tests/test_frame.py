"""A checkpoint file's encoding: what is written comes back whole, or not at all."""

from __future__ import annotations

import array
import gc
import io
import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkpoint_store import _frame
from checkpoint_store._frame import (
    MAX_HEADER_BYTES,
    TRAILER_BYTES,
    Data,
    FrameReader,
    FrameWriter,
    Header,
    decode_frame,
    encode_frame,
    encode_header,
)
from checkpoint_store._names import encode_name
from checkpoint_store.errors import (
    CheckpointStoreError,
    CorruptCheckpointError,
    InvalidNameError,
    StorageError,
    UnsupportedFormatError,
    storage_errors,
)

from .harness.memory import measured

HEADER = Header("orders", "Load", "a1b2c3d4e5f60718", inputs="v1", serializer="json", text=True)
PAYLOAD = b'{"total": 42}\n\x00\xff'
HEAVY = os.environ.get("CHECKPOINT_STORE_HEAVY") == "1"
MIB = 1024 * 1024


def joined(header: Header = HEADER, payload: Data = PAYLOAD) -> bytes:
    return b"".join(encode_frame(header, payload))


DATA = joined()
HEAD = DATA[: DATA.index(b"\n") + 1]


def sealed(head: bytes, payload: bytes = PAYLOAD, length: int | None = None) -> bytes:
    """A file as the documentation describes it, also of a writer who has anything in its header."""
    body = head + payload
    size = struct.pack(">Q", len(payload) if length is None else length)
    return body + size + xxhash.xxh3_128(body + size).digest()


def fields(**changes: Any) -> dict[str, Any]:
    return {**json.loads(HEAD), **changes}


def line(parsed: object) -> bytes:
    return json.dumps(parsed).encode() + b"\n"


class FakeSource:
    """Hands out `data` in steps; `reads` counts how often it was asked."""

    def __init__(self, data: bytes, step: int = MIB, fails_at: int | None = None) -> None:
        self.data = io.BytesIO(data)
        self.step = step
        self.fails_at = fails_at
        self.reads = 0
        self.closed = 0

    def read(self, size: int, /) -> bytes:
        self.reads += 1
        if self.fails_at is not None and self.data.tell() >= self.fails_at:
            raise ConnectionResetError("the connection was reset")
        return self.data.read(min(size, self.step))

    def close(self) -> None:
        self.closed += 1


class FakeUpload:
    """Keeps what it is told. `fails` names the calls that raise, such as `write 2`."""

    def __init__(self, *fails: str) -> None:
        self.fails = fails
        self.written = b""
        self.calls: list[str] = []
        self.published: bytes | None = None

    def _call(self, name: str) -> None:
        call = f"{name} {sum(done.startswith(name) for done in self.calls) + 1}"
        self.calls.append(call)
        if call in self.fails:
            raise ConnectionResetError(f"{call} failed")

    def write(self, data: Data, /) -> None:
        self._call("write")
        self.written += bytes(data)

    def commit(self) -> None:
        self._call("commit")
        self.published = self.written

    def discard(self) -> None:
        self._call("discard")

    @property
    def kinds(self) -> list[str]:
        return [call.partition(" ")[0] for call in self.calls]


@contextmanager
def guard() -> Iterator[None]:
    with storage_errors(HEADER):
        yield


def reader_of(data: bytes, step: int = MIB, expected: Header = HEADER) -> FrameReader:
    return FrameReader(FakeSource(data, step), expected, guard)


def writer_to(upload: FakeUpload, header: Header = HEADER) -> FrameWriter:
    return FrameWriter(upload, header, guard)


def decode_whole(data: bytes, expected: Header = HEADER) -> bytes:
    return decode_frame(data, expected)[1]


def decode_stream(data: bytes, expected: Header = HEADER) -> bytes:
    with reader_of(data, expected=expected) as reader:
        return reader.read()


def decode_dribble(data: bytes, expected: Header = HEADER) -> bytes:
    with io.BufferedReader(reader_of(data, 1, expected), 16) as reader:
        return reader.read()


Decode = Callable[..., bytes]
ways = pytest.mark.parametrize("decode", [decode_whole, decode_stream, decode_dribble])


# What comes back


text = st.text(st.characters(exclude_categories=()), min_size=1, max_size=20)
headers = st.builds(
    Header,
    workflow=text,
    task=text,
    token=st.from_regex(r"[0-9a-f]{16,64}", fullmatch=True),
    inputs=st.none() | text,
    serializer=st.none() | st.text(max_size=20),
    text=st.booleans(),
)


@settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(headers, st.binary(max_size=200), st.integers(1, 64))
@example(HEADER._replace(task="\ud83d\ude00"), b"", 1)
@example(HEADER._replace(workflow="\ud83d\ude00"), b"\n\n", 1)
@example(HEADER._replace(inputs="\ud83d\ude00"), b"\n\n", 1)
def test_header_and_payload_come_back_as_they_were(
    header: Header, payload: bytes, step: int
) -> None:
    data = joined(header, payload)
    assert (header, payload) == decode_frame(data, header)
    assert payload == reader_of(data, step, header).read()


@ways
@pytest.mark.parametrize(
    "payload", [b"", b"\n", b"\0", bytes(TRAILER_BYTES), b"x" * 30_000, DATA, HEAD, DATA * 3]
)
def test_any_payload_comes_back(decode: Decode, payload: bytes) -> None:
    assert payload == decode(joined(payload=payload))


def test_the_file_is_laid_out_as_documented() -> None:
    assert sealed(HEAD) == DATA
    assert HEAD.isascii()
    parsed = json.loads(HEAD)
    assert next(iter(parsed)) == "checkpoint_store"
    assert parsed.pop("created")
    assert parsed == {
        "checkpoint_store": 1,
        "workflow": "orders",
        "task": "Load",
        "token": "a1b2c3d4e5f60718",
        "inputs": "v1",
        "serializer": "json",
        "text": True,
    }


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_small_payload_of_any_bytes_like_kind_is_written_at_once(
    kind: Callable[[bytes], Data],
) -> None:
    (whole,) = encode_frame(HEADER, kind(PAYLOAD))
    assert decode_whole(bytes(whole)) == PAYLOAD


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_large_payload_of_any_bytes_like_kind_is_not_copied(
    kind: Callable[[bytes], Data],
) -> None:
    payload = kind(bytes(2 * 1024**2))
    parts = encode_frame(HEADER, payload)
    assert parts[1] is payload
    assert decode_whole(b"".join(parts)) == payload


# Damage


def failure_of(decode: Decode, data: bytes) -> type[CheckpointStoreError] | None:
    try:
        decode(data)
    except CheckpointStoreError as error:
        return type(error)
    return None


@ways
def test_every_flipped_bit_is_noticed(decode: Decode) -> None:
    kinds = set()
    for place in range(len(DATA)):
        for bit in range(8):
            damaged = DATA[:place] + bytes([DATA[place] ^ 1 << bit]) + DATA[place + 1 :]
            kinds.add(failure_of(decode, damaged))
    expected = {CorruptCheckpointError, UnsupportedFormatError}
    if decode is not decode_whole:
        # A stream checks the name before it has seen the checksum.
        expected.add(InvalidNameError)
    assert kinds <= expected
    assert CorruptCheckpointError in kinds


@ways
def test_every_truncation_is_corrupt(decode: Decode) -> None:
    kinds = {failure_of(decode, DATA[:size]) for size in range(len(DATA))}
    assert kinds == {CorruptCheckpointError}


@ways
def test_every_lost_first_byte_is_corrupt(decode: Decode) -> None:
    kinds = {failure_of(decode, DATA[start:]) for start in range(1, len(DATA))}
    assert kinds == {CorruptCheckpointError}


@ways
def test_every_inserted_or_missing_byte_is_noticed(decode: Decode) -> None:
    kinds = set()
    for place in range(len(DATA) + 1):
        for byte in (b"\0", b" ", b"\n", b"0", b"a", b'"', b"\\", b"\xff"):
            kinds.add(failure_of(decode, DATA[:place] + byte + DATA[place:]))
        if place < len(DATA):
            kinds.add(failure_of(decode, DATA[:place] + DATA[place + 1 :]))
    # An inserted digit makes another version.
    assert kinds == {CorruptCheckpointError, UnsupportedFormatError}


@ways
@pytest.mark.parametrize(
    "damaged",
    [
        DATA + DATA,
        DATA + b"\0",
        HEAD + DATA,
        DATA[: -len(PAYLOAD)],
        HEAD + PAYLOAD,
        HEAD,
        HEAD + DATA[-TRAILER_BYTES:],
        bytes(len(DATA)),
        HEAD + bytes(len(DATA) - len(HEAD)),
        DATA[:-TRAILER_BYTES] + bytes(TRAILER_BYTES),
        DATA[:-16] + joined(payload=b"other")[-16:],
        DATA[len(HEAD) :] + HEAD,
        sealed(HEAD, length=len(PAYLOAD) + 1),
        sealed(HEAD, length=len(PAYLOAD) - 1),
        sealed(HEAD, length=0),
        sealed(HEAD, length=2**63),
        sealed(HEAD, length=2**64 - 1),
        sealed(HEAD, length=2**64 - len(PAYLOAD)),
    ],
)
def test_pieces_of_files_are_corrupt(decode: Decode, damaged: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"checkpoint 'Load' of workflow 'orders'"):
        decode(damaged)


@ways
@pytest.mark.parametrize(
    "other",
    [
        HEADER._replace(task="extract"),
        HEADER._replace(task="Load "),
        HEADER._replace(token="a1b2c3d4e5f60719"),
        HEADER._replace(token="A1B2C3D4E5F60718"),
        HEADER._replace(workflow="orders-1"),
        HEADER._replace(workflow="invoices", token="a1b2c3d4e5f60719"),
        HEADER._replace(workflow="invoices", task="extract"),
        HEADER._replace(task="load", token="a1b2c3d4e5f60719"),
    ],
)
def test_the_file_of_another_checkpoint_is_corrupt(decode: Decode, other: Header) -> None:
    assert decode(joined(other), other) == PAYLOAD
    with pytest.raises(CorruptCheckpointError, match="'Load'"):
        decode(joined(other))


@ways
def test_a_disk_that_folds_case_is_told_from_a_moved_file(decode: Decode) -> None:
    with pytest.raises(InvalidNameError, match=r"'Load'.*'load'.*choose another name"):
        decode(joined(HEADER._replace(task="load")))


@ways
@pytest.mark.parametrize(("stored", "asked"), [("straße", "strasse"), ("É", "é"), ("\u0131", "I")])
def test_names_whose_keys_differ_are_not_blamed_on_the_disk(
    decode: Decode, stored: str, asked: str
) -> None:
    keys = [encode_name(name, "task name").lower() for name in (stored, asked)]
    assert keys[0] != keys[1]
    with pytest.raises(CorruptCheckpointError):
        decode(joined(HEADER._replace(task=stored)), HEADER._replace(task=asked))


@ways
@pytest.mark.parametrize("changed", [{"inputs": "v2"}, {"serializer": "pickle"}, {"text": False}])
def test_what_a_file_tells_beside_its_identity_is_no_reason_to_refuse_it(
    decode: Decode, changed: dict[str, Any]
) -> None:
    assert decode(joined(HEADER._replace(**changed))) == PAYLOAD


# Hostile content


HOSTILE_HEADERS: dict[str, bytes] = {
    "nothing": b"",
    "a newline": b"\n",
    "spaces": b"  \n",
    "an endless header": b"x" * 100_000,
    "an endless object": b'{"a": "' + b"x" * 100_000,
    "a header one byte too long": line(fields(pad="x" * MAX_HEADER_BYTES))[:MAX_HEADER_BYTES]
    + b"\n",
    "a long valid header": line(fields(pad="x" * MAX_HEADER_BYTES)),
    "no newline": HEAD.rstrip(),
    "a carriage return": HEAD.rstrip() + b"\r",
    "NUL bytes": bytes(100) + b"\n",
    "bad UTF-8": HEAD.replace(b"orders", b"ord\xff\xfe"),
    "overlong UTF-8": HEAD.replace(b"orders", b"ord\xc0\xaf"),
    "UTF-16": HEAD.decode().encode("utf-16-le"),
    "a byte order mark": b"\xef\xbb\xbf" + HEAD,
    "null": b"null\n",
    "a list": b"[]\n",
    "a number": b"1\n",
    "a string": b'"Load"\n',
    "an empty object": b"{}\n",
    "deep lists": b"[" * 16_000 + b"\n",
    "deep balanced lists": b"[" * 8_000 + b"]" * 8_000 + b"\n",
    "deep objects": b'{"a":' * 3_000 + b"\n",
    "deep within a field": b'{"checkpoint_store": 1, "workflow": ' + b"[" * 16_000 + b"\n",
    "a 5,000-digit version": b'{"checkpoint_store": ' + b"9" * 5_000 + b"}\n",
    "a 5,000-digit field": line(fields()).replace(b'"v1"', b"9" * 5_000),
    "a duplicate key": HEAD.replace(b'"task"', b'"task": "Load", "task"'),
    "a duplicate version": HEAD.replace(b'"workflow"', b'"checkpoint_store": 1, "workflow"'),
    "NaN": HEAD.replace(b'"v1"', b"NaN"),
    "minus infinity": HEAD.replace(b'"v1"', b"-Infinity"),
    "a huge float": HEAD.replace(b'"orders"', b"1e999"),
    "a raw control character": HEAD.replace(b"orders", b"ord\ters"),
    "single quotes": HEAD.replace(b'"', b"'"),
    "something after the object": HEAD.rstrip() + b" {}\n",
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
    "no version": line({k: v for k, v in fields().items() if k != "checkpoint_store"}),
    **{
        f"version {version!r}": line(fields(checkpoint_store=version))
        for version in (0, -1, -(10**30), 1.0, True, False, None, "1", [1], {})
    },
    **{
        f"no {key}": line({k: v for k, v in fields().items() if k != key})
        for key in ("workflow", "task", "token")
    },
    **{
        f"{key} {value!r}": line(fields(**{key: value}))
        for key in ("workflow", "task", "token")
        for value in (None, 5, -1, True, [], {}, ["Load"], "", "../../x")
    },
    **{
        f"{key} {value!r}": line(fields(**{key: value}))
        for key in ("inputs", "serializer")
        for value in (5, -1, 1.5, True, [], {})
    },
    "a huge task": line(fields(task="x" * 15_000)),
    "a forged log line": line(fields(token="x\nERROR root: all lost")),
    "a forged log line in the task": line(fields(task="x\nERROR root: all lost")),
}


def test_the_hostile_files_are_as_many_as_promised() -> None:
    assert len(set(HOSTILE_HEADERS.values())) >= 60


@ways
@pytest.mark.parametrize("head", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS)
def test_a_hostile_header_is_corrupt_however_well_it_is_sealed(decode: Decode, head: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match="'Load'") as caught:
        decode(sealed(head))
    # A message goes into logs, so content that nobody vouches for must not flood or forge them.
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


@ways
@pytest.mark.parametrize("version", [2, 3, 10**18])
@pytest.mark.parametrize(
    "tail", [DATA[len(HEAD) :], b"", b"another trailer"], ids=["whole", "none", "another"]
)
def test_a_newer_format_is_told_whatever_follows_its_version(
    decode: Decode, version: int, tail: bytes
) -> None:
    for parsed in (fields(checkpoint_store=version), {"checkpoint_store": version, "new": []}):
        with pytest.raises(UnsupportedFormatError, match=r"'Load'.*upgrade"):
            decode(line(parsed) + tail)


@settings(max_examples=1_000, deadline=None)
@given(st.binary(max_size=100), st.booleans())
def test_arbitrary_bytes_are_corrupt(data: bytes, is_sealed: bool) -> None:  # noqa: FBT001
    for decode in (decode_whole, decode_stream):
        with pytest.raises(CorruptCheckpointError):
            decode(sealed(data) if is_sealed else data)


def test_an_endless_header_is_not_read_to_its_end() -> None:
    class Endless(FakeSource):
        def read(self, size: int, /) -> bytes:
            self.reads += 1
            return b"x" * min(size, self.step)

    for step, most in ((1, MAX_HEADER_BYTES), (1_000, 20), (MIB, 1)):
        source = Endless(b"", step)
        with pytest.raises(CorruptCheckpointError):
            FrameReader(source, HEADER, guard)
        assert source.reads <= most
        assert source.closed == 1


# The size of the header


def head_of(size: int) -> bytes:
    """A valid header line of exactly so many bytes."""
    return line(fields(pad="x" * (size - len(line(fields(pad=""))))))


@ways
def test_reader_allows_headers_of_16_kib_and_not_a_byte_more(decode: Decode) -> None:
    assert len(head_of(MAX_HEADER_BYTES)) == MAX_HEADER_BYTES == 16_384
    assert decode(sealed(head_of(MAX_HEADER_BYTES))) == PAYLOAD
    with pytest.raises(CorruptCheckpointError):
        decode(sealed(head_of(MAX_HEADER_BYTES + 1)))


@pytest.mark.parametrize("char", ["x", "\x01", "\x7f", "é", "名", "😀", "\ud800"])
def test_the_longest_names_and_fingerprint_fit_into_the_header(char: str) -> None:
    width = len(char.encode("utf-8", "surrogatepass"))
    name = char * (200 // len(encode_name(char, "name")))
    header = Header(name, name, "f" * 64, inputs=char * (1024 // width), serializer="s" * 100)
    assert len(encode_header(header)) <= MAX_HEADER_BYTES
    assert (header, PAYLOAD) == decode_frame(joined(header), header)


@pytest.mark.parametrize("serializer", ["s" * 16_384, "\x01" * 4_000])
def test_a_header_that_no_reader_would_accept_is_not_written(serializer: str) -> None:
    header = HEADER._replace(serializer=serializer)
    upload = FakeUpload()
    with pytest.raises(CheckpointStoreError):
        encode_frame(header, b"")
    with pytest.raises(CheckpointStoreError):
        writer_to(upload, header).close()
    assert upload.published is None


# Reading as a stream


@pytest.mark.parametrize("size", [0, 1, 2, 23, 24, 25, 26, 48, 49, 1_000])
@pytest.mark.parametrize("step", [1, 2, 7, 24, 25, 26, 1_000, MIB])
@pytest.mark.parametrize("amount", [1, 2, 24, 1_000, -1])
def test_a_stream_is_the_payload_however_it_is_cut(size: int, step: int, amount: int) -> None:
    payload = bytes(number % 251 for number in range(size))
    reader = reader_of(joined(payload=payload), step)
    assert payload == b"".join(iter(lambda: reader.read(amount), b""))
    assert reader.read(amount) == b""


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.lists(st.integers(0, 60), min_size=1, max_size=20),
)
def test_a_stream_is_the_payload_whatever_sizes_alternate(
    payload: bytes, steps: list[int], amounts: list[int]
) -> None:
    class Uneven(FakeSource):
        def read(self, size: int, /) -> bytes:
            self.reads += 1
            return super().read(min(size, steps[self.reads % len(steps)]))

    reader = FrameReader(Uneven(joined(payload=payload)), HEADER, guard)
    read = b""
    for amount in amounts:
        buffer = bytearray(amount)
        count = reader.readinto(memoryview(buffer))
        assert buffer[count:] == bytes(amount - count)
        read += buffer[:count]
    assert payload == read + reader.read()


@pytest.mark.parametrize("size", [1, 2, 24, 25, 1_000])
@pytest.mark.parametrize("step", [1, 7, MIB])
def test_the_last_byte_of_an_unverified_payload_is_never_handed_out(size: int, step: int) -> None:
    payload = b"x" * size
    damaged = bytearray(joined(payload=payload))
    damaged[-1] ^= 1
    reader = reader_of(bytes(damaged), step)
    read = b""
    with pytest.raises(CorruptCheckpointError, match="checksum"):  # noqa: PT012
        while byte := reader.read(1):
            read += byte
    assert len(read) < size
    for _ in range(3):
        with pytest.raises(CorruptCheckpointError):
            reader.read(1)


def test_a_damaged_empty_payload_is_corrupt_again_and_again() -> None:
    damaged = bytearray(joined(payload=b""))
    damaged[-1] ^= 1
    reader = reader_of(bytes(damaged))
    for _ in range(3):
        with pytest.raises(CorruptCheckpointError):
            reader.read()


def test_a_file_cut_while_it_is_streamed_is_corrupt() -> None:
    data = joined(payload=b"x" * 5_000)
    for size in (len(HEAD), len(HEAD) + 10, len(data) - TRAILER_BYTES, len(data) - 1):
        reader = reader_of(data[:size], 100)
        with pytest.raises(CorruptCheckpointError):
            reader.read()


def test_a_reader_that_stops_early_is_told_nothing() -> None:
    damaged = bytearray(joined(payload=b"x" * 5_000))
    damaged[-1] ^= 1
    with reader_of(bytes(damaged), 100) as reader:
        assert reader.read(10) == b"x" * 10


def test_a_failing_source_is_a_storage_error_before_and_within_the_payload() -> None:
    data = joined(payload=b"x" * 5_000)
    source = FakeSource(data, 50, fails_at=0)
    with pytest.raises(StorageError, match=r"'Load'.*reset"):
        FrameReader(source, HEADER, guard)
    assert source.closed == 1
    source = FakeSource(data, 50, fails_at=2_000)
    with (
        FrameReader(source, HEADER, guard) as reader,
        pytest.raises(StorageError, match=r"'Load'.*reset") as caught,
    ):
        reader.readall()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert source.closed == 1


def test_a_reader_closes_its_source_once() -> None:
    source = FakeSource(DATA)
    reader = FrameReader(source, HEADER, guard)
    assert source.closed == 0
    reader.close()
    reader.close()
    assert source.closed == 1


def test_a_reader_that_cannot_start_closes_its_source() -> None:
    for data in (b"", b"x" * 50_000, joined(HEADER._replace(task="extract"))):
        source = FakeSource(data)
        with pytest.raises(CorruptCheckpointError):
            FrameReader(source, HEADER, guard)
        assert source.closed == 1


def test_a_reader_is_a_plain_readable_stream() -> None:
    reader = reader_of(DATA)
    assert (reader.readable(), reader.writable(), reader.seekable()) == (True, False, False)
    with io.BufferedReader(reader) as buffered, pytest.raises(io.UnsupportedOperation):
        buffered.write(b"x")
    with pytest.raises(ValueError, match="closed"):
        buffered.read()
    lines = io.TextIOWrapper(io.BufferedReader(reader_of(joined(payload=b"a\nb\n"))))
    assert lines.readlines() == ["a\n", "b\n"]


# Writing as a stream


@pytest.mark.parametrize(
    "parts", [[], [b""], [PAYLOAD], [b"a"] * 100, [b"", b"a", b"", b"bc"], [b"x" * MIB] * 3]
)
def test_a_stream_is_the_very_file_that_is_written_whole(
    parts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The time in the header is the only thing that may differ.
    monkeypatch.setattr(_frame, "encode_header", lambda _: HEAD)
    upload = FakeUpload()
    with writer_to(upload) as writer:
        for part in parts:
            assert writer.write(part) == len(part)
        assert writer.tell() == len(b"".join(parts))
        assert upload.published is None
    assert upload.published == joined(payload=b"".join(parts))
    assert upload.calls.count("commit 1") == 1
    assert "discard 1" not in upload.calls


@pytest.mark.parametrize(
    "data", [bytearray(b"abcd"), memoryview(b"abcd"), array.array("H", [1, 2]), memoryview(b"")]
)
def test_a_writer_takes_any_buffer_and_counts_its_bytes(data: Any) -> None:
    upload = FakeUpload()
    with writer_to(upload) as writer:
        assert writer.write(data) == len(bytes(data))
        assert writer.tell() == len(bytes(data))
    assert upload.published is not None
    assert decode_whole(upload.published) == bytes(data)


def test_a_writer_is_a_plain_writable_stream() -> None:
    upload = FakeUpload()
    with writer_to(upload) as writer:
        assert (writer.readable(), writer.writable(), writer.seekable()) == (False, True, False)
        with pytest.raises(io.UnsupportedOperation):
            writer.read()
        writer.writelines([b"a", b"b"])
        writer.flush()
        assert upload.published is None
    assert writer.closed
    assert upload.published is not None
    assert decode_whole(upload.published) == b"ab"


def test_a_text_wrapper_around_a_writer_publishes_when_it_is_closed() -> None:
    upload = FakeUpload()
    with io.TextIOWrapper(writer_to(upload), encoding="utf-8") as text_writer:
        text_writer.write("é\n")
        assert upload.published is None
    assert upload.published is not None
    assert decode_whole(upload.published) == "é\n".encode()


def test_closing_again_publishes_nothing_again() -> None:
    upload = FakeUpload()
    writer = writer_to(upload)
    writer.close()
    writer.close()
    writer.discard()
    with writer_is_closed():
        writer.write(b"x")
    assert upload.kinds.count("commit") == 1
    assert upload.kinds.count("discard") == 0


@contextmanager
def writer_is_closed() -> Iterator[None]:
    with pytest.raises(ValueError, match=r"closed"):
        yield


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_block_discards_and_is_raised(kind: type[BaseException]) -> None:
    upload = FakeUpload()
    writer = writer_to(upload)
    error = kind("mine")
    with pytest.raises(kind) as caught, writer:  # noqa: PT012
        writer.write(b"half")
        raise error
    assert caught.value is error
    assert upload.published is None
    assert upload.kinds == ["write", "write", "discard"]
    assert writer.closed


def test_an_error_within_a_text_wrapper_discards_too() -> None:
    # The wrapper's own `with` closes the writer, which must not publish the half it has.
    upload = FakeUpload()
    writer = writer_to(upload)
    with (  # noqa: PT012
        pytest.raises(KeyError, match="mine"),
        writer,
        io.TextIOWrapper(writer, encoding="utf-8") as text_writer,
    ):
        text_writer.write("half")
        raise KeyError("mine")
    assert upload.published is None


def test_a_writer_opened_while_an_exception_is_handled_publishes() -> None:
    upload = FakeUpload()
    try:
        raise KeyError("not there yet")
    except KeyError:
        with writer_to(upload) as writer:
            writer.write(PAYLOAD)
    assert upload.published is not None


@pytest.mark.parametrize("failing", ["write 2", "write 3"])
def test_a_failed_write_is_final(failing: str) -> None:
    upload = FakeUpload(failing)
    writer = writer_to(upload)
    with pytest.raises(StorageError, match=r"'Load'.*write \d failed"):  # noqa: PT012
        writer.write(b"one")
        writer.write(b"two")
        pytest.fail("the upload should have failed")
    assert upload.kinds[-1] == "discard"
    with pytest.raises(StorageError, match="write it anew"):
        writer.write(b"three")
    with pytest.raises(StorageError, match="not written"):
        writer.close()
    writer.close()
    assert upload.published is None
    assert upload.kinds.count("discard") == 1


def test_a_failed_write_that_the_block_swallows_is_raised_at_its_end() -> None:
    upload = FakeUpload("write 2")
    with (
        pytest.raises(StorageError, match="not written"),
        writer_to(upload) as writer,
        suppress(StorageError),
    ):
        writer.write(b"one")
    assert upload.published is None
    assert upload.kinds.count("discard") == 1


@pytest.mark.parametrize("data", ["text", 5, None, [1], memoryview(b"abcd")[::2]])
def test_a_refused_write_that_the_block_swallows_leaves_no_hole(data: Any) -> None:
    upload = FakeUpload()
    with pytest.raises(CheckpointStoreError), writer_to(upload) as writer:  # noqa: PT012
        writer.write(b"one")
        try:
            writer.write(data)
        except TypeError:
            pass
        else:
            pytest.fail("it should have been refused")
    assert upload.published is None


@pytest.mark.parametrize("failing", ["commit 1", "write 3"])
def test_a_failed_end_discards_and_is_raised_once(failing: str) -> None:
    upload = FakeUpload(failing)
    writer = writer_to(upload)
    writer.write(PAYLOAD)
    with pytest.raises(StorageError, match=r"'Load'.*failed"):
        writer.close()
    writer.close()
    assert upload.published is None
    assert upload.kinds[-1] == "discard"
    assert upload.kinds.count("discard") == 1
    assert writer.closed


def test_a_writer_that_cannot_start_discards_without_a_further_word() -> None:
    upload = FakeUpload("write 1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(StorageError, match="write 1 failed"):
            writer_to(upload)
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert upload.kinds == ["write", "discard"]


def test_giving_up_discards_once_and_closes() -> None:
    upload = FakeUpload()
    writer = writer_to(upload)
    writer.write(b"half")
    writer.discard()
    writer.discard()
    writer.close()
    assert writer.closed
    assert upload.published is None
    assert upload.kinds == ["write", "write", "discard"]


def test_an_abandoned_writer_is_discarded_with_a_warning() -> None:
    upload = FakeUpload()
    writer = writer_to(upload)
    writer.write(b"half")
    with pytest.warns(ResourceWarning, match=r"'Load'.*not closed: discarded"):  # noqa: PT031
        del writer
        gc.collect()
    assert upload.published is None
    assert upload.kinds == ["write", "write", "discard"]


def test_a_writer_that_was_closed_or_given_up_is_dropped_without_a_word() -> None:
    uploads = FakeUpload(), FakeUpload(), FakeUpload("write 2")
    with writer_to(uploads[0]):
        pass
    writer_to(uploads[1]).discard()
    with pytest.raises(StorageError), writer_to(uploads[2]) as writer:
        writer.write(b"x")
    del writer
    gc.collect()
    assert [upload.kinds.count("discard") for upload in uploads] == [0, 1, 1]


def test_an_interpreter_that_ends_discards_what_was_left_open() -> None:
    script = (
        "from checkpoint_store._frame import FrameWriter, Header\n"
        "from contextlib import nullcontext\n"
        "class Upload:\n"
        "    def write(self, data): print('write')\n"
        "    def commit(self): print('commit')\n"
        "    def discard(self): print('discard')\n"
        "writer = FrameWriter(Upload(), Header('w', 't', '0' * 16), nullcontext)\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["write", "end", "discard"])
    assert done.stderr == ""


# Memory


class Generated(FakeSource):
    """A checkpoint of any size that is never in memory as a whole."""

    def __init__(self, size: int) -> None:
        super().__init__(b"")
        self.checksum = xxhash.xxh3_128(HEAD)
        self.parts = self._parts(size)

    def _parts(self, size: int) -> Iterator[bytes]:
        yield HEAD
        block = b"x" * MIB
        for _ in range(size // MIB):
            self.checksum.update(block)
            yield block
        length = struct.pack(">Q", size)
        self.checksum.update(length)
        yield length + self.checksum.digest()

    def read(self, size: int, /) -> bytes:
        part = next(self.parts, b"")
        assert len(part) <= size
        return part


class Sink(FakeUpload):
    """Counts what it is sent."""

    size = 0

    def write(self, data: Data, /) -> None:
        self.size += memoryview(data).nbytes

    def commit(self) -> None:
        self.published = b""


def test_reading_a_stream_of_64_mib_takes_less_than_16() -> None:
    with measured(16 * MIB), io.BufferedReader(reader_from(Generated(64 * MIB)), MIB) as reader:
        assert sum(map(len, iter(lambda: reader.read(MIB), b""))) == 64 * MIB


def reader_from(source: FakeSource) -> FrameReader:
    return FrameReader(source, HEADER, guard)


def test_writing_a_stream_of_64_mib_takes_less_than_16() -> None:
    block = b"x" * MIB
    sink = Sink()
    with measured(16 * MIB), writer_to(sink) as writer:
        for _ in range(64):
            writer.write(block)
    assert sink.published is not None
    assert sink.size > 64 * MIB


def test_decoding_64_mib_makes_one_copy() -> None:
    data = sealed(HEAD, b"x" * (64 * MIB))
    with measured(80 * MIB):
        assert len(decode_whole(data)) == 64 * MIB


def test_encoding_64_mib_makes_no_copy() -> None:
    payload = bytes(64 * MIB)
    with measured(MIB):
        encode_frame(HEADER, payload)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "flips"), [(16 * 1024, 10_000), (64 * MIB, 10_000 if HEAVY else 50)]
)
def test_every_flip_of_a_bit_of_a_large_file_is_noticed(size: int, flips: int) -> None:
    data = bytearray(joined(payload=bytes(range(256)) * (size // 256)))
    missed = 0
    for number in range(flips):
        place, bit = number * 104_729_779 % len(data), number % 8
        data[place] ^= 1 << bit
        missed += failure_of(decode_in_place, data) is None
        data[place] ^= 1 << bit
    assert missed == 0
    assert failure_of(decode_in_place, data) is None


def decode_in_place(data: Any) -> bytes:
    return decode_frame(data, HEADER)[1]
