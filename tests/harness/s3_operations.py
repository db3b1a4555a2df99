"""Operations on S3: the requests that each makes, and what it finds and leaves of a workflow."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    InputChangedError,
    Run,
    Task,
    fingerprint,
    plan,
    resume,
)

from .buckets import s3_client
from .faults import FaultProxy, Kind

ATTEMPTS = 2
"""How many times botocore sends a request before it gives up."""

IMPATIENT = 0.4
"""Seconds that a client waits where a reply is withheld. Elsewhere it waits for `PATIENT`."""

PATIENT = 60
BUCKET = "faults"

A = {"day": "2026-11-23", "rate": "x"}
B = {"day": "2026-11-24", "rate": "x"}
C = {"day": "2026-11-25", "rate": "y"}

TASKS = ("one", "two")
DECLARED = {"one": Task(uses=["rate"]), "two": Task(uses=["day"], after=["one"])}


def value(inputs: dict[str, str], task: str) -> str:
    return f"{task} of {inputs['day']}"


def stored(inputs: dict[str, str], *tasks: str) -> dict[str, bytes]:
    return {task: json.dumps(value(inputs, task)).encode() for task in tasks}


@dataclass(frozen=True)
class State:
    """A workflow with the checkpoints `tasks`, which were computed from `inputs`.

    `inputs` is None if there is no record. A `mixed` workflow is open to no strict run, and its
    `inputs` are those of the run that reuses it. In one that is `declared`, a reset from A to B
    keeps the first task.
    """

    inputs: dict[str, str] | None
    tasks: dict[str, bytes] = field(default_factory=dict)
    mixed: bool = False
    declared: bool = False

    def resume(self, store: CheckpointStore, inputs: dict[str, str], policy: Any) -> Run:
        """A run on these inputs, which declares the tasks if they are declared in this state."""
        tasks = DECLARED if self.declared else None
        return resume(store, "wf", inputs, on_input_change=policy, tasks=tasks)


ABSENT = State(None)
FULL = State(A, stored(A, *TASKS))


class World:
    """A root for one test, with siblings of the workflow, and stores with and without the proxy."""

    _numbers = itertools.count()

    def __init__(
        self, server: str, proxy: FaultProxy, clients: Callable[..., CheckpointStore]
    ) -> None:
        self.proxy = proxy
        self._server = server
        self._clients = clients
        self._client = s3_client(server)
        self._prefix = f"{next(self._numbers)}/root/"
        self.run: Run | None = None
        self._siblings: dict[str, Any] = {}
        for key in ("wf1/one@0123456789abcdef", "wf-1/.fingerprint", "wf%2A/one@0123456789abcdef"):
            put = self._client.put_object(Bucket=BUCKET, Key=self._prefix + key, Body=key.encode())
            self._siblings[key] = (put["ETag"], len(key))
        self.store = self.through()

    def through(self, timeout: float = PATIENT, attempts: int = ATTEMPTS) -> CheckpointStore:
        """A new store that sends its requests through the proxy. It shares its connections."""
        return self._open(self._clients(self.proxy.endpoint, timeout, attempts))

    def fresh(self) -> CheckpointStore:
        """A new store that goes past the proxy, and knows that conditions are honoured."""
        store = self._open(self._clients(self._server, PATIENT, ATTEMPTS))
        store._filesystem.conditional_writes = True
        return store

    def _open(self, owner: CheckpointStore) -> CheckpointStore:
        store = CheckpointStore(f"s3://{BUCKET}/{self._prefix.rstrip('/')}")
        store._filesystem._engines = owner._filesystem._engines  # type: ignore[attr-defined]
        return store

    def uploads(self) -> list[str]:
        uploads = self._client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())
        return [item["Key"] for item in uploads if item["Key"].startswith(self._prefix)]

    def prepare(self, state: State, timeout: float = PATIENT) -> None:
        """Makes that state, and a store behind the proxy that knows about conditions already."""
        if state.inputs is None:
            self.store = self.through(timeout)
            return
        fresh = self.fresh()
        run = state.resume(fresh, A if state.mixed else state.inputs, "raise")
        for task, payload in state.tasks.items():
            run.dump(task, json.loads(payload))
        if state.mixed:
            state.resume(fresh, state.inputs, "reuse")
        self.store = self.through(timeout)
        self.store._filesystem.conditional_writes = True
        self.run = self.store.run("wf")
        if state.declared:
            self.run = state.resume(self.store, state.inputs, "reuse")

    def judge(self, state: State) -> None:
        """Checks with a new store, and without faults, that the workflow is in that state."""
        fresh = self.fresh()
        for inputs in (A, B):
            if state.inputs is None:
                assert plan(fresh, "wf", inputs, on_input_change="raise").action == "start"
            elif inputs == state.inputs and not state.mixed:
                run = state.resume(fresh, inputs, "raise")
                assert state.tasks == run.read_many()
            else:
                with pytest.raises(InputChangedError):
                    state.resume(fresh, inputs, "raise")
        if state.mixed:
            reused = state.resume(fresh, state.inputs, "reuse")
            assert state.tasks == reused.read_many()
        if state.inputs is not None:
            fresh.collect("wf")
            assert len(self.files()) == 1 + len(state.tasks)
        resume(fresh, "wf", C, on_input_change="reset")
        if state.inputs is None:
            fresh.collect("wf")  # A clear that failed may have left files.
        assert self.files() == {"wf/.fingerprint"}

    def files(self) -> set[str]:
        """The keys of the workflow. Also checks that the siblings are as they were."""
        reply = self._client.list_objects_v2(Bucket=BUCKET, Prefix=self._prefix)
        found = {
            item["Key"].removeprefix(self._prefix): (item["ETag"], item["Size"])
            for item in reply.get("Contents", ())
        }
        own = {key for key in found if key.startswith("wf/")}
        assert self._siblings == {key: found[key] for key in found.keys() - own}
        return own


def fill(world: World, inputs: dict[str, str]) -> Run:
    """What another process may do meanwhile: a reset to these inputs, and all of their tasks."""
    run = resume(world.fresh(), "wf", inputs, on_input_change="reset")
    for task in TASKS:
        run.dump(task, value(inputs, task))
    return run


class _StopError(Exception):
    """Raised in the block of a stream, so that the stream is discarded."""


def write_large(run: Run) -> None:
    with run.open("one", "wb") as stream:
        for _ in range(25):
            stream.write(b"x" * 100)


def abandon_large(run: Run) -> None:
    with suppress(_StopError), run.open("one", "wb") as stream:
        stream.write(b"y" * 2500)
        raise _StopError


def write_small(run: Run) -> None:
    with run.open("one", "wb") as stream:
        stream.write(b"small")


def stream_read(run: Run) -> bytes:
    with run.open("one") as stream:
        return stream.read()


def missing(run: Run) -> bool:
    with pytest.raises(CheckpointNotFoundError):
        run.load("none")
    return True


def has(run: Run) -> bool:
    return "one" in run


@dataclass(frozen=True)
class Operation:
    """A call of the public API, which takes the workflow from `start` to `end`.

    `requests` are those that it makes if all goes well. `result` is what it returns, or the action
    that was decided if it returns a run. With `cleanup`, it returns even if it cannot delete files,
    and then warns.
    """

    name: str
    call: Callable[[World], object]
    requests: tuple[Kind, ...]
    start: State = FULL
    end: State = FULL
    result: object = None
    cleanup: bool = False

    def __str__(self) -> str:
        return self.name


def on_run(
    name: str,
    call: Callable[[Run], object],
    *requests: Kind,
    start: State = FULL,
    result: object = None,
    **changed: bytes | None,
) -> Operation:
    """An operation of a run, which changes no checkpoints but those in `changed`."""
    tasks = {task: data for task, data in {**start.tasks, **changed}.items() if data is not None}

    def with_run(world: World) -> object:
        assert world.run is not None
        return call(world.run)

    return Operation(name, with_run, requests, start, replace(start, tasks=tasks), result)


def resuming(
    inputs: dict[str, str], policy: Any, tasks: dict[str, Task] | None = None
) -> Callable[[World], object]:
    return lambda world: resume(world.store, "wf", inputs, on_input_change=policy, tasks=tasks)


def retire(world: World) -> None:
    """Makes files of a generation that no run can read any more."""
    late = world.fresh().run("wf")
    resume(world.fresh(), "wf", B, on_input_change="reset")
    for task in TASKS:
        late.dump(task, value(A, task))


def collect(world: World) -> int:
    return world.store.collect("wf")


LARGE = b"x" * 2500
MIXED = State(B, stored(A, *TASKS), mixed=True)
READ_RECORD, READ, LIST, DELETE = Kind.READ_RECORD, Kind.READ, Kind.LIST, Kind.DELETE

FIRST = Operation(
    "first-resume",
    resuming(A, "raise"),
    (READ_RECORD, Kind.CREATE_RECORD, Kind.CREATE_RECORD),
    ABSENT,
    State(A),
    "start",
)
UNCHANGED = Operation("unchanged-resume", resuming(A, "raise"), (READ_RECORD,), result="continue")
UNCHANGED_RESET = Operation(
    "unchanged-reset", resuming(A, "reset"), (READ_RECORD,), result="continue"
)
RESET = Operation(
    "reset",
    resuming(B, "reset"),
    (READ_RECORD, Kind.SWAP_RECORD, LIST, READ_RECORD, DELETE),
    end=State(B),
    result="reset",
    cleanup=True,
)
REUSE = Operation(
    "reuse", resuming(B, "reuse"), (READ_RECORD, Kind.SWAP_RECORD), end=MIXED, result="reuse"
)
COLLECT = Operation("collect", collect, (LIST, READ_RECORD, DELETE), State(A), State(B), 2)
CLEAR = Operation(
    "clear",
    lambda world: world.store.clear("wf"),
    (DELETE, LIST, READ_RECORD, DELETE),
    end=ABSENT,
    result=2,
)
PLAN = Operation(
    "plan",
    lambda world: plan(world.store, "wf", A, on_input_change="raise").action,
    (READ_RECORD,),
    result="continue",
)
READ_FINGERPRINT = Operation(
    "read-fingerprint",
    lambda world: world.store.read_fingerprint("wf"),
    (READ_RECORD,),
    result=fingerprint(A),
)
STORE_RUN = Operation("store-run", lambda world: world.store.run("wf"), (READ_RECORD,))
CHANGED_FINGERPRINT = Operation(
    "write-fingerprint",
    lambda world: world.store.write_fingerprint("wf", fingerprint(B)),
    (READ_RECORD, Kind.SWAP_RECORD),
    end=State(B),
)
WORKFLOWS = Operation(
    "workflows",
    lambda world: sorted(world.store.workflows()),
    (LIST,),
    result=["wf", "wf*", "wf-1", "wf1"],
)
IS_CURRENT = on_run("is-current", lambda run: run.is_current(), READ_RECORD, result=True)
WRITE = on_run("write", lambda run: run.write("new", b"new"), Kind.WRITE, new=b"new")
OVERWRITE = on_run("overwrite", lambda run: run.write("one", b"new"), Kind.WRITE, one=b"new")
WRITE_MANY = on_run(
    "write-many",
    lambda run: run.write_many({"one": b"1", "two": b"2"}),
    *[Kind.WRITE] * 2,
    one=b"1",
    two=b"2",
)
LOAD = on_run("load", lambda run: run.load("one"), READ, result=value(A, "one"))
MISSING = on_run("load-missing", missing, READ, result=True)
CONTAINS = on_run("contains", has, READ, result=True)
THROUGH_BASE = on_run(
    "read-through-base",
    lambda run: run.read("one"),
    READ,
    READ,
    start=MIXED,
    result=MIXED.tasks["one"],
)
TASKS_ = on_run("tasks", lambda run: run.tasks(), LIST, result=set(TASKS))
READ_MANY = on_run("read-many", lambda run: run.read_many(), LIST, *[READ] * 2, result=FULL.tasks)
DELETE_ = on_run("delete", lambda run: run.delete("one"), DELETE, one=None)
SMALL_STREAM = on_run("small-stream", write_small, Kind.WRITE, one=b"small")
LARGE_STREAM = on_run(
    "large-stream", write_large, Kind.BEGIN, *[Kind.PART] * 3, Kind.COMPLETE, one=LARGE
)
ABANDONED = on_run("abandoned-stream", abandon_large, Kind.BEGIN, *[Kind.PART] * 2, Kind.ABORT)
STREAM_READ = on_run("stream-read", stream_read, READ, result=FULL.tasks["one"])

FULL_DECLARED = replace(FULL, declared=True)
MIXED_IN_PART = replace(MIXED, declared=True)
RESET_OF_A_PART = replace(
    RESET,
    name="reset-of-a-part",
    call=resuming(B, "reset", DECLARED),
    start=FULL_DECLARED,
    end=State(B, stored(A, "one"), declared=True),
)
REUSE_OF_A_PART = replace(
    REUSE,
    name="reuse-of-a-part",
    call=resuming(B, "reuse", DECLARED),
    start=FULL_DECLARED,
    end=MIXED_IN_PART,
)
# What was written before is still there for who declares nothing.
DECLARED_LATE = Operation(
    "declared-late",
    resuming(A, "raise", DECLARED),
    (READ_RECORD, Kind.SWAP_RECORD),
    result="continue",
)
READ_OF_ITS_OWN = on_run(
    "read-of-its-own",
    lambda run: run.read("one"),
    READ,
    start=MIXED_IN_PART,
    result=MIXED.tasks["one"],
)
READ_OF_OLDER_INPUTS = on_run(
    "read-of-older-inputs",
    lambda run: run.read("two"),
    READ,
    READ,
    start=MIXED_IN_PART,
    result=MIXED.tasks["two"],
)
DELETE_DEPENDENTS = on_run(
    "delete-dependents",
    lambda run: run.delete("one", dependents=True),
    DELETE,
    DELETE,
    start=FULL_DECLARED,
    one=None,
    two=None,
)

OPERATIONS = [
    FIRST, UNCHANGED, UNCHANGED_RESET, RESET, REUSE, COLLECT, CLEAR, PLAN, READ_FINGERPRINT,
    STORE_RUN, CHANGED_FINGERPRINT, WORKFLOWS, IS_CURRENT, WRITE, OVERWRITE, WRITE_MANY, LOAD,
    MISSING, CONTAINS, THROUGH_BASE, TASKS_, READ_MANY, DELETE_, SMALL_STREAM, LARGE_STREAM,
    ABANDONED, STREAM_READ, RESET_OF_A_PART, REUSE_OF_A_PART, DECLARED_LATE, READ_OF_ITS_OWN,
    READ_OF_OLDER_INPUTS, DELETE_DEPENDENTS,
]  # fmt: skip
