"""Processes that share one root are killed at random, again and again, and started anew.

    python -m tests.harness.kill_loop [local | s3 | FOLDER | s3://BUCKET/PREFIX] [--kills 10000]
        [--processes 4] [--seed N] [--storage-options JSON]

Each process resumes workflows under all policies and with changing inputs, often declares which of
the two inputs a task uses, reads, writes, collects and clears, until a SIGKILL ends it within some
operation. Now and then one stops for a moment before some call that an operation makes, so that the
others overtake it. The root of `local` is a temporary folder, that of `s3` is in a server started
here. A given folder or bucket must be new, and stays behind.

Before and after each operation a process writes a line to a journal outside the root, so the order
of the lines agrees with the order of the events. Each checkpoint says which write it comes from,
and from which inputs: all, or those that its declaration covers. Whoever reads can therefore tell
whether a value is

- stale: from other inputs than the task of a strict run depends on, from another version of a
  declared task, or under a token that the run does not read;
- lost: its write had returned before the read began, and its token is still in the record after the
  read, yet the read finds nothing, or a value that the write had replaced. A token that has left
  the record never comes back, so nobody can have reset or cleared it in between;
- torn: not byte for byte what was written, or reported as damaged;
- another's: of another workflow or task, or one of the files that nobody should have changed;
- undone: under a token that was in the record, was missing from it, and is there once more.

An error that should not occur, or anything on stderr, is called foreign. Every few hundred kills
all processes are dead at once, and a new one collects: what it leaves without a use is called a
leftover. Any of these makes the exit status 1. An interrupt (Ctrl-C) ends the loop early, with the
figures so far.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import secrets
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import boto3
import botocore.loaders

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    ContentionError,
    CorruptCheckpointError,
    CorruptRecordError,
    InputChangedError,
    InvalidTaskError,
    Run,
    Task,
    fingerprint,
    resume,
)
from checkpoint_store._filesystems.locks import lock_name
from checkpoint_store._policy import UNCHANGED
from checkpoint_store._protocol import read_record
from checkpoint_store._record import Record
from checkpoint_store._steps import drive

from . import servers
from .backends import RECORD, SIBLINGS, Backend, LocalBackend, MinistackBackend, S3Backend
from .buckets import Bucket

T = TypeVar("T")

WORKFLOWS = {"wf": "wf", "wf-1": "wf-1"}
"""The workflows that the processes work on, with their folders. Other siblings must not change."""
TASKS = ("t", "t1", "t/1", "t@1")
INPUTS = ("aa", "aa", "aa", "ab", "ba")
"""A letter for each of two inputs."""
VERSIONS = (None, None, "1", "1", "1", "2")
"""Those of the declared task, None for a run that declares nothing."""
OFTEN = ("reset", "reset", "raise", "reuse")
"""The policies, each as often as it is to be chosen."""
SIZES = (0, 1_000, 100_000)
WRITES = ("write", "write a stream", "write many")
READS = ("read", "read a stream", "read many", "read all")
KNOWN = 400
"""How many tokens and sightings are remembered. A forgotten one can hide a violation, but
never makes one up."""

ROUND = 250
"""How many kills there are between two audits of what is left."""
STOPS = {"collect": 1.0}
"""The probability that a process stops within an operation of this kind; it is 0.1 for others.
Collecting always stops, because others easily make what it has seen out of date."""
CALLS = {"resume reset": 3000, "resume reuse": 3000, "clear": 2000}
"""About how many calls Python makes within an operation of this kind; it makes 400 in others."""
KILL, STOP = 0, 128
HANG = 90
"""Seconds without a message after which the processes hang. A lock is waited for 60 at most."""
SHOWN = 5
"""How many violations of each kind are printed in full."""

VIOLATIONS = ("stale", "lost", "torn", "another's", "undone", "foreign", "leftover", "hang")


def tasks_of(version: str | None) -> dict[str, Task] | None:
    """What is declared: a task that uses the first input, one after it, one that uses the second.

    The last of `TASKS` is never declared.
    """
    if version is None:
        return None
    first = Task(uses=["first"], version=version)
    return {"t": first, "t1": Task(uses=[], after=["t"]), "t/1": Task(uses=["second"])}


def covered(task: str, inputs: str, version: str | None) -> str:
    """What the result of a task depends on, where this version is declared."""
    if version and task in ("t", "t1"):
        return f"{inputs[:1]}? in version {version}"
    return f"?{inputs[1:]}" if version and task == "t/1" else inputs


MIXED = "a mixture"
"""Said of what a run writes that may have read checkpoints of other inputs."""


class Label(NamedTuple):
    """What a checkpoint tells about the write that made it. `inputs` are those it depends on."""

    workflow: str
    token: str
    task: str
    inputs: str
    serial: int
    number: int
    size: int


def payload(label: Label) -> bytes:
    line = json.dumps(label).encode() + b"\n"
    return line + random.Random(line).randbytes(label.size)


def label_of(data: bytes) -> Label | None:
    """The label in a payload, or None if the payload is not whole."""
    try:
        label = Label(*json.loads(data.partition(b"\n")[0]))
        return label if data == payload(label) else None
    except (ValueError, TypeError):
        return None


@dataclass(slots=True, eq=False)
class Operation:
    """An operation, from the position `began` in the journal to the position `over`.

    `over` stays None while a request of a process that was killed may still take effect.
    """

    serial: int
    number: int
    kind: str
    workflow: str
    began: int
    over: int | None = None
    returned: bool = False


class Sighting(NamedTuple):
    """These tokens were in force at some moment between two positions, `whole` if no others were.

    Those of a base are not in force, but those of the tasks that are kept of it are.
    """

    tokens: list[str]
    whole: bool
    began: int
    ended: int


class Handle(NamedTuple):
    """A run, and what it was resumed with."""

    run: Run
    inputs: str
    version: str | None = None
    """Of the declared tasks, None if none are declared."""
    strict: bool = True

    def tokens(self, task: str) -> tuple[str, ...]:
        """Those under which the run looks for a task, the newest first."""
        return self.run._tokens(task)

    def origin(self, task: str) -> str:
        """The inputs of what this run writes for a task.

        A task that a `reuse` keeps, because nothing that it uses has changed, is no mixture.
        """
        decision = self.run.decision
        if self.strict or (decision and decision.kept.get(task) == UNCHANGED):
            return covered(task, self.inputs, self.version)
        return MIXED

    def keeps(self, task: str) -> bool:
        """Whether it has reset the workflow and kept this task."""
        decision = self.run.decision
        return decision is not None and decision.action == "reset" and task in decision.kept

    def may_read(self, task: str, label: Label) -> bool:
        """Whether a checkpoint of the task may come from what the label says."""
        if label.token not in self.tokens(task):
            return False
        if self.strict or self.origin(task) != MIXED:
            return label.inputs == self.origin(task)
        # It may be of any inputs, but of no other version than the declared one.
        version = covered(task, self.inputs, self.version).partition(" in ")[2]
        return label.inputs == MIXED or label.inputs.partition(" in ")[2] == version


class Journal:
    """A file to which all processes append lines, and what follows from the lines read so far."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        self.position = 0
        self.running: dict[int, Operation] = {}
        self.writes: dict[str, dict[str, list[Operation]]] = {}
        self.sightings = {workflow: deque[Sighting](maxlen=KNOWN) for workflow in WORKFLOWS}
        self.done: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self.verified: Counter[str] = Counter()
        self.violations: list[tuple[str, str]] = []

    def append(self, *entry: object) -> None:
        # A kill may cut a line short, which then is no JSON. The next entry begins a new line.
        os.write(self._file, b"\n" + json.dumps(entry).encode() + b"\n")

    def catch_up(self) -> int:
        """Reads all lines that there are by now, and returns the position after them."""
        while data := os.pread(self._file, 1024**2, self.position):
            complete = data[: data.rfind(b"\n") + 1]
            if not complete:
                break
            for line in complete.splitlines(keepends=True):
                entry: list[Any] = []
                with suppress(ValueError):
                    entry = json.loads(line)
                if entry:
                    getattr(self, f"_{entry[0]}")(*entry[1:])
                self.position += len(line)
        return self.position

    def owed(self, token: str, task: str, position: int) -> bool:
        """Whether some write of this task had returned before `position`."""
        return any(_returned(write, position) for write in self._writes(token, task))

    def replaced(self, label: Label, position: int) -> bool:
        """Whether a write that followed that of `label` had returned before `position`."""
        writes = self._writes(label.token, label.task)
        found = next(
            (each for each in writes if (each.serial, each.number) == label[4:6]),
            None,
        )
        if found is None or found.over is None:
            return False
        return any(_returned(each, position) and each.began > found.over for each in writes)

    def returned(self, workflow: str, tokens: Iterable[str], position: int) -> list[str]:
        """Those of these tokens that were seen and then not, both before `position`."""
        seen = [each for each in self.sightings[workflow] if each.ended <= position]

        def has_left(token: str) -> bool:
            first = min((each.ended for each in seen if token in each.tokens), default=position)
            return any(
                each.whole and each.began > first and token not in each.tokens for each in seen
            )

        return list(filter(has_left, tokens))

    def _writes(self, token: str, task: str) -> list[Operation]:
        return self.writes.get(token, {}).get(task, [])

    def _begin(
        self, serial: int, number: int, kind: str, workflow: str, tokens: dict[str, str]
    ) -> None:
        """An operation begins, which writes these tasks under these tokens."""
        operation = Operation(serial, number, kind, workflow, self.position)
        self.running[serial] = operation
        for task, token in tokens.items():
            self.writes.setdefault(token, {}).setdefault(task, []).append(operation)
        while len(self.writes) > KNOWN:
            del self.writes[next(iter(self.writes))]

    def _end(self, serial: int, outcome: str, tokens: list[str] | None, actions: list[str]) -> None:
        """An operation has ended, which saw these tokens in force, or None if it did not look."""
        operation = self.running.pop(serial)
        operation.over = self.position
        operation.returned = outcome == "done"
        self.done[operation.kind if operation.returned else outcome] += 1
        if operation.returned and tokens is not None:
            whole = operation.kind in ("look", "clear")
            sighting = Sighting(tokens, whole, operation.began, self.position)
            self.sightings[operation.workflow].append(sighting)
        self.actions.update(actions)

    def _dead(self, serial: int, late: bool) -> None:  # noqa: FBT001
        """A process was killed. With `late`, a request that it sent may still take effect."""
        operation = self.running.pop(serial, None)
        self.killed[operation.kind if operation else "no operation"] += 1
        if operation and not late:
            operation.over = self.position

    def _verified(self, found: int, owed: int, kept: int) -> None:
        self.verified.update(found=found, owed=owed, kept=kept)

    def _violation(self, kind: str, text: str) -> None:
        self.violations.append((kind, text))


