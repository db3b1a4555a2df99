"""A dict as the model of a few workflows: what the library must return, raise and leave.

The model is exact. A step must return or raise what the model does, and leave exactly the files
that the model holds.

What a declared task depends on is written out in the model, and two of them are the same if that is
equal. Their digests are made only to find the token that the library has chosen for one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    CorruptRecordError,
    InputChangedError,
    InvalidTaskError,
    Run,
    SerializationError,
    Task,
    fingerprint,
)

from .backends import RECORD, SIBLINGS

WORKFLOWS = {**SIBLINGS, "wf": "wf", "wf/": "wf%2F", "wf@0123456789abcdef": "wf%400123456789abcdef"}
TASKS = {
    "t": "t", "t1": "t1", "t-1": "t-1", "t.": "t%2E", "t/": "t%2F", "T": "T", "t@x": "t%40x",
    "t@0123456789abcdef": "t%400123456789abcdef", ".fingerprint": "%2Efingerprint", "wf": "wf",
}  # fmt: skip
"""Tasks whose names are easily taken for each other, with their names in keys."""

Inputs = Mapping[str, object]
Tasks = Mapping[str, Task]

INPUTS: tuple[Inputs, ...] = (
    {"day": 1, "zone": 1}, {"day": 1, "zone": 2}, {"day": "1", "zone": 1}, {"day": 2, "zone": 2},
    {"day": 1, "zone": 1, "seed": None},
)  # fmt: skip


def declarations(first: str, second: str, *others: str) -> list[Tasks]:
    """How tasks of these names may be declared. To declare none of them is the first way."""
    after_both = dict.fromkeys(others, Task(uses=[], after=[second]))
    return [
        {},
        {first: Task(uses=["day"]), second: Task(uses=["zone"], after=[first]), **after_both},
        {
            first: Task(uses=["day"], version=2),
            second: Task(uses=["zone"], after=[first]),
            **after_both,
        },
        {second: Task(uses=["zone"])},
        {second: Task(uses=["day"]), first: Task(uses=["zone"], after=[second])},
        {first: Task(), **dict.fromkeys((second, *others), Task(uses=["zone", "day"]))},
    ]


NEAR = (1, 0, 0, 1, 0, 6, 5)
"""For each of the inputs others that have some of them, and those without names at last."""


class RefusedError(Exception):
    """Raised by the model where the library must raise an error.

    The arguments are the types that this error may have.
    """


@dataclass(frozen=True)
class Damage:
    """Stands for a file that was damaged. `error` is what reading it raises."""

    error: type[CheckpointStoreError]


class Depends(NamedTuple):
    """All that the result of a declared task depends on."""

    version: object
    uses: frozenset[tuple[str, str]]
    """The names of the inputs that it uses, each with its value as JSON."""
    after: frozenset[tuple[str, Depends]]

    def digest(self) -> str:
        """Its key in the record."""
        after = {name: before.digest() for name, before in self.after}
        uses = {name: _sha256(value) for name, value in self.uses}
        text = {"after": after, "uses": uses, "version": self.version}
        return _sha256(json.dumps(text, sort_keys=True, separators=(",", ":")))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def depends(tasks: Tasks, inputs: Inputs) -> dict[str, Depends]:
    """What each of these tasks depends on, for these inputs."""

    def one(task: Task) -> Depends:
        uses = inputs if task.uses is None else task.uses
        return Depends(
            task.version,
            frozenset((name, json.dumps(inputs[name])) for name in uses),
            frozenset((name, one(tasks[name])) for name in task.after),
        )

    return {name: one(task) for name, task in tasks.items()}


class Given(NamedTuple):
    """What a workflow is resumed with. An explicit fingerprint has no inputs."""

    fingerprint: str | None
    inputs: Inputs | None
    tasks: Mapping[str, Task] = {}

    @property
    def wanted(self) -> dict[str, Depends]:
        """What each declared task depends on."""
        return {} if self.inputs is None else depends(self.tasks, self.inputs)


GIVEN = [Given(fingerprint(inputs), inputs) for inputs in INPUTS]
GIVEN += [Given("v1", None), Given("V1", None)]


Tokens = Mapping[Depends, str]


class Record(NamedTuple):
    fingerprint: str | None
    token: str
    base: str | None = None
    inputs: Inputs | None = None
    tasks: Mapping[Depends, str] = {}
    base_tasks: Mapping[Depends, str] = {}

    def is_of(self, current: str | None) -> bool:
        return self.fingerprint == current and self.base is None

    @property
    def every(self) -> Tokens:
        return {**self.tasks, **self.base_tasks}

    @property
    def pure(self) -> Tokens:
        """Those under which there can be nothing that comes from other inputs."""
        return self.base_tasks if self.base else self.tasks

    @property
    def live(self) -> set[str]:
        """The tokens of all checkpoints that a run may read."""
        return {self.token, *self.every.values()} | ({self.base} if self.base else set())

    def with_new(self, wanted: Collection[Depends], new: New) -> Record:
        """The same with a new token for whatever it has none for."""
        lacking = {key: new(key) for key in dict.fromkeys(wanted) if key not in self.every}
        return self._replace(tasks={**self.tasks, **lacking})

    def tokens_of(self, given: Given) -> dict[str, tuple[str, ...]]:
        """For each declared task the tokens under which a run looks for it, the newest first."""
        older = depends(given.tasks, self.inputs) if self.base and self.inputs else {}
        found = {}
        for name, key in given.wanted.items():
            below = self.base_tasks.get(older[name]) if name in older else None
            found[name] = tuple(dict.fromkeys(filter(None, (self.every[key], below))))
        return found

    def stored(self) -> dict[str, object]:
        """What its file says, but for what is new in each version of it."""
        fields: dict[str, object] = {
            "checkpoint_store": 1, "fingerprint": self.fingerprint, "token": self.token,
            "base": self.base,
        }  # fmt: skip
        if self.inputs is not None:
            inputs = {name: _sha256(json.dumps(value)) for name, value in self.inputs.items()}
            fields["inputs"] = inputs
        if self.every:
            fields["checkpoint_store"] = 2
            for field_, tokens in (("tasks", self.tasks), ("base_tasks", self.base_tasks)):
                fields[field_] = {key.digest(): token for key, token in tokens.items()}
        return fields


MIXED = "a mixture"


@dataclass(frozen=True)
class Checkpoint:
    payload: bytes
    dumped: bool
    origin: str | Depends | None
    """What it was computed from: the inputs with the fingerprint of the run that wrote it, or what
    a declared task depends on, or `MIXED`, because that run read checkpoints of other inputs."""


New = Callable[[Depends | None], str]
"""A function that returns the new token of what a task depends on, or of a generation for None."""


Key = tuple[str, str]
"""The task and the token of a checkpoint."""


def path_of(name: str, key: Key | None) -> str:
    """The key of a checkpoint of a workflow, or of its record if `key` is None."""
    return f"{WORKFLOWS[name]}/" + (f"{TASKS[key[0]]}@{key[1]}" if key else RECORD)


def is_of(name: str, key: str) -> bool:
    return key.startswith((f"{WORKFLOWS[name]}/", f".tmp/{WORKFLOWS[name]}~"))


def is_moved(key: str) -> bool:
    """Whether a file is in a folder that a clear has moved away."""
    return key.startswith(".tmp/") and key.count("/") == 2


def whole(found: Any) -> Any:
    if isinstance(found, Damage):
        raise RefusedError(found.error)
    return found


@dataclass
class Workflow:
    """A workflow, and what the library should do with it.

    `files` are its checkpoints by task and token, and `aside` are the keys that an interrupted
    operation left in the folder for temporary files.
    """

    record: Record | Damage | None = None
    files: dict[Key, Checkpoint | Damage] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)

    def copy(self) -> Workflow:
        return Workflow(self.record, dict(self.files), set(self.aside))

    def by_key(self, name: str) -> dict[str, object]:
        """All files of the workflow by their keys."""
        files = {path_of(name, key): found for key, found in self.files.items()}
        record = {path_of(name, None): self.record} if self.record else {}
        return {**record, **files, **dict.fromkeys(self.aside, "aside")}

    def has_traces(self) -> bool:
        """Whether the workflow is listed.

        It is listed for what a clear moved away, but not for a temporary file.
        """
        return bool(self.record or self.files or any(map(is_moved, self.aside)))

    def read_fingerprint(self) -> str | None:
        record: Record | None = whole(self.record)
        return record and record.fingerprint

    def describe(self) -> tuple[object, ...]:
        fingerprint, live = self.read_fingerprint(), self.live()
        mixed = isinstance(self.record, Record) and self.record.base is not None
        tasks = {task for task, token in self.files if token in live}
        return fingerprint, mixed, len(tasks), sum(token not in live for _, token in self.files)

    def decide(self, given: Given, policy: str) -> str:
        if given.tasks and given.inputs is None:
            raise RefusedError(InvalidTaskError)
        if policy == "reset" and self.record == Damage(CorruptRecordError):
            return "reset"
        record = whole(self.record)
        if record is None:
            return "start"
        return "continue" if record.is_of(given.fingerprint) else policy

    def plan(self, given: Given, policy: str) -> tuple[object, ...]:
        """The decision. A task is kept if a run looks for it under a token that was there before.

        For a run that would be refused, this says what a reset would keep.
        """
        action = self.decide(given, policy)
        record = self.record if isinstance(self.record, Record) else None
        kept, recomputed = set(), set()
        if action != "start":
            numbers = itertools.count()
            would_be = self.copy().resume(
                given,
                "reset" if action == "raise" else policy,
                lambda _: f"new {next(numbers)}",
            )
            live = record.live if record else set()
            tokens = would_be.tokens_of(given)
            kept = {name for name in tokens if not live.isdisjoint(tokens[name])}
            recomputed = tokens.keys() - kept
        stored = record and record.fingerprint
        return action, policy, stored, given.fingerprint, kept, recomputed

    def resume(self, given: Given, policy: str, new: New) -> Record:
        action = self.decide(given, policy)
        if action == "raise":
            raise RefusedError(InputChangedError)
        wanted = given.wanted.values()
        if action in ("start", "reset"):
            pure = self.record.pure if isinstance(self.record, Record) else {}
            kept = {key: pure[key] for key in wanted if key in pure}
            self.record = Record(given.fingerprint, new(None), None, given.inputs, kept)
        record: Record = whole(self.record)
        if action == "reuse" and record.base is None:
            record = record._replace(
                token=new(None), base=record.token, tasks={}, base_tasks=record.tasks
            )
        self.record = record = record.with_new(wanted, new)
        if action == "reset":
            self.collect()
        return record

    def run(self, current: str | None, tasks: Tasks, new: New) -> Record:
        record: Record | None = whole(self.record)
        if record is None and not tasks:
            self.record = record = Record(current, new(None))
        if record and current is not None and not record.is_of(current):
            raise RefusedError(InputChangedError)
        if record is None or (tasks and (record.inputs is None or record.base)):
            raise RefusedError(InvalidTaskError)
        given = Given(record.fingerprint, record.inputs, tasks)
        self.record = record = record.with_new(given.wanted.values(), new)
        return record

    def write_fingerprint(self, current: str, new: New) -> None:
        record: Record | None = whole(self.record)
        if record and record.base is None and record.fingerprint in (None, current):
            self.record = record._replace(fingerprint=current)
        else:
            self.record = Record(current, new(None))

    def live(self) -> set[str]:
        """The tokens that a run may read. These are all if the record is damaged."""
        if isinstance(self.record, Damage):
            return {token for _, token in self.files}
        return self.record.live if self.record else set()

    def collect(self) -> int:
        # Without any file the record is not read, so that it may be damaged.
        if self.files and whole(self.record) is None:
            return 0
        return self._remove(self.live())

    def clear(self) -> int:
        self.record = None
        return self._remove(set())

    def _remove(self, live: set[str]) -> int:
        gone = [key for key in self.files if key[1] not in live]
        for key in gone:
            del self.files[key]
        aside, self.aside = self.aside, set()
        return len(gone) + sum("@" in key for key in aside)


@dataclass
class Handle:
    """A run in one of the processes, and what it may read."""

    process: int
    name: str
    run: Run
    record: Record
    """The record when the run began."""
    given: Given
    strict: bool

    def __post_init__(self) -> None:
        record = self.record
        self.tokens = (record.token,) if record.base is None else (record.token, record.base)
        self.declared = record.tokens_of(self.given)

    def tokens_of(self, task: str) -> tuple[str, ...]:
        """The tokens of a task, the newest first."""
        return self.declared.get(task, self.tokens)

    def origin_of(self, task: str) -> str | Depends | None:
        """What the checkpoint of a task comes from that this run writes, or a strict one reads."""
        if self.record.base and self.tokens_of(task)[0] not in self.record.pure.values():
            return MIXED
        if task not in self.declared:
            return self.run.fingerprint
        return self.given.wanted[task]

    def newest(self, workflow: Workflow, task: str) -> Checkpoint | Damage | None:
        found = (workflow.files.get((task, token)) for token in self.tokens_of(task))
        return next(filter(None, found), None)

    def find(self, workflow: Workflow, task: str) -> Checkpoint:
        checkpoint: Checkpoint | None = whole(self.newest(workflow, task))
        if checkpoint is None:
            raise RefusedError(CheckpointNotFoundError)
        # This is asked of the run as well, in case that the model is wrong.
        assert not self.strict or checkpoint.origin in (self.origin_of(task), None)
        return checkpoint

    def read(self, workflow: Workflow, how: str, task: str) -> Any:
        tasks = {task for task, token in workflow.files if token in self.tokens_of(task)}
        if how == "in":
            return task in tasks
        if how == "tasks":
            return tasks
        if how.endswith("_many"):
            found = [self.newest(workflow, task) for task in tasks]
            # All are read, in any order, before the first is loaded. So any of these may be raised.
            if damaged := {each.error for each in found if isinstance(each, Damage)}:
                raise RefusedError(*damaged)
            return {task: self.read(workflow, how.removesuffix("_many"), task) for task in tasks}
        checkpoint = self.find(workflow, task)
        if how != "load":
            return checkpoint.payload
        if not checkpoint.dumped:
            raise RefusedError(SerializationError)
        return json.loads(checkpoint.payload)

    def is_current(self, workflow: Workflow) -> bool:
        record: Record | None = whole(workflow.record)
        return record is not None and record.token == self.run.token

    def with_dependents(self, task: str) -> set[str]:
        """The task and all that are declared to come after it, however far."""
        found = {task}
        for _ in self.given.tasks:
            found |= {name for name, each in self.given.tasks.items() if found & {*each.after}}
        return found

    def delete(self, workflow: Workflow, task: str, *, dependents: bool) -> None:
        if dependents and task not in self.given.tasks:
            raise RefusedError(InvalidTaskError)
        for name in self.with_dependents(task) if dependents else {task}:
            for token in self.tokens_of(name):
                workflow.files.pop((name, token), None)
