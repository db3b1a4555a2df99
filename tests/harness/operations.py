"""Operations on a workflow, and what must hold after them whether they failed or not.

Each checkpoint says in its bytes which inputs it was computed from; that of a declared task says
which of them, and which version, its declaration covers. So whatever happened, a new store can be
asked three questions. Is anything returned to a strict run that other inputs made (never stale)? Is
a write missing that returned (nothing lost)? Has a sibling changed by a byte (nobody else's)?
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import pytest

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    CheckpointStoreError,
    CorruptRecordError,
    InputChangedError,
    Run,
    Task,
    resume,
)
from checkpoint_store._frame import TRAILER_BYTES
from checkpoint_store._names import RECORD, parse_file_name
from checkpoint_store._policy import POLICIES
from checkpoint_store._protocol import read_record
from checkpoint_store._steps import drive

from .worlds import World

WORKFLOW = "wf"
SIBLINGS = ("wf1", "wf-1", "wf/x", "w")

TASKS = ("t0", "t1", "t2")
Checkpoints = dict[str, bytes]

# Declared tasks. A workflow in which there are some is resumed with inputs, any other with A, B or
# C as an explicit fingerprint.

Tasks = Mapping[str, Task]
INPUTS = {
    "A": {"day": "A", "rate": "x"},
    "B": {"day": "B", "rate": "x"},
    "C": {"day": "C", "rate": "y"},
}


def origin(inputs: str, task: str, tasks: Tasks | None) -> str:
    """What the result of a task depends on, as its checkpoint tells, on the inputs A, B or C."""
    if not tasks or task not in tasks:
        return inputs
    used = [INPUTS[inputs][name] for name in tasks[task].uses or ()]
    others = [origin(inputs, other, tasks) for other in before(task, tasks)]
    return "+".join([*used, *others, str(tasks[task].version or "")]).rstrip("+")


def before(task: str, tasks: Tasks | None) -> Collection[str]:
    """The tasks that a declared one comes after."""
    return tasks[task].after if tasks and task in tasks else ()


def values(inputs: str, tasks: Tasks | None = None) -> Checkpoints:
    return {task: f"{origin(inputs, task, tasks)} {task}".encode() for task in TASKS}


def resumes(
    inputs: str, policy: Any, tasks: Tasks | None = None
) -> Callable[[CheckpointStore], Run]:
    if tasks is None:
        return lambda store: resume(store, WORKFLOW, fingerprint=inputs, on_input_change=policy)
    return lambda store: resume(
        store, WORKFLOW, INPUTS[inputs], on_input_change=policy, tasks=tasks
    )


# What the workflow has before the operation

OLD = values("A")


def plant_siblings(world: World) -> None:
    for sibling in SIBLINGS:
        run = resume(world.store(), sibling, fingerprint="S", on_input_change="raise")
        run.write("t0", f"S {sibling}".encode())


def nothing(world: World) -> None:
    """The workflow does not exist."""


def computed(world: World) -> Run:
    """The workflow has checkpoints of the inputs A."""
    run = resume(world.store(), WORKFLOW, fingerprint="A", on_input_change="raise")
    run.write_many(OLD)
    return run


def with_leftovers(world: World) -> None:
    """The workflow has checkpoints of A, and files that came late into a reset generation."""
    late = resume(world.store(), WORKFLOW, fingerprint="Z", on_input_change="raise")
    late.write("t0", b"Z t0")
    resume(world.store(), WORKFLOW, fingerprint="A", on_input_change="reset").write_many(OLD)
    late.write_many({"t0": b"Z t0 late", "t5": b"Z t5"})


def mixed(world: World) -> Run:
    """The workflow has checkpoints of A, which a run on B reuses and has replaced in part."""
    computed(world)
    run = resume(world.store(), WORKFLOW, fingerprint="B", on_input_change="reuse")
    run.write("t0", b"B t0")
    return run


def unlabelled(world: World) -> None:
    """The workflow has checkpoints that were written without a fingerprint, and are of A."""
    world.store().run(WORKFLOW).write_many(OLD)


def corrupt(world: World) -> None:
    """The workflow has checkpoints, and its record is damaged."""
    computed(world)
    world.put(f"{WORKFLOW}/{RECORD}", b'{"checkpoint_store": 1, "work')


# The operations


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation and what a strict run on A may find afterwards.

    When the operation has returned, that run finds `after`. When it has failed, it finds for each
    task either what was there before or what is in `after`. After an `atomic` operation it finds
    one of the two as a whole. All runs declare these `tasks`. A run on B that resets or reuses
    finds in any case what is `kept`.
    """

    name: str
    prepare: Callable[[World], object]
    perform: Callable[[CheckpointStore], object]
    before: Checkpoints
    after: Checkpoints
    atomic: bool = True
    raises: type[CheckpointStoreError] | None = None
    tasks: Tasks | None = None
    kept: Checkpoints = dataclasses.field(default_factory=dict)


