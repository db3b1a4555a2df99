"""Files of checkpoints in memory, and three ways to read them."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import xxhash

from checkpoint_store._frame import (
    Data,
    FrameReader,
    FrameWriter,
    Header,
    decode_frame,
    encode_frame,
)
from checkpoint_store.errors import CheckpointStoreError

from . import MIB

HEADER = Header("orders", "Load", "a1b2c3d4e5f60718", inputs="v1", serializer="json", text=True)
PAYLOAD = b'{"total": 42}\n\x00\xff'


def joined(header: Header = HEADER, payload: Data = PAYLOAD) -> bytes:
    return b"".join(encode_frame(header, payload))


DATA = joined()
HEAD = DATA[: DATA.index(b"\n") + 1]


def sealed(head: bytes, payload: bytes = PAYLOAD, length: int | None = None) -> bytes:
    """A file in the documented format, whatever there is in its header."""
    body = head + payload
    size = struct.pack(">Q", len(payload) if length is None else length)
    return body + size + xxhash.xxh3_128(body + size).digest()


def fields(**changes: Any) -> dict[str, Any]:
    return {**json.loads(HEAD), **changes}


def line(parsed: object) -> bytes:
    return json.dumps(parsed).encode() + b"\n"


class FakeSource:
    """A source that hands out `data` in steps and counts its reads in `reads`."""

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
    """An upload that keeps its calls. `fails` names those that raise, such as `write 2`."""

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


def reader_of(data: bytes, step: int = MIB, expected: Header = HEADER) -> FrameReader:
    return FrameReader(FakeSource(data, step), expected)


def writer_to(upload: FakeUpload, header: Header = HEADER) -> FrameWriter:
    return FrameWriter(upload, header)


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


def failure_of(decode: Decode, data: bytes) -> type[CheckpointStoreError] | None:
    try:
        decode(data)
    except CheckpointStoreError as error:
        return type(error)
    return None