def _returned(write: Operation, position: int) -> bool:
    return write.returned and write.over is not None and write.over < position


class Worker:
    """A process of the loop. It asks through `send` to be killed, or continued after a stop."""

    def __init__(
        self,
        store: CheckpointStore,
        journal: Journal,
        serial: int,
        rng: random.Random,
        send: Callable[[int], object] | None = None,
    ) -> None:
        self.store = store
        self.journal = journal
        self.serial = serial
        self.random = rng
        self._send = send
        # The number of the operation in which this process is killed.
        self._last = rng.randint(1, 24) if send else 0
        self._number = 0
        self._parent = os.getppid()

    def work(self) -> None:
        while True:
            workflow = self.random.choice(list(WORKFLOWS))
            inputs, version = self.random.choice(INPUTS), self.random.choice(VERSIONS)
            handle = self.resume(workflow, inputs, self.random.choice(OFTEN), version)
            if handle is not None:
                for _ in range(self.random.randint(1, 6)):
                    tasks = self.random.sample(TASKS, self.random.randint(1, len(TASKS)))
                    if self.random.random() < 0.5:
                        self.write(handle, tasks)
                    else:
                        self.read(handle, tasks, self.random.choice(READS))
            if self.random.random() < 0.3:
                self.perform("collect", workflow, partial(self.store.collect, workflow))
            if self.random.random() < 0.08:
                self.perform("clear", workflow, partial(self.store.clear, workflow))

    def resume(
        self, workflow: str, inputs: str, policy: Any, version: str | None = None
    ) -> Handle | None:
        run = self._enter(
            f"resume {policy}",
            workflow,
            partial(
                resume,
                self.store,
                workflow,
                _inputs(inputs),
                on_input_change=policy,
                tasks=tasks_of(version),
            ),
        )
        if run is None:
            return None
        strict = policy != "reuse" or (run.decision is not None and run.decision.action != "reuse")
        return Handle(run, inputs, version, strict)

    def write(self, handle: Handle, tasks: list[str]) -> None:
        run = handle.run
        how = self.random.choice(WRITES)
        tokens = {task: handle.tokens(task)[0] for task in tasks[: None if "many" in how else 1]}
        made_by = (self.serial, self._number + 1, self.random.choice(SIZES))
        data = {
            task: payload(Label(run.workflow_id, token, task, handle.origin(task), *made_by))
            for task, token in tokens.items()
        }

        def write() -> None:
            [(task, first), *_] = data.items()
            if how == "write":
                run.write(task, first)
            elif how == "write many":
                run.write_many(data)
            else:
                with run.open(task, "wb") as stream:
                    stream.write(first[:50])
                    stream.write(first[50:])

        self.perform(how, run.workflow_id, write, tokens)

    def read(self, handle: Handle, tasks: Iterable[str], how: str) -> None:
        """Reads checkpoints and judges what is found."""
        run = handle.run
        wanted = {"read many": list(tasks), "read all": list(TASKS)}.get(how, list(tasks)[:1])

        def read() -> dict[str, bytes]:
            if how in ("read many", "read all"):
                return run.read_many(wanted if how == "read many" else None)
            try:
                if how == "read":
                    return {wanted[0]: run.read(wanted[0])}
                with run.open(wanted[0]) as stream:
                    return {wanted[0]: stream.read()}
            except CheckpointNotFoundError:
                return {}

        began = self.journal.catch_up()
        found = self.perform(how, run.workflow_id, read)
        if found is not None:
            self._judge(handle, wanted, found, began)

    def survive(self, *, clear: bool) -> None:
        """Reads, collects and maybe clears, with no other process at work.

        Afterwards there must be no leftovers.
        """
        for workflow in WORKFLOWS:
            record = self.look(workflow)
            if record is not None:
                version = None if record.base else self.random.choice(VERSIONS)
                tasks = tasks_of(version)
                run = self._enter("run", workflow, partial(self.store.run, workflow, tasks=tasks))
                if run is not None:
                    inputs = _FINGERPRINTS.get(run.fingerprint or "", "")
                    handle = Handle(run, inputs, version, strict=run.fingerprint is not None)
                    self.read(handle, TASKS, "read many")
                    self.perform("collect", workflow, partial(self.store.collect, workflow))
                    self.read(handle, TASKS, "read all")
            if clear or record is None:
                self.perform("clear", workflow, partial(self.store.clear, workflow))

    def look(self, workflow: str) -> Record | None:
        """The record of a workflow."""
        reading = partial(drive, self.store._filesystem, read_record(workflow))
        record: Record | None = self.perform("look", workflow, reading)
        return record

    def perform(
        self,
        kind: str,
        workflow: str,
        call: Callable[[], Any],
        tokens: Mapping[str, str] | None = None,
    ) -> Any:
        """Makes the call and returns its result, or None if it was refused or was a violation.

        `tokens` are those under which it writes, by tasks.
        """
        if os.getppid() != self._parent:
            os._exit(1)
        self._number += 1
        self.journal.append("begin", self.serial, self._number, kind, workflow, tokens or {})
        if self._send and self._number == self._last:
            self._send(KILL)
        # Nobody would continue a process that stops after it has asked to be killed.
        stops = self._number < self._last and self.random.random() < STOPS.get(kind, 0.1)
        outcome, result = "done", None
        try:
            result = self._stop_within(CALLS.get(kind, 400), call) if stops else call()
        except ContentionError:
            outcome = "contended"
        except (InputChangedError, InvalidTaskError):
            # What a dead process has sent may yet make a mixture, for which nothing is declared.
            outcome = "refused" if kind in ("resume raise", "run") else self._foreign(kind)
        except (CorruptCheckpointError, CorruptRecordError) as error:
            outcome = self._violation("torn", f"{kind}: {error}")
        except Exception:  # noqa: BLE001
            outcome = self._foreign(kind)
        self.journal.append("end", self.serial, outcome, _in_force(kind, result), _actions(result))
        return result

    def _stop_within(self, calls: int, call: Callable[[], T]) -> T:
        """Makes the call, and stops this process before one of the calls of Python within it.

        The process does not stop if there are fewer calls than that.
        """
        left = self.random.randint(1, calls)

        def stop(*_: object) -> None:
            nonlocal left
            left -= 1
            if self._send and left == 0:
                sys.setprofile(None)
                self._send(STOP)
                os.kill(os.getpid(), signal.SIGSTOP)

        threading.setprofile(stop)
        sys.setprofile(stop)
        try:
            return call()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _enter(self, kind: str, workflow: str, call: Callable[[], Run]) -> Run | None:
        began = self.journal.catch_up()
        run: Run | None = self.perform(kind, workflow, call)
        if run is None:
            return None
        if again := self.journal.returned(workflow, _in_force(kind, run) or (), began):
            self._violation("undone", f"{kind}: {workflow!r} has {again} again")
        change = run.decision and run.decision.change
        if change and change.reason == "the record is corrupt":
            self._violation("torn", f"{kind}: the record of {workflow!r} was corrupt")
        self.look(workflow)
        return run

    def _judge(
        self, handle: Handle, wanted: list[str], found: Mapping[str, bytes], began: int
    ) -> None:
        self.journal.catch_up()
        run, owed, kept = handle.run, 0, 0
        missing: dict[str, list[str]] = {}
        for task in wanted:
            tokens = handle.tokens(task)
            due = [token for token in tokens if self.journal.owed(token, task, began)]
            owed += bool(due)
            if task not in found:
                missing[task] = due
                continue
            label = label_of(found[task])
            what = f"{task!r} of {handle}: {label}"
            if label is None:
                self._violation("torn", what)
            elif (label.workflow, label.task) != (run.workflow_id, task):
                self._violation("another's", what)
            elif not handle.may_read(task, label):
                self._violation("stale", what)
            elif self.journal.replaced(label, began):
                self._violation("lost", f"replaced by a later write, but read: {what}")
            else:
                missing[task] = [
                    token for token in due if token in tokens[: tokens.index(label.token)]
                ]
                kept += handle.keeps(task)
        if any(missing.values()) and (record := self.look(run.workflow_id)):
            lost = {task: due for task, due in missing.items() if not record.live.isdisjoint(due)}
            if lost:
                self._violation("lost", f"{lost} of {handle}")
        self.journal.append("verified", len(found), owed, kept)

    def _foreign(self, kind: str) -> str:
        return self._violation("foreign", f"{kind}: {traceback.format_exc()}")

    def _violation(self, kind: str, text: str) -> str:
        self.journal.append("violation", kind, text)
        return kind


