"""Every operation fails at every one of its steps, and is overtaken at every one by another.

The operations are those of `harness.operations`, and so are the three questions that are asked
afterwards: is anything stale, lost, or changed that belongs to somebody else?
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from checkpoint_store import (
    CheckpointStore,
    CheckpointStoreError,
    CorruptRecordError,
    InputChangedError,
    Run,
    StorageError,
)
from checkpoint_store._filesystems import base, disk, local
from checkpoint_store._names import RECORD
from checkpoint_store._policy import POLICIES
from checkpoint_store._protocol import read_record
from checkpoint_store._steps import drive

from ..harness.operations import (
    OLD,
    OPERATIONS,
    WORKFLOW,
    Operation,
    check_after_fault,
    check_every_way_on,
    check_settled,
    computed,
    found_by,
    garbage,
    mixed,
    perform,
    plant_siblings,
    prepared,
    resumes,
    with_leftovers,
)
from ..harness.taps import FAULTS, MOST_CALLS, CrashError, Tap, fault
from ..harness.task_operations import TASK_OPERATIONS
from ..harness.worlds import GenericWorld, LocalWorld, MemoryWorld, World

pytestmark = pytest.mark.slow


@pytest.fixture
def make_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], World]]:
    kinds: dict[str, Callable[[], World]] = {
        "memory": MemoryWorld,
        "generic": GenericWorld,
        "local": lambda: LocalWorld(tmp_path),
    }
    yield kinds[request.param]
    for path in [path for path in MemoryFileSystem.store if path.startswith("/crash-")]:
        del MemoryFileSystem.store[path]
    MemoryFileSystem.pseudo_dirs[:] = [
        path for path in MemoryFileSystem.pseudo_dirs if not path.startswith("/crash-")
    ]


@pytest.fixture(autouse=True)
def _short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PAGE", 2)


worlds = pytest.mark.parametrize("make_world", ["memory", "generic", "local"], indirect=True)
shared_worlds = pytest.mark.parametrize("make_world", ["memory", "local"], indirect=True)


by_name = pytest.mark.parametrize(
    "operation",
    [*OPERATIONS, *TASK_OPERATIONS],
    ids=lambda operation: operation.name.replace(" ", "-"),
)


@worlds
@by_name
def test_an_operation_that_meets_no_fault_does_what_it_says(
    operation: Operation, make_world: Callable[[], World]
) -> None:
    world = prepared(operation, make_world)
    others = world.others()
    assert set(others) >= {"wf1/.fingerprint", "wf-1/.fingerprint", "w/.fingerprint"}
    assert check_every_way_on(world, others, operation) == operation.before
    tap = Tap()
    assert perform(operation, world.store(tap))
    assert 0 < len(tap.calls) < MOST_CALLS
    check_settled(operation, world)
    assert check_every_way_on(world, others, operation) == operation.after


Attempt = Callable[[World, Tap], object]


def check_every_fault(operation: Operation, kind: str, template: World, attempt: Attempt) -> int:
    """Lets `attempt` fail at each of its calls in turn, and returns how many there were."""
    others = template.others()
    world = template.copy()
    attempt(world, whole := Tap())
    world.remove()
    places = [at for at, name in enumerate(whole.calls) if kind != "refusal" or name == "delete"]
    for at in places:
        world = template.copy()
        tap = fault(kind, at)
        returned = False
        try:
            attempt(world, tap)
            returned = True
        except CrashError:
            assert kind == "crash"
        except CheckpointStoreError as error:
            assert kind != "crash", error  # noqa: PT017
            assert str(error)  # noqa: PT017
        assert tap.calls[: at + 1] == whole.calls[: at + 1]
        check_after_fault(operation, world, others, returned=returned)
        world.remove()
    return len(whole.calls)


@worlds
@by_name
@pytest.mark.parametrize("kind", FAULTS)
def test_an_operation_that_fails_at_any_step_loses_and_mixes_nothing(
    operation: Operation, kind: str, make_world: Callable[[], World]
) -> None:
    def attempt(world: World, tap: Tap) -> None:
        perform(operation, world.store(tap))

    assert check_every_fault(operation, kind, prepared(operation, make_world), attempt) > 0


@worlds
@pytest.mark.parametrize(
    "operation",
    [each for each in OPERATIONS if each.name in ("start raise", "reset", "reuse", "run first")]
    + [each for each in OPERATIONS if each.name in ("say first", "say another", "label")]
    + [each for each in TASK_OPERATIONS if each.name in ("reset of a part", "declare late")],
    ids=lambda operation: operation.name.replace(" ", "-"),
)
def test_a_record_that_was_written_although_its_reply_was_lost_is_recognised(
    operation: Operation, make_world: Callable[[], World]
) -> None:
    template = prepared(operation, make_world)
    attempt = Tap()
    operation.perform(template.copy().store(attempt))
    world = template.copy()
    tap = fault("error after", attempt.calls.index("swap"))
    result = operation.perform(world.store(tap))
    assert tap.calls.count("swap") == 1
    record = drive(world.filesystem(), read_record(WORKFLOW))
    assert record is not None
    if isinstance(result, Run):
        assert record.token == result.token


@worlds
@pytest.mark.parametrize("kind", FAULTS)
def test_a_delete_that_fails_at_any_step_never_brings_an_older_value_back(
    kind: str, make_world: Callable[[], World]
) -> None:
    template = make_world()
    mixed(template)
    whole = Tap()
    template.copy().store(whole).run(WORKFLOW).delete("t0")
    assert whole.calls.count("delete") == 2
    for at in range(len(whole.calls)):
        world = template.copy()
        with suppress(CrashError, StorageError):
            world.store(fault(kind, at)).run(WORKFLOW).delete("t0")
        found = found_by(world.store().run(WORKFLOW))
        assert found.get("t0") in (b"B t0", None)
        assert found["t1"] == b"A t1"
        world.store().run(WORKFLOW).delete("t0")
        assert found_by(world.store().run(WORKFLOW)).keys() == {"t1", "t2"}


@worlds
def test_a_reset_whose_collecting_fails_has_happened_and_says_so(
    make_world: Callable[[], World], caplog: pytest.LogCaptureFixture
) -> None:
    template = make_world()
    computed(template)
    reset = resumes("B", "reset")
    whole = Tap()
    reset(template.copy().store(whole))
    places = range(whole.calls.index("swap") + 1, len(whole.calls))
    assert len(places) > 3
    for kind, at in itertools.product(("error before", "outage"), places):
        world = template.copy()
        caplog.clear()
        run = reset(world.store(fault(kind, at)))
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert f"store.collect({WORKFLOW!r}) deletes them" in record.getMessage()
        assert run.decision is not None
        assert run.decision.action == "reset"
        late = resumes("B", "raise")(world.store())
        assert late.token == run.token
        assert found_by(late) == {}
        world.store().collect(WORKFLOW)
        assert garbage(world) == []


@worlds
def test_collecting_without_a_record_deletes_nothing(make_world: Callable[[], World]) -> None:
    world = make_world()
    with_leftovers(world)
    files = {key: data for key, data in world.files().items() if not key.endswith(f"/{RECORD}")}
    assert len(files) == len(OLD) + 2
    bare = make_world()
    for key, data in files.items():
        bare.put(key, data)
    assert bare.store().collect(WORKFLOW) == 0
    assert files == bare.files()


@worlds
def test_collecting_beside_a_corrupt_record_deletes_nothing(
    make_world: Callable[[], World],
) -> None:
    world = make_world()
    with_leftovers(world)
    world.put(f"{WORKFLOW}/{RECORD}", b"{")
    files = world.files()
    with pytest.raises(CorruptRecordError):
        world.store().collect(WORKFLOW)
    assert files == world.files()


# The same, one level down: the calls to the operating system


class TappedOs:
    """Stands in for `os` within the local filesystem."""

    TAPPED = frozenset(
        [
            "open",
            "write",
            "fsync",
            "replace",
            "rename",
            "link",
            "unlink",
            "mkdir",
            "rmdir",
            "listdir",
            "scandir",
            "lstat",
            "fstat",
        ]
    )

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.TAPPED:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            opened = self.tap(name, lambda: Descriptor(name, real(*args, **kwargs)))
            return opened.value

        return call


@dataclasses.dataclass
class Descriptor:
    """What a call returned, to be closed if nobody gets it."""

    name: str
    value: Any

    def close(self) -> None:
        if type(self.value) is int and self.name == "open":
            os.close(self.value)
        elif close := getattr(self.value, "close", None):
            close()


SYSTEM_CALLS = [
    operation
    for operation in [*OPERATIONS, *TASK_OPERATIONS]
    if operation.name
    in (
        "start reset",
        "continue raise",
        "reset",
        "reset beside leftovers",
        "reset of a corrupt one",
        "reuse",
        "write",
        "write anew",
        "stream",
        "read",
        "delete",
        "collect",
        "clear",
        "clear with leftovers",
        "say another",
        "label",
        "reset of a part",
        "delete with dependents",
    )
]


@pytest.mark.parametrize("make_world", ["local"], indirect=True)
@pytest.mark.parametrize("operation", SYSTEM_CALLS, ids=lambda each: each.name.replace(" ", "-"))
@pytest.mark.parametrize("kind", ["crash", "error before", "error after"])
def test_an_operation_whose_system_call_fails_loses_and_mixes_nothing(
    operation: Operation, kind: str, make_world: Callable[[], World]
) -> None:
    def attempt(world: World, tap: Tap) -> None:
        store = world.store()
        with pytest.MonkeyPatch.context() as patch:
            for module in (local, disk):
                patch.setattr(module, "os", TappedOs(tap))
            perform(operation, store)

    assert check_every_fault(operation, kind, prepared(operation, make_world), attempt) > 0


# Two at once


class History:
    """The writes that returned: per generation, task and value."""

    def __init__(self, old_run: Run) -> None:
        self.old_run = old_run
        self.written = {old_run.token: {task: {value} for task, value in OLD.items()}}
        self.numbers = itertools.count()

    def write(self, run: Run, task: str, *, stream: bool = False) -> None:
        value = f"{run.fingerprint} {task} {next(self.numbers)}".encode()
        before = self._possible(run, task)
        if stream:
            with run.open(task, "wb") as file:
                file.write(value)
        else:
            run.write(task, value)
        # Of two writes at the same time either may be the last.
        meanwhile = self._possible(run, task) - before
        self.written.setdefault(run.token, {})[task] = {value, *meanwhile}

    def _possible(self, run: Run, task: str) -> set[bytes]:
        return self.written.get(run.token, {}).get(task, set())

    def work(self, run: Run, *, strict: bool) -> None:
        """What a runner does: reads what is there, and writes what it has computed."""
        for _ in range(2):
            found = run.read_many()
            if strict:
                stale = {
                    k: v
                    for k, v in found.items()
                    if not v.startswith(f"{run.fingerprint} ".encode())
                }
                assert stale == {}
            for task in ("t0", "t5"):
                self.write(run, task)


Step = Callable[[CheckpointStore, History], None]


def a_resume(fingerprint: str, policy: str) -> Step:
    def step(store: CheckpointStore, history: History) -> None:
        with suppress(InputChangedError):
            run = resumes(fingerprint, policy)(store)
            history.work(run, strict=policy != "reuse")

    return step


def an_old_writer(store: CheckpointStore, history: History) -> None:
    run = dataclasses.replace(history.old_run, _filesystem=store._filesystem)
    history.work(run, strict=True)


def an_old_stream(store: CheckpointStore, history: History) -> None:
    run = dataclasses.replace(history.old_run, _filesystem=store._filesystem)
    history.write(run, "t1", stream=True)


def a_plain_run(store: CheckpointStore, history: History) -> None:
    run = store.run(WORKFLOW)
    history.write(run, "t7")


STEPS: dict[str, Step] = {
    "reset to B": a_resume("B", "reset"),
    "reset to C": a_resume("C", "reset"),
    "strict A": a_resume("A", "raise"),
    "strict B": a_resume("B", "raise"),
    "reuse by B": a_resume("B", "reuse"),
    "reuse by C": a_resume("C", "reuse"),
    "clear": lambda store, _: no_result(store.clear(WORKFLOW)),
    "collect": lambda store, _: no_result(store.collect(WORKFLOW)),
    "fingerprint C": lambda store, _: store.write_fingerprint(WORKFLOW, "C"),
    "old writer": an_old_writer,
    "old stream": an_old_stream,
    "plain run": a_plain_run,
}


def no_result(count: int) -> None:
    assert count >= 0


def check_history(world: World, history: History, others: dict[str, bytes]) -> None:
    """Nothing is lost of the generation in force, nor of the one it reads through to."""
    record = drive(world.filesystem(), read_record(WORKFLOW))
    if record is not None:
        expected = {
            **history.written.get(record.base or "", {}),
            **history.written.get(record.token, {}),
        }
        found = found_by(world.store().run(WORKFLOW))
        assert found.keys() == expected.keys()
        for task, possible in expected.items():
            assert found[task] in possible
    check_every_way_on(world, others)


def overtaken(first: Step, second: Step, world: World, history: History, at: int) -> Tap:
    """Runs `first`, and all of `second` before its call number `at`, if there is one."""
    failures: list[Exception] = []

    def overtake(number: int, _: str) -> None:
        if number == at:
            try:
                second(world.store(), history)
            except Exception as error:  # noqa: BLE001
                # The first would take it for a failure of its storage.
                failures.append(error)

    tap = Tap(overtake)
    first(world.store(tap), history)
    if failures:
        raise failures[0]
    return tap


@shared_worlds
@pytest.mark.parametrize("second", STEPS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("first", STEPS, ids=lambda name: name.replace(" ", "-"))
def test_an_operation_overtaken_at_any_step_loses_and_mixes_nothing(
    first: str, second: str, make_world: Callable[[], World]
) -> None:
    template = make_world()
    plant_siblings(template)
    old_run = computed(template)
    others = template.others()
    # Before a call is after the one that precedes it; after the last they follow one another.
    for at in itertools.count():
        world = template.copy()
        history = History(old_run)
        tap = overtaken(STEPS[first], STEPS[second], world, history, at)
        if at >= len(tap.calls):
            break
        check_history(world, history, others)
        world.remove()
    assert at > 0


@shared_worlds
@pytest.mark.parametrize("policy", POLICIES)
def test_a_start_after_the_moment_of_a_clear_keeps_all_it_writes(
    policy: str, make_world: Callable[[], World]
) -> None:
    template = make_world()
    old_run = computed(template)
    points = 0
    for at in itertools.count():
        world = template.copy()
        history = History(old_run)
        tap = overtaken(STEPS["clear"], a_resume("B", policy), world, history, at)
        if at >= len(tap.calls):
            break
        if "detach" in tap.calls[:at]:
            points += 1
            _, written = history.written.values()
            found = found_by(resumes("B", "raise")(world.store()))
            assert {task: {value} for task, value in found.items()} == written
    # It was overtaken while it listed, deleted and looked for what was left over.
    assert points > 1
