"""Operations as steps: what the two drivers do with each kind of request."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointNotFoundError, CheckpointStore, StorageError, resume
from checkpoint_store._checkpoints import read, write
from checkpoint_store._filesystems.base import Filesystem
from checkpoint_store._filesystems.loop import LoopFilesystem
from checkpoint_store._frame import Header, decode_frame, encode_frame
from checkpoint_store._protocol import read_record
from checkpoint_store._steps import Each, Pause, Steps, adrive, call, drive, gather, list_all

from ..harness.backends import Backend, LocalBackend, MemoryBackend, S3Backend


class FailedError(Exception):
    """An error to which there can be a weak reference."""


Driver = Callable[[Filesystem, Steps[Any]], Any]


def awaiting(filesystem: Filesystem, steps: Steps[Any]) -> Any:
    return asyncio.run(adrive(filesystem, steps))


drivers = pytest.mark.parametrize("driver", [drive, awaiting])


@pytest.fixture
def store(backend: Backend) -> CheckpointStore:
    return backend.store()


@drivers
def test_an_operation_does_the_same_whoever_drives_it(
    driver: Driver, store: CheckpointStore
) -> None:
    run = resume(store, "wf", {"a": 1}, on_input_change="reset")
    header = Header("wf", "task", run.token)
    driver(store._filesystem, write(header, encode_frame(header, b"data")))
    assert run.read("task") == b"data"
    found, file = driver(store._filesystem, read([header]))
    assert decode_frame(file, found)[1] == b"data"
    record = driver(store._filesystem, read_record("wf"))
    assert (record.token, record.fingerprint) == (run.token, run.fingerprint)
    assert driver(store._filesystem, read_record("none")) is None


@drivers
def test_an_error_of_the_storage_names_its_subject_and_a_missing_key_is_its_own_error(
    driver: Driver, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointNotFoundError):
        driver(store._filesystem, read([Header("wf", "task", "0" * 16)]))

    def fail(*_: object) -> Any:
        raise PermissionError(13, "Permission denied")

    for name in ("swap", "aswap"):
        monkeypatch.setattr(store._filesystem, name, fail, raising=False)
    with pytest.raises(StorageError, match=r"the subject: .*Permission denied") as caught:
        driver(store._filesystem, call("the subject", Filesystem.swap, "wf/x", None, b""))
    assert caught.value.errno == 13


@drivers
def test_a_file_that_is_missing_where_none_is_read_is_an_error_of_the_storage(
    driver: Driver, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise FileNotFoundError(2, "No such file or directory")

    for name in ("write", "awrite"):
        monkeypatch.setattr(store._filesystem, name, fail, raising=False)
    with pytest.raises(StorageError, match="the subject: "):
        driver(store._filesystem, call("the subject", Filesystem.write, "wf/x", [b""]))


@drivers
def test_steps_may_handle_what_a_request_raises(driver: Driver, store: CheckpointStore) -> None:
    def steps() -> Steps[str]:
        try:
            yield from call("", Filesystem.read_small, "none/none")
        except FileNotFoundError:
            yield Pause(0)
            return "handled"
        return "found"

    assert driver(store._filesystem, steps()) == "handled"


@drivers
def test_whatever_ends_the_steps_runs_their_finally(driver: Driver, store: CheckpointStore) -> None:
    ended = []

    def steps() -> Steps[None]:
        try:
            yield from call("", Filesystem.contains, "wf/x")
            raise KeyboardInterrupt
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        driver(store._filesystem, steps())
    assert ended == [True]


@drivers
def test_operations_side_by_side_return_in_order_and_the_first_error_ends_them(
    driver: Driver, store: CheckpointStore
) -> None:
    def steps(number: int) -> Steps[int]:
        yield from call("", Filesystem.contains, f"wf/{number}")
        if number == 7:
            raise ValueError(number)
        return number

    assert driver(store._filesystem, gather([steps(n) for n in range(5)])) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="7"):
        driver(store._filesystem, gather([steps(n) for n in range(40)]))


@drivers
def test_each_outcome_is_told_once_with_its_position(
    driver: Driver, store: CheckpointStore
) -> None:
    def steps(number: int) -> Steps[int]:
        yield from call("", Filesystem.contains, f"wf/{number}")
        if number % 2:
            raise LookupError(number)
        return number

    outcomes: dict[int, Any] = {}

    def done(index: int, outcome: Any) -> None:
        assert index not in outcomes
        outcomes[index] = outcome

    def all_of_them() -> Steps[None]:
        yield Each(map(steps, range(50)), done)

    driver(store._filesystem, all_of_them())
    assert sorted(outcomes) == list(range(50))
    assert all(
        isinstance(outcome, LookupError) if index % 2 else outcome == index
        for index, outcome in outcomes.items()
    )


def test_every_verb_can_be_awaited() -> None:
    verbs = {*Filesystem.__abstractmethods__, "list_leftovers", "detach"} - {"at"}
    assert verbs >= {"read", "swap", "open_write"}
    assert [verb for verb in verbs if not hasattr(LoopFilesystem, f"a{verb}")] == []


class Slow(Filesystem):
    """A filesystem whose `contains` takes a while and notes how many of it run at once."""

    conditional_writes = True
    conditions = None
    durability = ""

    @classmethod
    def at(cls, *_: object) -> Slow:
        raise NotImplementedError

    def __init__(self, max_concurrency: int) -> None:
        self.max_concurrency = max_concurrency
        self.running = self.most = self.ended = 0
        self.lock = threading.Lock()
        self.may_end = threading.Event()
        self.may_end.set()

    def contains(self, _: str) -> bool:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.may_end.wait(10)
        time.sleep(0.005)
        with self.lock:
            self.running -= 1
            self.ended += 1
        return True

    read = read_small = write = swap = delete = contains  # type: ignore[assignment]
    list_files = list_folders = open_read = open_write = contains  # type: ignore[assignment]


@drivers
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_run_at_once_than_the_filesystem_allows(driver: Driver, limit: int) -> None:
    filesystem = Slow(limit)
    taken = []

    def steps(number: int) -> Steps[bool]:
        taken.append(number - filesystem.ended)
        return (yield from call("", Filesystem.contains, ""))

    found = driver(filesystem, gather([steps(number) for number in range(40)]))
    filesystem.close()
    assert found == [True] * 40
    assert filesystem.most == limit
    assert max(taken) <= 2 * limit


def test_a_cancelled_task_ends_after_the_call_that_it_had_begun() -> None:
    filesystem = Slow(1)
    filesystem.may_end.clear()

    async def main() -> None:
        steps = call("", Filesystem.contains, "")
        task = asyncio.create_task(adrive(filesystem, steps))
        while not filesystem.running:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        filesystem.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (filesystem.running, filesystem.ended) == (0, 1)

    asyncio.run(main())
    filesystem.close()


def test_the_loop_of_the_caller_is_never_blocked(tmp_path: Path) -> None:
    filesystem = Slow(4)
    filesystem.may_end.clear()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        for _ in range(20):
            await asyncio.sleep(0.001)
            ticks += 1
        filesystem.may_end.set()

    async def main() -> None:
        steps = gather([call("", Filesystem.contains, "") for _ in range(8)])
        await asyncio.gather(adrive(filesystem, steps), tick())

    asyncio.run(main())
    filesystem.close()
    assert ticks == 20
    assert not list(tmp_path.iterdir())


def test_several_tasks_drive_one_store_at_once(backend: Backend) -> None:
    if isinstance(backend, MemoryBackend):
        pytest.skip("two kinds of drivers are enough")
    store = backend.store()
    run = store.run("wf")
    headers = [Header("wf", f"task {number}", run.token) for number in range(30)]

    async def main() -> list[bytes]:
        filesystem = store._filesystem
        await asyncio.gather(
            *(adrive(filesystem, write(each, encode_frame(each, b"data"))) for each in headers)
        )
        found = await asyncio.gather(*(adrive(filesystem, read([each])) for each in headers))
        return [decode_frame(file, header)[1] for header, file in found]

    assert asyncio.run(main()) == [b"data"] * 30
    assert len(run.tasks()) == 30
    store.close()


@drivers
def test_all_pages_of_a_list_are_read(
    driver: Driver, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(backend, LocalBackend | S3Backend):
        pytest.skip("pages come from a disk or from a server")
    monkeypatch.setattr("checkpoint_store._filesystems.base.PAGE", 2)
    monkeypatch.setattr("checkpoint_store._filesystems.s3_engine.PAGE", 2)
    store = backend.store()
    run = store.run("wf")
    for number in range(5):
        run.write(f"t{number}", b"")
    files = driver(store._filesystem, list_all("", Filesystem.list_files, "wf"))
    assert sum("@" in file.name for file in files) == 5


@drivers
def test_an_error_that_passes_is_kept_by_nothing(driver: Driver) -> None:
    def steps() -> Steps[None]:
        try:
            yield from call("", Filesystem.read_small, "none/none")
        except FileNotFoundError as missing:
            raise FailedError from missing

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(FailedError) as caught:
            driver(CheckpointStore("memory://nothing")._filesystem, steps())
        kept = weakref.ref(caught.value)
        del caught
        assert driver is awaiting or kept() is None
    finally:
        gc.enable()


def test_steps_that_are_dropped_are_closed() -> None:
    closed = []

    def steps() -> Generator[Any, Any, None]:
        try:
            yield Pause(0)
        finally:
            closed.append(True)

    begun = steps()
    next(begun)
    del begun
    assert closed == [True]
