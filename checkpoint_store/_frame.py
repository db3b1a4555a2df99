"""A checkpoint file: one header line, the payload, and a trailer that seals both.

    {"checkpoint_store": 1, "workflow": …, "task": …, "token": …, …}\\n    at most 16 KiB
    payload, exactly as given
    payload length (8 bytes, big endian), xxh3-128 of all that precedes it (16 bytes)

The checksum guards against accidents, not adversaries. One pass writes a file, one pass reads it.
"""

from __future__ import annotations

import io
import reprlib
import struct
import warnings
import weakref
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Self

import xxhash

from . import _json
from ._filesystems.base import Contents, Data, Source, Upload
from ._handling import Moment
from ._names import fold_alike
from .errors import (
    CorruptCheckpointError,
    InvalidNameError,
    SerializationError,
    StorageError,
    storage_errors,
)

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer

VERSION = 1
MAX_HEADER_BYTES = 16 * 1024

_LENGTH = struct.Struct(">Q")
TRAILER_BYTES = _LENGTH.size + 16
_ALTERED = "its checksum does not match"
_CHUNK = 1024 * 1024
_JOINED_BYTES = 1024 * 1024  # To copy so many bytes takes less time than two more writes.


class Header(NamedTuple):
    """The first line of a checkpoint file: what the file is.

    `inputs` is the fingerprint of the run that wrote it. `serializer` names the serializer of
    `dump` (None for bytes as given), and `text` whether that made a `str`.
    """

    workflow: str
    task: str
    token: str
    inputs: str | None = None
    serializer: str | None = None
    text: bool = False

    def __str__(self) -> str:
        return f"checkpoint {self.task!r} of workflow {self.workflow!r}"


