"""Tries what the storage at a URL really guarantees."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .._filesystems.base import Filesystem, Stored
from .._names import encode_name
from .._run import Run
from .._steps import drive, list_all
from .._store import CheckpointStore
from ..errors import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    InvalidNameError,
    storage_errors,
)
from .races import THREADS, Team, mark, signature

SECONDS = 5.0
"""After so many seconds no row begins another round. Each row makes at least one."""
ROUNDS = 10
RACES = 100
UPDATES = 12
"""How many updates each contestant makes in the row in which none may be lost."""

READS = 20
"""How often a file is read while it is being replaced, at least as often."""
AHEAD = 10
"""How many writes are made for each read at most, and reads for each write, so that neither side
leaves the other behind where it is slow."""

SIBLINGS = ("w", "wf1", "wf-1", "wf.", "WF", "wf/t", "wf%2Ft", "wf*", "wf@x")
STREAM_BYTES = 9 * 1024**2
"""The size of a stream that takes more than one part of an upload to S3."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one row.

    `kept` is None if the promise was not tried. `meaning` is None unless the promise is broken.
    """

    promise: str
    kept: bool | None
    detail: str
    seconds: float
    meaning: str | None


class _NotKeptError(Exception):
    """The promise is broken. `meaning` is given if it differs from that of the row."""

    def __init__(self, detail: str, meaning: str | None = None) -> None:
        super().__init__(detail)
        self.meaning = meaning


def check(
    store: CheckpointStore,
    other: CheckpointStore,
    storage_options: Mapping[str, Any] | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Finding, None, None]:
    """Tries each promise by itself. `other` is another connection to the same place.

    Races are run over more connections, which are made with the same `storage_options`. Close the
    generator before the place is removed: a second process may be at work there.
    """
    filesystem = other._filesystem
    has_second = filesystem.conditions is not None and not filesystem.is_of_one_process
    with Team(store.url, storage_options or {}, second=has_second) as team:
        checks = _Checks(store, other, team, clock)
        for promise, attempt, meaning in (
            ("missing is missing", checks.missing, _MISSING),
            ("read after write", checks.read_after_write, _OLD_DATA),
            ("list after write", checks.list_after_write, _OLD_LISTS),
            ("list after delete", checks.list_after_delete, _NOT_DELETED),
            ("whole reads", checks.whole_reads, _TORN),
            ("large streams", checks.large_streams, _STREAMS),
            ("sibling-safe clear", checks.sibling_safe_clear, _SIBLINGS),
            ("durable publish", filesystem.durability, ""),
            ("exclusive create", checks.exclusive_create, _NO_CONDITIONS),
            ("compare-and-swap", checks.compare_and_swap, _NO_CONDITIONS),
            ("no lost update", checks.no_update_lost, _NO_CONDITIONS),
            ("other mounts, hosts", filesystem.caveat, ""),
        ):
            if callable(attempt):
                yield _find(checks, promise, attempt, meaning)
            elif attempt is not None:
                yield Finding(promise, None, attempt, 0.0, None)


def _find(checks: _Checks, promise: str, attempt: Callable[[], str], meaning: str) -> Finding:
    kept = True
    start = time.perf_counter()
    checks.start()
    try:
        with storage_errors(promise):
            try:
                detail = attempt()
            except _NotKeptError as broken:
                kept, detail, meaning = False, str(broken), broken.meaning or meaning
    except CheckpointStoreError as error:
        kept, detail = False, str(error).removeprefix(f"{promise}: ")
    seconds = time.perf_counter() - start
    return Finding(promise, kept, detail, seconds, None if kept else meaning)


_NO_RECORDS = (
    "No workflow can begin here, because its record can be neither found nor created, and so the "
    "rest of these promises could not be tried. Correct what the lines above say."
)
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
    "Streams of more than a few MiB cannot be written. Correct what the line above says (on S3: "
    "allow multipart uploads), or write such checkpoints whole, which takes one request each."
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
    def __init__(
        self,
        store: CheckpointStore,
        other: CheckpointStore,
        team: Team,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._other = other
        self._team = team
        self._clock = clock
        self._end = 0.0
        self._filesystem = other._filesystem

    def start(self) -> None:
        """Notes when the time of this row will be over."""
        self._end = self._clock() + SECONDS

    def missing(self) -> str:
        run, _ = self._runs("missing")
        try:
            run.read("task")
        except CheckpointNotFoundError:
            return "a checkpoint that nobody wrote is reported as missing"
        raise _NotKeptError("a checkpoint was found that nobody wrote")

    def read_after_write(self) -> str:
        writer, reader = self._runs("reads")
        done = 0
        for number in self._rounds(ROUNDS):
            data = b"%d" % number
            writer.write("task", data)
            if reader.read("task") != data:
                raise _NotKeptError(f"another connection read older data (round {number + 1})")
            done += 1
        return f"{_of(done, ROUNDS, 'versions')}: another connection read each at once"

    def list_after_write(self) -> str:
        writer, reader = self._runs("lists")
        written = set()
        for number in self._rounds(ROUNDS):
            writer.write(f"task {number}", b"")
            written.add(f"task {number}")
            if missing := written - reader.tasks():
                raise _NotKeptError(f"{len(missing)} of {len(written)} new files were not listed")
        if "lists" not in set(self._other.workflows()):
            raise _NotKeptError("a new workflow was not listed")
        return f"{_of(len(written), ROUNDS, 'new files')}: another connection listed each at once"

    def list_after_delete(self) -> str:
        writer, reader = self._runs("deletes")
        done = 0
        for number in self._rounds(ROUNDS):
            task = f"task {number}"
            writer.write(task, b"")
            writer.delete(task)
            if task in reader.tasks() or task in reader:
                raise _NotKeptError("a deleted file was still there")
            done += 1
        return f"{_of(done, ROUNDS, 'deleted files')}: another connection missed each at once"

    def whole_reads(self) -> str:
        writer, reader = self._runs("whole")
        size = 64 * 1024
        errors, reads, versions = [], 0, 1
        writer.write("task", bytes(size))
        done = threading.Event()

        def overwrite() -> None:
            nonlocal versions
            while not done.is_set():
                if versions < AHEAD * (reads + 1):
                    writer.write("task", bytes([versions % 256]) * size)
                    versions += 1
                else:
                    done.wait(0.0005)

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(overwrite)
            try:
                while min(reads, versions) < READS and not writing.done():
                    if self._is_late() and reads and versions > 1:
                        break
                    time.sleep(0.0005)  # A reader that never waits would starve the writer.
                    if reads >= AHEAD * versions:
                        continue
                    reads += 1
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
        late = "" if min(reads, versions) >= READS else f" within {SECONDS:g} s"
        return f"{reads} reads beside {versions} writes{late}: each was whole"

    def large_streams(self) -> str:
        writer, reader = self._runs("streams")
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
        names = ("wf", *SIBLINGS)
        with ThreadPoolExecutor(THREADS) as pool:
            written = dict(zip(names, pool.map(self._written, names), strict=True))
        before = {name: files for name, files in written.items() if files is not None}
        if not before.pop("wf"):
            raise _NotKeptError("what was written is not there")
        self._store.clear("wf")
        if self._files("wf"):
            raise _NotKeptError("files of the cleared workflow are still there")
        siblings = list(before)
        with ThreadPoolExecutor(THREADS) as pool:
            for sibling, files in zip(siblings, pool.map(self._files, siblings), strict=True):
                if files != before[sibling]:
                    raise _NotKeptError(f"clearing 'wf' changed {sibling!r}")
        return f"{len(siblings)} workflows with names like it kept every byte"

    def exclusive_create(self) -> str:
        create, _ = self._conditions()
        self._gather()
        done = 0
        for number in self._rounds(RACES):
            self._race_for(f"create/race-{number}", None, number, create)
            done += 1
        return self._won(done, create)

    def compare_and_swap(self) -> str:
        _, swap = self._conditions()
        key = "swap/one"
        self._filesystem.swap(key, None, b"first")
        present = self._filesystem.read_small(key)
        if self._filesystem.swap("swap/missing", present, b"none"):
            raise _NotKeptError(f"a missing file was swapped: {swap} was ignored")
        self._gather()
        done = 0
        for number in self._rounds(RACES):
            present = self._race_for(key, present, number, swap)
            done += 1
        return self._won(done, swap)

    def no_update_lost(self) -> str:
        self._conditions()
        key = "swap/updates"
        self._filesystem.swap(key, None, b"begin ")
        self._gather()
        results = self._team.update(key, UPDATES, max(0.0, self._end - self._clock()))
        for result in results:
            if isinstance(result, str):
                raise _NotKeptError(f"an update failed: {result}")
        found = self._filesystem.read_small(key).data
        updates = [
            mark(contestant, number)
            for contestant, made in enumerate(results)
            for number in range(int(made or 0))
        ]
        if not updates:
            raise _NotKeptError(f"each update was refused for {SECONDS:g} s")
        if lost := sum(update not in found for update in updates):
            raise _NotKeptError(f"{lost} of {len(updates)} were lost")
        done = _of(len(updates), UPDATES * len(results), "updates")
        return f"{done} by {self._team}: none was lost{self._note()}"

    def _gather(self) -> None:
        self._team.gather()
        self.start()  # The time that it takes to connect them all does not count.

    def _race_for(self, key: str, old: Stored | None, number: int, condition: str) -> Stored:
        """Lets all contestants swap a file. Returns the version that has won, if only one has."""
        results = self._team.swap(key, old, number)
        winners = [
            signature(number, contestant)
            for contestant, result in enumerate(results)
            if result is True
        ]
        stored = Stored(b"")
        with suppress(FileNotFoundError):
            stored = self._filesystem.read_small(key)
        # If its reply was lost, the winner itself does not know that it has won.
        if stored.data.startswith(signature(number, 0)[:-1]) and winners in ([], [stored.data]):
            return stored
        error = next((result for result in results if isinstance(result, str)), "")
        if error and not winners and number == 0:
            raise _NotKeptError(error)  # No contestant could try it.
        why = error or (f"{condition} was ignored" if winners else "all were refused")
        raise _NotKeptError(f"{len(winners)} of {len(results)} won in round {number + 1}: {why}")

    def _won(self, done: int, condition: str) -> str:
        rounds = _of(done, RACES, "rounds")
        return f"{rounds}, {self._team}: one winner each ({condition}){self._note()}"

    def _note(self) -> str:
        return f"; {self._team.note}" if self._team.note else ""

    def _runs(self, workflow_id: str) -> tuple[Run, Run]:
        """The same workflow, opened on both connections."""
        return _begin(self._store, workflow_id), _begin(self._other, workflow_id)

    def _written(self, workflow_id: str) -> dict[str, bytes] | None:
        """Makes a workflow and returns its files; None if this disk takes it for another one."""
        try:
            _begin(self._store, workflow_id).write("task", workflow_id.encode())
            return self._files(workflow_id)
        except InvalidNameError:
            return None

    def _conditions(self) -> tuple[str, str]:
        if self._filesystem.conditions is None:
            raise _NotKeptError("this kind of storage has no conditional writes")
        return self._filesystem.conditions

    def _files(self, workflow_id: str) -> dict[str, bytes]:
        folder = encode_name(workflow_id, "workflow id")
        files = drive(self._filesystem, list_all(folder, Filesystem.list_files, folder))
        keys = [f"{folder}/{file.name}" for file in files]
        return {key: self._filesystem.read(key)[:] for key in keys}

    def _rounds(self, wanted: int) -> Iterator[int]:
        for number in range(wanted):
            if number and self._is_late():
                return
            yield number

    def _is_late(self) -> bool:
        return self._clock() >= self._end


def _begin(store: CheckpointStore, workflow_id: str) -> Run:
    try:
        return store.run(workflow_id)
    except InvalidNameError:
        raise
    except CheckpointStoreError as error:
        reason = str(error).removeprefix(f"the record of workflow {workflow_id!r}: ")
        raise _NotKeptError(f"no workflow can begin: {reason}", _NO_RECORDS) from error


def _of(done: int, wanted: int, what: str) -> str:
    return (
        f"{wanted} {what}" if done == wanted else f"{done} of {wanted} {what} within {SECONDS:g} s"
    )