def own_run(store: CheckpointStore) -> Run:
    return resume(store, WORKFLOW, fingerprint="A", on_input_change="raise")


def stream(store: CheckpointStore) -> None:
    with own_run(store).open("t0", "wb") as file:
        file.write(b"A ")
        file.write(b"t0 new")


def read_all(store: CheckpointStore) -> None:
    run = own_run(store)
    assert run.read_many() == OLD
    assert run.read("t0") == b"A t0"
    assert "t1" in run
    assert "t9" not in run
    with run.open("t2") as file:
        assert file.read() == b"A t2"
    with pytest.raises(CheckpointNotFoundError):
        run.read("t9")
    assert run.is_current()


NEW = {"t0": b"A t0 new", "t9": b"A t9"}
OPERATIONS = [
    *(Operation(f"start {p}", nothing, resumes("A", p), {}, {}) for p in POLICIES),
    *(Operation(f"continue {p}", computed, resumes("A", p), OLD, OLD) for p in POLICIES),
    Operation("reset", computed, resumes("B", "reset"), OLD, {}),
    Operation("reset beside leftovers", with_leftovers, resumes("B", "reset"), OLD, {}),
    Operation("reset of a mixed one", mixed, resumes("B", "reset"), {}, {}),
    Operation("reset back to A", mixed, resumes("A", "reset"), {}, {}),
    Operation("reset of an unlabelled one", unlabelled, resumes("B", "reset"), {}, {}),
    Operation("reset of a corrupt one", corrupt, resumes("A", "reset"), {}, {}),
    Operation("reuse", computed, resumes("B", "reuse"), OLD, {}),
    Operation("reuse again", mixed, resumes("C", "reuse"), {}, {}),
    Operation("reuse of an unlabelled one", unlabelled, resumes("B", "reuse"), {}, {}),
    Operation("raise", computed, resumes("B", "raise"), OLD, OLD, raises=InputChangedError),
    Operation(
        "raise on a mixed one", mixed, resumes("A", "raise"), {}, {}, raises=InputChangedError
    ),
    Operation(
        "write", computed, lambda s: own_run(s).write("t0", NEW["t0"]), OLD, OLD | {"t0": NEW["t0"]}
    ),
    Operation(
        "write anew",
        computed,
        lambda s: own_run(s).write("t9", NEW["t9"]),
        OLD,
        OLD | {"t9": NEW["t9"]},
    ),
    Operation(
        "write many", computed, lambda s: own_run(s).write_many(NEW), OLD, OLD | NEW, atomic=False
    ),
    Operation("stream", computed, stream, OLD, OLD | {"t0": NEW["t0"]}),
    Operation("read", computed, read_all, OLD, OLD),
    Operation(
        "delete", computed, lambda s: own_run(s).delete("t0"), OLD, {"t1": b"A t1", "t2": b"A t2"}
    ),
    Operation("delete what is reused", mixed, lambda s: s.run(WORKFLOW).delete("t0"), {}, {}),
    Operation("delete nothing", computed, lambda s: own_run(s).delete("t9"), OLD, OLD),
    Operation("collect", with_leftovers, lambda s: s.collect(WORKFLOW), OLD, OLD),
    Operation("collect a mixed one", mixed, lambda s: s.collect(WORKFLOW), {}, {}),
    Operation("collect nothing", nothing, lambda s: s.collect(WORKFLOW), {}, {}),
    Operation("clear", computed, lambda s: s.clear(WORKFLOW), OLD, {}),
    Operation("clear with leftovers", with_leftovers, lambda s: s.clear(WORKFLOW), OLD, {}),
    Operation("clear a mixed one", mixed, lambda s: s.clear(WORKFLOW), {}, {}),
    Operation("clear a corrupt one", corrupt, lambda s: s.clear(WORKFLOW), {}, {}),
    Operation("clear nothing", nothing, lambda s: s.clear(WORKFLOW), {}, {}),
    Operation("say first", nothing, lambda s: s.write_fingerprint(WORKFLOW, "A"), {}, {}),
    Operation("say the same", computed, lambda s: s.write_fingerprint(WORKFLOW, "A"), OLD, OLD),
    Operation("say another", computed, lambda s: s.write_fingerprint(WORKFLOW, "B"), OLD, {}),
    Operation("label", unlabelled, lambda s: s.write_fingerprint(WORKFLOW, "A"), {}, OLD),
    Operation("run first", nothing, lambda s: s.run(WORKFLOW, fingerprint="A"), {}, {}),
    Operation("run", computed, lambda s: s.run(WORKFLOW), OLD, OLD),
    Operation(
        "run on others",
        computed,
        lambda s: s.run(WORKFLOW, fingerprint="B"),
        OLD,
        OLD,
        raises=InputChangedError,
    ),
]