def encode_header(header: Header) -> bytes:
    fields = {
        "checkpoint_store": VERSION,
        "workflow": header.workflow,
        "task": header.task,
        "token": header.token,
        "inputs": header.inputs,
        "serializer": header.serializer,
        "text": header.text,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    line = _json.encode(fields)
    if len(line) > MAX_HEADER_BYTES:
        raise SerializationError(
            f"{header} cannot name its serializer in a header of {MAX_HEADER_BYTES} bytes: give it "
            "a shorter __name__"
        )
    return line


def has_header(head: bytes) -> bool:
    """Whether a file that begins like this may be a checkpoint.

    A file without a header line is corrupt, whatever follows.
    """
    return b"\n" in head[:MAX_HEADER_BYTES]


def encode_frame(header: Header, payload: Data) -> tuple[Data, ...]:
    """The parts of the file, in order.

    The parts of a small file are joined. A large payload is not copied.
    """
    head = encode_header(header)
    if len(payload) <= _JOINED_BYTES:
        sealed = b"".join((head, payload, _LENGTH.pack(len(payload))))
        return (sealed + xxhash.xxh3_128_digest(sealed),)
    seal = _Seal(head)
    seal.update(payload)
    return head, payload, seal.trailer()


def decode_frame(file: Contents, expected: Header) -> tuple[Header, bytes]:
    """Header and payload of a whole file that was read as that of `expected`.

    Its length, checksum and identity (workflow, task, token) are checked before anything is
    returned.
    """
    head = file[:MAX_HEADER_BYTES]
    line = head[: head.find(b"\n") + 1]
    header = _parse_header(line, expected)
    stop = len(file) - TRAILER_BYTES
    if stop < len(line):
        raise _corrupt(expected, "it is truncated")
    trailer = file[stop:]
    # The length is checked first: only then is it known how large a payload will be read.
    _check_length(trailer, stop - len(line), expected)
    payload = file[len(line) : stop]
    checksum = xxhash.xxh3_128(line)
    checksum.update(payload)
    checksum.update(trailer[: _LENGTH.size])
    if checksum.digest() != trailer[_LENGTH.size :]:
        raise _corrupt(expected, _ALTERED)
    _check_identity(header, expected)
    return header, payload


class FrameReader(io.RawIOBase):
    """The payload of a checkpoint as a readable stream, verified at its end.

    The header is read and checked at once. The last byte of the payload is handed out only after
    length and checksum proved right, so a caller that reads to the end has verified data. One that
    stops early has not.
    """

    def __init__(self, source: Source, expected: Header) -> None:
        self._source = source
        self._expected = expected
        self._pending = b""
        self._ready = memoryview(b"")
        self._finished = False
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._ready and not self._finished:
            self._fill()
        with memoryview(buffer) as view, view.cast("B") as flat:
            count = min(len(flat), len(self._ready))
            flat[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            super().close()
            with storage_errors(self._expected):
                self._source.close()

    def _read(self) -> bytes:
        with storage_errors(self._expected):
            return self._source.read(_CHUNK)

    def _read_header(self) -> None:
        data = b""
        while (end := data.find(b"\n", 0, MAX_HEADER_BYTES) + 1) == 0:
            chunk = self._read()
            data += chunk
            if not chunk or len(data) >= MAX_HEADER_BYTES:
                end = data.find(b"\n", 0, MAX_HEADER_BYTES) + 1
                break
        _check_identity(_parse_header(data[:end], self._expected), self._expected)
        self._seal = _Seal(data[:end])
        self._pending = data[end:]

    def _fill(self) -> None:
        chunk = self._read()
        if chunk:
            # As many bytes as the trailer has, and one more, are held back until the end has been
            # seen.
            data = self._pending + chunk
            stop = max(0, len(data) - TRAILER_BYTES - 1)
            self._ready = memoryview(data)[:stop]
            self._seal.update(self._ready)
            self._pending = data[stop:]
            return
        stop = len(self._pending) - TRAILER_BYTES
        if stop < 0:
            raise _corrupt(self._expected, "it is truncated")
        ready = memoryview(self._pending)[:stop]
        self._seal.update(ready)
        self._seal.check(self._pending[stop:], self._expected)
        self._ready = ready
        self._finished = True


class FrameWriter(io.BufferedIOBase):
    """A checkpoint being written as a stream.

    It becomes visible, all at once, when its own `with` block ends without an error, or when
    `close()` is called outside of any exception that arose since it was opened. Every other end
    discards what was written, and the checkpoint is as it was before:

    - The block raises: its exception passes.
    - `close()` is called while an exception is being handled that arose since the stream was
      opened, as by the `with` of an `io.TextIOWrapper` around it, or in `except` and `finally`.
      That very exception is raised again, with a note.
    - The stream, or what wraps it, is dropped without being closed: a `ResourceWarning`, as for an
      unclosed file.
    - A `write` fails: its error passes, and so `close()` is a `StorageError`.

    What cannot be told is an exception that `close()` does not see, because it is called after the
    exception was handled, from another thread or task, or by the finalizer of a wrapper that is
    written in Python and does not call `_dealloc_warn` first, as those of `io` do. Therefore give
    the stream a `with` block of its own, which decides whatever wraps it.
    """

    _lost = "it was never opened"
    """Why the checkpoint will not be written, or "". The class attribute is for a stream that
    failed while it was opened."""

    _dropped = False
    """Whether a finalizer is at work. It may still write, which is dropped, and close."""

    def __init__(self, upload: Upload, header: Header) -> None:
        self._upload = upload
        self._header = header
        self._opened = Moment()
        # In contrast to __del__, this also runs before the interpreter stops the threads that S3
        # needs.
        self._at_exit = weakref.finalize(self, upload.discard)
        try:
            head = encode_header(header)
            self._seal = _Seal(head)
            self._put(head)
            self._lost = ""
        except BaseException:
            self.discard()
            raise

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        if self.closed:
            raise ValueError(f"{self._header} is closed: open it again to write it")
        if self._lost and not self._dropped:
            raise self._not_written()
        try:
            with memoryview(data) as view, view.cast("B") as flat:
                if not self._dropped:
                    self._put(flat)
                    self._seal.update(flat)
                return flat.nbytes
        except BaseException:
            self._lose("a write failed")
            raise

    def tell(self) -> int:
        return self._seal.length

    def close(self) -> None:
        """Publishes the checkpoint, unless an exception is being handled that arose meanwhile.

        That exception is then raised again, and nothing is published. It also raises if the
        checkpoint cannot be published, or if an earlier write failed.
        """
        if self.closed:
            return
        if self._dropped:
            super().close()
        elif (error := self._opened.arisen()) is not None:
            self._lose("it was closed while an exception was being handled")
            super().close()
            error.add_note(
                f"{self._header} was discarded, because its stream was closed while this exception "
                "was being handled: give the stream a with block of its own, or close it outside"
            )
            raise error
        else:
            self._publish()

    def discard(self) -> None:
        """Discards what was written. The checkpoint is as it was before."""
        try:
            self._at_exit()
        finally:
            super().close()

    def __enter__(self) -> Self:
        # An exception that is being handled around the block does not count: the block decides.
        self._opened = Moment()
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
        elif self._lost or not self.closed:
            self._publish()

    def __del__(self) -> None:
        # io.IOBase would close, and so publish, what was left half written.
        # It stays open, because a wrapper in the same cycle may yet flush into it.
        self._dealloc_warn(self)

    def _dealloc_warn(self, source: object) -> None:
        # Before the finalizer of a wrapper of CPython's io closes what it wraps, it calls this
        # method of that (Modules/_io/bufferedio.c and textio.c of 3.11 to 3.14).
        if not self.closed and not self._lost:
            self._dropped = True
            self._lose("it, or what wraps it, was dropped without being closed")
            message = f"{self._header} was not closed: discarded"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=source)

    def _publish(self) -> None:
        if self._lost:
            super().close()
            raise self._not_written()
        try:
            self._put(self._seal.trailer())
            with storage_errors(self._header):
                self._upload.commit()
            self._at_exit.detach()
            super().close()
        except BaseException:
            self.discard()
            raise

    def _put(self, data: Data) -> None:
        with storage_errors(self._header):
            self._upload.write(data)

    def _lose(self, why: str) -> None:
        self._lost = why
        self._at_exit()

    def _not_written(self) -> StorageError:
        return StorageError(f"{self._header} was not written, because {self._lost}: write it anew")


class _Seal:
    """Adds up the length and the checksum of a file while it is written or read."""

    def __init__(self, header: bytes) -> None:
        self.length = 0
        self._checksum = xxhash.xxh3_128(header)

    def update(self, payload: Data) -> None:
        self.length += len(payload)
        self._checksum.update(payload)

    def trailer(self) -> bytes:
        length = _LENGTH.pack(self.length)
        self._checksum.update(length)
        return length + self._checksum.digest()

    def check(self, trailer: bytes, expected: Header) -> None:
        _check_length(trailer, self.length, expected)
        if trailer != self.trailer():
            raise _corrupt(expected, _ALTERED)


def _parse_header(line: bytes, expected: Header) -> Header:
    try:
        if not line:
            raise ValueError("there is no header line")
        parsed = _json.parse_object(line)
        _json.check_version(parsed, VERSION, expected)
        return Header(
            workflow=_json.string(parsed, "workflow"),
            task=_json.string(parsed, "task"),
            token=_json.string(parsed, "token"),
            inputs=_json.optional_string(parsed, "inputs"),
            serializer=_json.optional_string(parsed, "serializer"),
            text=parsed.get("text") is True,
        )
    except ValueError as error:
        raise _corrupt(expected, str(error)) from error


def _check_length(trailer: bytes, length: int, expected: Header) -> None:
    if trailer[: _LENGTH.size] != _LENGTH.pack(length):
        raise _corrupt(expected, "its length is not the one that was written")


def _check_identity(header: Header, expected: Header) -> None:
    found = header[:3]  # workflow, task, token
    if found == expected[:3]:
        return
    if (
        header.token == expected.token
        and fold_alike(header.task, expected.task)
        and fold_alike(header.workflow, expected.workflow)
    ):
        raise InvalidNameError(
            f"{expected} would share its file with {header}, because this disk does not tell upper "
            "from lower case: choose another name"
        )
    # The names are cut short and escaped, because they may be anything.
    raise _corrupt(expected, f"it is another one, {reprlib.repr(found)}")


def _corrupt(expected: Header, why: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{expected} is corrupt ({why}): compute it and dump it again, or restore its file"
    )
