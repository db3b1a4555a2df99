"""A checkpoint file's encoding: what is written comes back whole, or not at all."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkpoint_store._frame import (
    MAX_HEADER_BYTES,
    TRAILER_BYTES,
    Data,
    FrameReader,
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
    UnsupportedFormatError,
)

from ..harness import MIB
from ..harness.environment import HEAVY
from ..harness.frames import (
    DATA,
    HEAD,
    HEADER,
    PAYLOAD,
    Decode,
    FakeSource,
    FakeUpload,
    decode_stream,
    decode_whole,
    failure_of,
    fields,
    joined,
    line,
    reader_of,
    sealed,
    ways,
    writer_to,
)
from ..harness.memory import at_most

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
            FrameReader(source, HEADER)
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
    with at_most(16 * MIB), io.BufferedReader(reader_from(Generated(64 * MIB)), MIB) as reader:
        assert sum(map(len, iter(lambda: reader.read(MIB), b""))) == 64 * MIB


def reader_from(source: FakeSource) -> FrameReader:
    return FrameReader(source, HEADER)


def test_writing_a_stream_of_64_mib_takes_less_than_16() -> None:
    block = b"x" * MIB
    sink = Sink()
    with at_most(16 * MIB), writer_to(sink) as writer:
        for _ in range(64):
            writer.write(block)
    assert sink.published is not None
    assert sink.size > 64 * MIB


def test_decoding_64_mib_makes_one_copy() -> None:
    data = sealed(HEAD, b"x" * (64 * MIB))
    with at_most(80 * MIB):
        assert len(decode_whole(data)) == 64 * MIB


def test_encoding_64_mib_makes_no_copy() -> None:
    payload = bytes(64 * MIB)
    with at_most(MIB):
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