# What must hold afterwards


def found_by(run: Run) -> Checkpoints:
    found = run.read_many()
    assert set(found) == run.tasks()
    for task in (*TASKS, "t5", "t9"):
        assert (task in found) == (task in run)
        if task in found:
            assert found[task] == run.read(task)
        else:
            with pytest.raises(CheckpointNotFoundError):
                run.read(task)
    return found


def resumed(world: World, inputs: str, policy: str, tasks: Tasks | None) -> Run | None:
    """A run that a new process gets, or None if the policy refuses."""
    try:
        return resumes(inputs, policy, tasks)(world.store())
    except InputChangedError:
        assert policy == "raise"
    except CorruptRecordError:
        assert policy != "reset"
    return None


def content(world: World) -> frozenset[tuple[str, ...]]:
    """The files of the workflow, without what differs each time, as tokens and times do."""
    files = world.files()
    found: list[tuple[str, ...]] = []
    roles: dict[str, str] = {}
    with suppress(CheckpointStoreError):
        if record := drive(world.filesystem(), read_record(WORKFLOW)):
            roles = {record.token: "current", record.base or "": "base"}
            roles |= {token: f"key {key}" for key, token in record.tasks.items()}
            roles |= {token: f"key of the base {key}" for key, token in record.base_tasks.items()}
            found.append(("record", str(record.fingerprint), str(record.base is not None)))
    for key in world.folder():
        name = key.rpartition("/")[2]
        folder = "gone" if key.startswith(".tmp/") else "here"
        if name == RECORD:
            found.append((folder, name, "" if roles else str(files[key])))
        elif parsed := parse_file_name(name):
            payload = files[key].partition(b"\n")[2][:-TRAILER_BYTES]
            found.append((folder, parsed[0], roles.get(parsed[1], "retired"), str(payload)))
        else:
            found.append((folder, "temporary"))
    return frozenset(found)


_checked: dict[tuple[str, str, object], Checkpoints] = {}


