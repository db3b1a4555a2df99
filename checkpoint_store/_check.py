"""What the storage at a URL really guarantees, found out by trying it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ._filesystems.base import Stored
from ._filesystems.generic import GenericFilesystem
from ._filesystems.local import LocalFilesystem
from ._filesystems.memory import MemoryFilesystem
from ._names import encode_name
from ._store import CheckpointStore
from .errors import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    InvalidNameError,
    storage_errors,
)

T = TypeVar("T")

THREADS = 8
ROUNDS = 5
UPDATES = 4
"""By each thread, where none may be lost."""

TRIES = 500
"""Of one update. Each that is refused means that another thread's was not."""

SIBLINGS = ("w", "wf1", "wf-1", "wf.", "WF", "wf/t", "wf%2Ft", "wf*", "wf@x")
STREAM_BYTES = 9 * 1024**2
"""More than one part of an upload to S3."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`kept` is None for what cannot be tried."""

    promise: str
    kept: bool | None
    detail: str
    seconds: float
    meaning: str


class _NotKeptError(Exception):
    pass


class _NotTriedError(Exception):
    pass


def check(store: CheckpointStore, other: CheckpointStore) -> Iterator[Finding]:
    """Tries every promise, `other` being a connection of its own to the same place."""
    checks = _Checks(store, other)
    for promise, attempt, meaning in (
        ("missing is missing", checks.missing, _MISSING),
        ("read after write", checks.read_after_write, _OLD_DATA),
        ("list after write", checks.list_after_write, _OLD_LISTS),
        ("list after delete", checks.list_after_delete, _NOT_DELETED),
        ("whole reads", checks.whole_reads, _TORN),
        ("large streams", checks.large_streams, _STREAMS),
        ("sibling-safe clear", checks.sibling_safe_clear, _SIBLINGS),
        ("durable publish", checks.durable_publish, ""),
        ("exclusive create", checks.exclusive_create, _NO_CONDITIONS),
        ("create race", checks.create_race, _NO_CONDITIONS),
        ("compare-and-swap", checks.compare_and_swap, _NO_CONDITIONS),
        ("swap race", checks.swap_race, _NO_CONDITIONS),
        ("no lost update", checks.no_update_lost, _NO_CONDITIONS),
    ):
        kept: bool | None = True
        start = time.perf_counter()
        try:
            with storage_errors(promise):
                try:
                    detail = attempt()
                except _NotKeptError as broken:
                    kept, detail = False, str(broken)
                except _NotTriedError as unknown:
                    kept, detail = None, str(unknown)
        except CheckpointStoreError as error:
            kept, detail = False, str(error)
        yield Finding(promise, kept, detail, time.perf_counter() - start, meaning)


_MISSING = (
    "Tasks that were never computed cannot be told from those that fail to be read, so no workflow "
    "can start here. Correct what the line above says."
)
_OLD_DATA = (
    "A worker may read an older result of the same inputs, or none. Take away the cache or replica "
    "that answers with old data, or let a single machine do all the work of a workflow."
)
_OLD_LISTS = (
    "tasks(), read_many(), collect and clear may overlook new files. Take away the cache or "
    "replica that answers with old lists, or name the tasks that you read and call collect later."
)
_NOT_DELETED = (
    "Deleted, cleared and retired checkpoints stay there or still show up in lists, though a reset "
    "workflow never returns them. Allow deleting (on S3: s3:DeleteObject), or take away the cache "
    "or replica that answers with old lists."
)
_TORN = (
    "Whoever reads a checkpoint while it is being replaced gets an error (never a damaged result). "
    "Let nobody read a task that another worker still writes, or read again after the error."
)
_STREAMS = (
    f"Checkpoints above {STREAM_BYTES // 1024**2} MiB cannot be written as streams. Correct what "
    "the line above says (on S3: allow multipart uploads), or write them in smaller pieces."
)
_SIBLINGS = (
    "Clearing a workflow fails or harms another. Correct what the line above says, and until then "
    "use neither clear nor the policy reset here."
)
_NO_CONDITIONS = (
    "Two processes that resume, reset or clear the same workflow at the same time can overwrite "
    "each other's record, and then results of other inputs may come back. Let a single process at "
    "a time do that, or choose storage that honours conditional writes: a local disk, Amazon S3, "
    "or another server with If-None-Match and If-Match."
)


