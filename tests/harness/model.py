"""A dict as the model of a few workflows: what the library must return, raise and leave.

The model is exact. A step must return or raise what the model does, and leave exactly the files
that the model holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    CorruptRecordError,
    InputChangedError,
    Run,
    SerializationError,
    fingerprint,
)

from .backends import RECORD, SIBLINGS

WORKFLOWS = {**SIBLINGS, "wf": "wf", "wf/": "wf%2F", "wf@0123456789abcdef": "wf%400123456789abcdef"}
TASKS = {
    "t": "t", "t1": "t1", "t-1": "t-1", "t.": "t%2E", "t/": "t%2F", "T": "T", "t@x": "t%40x",
    "t@0123456789abcdef": "t%400123456789abcdef", ".fingerprint": "%2Efingerprint", "wf": "wf",
}  # fmt: skip
"""Tasks whose names are easily taken for each other, with their names in keys."""

INPUTS = ({"day": 1}, {"day": 2}, {"day": "1"}, {"day": 1, "zone": None})
FINGERPRINTS = (*map(fingerprint, INPUTS), "v1", "V1")


class RefusedError(Exception):
    """Raised by the model where the library must raise an error.

    The arguments are the types that this error may have.
    """


@dataclass(frozen=True)
class Damage:
    """Stands for a file that was damaged. `error` is what reading it raises."""

    error: type[CheckpointStoreError]


class Record(NamedTuple):
    fingerprint: str | None
    token: str
    base: str | None

    def is_of(self, current: str) -> bool:
        return self.fingerprint == current and self.base is None


@dataclass(frozen=True)
class Checkpoint:
    payload: bytes
    dumped: bool
    inputs: str | None
    """The fingerprint of the run that wrote the checkpoint."""


New = Callable[[], str]
"""A function that returns the token of a new generation."""


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

    def decide(self, current: str, policy: str) -> str:
        if policy == "reset" and self.record == Damage(CorruptRecordError):
            return "reset"
        record = whole(self.record)
        if record is None:
            return "start"
        return "continue" if record.is_of(current) else policy

    def plan(self, current: str, policy: str) -> tuple[object, ...]:
        action = self.decide(current, policy)
        stored = self.record.fingerprint if isinstance(self.record, Record) else None
        return action, policy, stored, current

    def resume(self, current: str, policy: str, new: New) -> Record:
        action = self.decide(current, policy)
        if action == "raise":
            raise RefusedError(InputChangedError)
        if action in ("start", "reset"):
            self.record = Record(current, new(), None)
        record: Record = whole(self.record)
        if action == "reuse" and record.base is None:
            self.record = record = Record(record.fingerprint, new(), record.token)
        if action == "reset":
            self.collect()
        return record

    def run(self, current: str | None, new: New) -> Record:
        record: Record | None = whole(self.record)
        if record is None:
            self.record = record = Record(current, new(), None)
        if current is not None and not record.is_of(current):
            raise RefusedError(InputChangedError)
        return record

    def write_fingerprint(self, current: str, new: New) -> None:
        record: Record | None = whole(self.record)
        if record and record.base is None and record.fingerprint in (None, current):
            self.record = record._replace(fingerprint=current)
        else:
            self.record = Record(current, new(), None)

    def live(self) -> set[str | None]:
        """The generations that a run may read. These are all if the record is damaged."""
        if isinstance(self.record, Damage):
            return {token for _, token in self.files}
        return {self.record.token, self.record.base} if self.record else set()

    def collect(self) -> int:
        # Without any file the record is not read, so that it may be damaged.
        if self.files and whole(self.record) is None:
            return 0
        return self._remove(self.live())

    def clear(self) -> int:
        self.record = None
        return self._remove(set())

    def _remove(self, live: set[str | None]) -> int:
        gone = [key for key in self.files if key[1] not in live]
        for key in gone:
            del self.files[key]
        aside, self.aside = self.aside, set()
        return len(gone) + sum("@" in key for key in aside)


@dataclass
class Handle:
    """A run in one of the processes, and the generations that it may read."""

    process: int
    name: str
    run: Run
    tokens: tuple[str, ...]
    strict: bool

    def newest(self, workflow: Workflow, task: str) -> Checkpoint | Damage | None:
        found = (workflow.files.get((task, token)) for token in self.tokens)
        return next(filter(None, found), None)

    def find(self, workflow: Workflow, task: str) -> Checkpoint:
        checkpoint: Checkpoint | None = whole(self.newest(workflow, task))
        if checkpoint is None:
            raise RefusedError(CheckpointNotFoundError)
        # This is asked of the run as well, in case that the model is wrong.
        assert not self.strict or checkpoint.inputs in (self.run.fingerprint, None)
        return checkpoint

    def read(self, workflow: Workflow, how: str, task: str) -> Any:
        tasks = {task for task, token in workflow.files if token in self.tokens}
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
        return record is not None and record.token == self.tokens[0]

    def delete(self, workflow: Workflow, task: str) -> None:
        for token in self.tokens:
            workflow.files.pop((task, token), None)
