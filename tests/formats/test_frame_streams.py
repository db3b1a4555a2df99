"""A checkpoint read and written as a stream: verified to its last byte, published whole or not."""

from __future__ import annotations

import array
import gc
import io
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_store import _frame
from checkpoint_store._frame import TRAILER_BYTES, FrameReader
from checkpoint_store.errors import CheckpointStoreError, CorruptCheckpointError, StorageError

from ..harness import MIB
from ..harness.frames import (
    DATA,
    HEAD,
    HEADER,
    PAYLOAD,
    FakeSource,
    FakeUpload,
    decode_whole,
    joined,
    reader_of,
    writer_to,
)

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

    reader = FrameReader(Uneven(joined(payload=payload)), HEADER)
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
        FrameReader(source, HEADER)
    assert source.closed == 1
    source = FakeSource(data, 50, fails_at=2_000)
    with (
        FrameReader(source, HEADER) as reader,
        pytest.raises(StorageError, match=r"'Load'.*reset") as caught,
    ):
        reader.readall()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert source.closed == 1


def test_a_reader_closes_its_source_once() -> None:
    source = FakeSource(DATA)
    reader = FrameReader(source, HEADER)
    assert source.closed == 0
    reader.close()
    reader.close()
    assert source.closed == 1


def test_a_reader_that_cannot_start_closes_its_source() -> None:
    for data in (b"", b"x" * 50_000, joined(HEADER._replace(task="extract"))):
        source = FakeSource(data)
        with pytest.raises(CorruptCheckpointError):
            FrameReader(source, HEADER)
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
        "class Upload:\n"
        "    def write(self, data): print('write')\n"
        "    def commit(self): print('commit')\n"
        "    def discard(self): print('discard')\n"
        "writer = FrameWriter(Upload(), Header('w', 't', '0' * 16))\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["write", "end", "discard"])
    assert done.stderr == ""
