"""Files and replies without an end: little of them is read before they are refused.

How much that is gets counted elsewhere than in the library: by the system, which knows what this
process has read, and by the server, which knows what it has sent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from checkpoint_store import (
    CheckpointStore,
    CorruptCheckpointError,
    CorruptRecordError,
    Run,
    plan,
    resume,
)
from checkpoint_store._filesystems.locks import lock_name
from checkpoint_store._frame import Header, encode_header

from ..harness import MIB, backends
from ..harness.backends import RECORD, GenericBackend, LocalBackend, make_backend
from ..harness.buckets import Bucket
from ..harness.contract import INPUTS
from ..harness.faults import Kind, kind_of
from ..harness.memory import at_most
from ..harness.records import sealed
from ..harness.s3 import open_store
from ..harness.servers import Proxy, Request, Response

pytestmark = pytest.mark.slow

KIB, TIB = 1024, 1024**4
RECORD_CAP, HEADER_CAP = 64 * KIB, 16 * KIB
CHUNK = MIB
"""A stream is read in chunks of so much, the first of which has the header."""

SLACK = 64 * KIB
"""What Python reads meanwhile, or more than was asked for because it buffers."""

BOUNDED = 64 * MIB
"""The end of what has none, so that a test which fails does not exhaust the machine."""


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """A file of zeros that takes no room."""
    path.write_bytes(head)
    os.truncate(path, size)


def bytes_read() -> int:
    """By this process so far, in all its threads."""
    counts = Path("/proc/self/io").read_text().split()
    return int(counts[counts.index("rchar:") + 1])


@contextmanager
def reading_at_most(limit: int) -> Iterator[None]:
    before = bytes_read()
    with at_most(limit + SLACK):
        yield
    assert bytes_read() - before <= limit + SLACK


READS: dict[str, Callable[[Run], object]] = {
    "read": lambda run: run.read("task"),
    "load": lambda run: run.load("task"),
    "read_many": lambda run: run.read_many(),
    "open": lambda run: run.open("task"),
}
reads = pytest.mark.parametrize("read", READS.values(), ids=READS)
WHOLE_READS = {name: read for name, read in READS.items() if name != "open"}
whole_reads = pytest.mark.parametrize("read", WHOLE_READS.values(), ids=WHOLE_READS)


# On every kind of storage


TASKED = {"checkpoint_store": 2, "tasks": {"0" * 64: "1" * 16}, "base_tasks": {}}


def record_of(size: int, tasks: dict[str, Any]) -> bytes:
    """A valid record of `wf` with so many bytes."""
    fields: dict[str, Any] = {
        "checkpoint_store": 1, "workflow": "wf", "fingerprint": "v1", "token": "0" * 16,
        "nonce": "0" * 32, "created": "", "updated": "", "more": "", **tasks,
    }  # fmt: skip
    return sealed({**fields, "more": "x" * (size - len(sealed(fields)))})


@pytest.mark.parametrize("tasks", [{}, TASKED], ids=["1", "2"])
def test_a_record_of_64_kib_is_read_and_one_a_byte_larger_is_corrupt(
    backend: backends.Backend, tasks: dict[str, Any]
) -> None:
    with backend.store() as store:
        assert len(record_of(RECORD_CAP, tasks)) == 65_536
        backend.put(f"wf/{RECORD}", record_of(RECORD_CAP, tasks))
        assert store.read_fingerprint("wf") == "v1"
        backend.put(f"wf/{RECORD}", record_of(RECORD_CAP + 1, tasks))
        with pytest.raises(CorruptRecordError, match="larger than 65536 bytes"):
            store.read_fingerprint("wf")
        assert resume(store, "wf", INPUTS, on_input_change="reset").tasks() == set()


# On disks

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process reads")


@dataclass
class Disk:
    """A workflow on a disk, with a run that has read and written before."""

    folder: Path
    store: CheckpointStore
    run: Run

    @property
    def record(self) -> Path:
        return self.folder / RECORD

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"task@{self.run.token}"

    @property
    def head(self) -> bytes:
        return encode_header(Header("wf", "task", self.run.token, serializer="json", text=True))


def disk_of(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    made = make_backend(kind, tmp_path, request)
    assert isinstance(made, LocalBackend | GenericBackend)
    with made.store() as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        assert run.dump("task", 1) == run.load("task") == run.load_many()["task"]
        run.open("task").close()
        yield Disk(made.root / "wf", store, run)


@pytest.fixture
def local(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    yield from disk_of("local", tmp_path, request)


@pytest.fixture
def generic(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    yield from disk_of("generic", tmp_path, request)


def check_record(disk: Disk, size: int) -> None:
    sparse(disk.record, size)
    for call in (
        lambda: disk.store.read_fingerprint("wf"),
        lambda: plan(disk.store, "wf", INPUTS, on_input_change="reuse"),
        lambda: resume(disk.store, "wf", INPUTS, on_input_change="raise"),
        lambda: disk.store.write_fingerprint("wf", "v1"),
        lambda: disk.store.collect("wf"),
        disk.run.is_current,
    ):
        with reading_at_most(2 * RECORD_CAP), pytest.raises(CorruptRecordError):
            call()
    # Read by the decision, and again under the lock.
    with reading_at_most(4 * RECORD_CAP):
        resume(disk.store, "wf", INPUTS, on_input_change="reset")
    sparse(disk.record, size)
    with reading_at_most(2 * RECORD_CAP):
        assert disk.store.clear("wf") == 0


def check_checkpoint(disk: Disk, size: int, head: bytes, read: Callable[[Run], object]) -> None:
    sparse(disk.checkpoint, size, head)
    with reading_at_most(HEADER_CAP + 2 * CHUNK):
        assert "task" in disk.run
        with pytest.raises(CorruptCheckpointError):
            read(disk.run)


@linux
def test_a_record_of_a_tebibyte_is_corrupt(local: Disk) -> None:
    check_record(local, TIB)


@linux
@whole_reads
def test_a_checkpoint_of_a_tebibyte_without_a_header_is_corrupt(
    local: Disk, read: Callable[[Run], object]
) -> None:
    check_checkpoint(local, TIB, b"", read)


@linux
@whole_reads
def test_a_checkpoint_whose_trailer_tells_another_length_is_not_read(
    local: Disk, read: Callable[[Run], object]
) -> None:
    check_checkpoint(local, BOUNDED, local.head, read)


@linux
def test_a_record_without_an_end_is_corrupt_on_any_filesystem(generic: Disk) -> None:
    check_record(generic, BOUNDED)


@linux
@pytest.mark.parametrize("kind", ["local", "generic"])
def test_a_stream_without_a_header_is_corrupt(kind: str, request: pytest.FixtureRequest) -> None:
    # To read it at once is, but on a local disk, one call of fsspec's, which reads everything.
    check_checkpoint(request.getfixturevalue(kind), BOUNDED, b"", READS["open"])


@linux
def test_locks_and_temporary_files_are_never_read(local: Disk) -> None:
    root = local.folder.parent
    (root / ".tmp").mkdir(exist_ok=True)
    for path in (root / ".locks" / lock_name("wf"), root / ".tmp" / f"wf~{'0' * 16}"):
        sparse(path, TIB)
    with reading_at_most(RECORD_CAP):
        resume(local.store, "wf", {"day": 2}, on_input_change="reset")
        local.store.clear("wf")
    assert not list(root.glob(".tmp/wf~*"))


# On S3


class Endless(Response):
    """A reply that begins with `head` and goes on and on, of a declared length or of none."""

    def __init__(self, head: bytes, length: int | None) -> None:
        super().__init__(200, {"ETag": '"endless"'}, head)
        self.length = length


class EndlessProxy(Proxy):
    sent = 0

    async def _reply(self, incoming: web.Request, response: Response) -> web.StreamResponse:
        if not isinstance(response, Endless) or incoming.transport is None:
            return await super()._reply(incoming, response)
        reply = web.StreamResponse(headers=response.headers)
        reply.content_length = response.length
        if response.length is None:
            reply.enable_chunked_encoding()
        await reply.prepare(incoming)
        block = response.body
        with suppress(ConnectionError):
            while self.sent < BOUNDED:
                await reply.write(block)
                self.sent += len(block)
                block = bytes(64 * KIB)
        if incoming.transport is not None:
            incoming.transport.abort()
        return reply


IN_FLIGHT = 16 * MIB
"""In the buffers of two sockets and two processes, at most."""

lengths = pytest.mark.parametrize("length", [None, TIB], ids=["chunked", "declared"])


@pytest.fixture
def s3_server(ministack_server: str) -> str:
    return ministack_server


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[EndlessProxy]:
    with EndlessProxy(bucket.endpoint).running() as proxy:
        assert isinstance(proxy, EndlessProxy)
        yield proxy


@pytest.fixture
def run(bucket: Bucket, proxy: EndlessProxy) -> Iterator[Run]:
    with open_store(bucket, proxy.endpoint) as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        run.dump("task", 1)
        yield run


def answer(proxy: EndlessProxy, kind: Kind, head: bytes, length: int | None) -> None:
    async def hook(request: Request) -> Response | None:
        return Endless(head, length) if kind_of(request) is kind else None

    proxy.on_request = hook


@lengths
def test_an_endless_record_is_corrupt(run: Run, proxy: EndlessProxy, length: int | None) -> None:
    answer(proxy, Kind.READ_RECORD, b"{\n", length)
    with at_most(IN_FLIGHT), pytest.raises(CorruptRecordError):
        run.is_current()
    assert 0 < proxy.sent <= RECORD_CAP + IN_FLIGHT


@lengths
def test_whether_there_is_a_checkpoint_is_known_without_reading_it(
    run: Run, proxy: EndlessProxy, length: int | None
) -> None:
    answer(proxy, Kind.READ, b"{\n", length)
    with at_most(IN_FLIGHT):
        assert "task" in run
    assert 0 < proxy.sent <= IN_FLIGHT


def check_without_header(
    run: Run, proxy: EndlessProxy, length: int | None, read: Callable[[Run], object]
) -> None:
    answer(proxy, Kind.READ, b"{", length)
    with at_most(IN_FLIGHT), pytest.raises(CorruptCheckpointError):
        read(run)
    assert 0 < proxy.sent <= CHUNK + IN_FLIGHT


@lengths
def test_an_endless_stream_without_a_header_is_corrupt(
    run: Run, proxy: EndlessProxy, length: int | None
) -> None:
    check_without_header(run, proxy, length, READS["open"])


@lengths
@whole_reads
def test_an_endless_checkpoint_without_a_header_is_corrupt(
    run: Run, proxy: EndlessProxy, length: int | None, read: Callable[[Run], object]
) -> None:
    check_without_header(run, proxy, length, read)


def test_an_endless_payload_is_streamed_in_bounded_memory(run: Run, proxy: EndlessProxy) -> None:
    answer(proxy, Kind.READ, encode_header(Header("wf", "task", run.token)), None)
    with at_most(16 * MIB), run.open("task") as stream:
        assert sum(len(stream.read(MIB)) for _ in range(32)) == 32 * MIB
    assert proxy.sent <= 33 * MIB + IN_FLIGHT