def _inputs(inputs: str) -> dict[str, str]:
    return {"first": inputs[:1], "second": inputs[1:]}


def _in_force(kind: str, result: object) -> list[str] | None:
    """The tokens that an operation saw in force. None if it did not look."""
    if isinstance(result, Run):
        return [result.token, *(tokens[0] for tokens in result._declared.values())]
    if isinstance(result, Record):
        return [result.token, *result.tasks.values(), *result.base_tasks.values()]
    return [] if kind in ("look", "clear") else None


def _actions(result: object) -> list[str]:
    """What a run has decided, for the figures."""
    if not isinstance(result, Run) or result.decision is None:
        return []
    action = result.decision.action
    return [action, f"{action}, keeping tasks"] if result.decision.kept else [action]


_FINGERPRINTS = {fingerprint(_inputs(inputs)): inputs for inputs in INPUTS}


class Loop:
    """Starts the processes, kills them, and looks at what they leave behind.

    This process has no threads and no connections, so that a fork of it is as good as a new one.
    """

    def __init__(self, backend: Backend, folder: Path, *, processes: int, seed: int) -> None:
        self.backend = backend
        self.processes = processes
        self.seed = seed
        self.random = random.Random(seed)
        self.store = backend.store()
        self.late = isinstance(backend, S3Backend)
        # Most operations take about that long, so that a kill within this time often hits one.
        self.longest = 0.1 if self.late else 0.02
        self.journal = Journal(folder / "journal")
        self.stderr = os.open(folder / "stderr", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        self.serial = 0
        self.kills = 0
        self.restarts = 0
        self.stops = 0
        self.hangs = False
        self.workers: dict[int, tuple[int, int]] = {}
        self._shown: Counter[str] = Counter()
        if backend.files():
            raise SystemExit(f"{backend.url} is not empty")
        self.bystanders = backend.distinct(set(SIBLINGS) - set(WORKFLOWS))
        self._in_child(self._make_bystanders)
        self.before = backend.everything()

    def run(self, kills: int) -> None:
        began = time.monotonic()
        while self.kills < kills and not self.hangs:
            self._round(min(ROUND, kills - self.kills))
            self._audit(last=self.kills >= kills)
            verified, wrong = self.journal.verified["found"], len(self.journal.violations)
            say(
                f"{self.kills:,} kills, {verified:,} checkpoints verified, {wrong} violations, "
                f"{time.monotonic() - began:.0f} s"
            )

    def figures(self) -> dict[str, int]:
        """Everything that was counted, by name."""
        journal = self.journal
        violations = Counter(kind for kind, _ in journal.violations)
        return {
            "kills": self.kills,
            "restarts": self.restarts,
            "stops": self.stops,
            **{f"killed in: {kind}": journal.killed[kind] for kind in sorted(journal.killed)},
            "operations": journal.done.total(),
            **{f"operation: {kind}": journal.done[kind] for kind in sorted(journal.done)},
            **{
                f"decision: {action}": journal.actions[action] for action in sorted(journal.actions)
            },
            "checkpoints verified": journal.verified["found"],
            "of these, kept by a reset": journal.verified["kept"],
            "writes owed and looked for": journal.verified["owed"],
            **{f"violation: {kind}": violations[kind] for kind in VIOLATIONS},
        }

    def _round(self, kills: int) -> None:
        messages, self._messages = os.pipe()
        last = time.monotonic()
        try:
            for slot in range(min(self.processes, kills)):
                self._start(slot)
            for _ in range(kills - len(self.workers)):
                while (slot := self._next(messages)) is None:
                    if time.monotonic() - last > HANG:
                        self.hangs = True
                        self._violation("hang", f"since {HANG} s: {self.journal.running}")
                        return
                last = time.monotonic()
                self._kill(slot)
                self._start(slot)
                self.restarts += 1
        finally:
            for slot in list(self.workers):
                self._kill(slot)
            os.close(messages)
            os.close(self._messages)

    def _next(self, messages: int) -> int | None:
        """The process to kill next, or None if none asks for it within a short time.

        Processes that stopped meanwhile are continued afterwards.
        """
        stopped = []
        try:
            # The wait is short, because a stopped process may hold the lock that all others need.
            while select.select([messages], [], [], 3 * self.longest)[0]:
                slot = (message := os.read(messages, 1)[0]) % STOP
                if message < STOP:
                    # Some operations take a thousand times longer than others.
                    time.sleep(self.longest * 10 ** self.random.uniform(-3, 0))
                    return slot
                process, _ = self.workers[slot]
                os.waitpid(process, os.WUNTRACED)
                stopped.append(process)
            return None
        finally:
            self.stops += len(stopped)
            for process in stopped:
                os.kill(process, signal.SIGCONT)

    def _start(self, slot: int) -> None:
        self.journal.catch_up()

        def send(kind: int) -> None:
            os.write(self._messages, bytes([kind + slot]))

        self.workers[slot] = self._fork(Worker.work, send)

    def _kill(self, slot: int) -> None:
        process, serial = self.workers.pop(slot)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        self.kills += 1
        self.journal.append("dead", serial, self.late)
        self._show()

    def _audit(self, *, last: bool) -> None:
        # A request of a dead process may take effect only now, and then leaves a file that the next
        # try collects.
        for left in (2, 1, 0) if self.late else (0,):
            self._in_child(partial(Worker.survive, clear=last))
            files = self.backend.everything()
            live = self._live(files)
            locks = {
                f"{self.backend.inside}.locks/{lock_name(name)}" for name in WORKFLOWS.values()
            }
            leftover = sorted(files.keys() - self.before.keys() - live - locks)
            leftover += self._empty_folders()
            if not leftover or not left:
                break
            time.sleep(1)
        leftover += self.backend.unfinished_uploads()
        if leftover or (last and live):
            self._violation("leftover", f"{leftover or sorted(live)}")
        if self.before != {key: data for key, data in files.items() if key in self.before}:
            self._violation("another's", "a bystander has changed")
        os.lseek(self.stderr, 0, os.SEEK_SET)
        if text := os.read(self.stderr, 100_000).decode(errors="replace"):
            self._violation("foreign", f"on stderr: {text}")
            os.ftruncate(self.stderr, 0)
        self._show()

    def _live(self, files: Mapping[str, bytes]) -> set[str]:
        """The keys of the records, and of the files under the tokens in them."""
        live = set()
        for folder in WORKFLOWS.values():
            inside = f"{self.backend.inside}{folder}/"
            if record := files.get(f"{inside}{RECORD}"):
                found = json.loads(record)
                keys = {**found.get("tasks", {}), **found.get("base_tasks", {})}
                tokens = {found["token"], found["base"], *keys.values()}
                ours = [key for key in files if key.startswith(inside)]
                live |= {key for key in ours if key.rpartition("@")[2] in tokens}
                live.add(f"{inside}{RECORD}")
        return live

    def _empty_folders(self) -> list[str]:
        folders = os.walk(self.backend.url) if isinstance(self.backend, LocalBackend) else ()
        return [path for path, *held in folders if not any(held) and not path.endswith(".tmp")]

    def _make_bystanders(self, worker: Worker) -> None:
        for workflow in self.bystanders:
            run = resume(worker.store, workflow, _inputs("beside"), on_input_change="raise")
            run.write_many(dict.fromkeys(TASKS, b"beside"))

    def _in_child(self, life: Callable[[Worker], None]) -> None:
        process, _ = self._fork(life)
        _, status = os.waitpid(process, 0)
        if status:
            self._violation("foreign", f"{life} ended with status {status}")
        self._show()

    def _fork(
        self, life: Callable[[Worker], None], send: Callable[[int], object] | None = None
    ) -> tuple[int, int]:
        self.serial += 1
        process = os.fork()
        if process:
            return process, self.serial
        status = 1
        try:
            os.dup2(self.stderr, 2)
            if not send:
                signal.alarm(HANG)
            rng = random.Random(f"{self.seed} {self.serial}")
            life(Worker(self.store, self.journal, self.serial, rng, send))
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            if send:
                send(KILL)
        finally:
            os._exit(status)

    def _violation(self, kind: str, text: str) -> None:
        self.journal.append("violation", kind, text)

    def _show(self) -> None:
        self.journal.catch_up()
        while self._shown.total() < len(self.journal.violations):
            kind, text = self.journal.violations[self._shown.total()]
            self._shown[kind] += 1
            if self._shown[kind] <= SHOWN:
                say(f"after {self.kills:,} kills: {kind}: {text}")


class GivenBucket(S3Backend):
    """A bucket that exists already."""

    kind = "s3"

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self.url = url
        self.storage_options = storage_options
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self.inside = f"{prefix}/" if prefix else ""
        self.client = boto3.client(
            "s3",
            aws_access_key_id=storage_options.get("key"),
            aws_secret_access_key=storage_options.get("secret"),
            endpoint_url=storage_options.get("endpoint_url"),
            **storage_options.get("client_kwargs", {}),
        )
        self._seen = Bucket(storage_options.get("endpoint_url", ""), self.bucket, self.client)


@contextmanager
def backend_of(target: str, storage_options: Mapping[str, Any], folder: Path) -> Iterator[Backend]:
    if target == "s3" or target.startswith("s3://"):
        # Without this, every client would read the same files of botocore again, which takes three
        # quarters of the time to connect.
        botocore.loaders.create_loader = cache(botocore.loaders.create_loader)
        import s3fs  # noqa: F401
    if target == "s3":
        servers.KEPT.mkdir(parents=True, exist_ok=True)
        with servers.ministack_server(servers.KEPT) as endpoint:
            yield MinistackBackend(endpoint)
    elif target.startswith("s3://"):
        yield GivenBucket(target, storage_options)
    else:
        root = folder / "local" if target == "local" else Path(target)
        root.mkdir(parents=True, exist_ok=True)
        yield LocalBackend(root)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.harness.kill_loop",
        usage=argparse.SUPPRESS,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="?", default="local", metavar="URL")
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--storage-options", type=json.loads, default={}, metavar="JSON")
    arguments = parser.parse_args()
    logging.getLogger("checkpoint_store").addFilter(
        lambda record: ": reuse (" not in record.getMessage()
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        backend_of(arguments.target, arguments.storage_options, Path(folder)) as backend,
    ):
        say(f"seed {arguments.seed}, {arguments.processes} processes, {backend.url}")
        gc.freeze()
        loop = Loop(backend, Path(folder), processes=arguments.processes, seed=arguments.seed)
        with suppress(KeyboardInterrupt):
            loop.run(arguments.kills)
        figures = loop.figures()
    for name, count in figures.items():
        say(f"{count:11,}  {name}")
    return 1 if loop.journal.violations else 0


if __name__ == "__main__":
    sys.exit(main())