class _Checks:
    def __init__(self, store: CheckpointStore, other: CheckpointStore) -> None:
        self._store = store
        self._other = other
        self._filesystem = other._filesystem
        self._is_s3 = not isinstance(self._filesystem, LocalFilesystem | GenericFilesystem)

    def missing(self) -> str:
        run = self._store.run("missing")
        try:
            run.read("task")
        except CheckpointNotFoundError:
            return "a checkpoint that nobody wrote is reported as missing"
        raise _NotKeptError("a checkpoint was found that nobody wrote")

    def read_after_write(self) -> str:
        writer, reader = self._store.run("reads"), self._other.run("reads")
        for number in range(2 * ROUNDS):
            data = b"%d" % number
            writer.write("task", data)
            if reader.read("task") != data:
                raise _NotKeptError(f"another connection read older data (round {number + 1})")
        return f"another connection read each of {2 * ROUNDS} versions at once"

    def list_after_write(self) -> str:
        writer, reader = self._store.run("lists"), self._other.run("lists")
        written = set()
        for number in range(2 * ROUNDS):
            writer.write(f"task {number}", b"")
            written.add(f"task {number}")
            if missing := written - reader.tasks():
                raise _NotKeptError(f"{len(missing)} of {len(written)} new files were not listed")
        if "lists" not in set(self._other.workflows()):
            raise _NotKeptError("a new workflow was not listed")
        return f"another connection listed each of {len(written)} new files at once"

    def list_after_delete(self) -> str:
        writer, reader = self._store.run("lists"), self._other.run("lists")
        tasks = writer.tasks()
        for task in tasks:
            writer.delete(task)
            if task in reader.tasks() or task in reader:
                raise _NotKeptError("a deleted file was still there")
        return f"another connection missed each of {len(tasks)} deleted files at once"

    def whole_reads(self) -> str:
        writer, reader = self._store.run("whole"), self._other.run("whole")
        size, wanted = 64 * 1024, 20
        errors, reads, versions = [], 0, 1
        writer.write("task", bytes(size))
        done = threading.Event()

        def overwrite() -> None:
            nonlocal versions
            while not done.is_set():
                writer.write("task", bytes([versions % 256]) * size)
                versions += 1

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(overwrite)
            try:
                while min(reads, versions) < wanted and not writing.done():
                    reads += 1
                    time.sleep(0.0005)  # A reader that never waits starves the writer.
                    try:
                        data = reader.read("task")
                    except CheckpointStoreError as error:
                        errors.append(error)
                        continue
                    if len(data) != size or len(set(data)) != 1:
                        raise _NotKeptError("a read returned a mix of two versions")
            finally:
                done.set()
            writing.result()
        if errors:
            raise _NotKeptError(f"{len(errors)} of {reads} reads failed, such as: {errors[0]}")
        return f"each of {reads} reads was whole while {versions} versions were written"

    def large_streams(self) -> str:
        writer, reader = self._store.run("streams"), self._other.run("streams")
        piece = bytes(range(256)) * (STREAM_BYTES // 9 // 256)
        with writer.open("task", "wb") as stream:
            for _ in range(9):
                stream.write(piece)
        with reader.open("task") as source:
            while chunk := source.read(len(piece)):
                if chunk != piece:
                    raise _NotKeptError("a stream came back as something else")
        return f"{STREAM_BYTES // 1024**2} MiB were written and read back"

    def sibling_safe_clear(self) -> str:
        siblings = {}
        for name in ("wf", *SIBLINGS):
            try:
                self._store.run(name).write("task", name.encode())
            except InvalidNameError:
                continue  # This disk folds case.
            if name != "wf":
                siblings[name] = self._files(name)
        if not self._files("wf"):
            raise _NotKeptError("what was written is not there")
        self._store.clear("wf")
        if self._files("wf"):
            raise _NotKeptError("files of the cleared workflow are still there")
        for name, files in siblings.items():
            if self._files(name) != files:
                raise _NotKeptError(f"clearing 'wf' changed {name!r}")
        return f"{len(siblings)} workflows with names like it kept every byte"

    def durable_publish(self) -> str:
        if isinstance(self._filesystem, MemoryFilesystem):
            raise _NotTriedError("not promised: memory is gone with this process")
        if isinstance(self._filesystem, GenericFilesystem):
            raise _NotTriedError("unknown: up to the server behind this protocol")
        # Only a power failure would show it.
        if self._is_s3:
            raise _NotTriedError("by design, not tried: stored once the server has answered")
        raise _NotTriedError("by design, not tried: file and folder are synced before a write ends")

    def exclusive_create(self) -> str:
        self._refuse_without_conditions()
        if not self._filesystem.swap("create/one", None, b"first"):
            raise _NotKeptError("a new file was refused")
        if self._filesystem.swap("create/one", None, b"second"):
            raise _NotKeptError(f"it was created twice{self._ignored('If-None-Match')}")
        return "a second create is refused" + (" (If-None-Match)" if self._is_s3 else "")

    def compare_and_swap(self) -> str:
        self._refuse_without_conditions()
        filesystem, key = self._filesystem, "swap/one"
        filesystem.swap(key, None, b"first")
        stale = filesystem.read_small(key)
        if not filesystem.swap(key, stale, b"second"):
            raise _NotKeptError("the present version was refused")
        if filesystem.swap(key, stale, b"third"):
            raise _NotKeptError(f"an old version was swapped{self._ignored('If-Match')}")
        if filesystem.swap("swap/missing", stale, b"fourth"):
            raise _NotKeptError(f"a missing file was swapped{self._ignored('If-Match')}")
        return "swapping an old version or a missing file is refused" + (
            " (If-Match)" if self._is_s3 else ""
        )

    def create_race(self) -> str:
        self._refuse_without_conditions()
        for number in range(ROUNDS):
            self._race_for(f"create/race-{number}", None, number)
        return f"{THREADS} threads in each of {ROUNDS} rounds: always one winner"

    def swap_race(self) -> str:
        self._refuse_without_conditions()
        key = "swap/race"
        self._filesystem.swap(key, None, b"")
        for number in range(ROUNDS):
            self._race_for(key, self._filesystem.read_small(key), number)
        return f"{THREADS} threads in each of {ROUNDS} rounds: always one winner"

    def no_update_lost(self) -> str:
        self._refuse_without_conditions()
        key = "swap/updates"
        self._filesystem.swap(key, None, b"begin ")

        def update(thread: int) -> None:
            for number in range(UPDATES):
                self._append(key, b"%d-%d " % (thread, number))

        _race(update)
        count = len(set(self._filesystem.read_small(key).data.split())) - 1
        if count != THREADS * UPDATES:
            raise _NotKeptError(f"{THREADS * UPDATES - count} of {THREADS * UPDATES} were lost")
        return f"all {count} updates of one file by {THREADS} threads are in it"

    def _race_for(self, key: str, old: Stored | None, number: int) -> None:
        won = _race(lambda thread: self._swap(key, old, b"%d by %d" % (number, thread)))
        winners = [b"%d by %d" % (number, thread) for thread, result in enumerate(won) if result]
        stored = self._filesystem.read_small(key).data
        # Where a reply was lost, the winner itself may not know.
        if stored.startswith(b"%d by" % number) and winners in ([], [stored]):
            return
        raise _NotKeptError(f"{len(winners)} of {THREADS} won in round {number + 1}")

    def _append(self, key: str, mark: bytes) -> None:
        for _ in range(TRIES):
            stored = self._filesystem.read_small(key)
            if mark in stored.data or self._swap(key, stored, stored.data + mark):
                return
        raise _NotKeptError(f"an update was refused {TRIES} times")

    def _swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        try:
            return self._filesystem.swap(key, old, data)
        except Exception:  # noqa: BLE001 - it leaves open whether it took effect, as in `swap`
            return False

    def _refuse_without_conditions(self) -> None:
        if not self._is_s3 and self._filesystem.conditional_writes is False:
            raise _NotKeptError("this kind of storage has no conditional writes")

    def _ignored(self, header: str) -> str:
        return f": the server ignores {header}" if self._is_s3 else ""

    def _files(self, workflow_id: str) -> dict[str, bytes]:
        folder = encode_name(workflow_id, "workflow id")
        keys = [f"{folder}/{name}" for page in self._filesystem.pages(folder) for name in page]
        return {key: self._filesystem.read(key)[:] for key in keys}


def _race(work: Callable[[int], T]) -> list[T]:
    """What the threads return, which all begin at once."""
    begin = threading.Event()

    def begin_together(thread: int) -> T:
        begin.wait()
        return work(thread)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            futures = [pool.submit(begin_together, thread) for thread in range(THREADS)]
        finally:
            begin.set()
        return [future.result() for future in futures]