def check_every_way_on(
    world: World, others: dict[str, bytes], operation: Operation | None = None
) -> Checkpoints:
    """Resumes copies of the world under every policy. Returns what a strict run on A finds.

    Most faults leave the same few states behind, and each state is looked at only once: for all
    operations without tasks together, and for each other one.
    """
    assert others == world.others()
    declaring = operation if operation and operation.tasks else None
    key = world.kind, declaring.name if declaring else "", content(world)
    if key not in _checked:
        _checked[key] = _check_every_way_on(world, others, declaring)
    return _checked[key]


def _check_every_way_on(
    world: World, others: dict[str, bytes], operation: Operation | None
) -> Checkpoints:
    tasks = operation.tasks if operation else None
    on_a: Checkpoints = {}
    for inputs, policy in itertools.product("ABC", POLICIES):
        copy = world.copy()
        run = resumed(copy, inputs, policy, tasks)
        found = {} if run is None else found_by(run)
        if policy != "reuse":
            # Nothing that other inputs made is returned.
            stale = {
                task: value
                for task, value in found.items()
                if not value.startswith(f"{origin(inputs, task, tasks)} ".encode())
            }
            assert stale == {}, (inputs, policy)
        if (inputs, policy) == ("A", "raise"):
            on_a = found
        if operation and inputs == "B" and policy != "raise":
            assert operation.kept.items() <= found.items()
        # No result is there without those that it was made from.
        assert found.keys() >= {other for task in found for other in before(task, tasks)}
        if run is not None:
            # The run can go on, and nothing that it writes is lost.
            run.write("more", f"{inputs} more".encode())
            assert run.is_current()
            copy.store().collect(WORKFLOW)
            assert found_by(run) == found | {"more": f"{inputs} more".encode()}
            again = resumed(copy, inputs, policy, tasks)
            assert again is not None
            assert again.token == run.token
            assert found_by(again) == found_by(run)
            assert garbage(copy) == []
        assert others == copy.others()
        copy.remove()
    return on_a


def garbage(world: World) -> list[str]:
    """Files of the workflow that no run will ever read."""
    record = drive(world.filesystem(), read_record(WORKFLOW))
    live = frozenset[str]() if record is None else record.live
    return [
        key
        for key in world.folder()
        if not key.endswith(f"/{RECORD}")
        and ((parsed := parse_file_name(key.rpartition("/")[2])) is None or parsed[1] not in live)
    ]


def check_settled(operation: Operation, world: World) -> None:
    """Checks that a reset, collect or clear leaves no garbage once it has returned."""
    if operation.name.startswith("clear"):
        assert world.folder() == []
        assert WORKFLOW not in set(world.store().workflows())
    elif operation.name.startswith(("reset", "collect")):
        assert garbage(world) == []


def perform(operation: Operation, store: CheckpointStore) -> bool:
    """Performs the operation, which must return or raise the error that is documented for it."""
    if operation.raises is None:
        operation.perform(store)
    else:
        with pytest.raises(operation.raises):
            operation.perform(store)
    return True


def prepared(operation: Operation, make_world: Callable[[], World]) -> World:
    world = make_world()
    plant_siblings(world)
    operation.prepare(world)
    return world


def check_after_fault(
    operation: Operation, world: World, others: dict[str, bytes], *, returned: bool
) -> None:
    on_a = check_every_way_on(world, others, operation)
    if returned:
        assert on_a == operation.after
    elif operation.atomic:
        assert on_a in (operation.before, operation.after)
    for task in {*operation.before, *operation.after, *on_a}:
        assert on_a.get(task) in (operation.before.get(task), operation.after.get(task))
    # An operation that had no effect can be repeated, and then has all of it.
    if operation.raises is None and on_a == operation.before:
        with suppress(InputChangedError):
            perform(operation, world.store())
            if operation.name.startswith("reset"):
                world.store().collect(WORKFLOW)
            check_settled(operation, world)
            assert check_every_way_on(world, others, operation) == operation.after
