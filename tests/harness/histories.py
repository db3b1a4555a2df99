"""Random histories of a few workflows, each step of which is compared with the model.

`test_stateful` runs them, and its docstring tells what may happen in them.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple
from xml.etree import ElementTree

import urllib3
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from checkpoint_store import (
    CheckpointStore,
    CheckpointStoreError,
    CorruptCheckpointError,
    CorruptRecordError,
    Decision,
    IncompleteClearError,
    InvalidNameError,
    Run,
    StorageError,
    UnsupportedFormatError,
    plan,
    resume,
)
from checkpoint_store._policy import POLICIES

from .backends import Backend, GenericBackend, LocalBackend, MemoryBackend, S3Backend
from .model import (
    GIVEN,
    NEAR,
    TASKS,
    WORKFLOWS,
    Checkpoint,
    Damage,
    Depends,
    Given,
    Handle,
    Key,
    New,
    Record,
    RefusedError,
    Workflow,
    declarations,
    is_moved,
    is_of,
    path_of,
)
from .taps import FAULTS, CrashError, Tap, Tapped
from .taps import fault as fault_of

READS = ("read", "load", "stream", "in", "tasks", "read_many", "load_many")
DAMAGES = ("flip", "cut", "empty", "longer", "future", "other", "lose")
FOREIGN = ("notes.txt", "t@0123", ".fingerprint~", "t%40@0123456789abcdeg")
"""Names of files that are not the library's, although some look as if they were."""


class Done(NamedTuple):
    returned: Any
    predicted: Any
    raised: BaseException | None


def outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What a call returns and what it raises; one of the two is None."""
    try:
        return call(), None
    except (RefusedError, CheckpointStoreError, CrashError) as error:
        return None, error


# Calls of the library, which may be made in either process


def call_with(function: Any, name: str, given: Given, policy: Any, store: CheckpointStore) -> Any:
    """Calls `resume` or `plan` with what is given."""
    tasks = given.tasks or None
    if given.inputs is None:
        return function(
            store, name, fingerprint=given.fingerprint, on_input_change=policy, tasks=tasks
        )
    # The order of the inputs is another than when their fingerprint was made.
    inputs = dict(reversed(given.inputs.items()))
    return function(store, name, inputs, on_input_change=policy, tasks=tasks)


def resume_in(name: str, given: Given, policy: str, store: CheckpointStore) -> Run:
    run: Run = call_with(resume, name, given, policy, store)
    return run


def plan_in(name: str, given: Given, policy: str, store: CheckpointStore) -> tuple[object, ...]:
    return facts_of(call_with(plan, name, given, policy, store))


def facts_of(decision: Decision) -> tuple[object, ...]:
    """What the model says of a decision, too."""
    assert (decision.change is None) == (decision.action in ("start", "continue"))
    kept, recomputed = set(decision.kept), set(decision.recomputed)
    return decision.action, decision.policy, decision.stored, decision.current, kept, recomputed


def describe_in(name: str, store: CheckpointStore) -> tuple[object, ...]:
    description = store.describe(name)
    return description.fingerprint, description.mixed, description.tasks, description.retired


def workflows_in(store: CheckpointStore) -> list[str]:
    return sorted(store.workflows())


def read_by(how: str, task: str, run: Run) -> Any:
    if how == "stream":
        with run.open(task) as stream:
            return stream.read()
    if how in ("read", "load"):
        return getattr(run, how)(task)
    return task in run if how == "in" else getattr(run, how)()


class _StopError(Exception):
    """Raised in the block of a stream, so that the stream is discarded."""


def write_by(how: str, payloads: dict[str, bytes], run: Run) -> None:
    if how == "write_many":
        run.write_many(payloads)
        return
    [(task, payload)] = payloads.items()
    if how == "dump":
        value = json.loads(payload)
        assert value is run.dump(task, value)
    elif how == "write":
        run.write(task, payload)
    else:
        with suppress(_StopError), run.open(task, "wb") as stream:
            stream.write(payload[:5])
            if how == "abandon":
                raise _StopError
            stream.write(payload[5:])


# The storage


class Storage:
    """A kind of storage, on which histories are run one after the other, each on an empty root.

    `pool` is the second process. Without it there is a second store in this process.
    """

    def __init__(self, make: Callable[[], Backend], pool: ProcessPoolExecutor | None) -> None:
        self.make = make
        self.pool = pool
        self.met: Counter[str] = Counter()
        self._owner: CheckpointStore | None = None

    def open(self, backend: Backend) -> CheckpointStore:
        store = backend.store(durable=False)
        if isinstance(backend, S3Backend):
            # All stores share the connections of the first: connecting takes longer than a history.
            self._owner = self._owner or store
            shared: Any = self._owner._filesystem
            own: Any = store._filesystem
            own._engines = shared._engines
        return store

    def close(self) -> None:
        if self._owner is not None:
            self._owner.close()


def tapped(target: Any, tap: Tap) -> Any:
    """The same store or run, but every primitive of its filesystem goes through the tap."""
    filesystem = Tapped(target._filesystem, tap)
    if isinstance(target, Run):
        return replace(target, _filesystem=filesystem)
    target = copy.copy(target)
    target._filesystem = filesystem
    return target


def in_another_process(pool: ProcessPoolExecutor, action: Callable[[Any], Any], target: Any) -> Any:
    return pool.submit(action, target).result()


def glance(backend: Backend) -> dict[str, object]:
    """For each file its content, or on S3 its ETag, for which a single request is enough."""
    if not isinstance(backend, S3Backend):
        return dict(backend.files())
    # This is not done with boto3, which would take a quarter of the time of all histories.
    url = f"{backend.client.meta.endpoint_url}/{backend.bucket}"
    reply = urllib3.request("GET", url, fields={"list-type": "2", "prefix": backend.inside})
    listed = ElementTree.fromstring(reply.data)
    assert listed.findtext("{*}IsTruncated") == "false"
    found = (
        (each.findtext("{*}Key"), each.findtext("{*}ETag"))
        for each in listed.iterfind("{*}Contents")
    )
    return {str(key).removeprefix(backend.inside): etag for key, etag in found}


def content(backend: Backend, key: str) -> bytes:
    if not isinstance(backend, S3Backend):
        return backend.files()[key]
    reply = backend.client.get_object(Bucket=backend.bucket, Key=backend.inside + key)
    return bytes(reply["Body"].read())


# Histories

# After the comma stands what became of a declared task that could have been read before.
MEANT_TO_BE_MET = {
    "start", "continue", "reuse", "reset", "raise", "damage",
    *(f"{kind}, {effect}" for kind in FAULTS for effect in ("done", "not done")),
    *(f"continue, {what}" for what in ("kept", "computed anew")),
    *(f"reuse, {what}" for what in ("kept", "read through", "computed anew")),
    *(f"reset, {what}" for what in ("kept", "computed anew")),
    *(f"reset of a mixture, {what}" for what in ("kept", "computed anew", "pure no more")),
    "declared without a policy", "a key once more", "deleted with dependents",
    "dependents are gone, the task is not",
}  # fmt: skip

indices = st.sampled_from((0, 0, 0, 1, 1, 2, 3))
"""Indices of workflows, tasks and runs. The first are preferred, so that much happens to them."""

which_inputs = st.sampled_from((0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6))
which_declarations = st.sampled_from((0, 0, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5))
processes = st.integers(0, 1)
policies = st.sampled_from(POLICIES)
faults = st.tuples(
    st.sampled_from((*[None] * 10, *FAULTS, "outage")), st.sampled_from((0, 1, 1, 2, 2, 3, 4))
)

Fault = tuple[str | None, int]
NONE: Fault = (None, 0)


class History(RuleBasedStateMachine):
    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        self.backend = storage.make()
        self.stores = [storage.open(self.backend), storage.open(self.backend)]
        self.handles: list[Handle] = []
        self.model: dict[str, Workflow] = {}
        self.tokens: set[str] = set()
        self.keys: set[tuple[str, Depends]] = set()
        self.foreign: set[str] = set()
        self.seen = glance(self.backend)
        # If the last history had left anything, this one would be blamed for it.
        assert not self.seen
        self.number = 0
        self.is_sound = True

    @initialize(
        names=st.lists(st.sampled_from(sorted(WORKFLOWS)), min_size=2, max_size=4, unique=True),
        tasks=st.lists(st.sampled_from(sorted(TASKS)), min_size=3, max_size=4, unique=True),
    )
    def begin(self, names: list[str], tasks: list[str]) -> None:
        self.names = self.backend.distinct(names)
        self.tasks = self.backend.distinct(tasks)
        self.model = {name: Workflow() for name in self.names}

    def name_of(self, index: int) -> str:
        return self.names[index % len(self.names)]

    def task_of(self, index: int) -> str:
        return self.tasks[index % len(self.tasks)]

    def given(self, which: int, declared: int) -> Given:
        return GIVEN[which]._replace(tasks=declarations(*self.tasks)[declared])

    def handle_of(self, index: int) -> Handle:
        if not self.handles:
            if isinstance(self.model[self.name_of(index)].record, Damage):
                self.tidy(0, index, "clear", NONE)
            self.run(index % 2, index, None, 0, NONE)
        return self.handles[-1 - index % len(self.handles)]

    # Workflows

    @rule(
        process=processes,
        index=indices,
        which=which_inputs,
        declared=which_declarations,
        policy=policies,
        then=st.sampled_from((None, *["reset", "reuse"] * 2, *["delete"] * 3, *READS)),
        fault=faults,
    )
    def resume(
        self,
        process: int,
        index: int,
        which: int,
        declared: int,
        policy: str,
        then: str | None,
        fault: Fault,
    ) -> None:
        name, given = self.name_of(index), self.given(which, declared)
        before = self.model[name]

        def predict(workflow: Workflow, new: New) -> tuple[Record, object]:
            self.storage.met[workflow.decide(given, policy)] += 1
            decision = workflow.plan(given, policy)
            return workflow.resume(given, policy, new), decision

        action = partial(resume_in, name, given, policy)
        done = self.do(process, name, action, predict, fault, resets=True)
        if done.raised is None:
            run, (record, decision) = done.returned, done.predicted
            assert run.fingerprint == given.fingerprint
            assert facts_of(run.decision) == decision
            handle = self.hold(process, name, run, record, given, strict=policy != "reuse")
            self.meet(before, handle)
            if then is not None:
                self.write(0, int(policy == "reuse"), "write_many", NONE)
            if then in READS:
                self.read(0, 0, then, fault)
            elif then == "delete":
                self.delete(0, 0 if declared else which + 1, bool(declared), fault)
            elif then == "reuse":
                self.resume(process, index, NEAR[which], declared, "reuse", "reset", fault)
            elif then == "reset":
                other = which if policy == "reuse" else NEAR[which]
                self.resume(process, index, other, declared, "reset", "read_many", fault)

    def meet(self, before: Workflow, handle: Handle) -> None:
        """Notes what has become of the declared tasks that a run could have found before."""
        assert handle.run.decision is not None
        record, action = before.record, handle.run.decision.action
        if not isinstance(record, Record):
            return
        of = " of a mixture" if action == "reset" and record.base else ""
        for task, key in handle.given.wanted.items():
            if all((task, token) not in before.files for token in record.live):
                continue
            met = "kept"
            if handle.newest(self.model[handle.name], task) is None:
                is_there = (task, record.tasks.get(key)) in before.files
                met = "pure no more" if of and is_there else "computed anew"
            elif handle.tokens_of(task)[0] not in record.live:
                met = "read through"
            self.storage.met[f"{action}{of}, {met}"] += 1

    @rule(
        process=processes,
        index=indices,
        which=st.none() | which_inputs,
        declared=which_declarations,
        fault=faults,
    )
    def run(self, process: int, index: int, which: int | None, declared: int, fault: Fault) -> None:
        name, current = self.name_of(index), None if which is None else GIVEN[which].fingerprint
        tasks = self.given(0, declared).tasks
        action = methodcaller("run", name, fingerprint=current, tasks=tasks or None)
        done = self.do(process, name, action, lambda w, new: w.run(current, tasks, new), fault)
        if done.raised is None:
            record: Record = done.predicted
            assert done.returned.fingerprint == (None if record.base else record.fingerprint)
            given = Given(record.fingerprint, record.inputs, tasks)
            self.hold(process, name, done.returned, record, given, strict=False)
            self.storage.met["declared without a policy"] += bool(tasks)

    def hold(
        self, process: int, name: str, run: Run, record: Record, given: Given, *, strict: bool
    ) -> Handle:
        assert run.token == record.token
        run = replace(run, _filesystem=self.stores[process]._filesystem)
        handle = Handle(process, name, run, record, given, strict)
        self.handles.append(handle)
        return handle

    @rule(process=processes, index=indices, which=which_inputs, fault=faults)
    def write_fingerprint(self, process: int, index: int, which: int, fault: Fault) -> None:
        name, current = self.name_of(index), GIVEN[which].fingerprint
        action = methodcaller("write_fingerprint", name, current)
        self.do(process, name, action, lambda w, new: w.write_fingerprint(current, new), fault)

    @rule(
        process=processes,
        index=indices,
        which=which_inputs,
        declared=which_declarations,
        policy=policies,
    )
    def ask(self, process: int, index: int, which: int, declared: int, policy: str) -> None:
        name, given = self.name_of(index), self.given(which, declared)
        action = methodcaller("read_fingerprint", name)
        self.do(process, name, action, lambda w, _: w.read_fingerprint())
        action = partial(describe_in, name)
        self.do(process, name, action, lambda w, _: w.describe())
        action = partial(plan_in, name, given, policy)
        self.do(process, name, action, lambda w, _: w.plan(given, policy))
        there = sorted(name for name, workflow in self.model.items() if workflow.has_traces())
        self.do(process, name, workflows_in, lambda *_: there)

    @rule(
        process=processes,
        index=indices,
        how=st.sampled_from(("collect", "collect", "clear")),
        fault=faults,
    )
    def tidy(self, process: int, index: int, how: str, fault: Fault) -> None:
        name = self.name_of(index)
        self.do(process, name, methodcaller(how, name), lambda w, _: getattr(w, how)(), fault)

    # Checkpoints

    @rule(
        at=indices,
        index=indices,
        how=st.sampled_from(("dump", "write", "stream", "write_many", "abandon")),
        fault=faults,
    )
    def write(self, at: int, index: int, how: str, fault: Fault) -> None:
        handle = self.handle_of(at)
        files: dict[Key, Checkpoint | Damage] = {}
        for task in self.tasks[index:] if how == "write_many" else [self.task_of(index)]:
            self.number += 1
            payload = json.dumps(f"{self.number} of {handle.name} by {handle.run.fingerprint}")
            made = Checkpoint(payload.encode(), how == "dump", handle.origin_of(task))
            files[task, handle.tokens_of(task)[0]] = made

        def predict(workflow: Workflow, _: New) -> None:
            if how != "abandon":
                workflow.files |= files

        payloads = {task: made.payload for (task, _), made in files.items()}
        done = self.do_by(handle, partial(write_by, how, payloads), predict, fault)
        if how == "write_many" and isinstance(done.raised, StorageError):
            unwritten = done.raised.failures
            written = self.model[handle.name].files
            assert unwritten.keys() <= {task for task, _ in files}
            assert all(files[key] == written[key] for key in files if key[0] not in unwritten)

    @rule(
        at=indices,
        index=indices,
        how=st.sampled_from(READS),
        fault=faults,
    )
    def read(self, at: int, index: int, how: str, fault: Fault) -> None:
        self.read_by(self.handle_of(at), how, index, fault)

    def read_by(self, handle: Handle, how: str, index: int = 0, fault: Fault = NONE) -> None:
        for task in self.tasks[index:] if how in ("read", "load", "stream", "in") else [""]:
            predict = partial(handle.read, how=how, task=task)
            self.do_by(handle, partial(read_by, how, task), lambda w, _, do=predict: do(w), fault)

    @rule(at=indices, index=indices, dependents=st.booleans(), fault=faults)
    def delete(self, at: int, index: int, dependents: bool, fault: Fault) -> None:  # noqa: FBT001
        handle, task = self.handle_of(at), self.task_of(index)
        before = self.model[handle.name]
        names = handle.with_dependents(task) if dependents else {task}
        done = self.do_by(
            handle,
            methodcaller("delete", task, dependents=dependents),
            lambda w, _: handle.delete(w, task, dependents=dependents),
            (fault[0], fault[1] % (2 * len(names))),  # A deletion of one makes at most two calls.
        )
        there, left = (
            {name for name in names if handle.newest(workflow, name)}
            for workflow in (before, self.model[handle.name])
        )
        if done.raised is None:
            self.storage.met["deleted with dependents"] += len(there) > 1
        else:
            for name in there - left:
                assert left.isdisjoint(handle.with_dependents(name)), "their origin is gone"
            self.storage.met["dependents are gone, the task is not"] += there > left >= {task}

    @rule(at=indices)
    def hand_over(self, at: int) -> None:
        handle = self.handle_of(at)
        self.do_by(handle, methodcaller("is_current"), lambda w, _: handle.is_current(w))
        other, run = 1 - handle.process, pickle.loads(pickle.dumps(handle.run))
        run = replace(run, _filesystem=self.stores[other]._filesystem)
        self.handles.append(replace(handle, process=other, run=run))

    # What others do to the files

    @rule(at=st.integers(0, 31), source=st.integers(0, 31), how=st.sampled_from(DAMAGES))
    def damage(self, at: int, source: int, how: str) -> None:
        """Damages, exchanges or removes a checkpoint, or sometimes a record, whose key is None."""
        kind: type[Record | Checkpoint] = Checkpoint if at % 3 else Record
        intact: list[tuple[str, Key | None]] = [
            (name, key)
            for name, workflow in self.model.items()
            for key, found in {None: workflow.record, **workflow.files}.items()
            if isinstance(found, kind)
        ]
        if not intact:
            return
        target, other = intact[at % len(intact)], intact[source % len(intact)]
        if how == "other" and target == other:
            return
        name, key = target
        error: type[CheckpointStoreError] = CorruptCheckpointError if key else CorruptRecordError
        if how == "future":
            error = UnsupportedFormatError
        elif how == "other" and str(target).lower() == str(other).lower():
            # The library takes these two names for one that a disk has folded.
            error = InvalidNameError

        self.spoil(path_of(*target), how, path_of(*other))
        if key is None:
            self.model[name].record = None if how == "lose" else Damage(error)
        elif how == "lose":
            del self.model[name].files[key]
        else:
            self.model[name].files[key] = Damage(error)

    def spoil(self, path: str, how: str, other: str) -> None:
        if how == "lose":
            self.backend.remove(path)
        else:
            data = content(self.backend, path)
            middle = len(data) // 2
            spoilt = {
                "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
                "cut": data[:middle],
                "empty": b"",
                "longer": data + b"\0",
                "future": re.sub(rb'("checkpoint_store": )[12]', rb"\g<1>3", data, count=1),
                "other": content(self.backend, other),
            }[how]
            assert data != spoilt
            self.backend.put(path, spoilt)
        self.storage.met["damage"] += 1
        self.seen = glance(self.backend)

    @rule(index=indices, which=st.sampled_from(FOREIGN))
    def put_a_foreign_file(self, index: int, which: str) -> None:
        key = f"{WORKFLOWS[self.name_of(index)]}/{which}"
        self.backend.put(key, b"mine")
        self.foreign.add(key)
        self.seen = glance(self.backend)

    # Steps that are compared with the model

    def do_by(
        self, handle: Handle, action: Any, predict: Callable[..., Any], fault: Fault = NONE
    ) -> Done:
        return self.do(handle.process, handle.name, action, predict, fault, handle=handle)

    def do(
        self,
        process: int,
        name: str,
        action: Callable[[Any], Any],
        predict: Callable[[Workflow, New], Any],
        fault: Fault = NONE,
        *,
        handle: Handle | None = None,
        resets: bool = False,
    ) -> Done:
        """Does a step, and compares what it returned or raised, and what it left, with the model.

        If it met a fault, it may raise an error because of that, and a reset may not have
        collected the old files.
        """
        self.is_sound = False
        target: Any = self.stores[process] if handle is None else handle.run
        tap = None if fault[0] is None else fault_of(fault[0], fault[1])
        if tap is not None:
            target = tapped(target, tap)
        elif process == 1 and self.storage.pool is not None:
            action = partial(in_another_process, self.storage.pool, action)
        returned, raised = outcome(partial(action, target))
        was_hit = tap is not None and len(tap.calls) > fault[1]

        before, after = self.model[name], self.model[name].copy()
        now = glance(self.backend)
        changed = {key for key in now | self.seen if now.get(key) != self.seen.get(key)}
        stored: dict[str, Any] = {}
        if path_of(name, None) in changed & now.keys():
            stored = json.loads(content(self.backend, path_of(name, None)))

        def new(key: Depends | None) -> str:
            token = stored.get("tasks", {}).get(key.digest()) if key else stored.get("token")
            assert token not in self.tokens
            return token or "none, because the record does not have it"

        predicted, refused = outcome(lambda: predict(after, new))
        kinds = refused.args if refused else (type(None),)
        if was_hit and raised is not None and type(raised) not in kinds:
            self.storage.met[f"{fault[0]}, {'done' if changed else 'not done'}"] += 1
            after = self.settled(name, before, after, changed, now, handle, raised, fault[0])
        elif type(raised) not in kinds:
            raise AssertionError(f"the model raises {refused!r}") from raised
        else:
            assert predicted == returned or isinstance(returned, Run)
            if was_hit and resets:
                kept = before.files.items() - after.files.items()
                after.files |= {key: it for key, it in kept if path_of(name, key) in now}
                after.aside = before.aside & now.keys()

        old, held = before.by_key(name), after.by_key(name)
        assert changed == {key for key in old | held if old.get(key) != held.get(key)}
        foreign = {key for key in self.foreign if is_of(name, key)}
        assert held.keys() | foreign == {key for key in now if is_of(name, key)}
        if stored:
            self.check_record(name, stored, before, after)

        self.model[name], self.seen = after, now
        if isinstance(raised, CrashError):
            self.stores[process] = self.storage.open(self.backend)
            self.handles = [other for other in self.handles if other.process != process]
        self.is_sound = True
        return Done(returned, predicted, raised)

    def check_record(
        self, name: str, stored: Mapping[str, Any], before: Workflow, after: Workflow
    ) -> None:
        """Compares the record that a step has left with the model."""
        record = after.record
        assert isinstance(record, Record)
        unknown = ("workflow", "nonce", "created", "updated", "checksum")
        assert record.stored() == {key: stored[key] for key in stored if key not in unknown}
        tokens = [record.token, *record.tasks.values(), *record.base_tasks.values()]
        assert len(set(tokens)) == len(tokens)
        self.tokens.update(tokens)
        there = before.record.every if isinstance(before.record, Record) else {}
        keys = {(name, key) for key in record.every if key not in there}
        self.storage.met["a key once more"] += not self.keys.isdisjoint(keys)
        self.keys |= keys

    def settled(
        self,
        name: str,
        before: Workflow,
        after: Workflow,
        changed: set[str],
        now: dict[str, object],
        handle: Handle | None,
        raised: BaseException,
        kind: str | None,
    ) -> Workflow:
        """The workflow after a step that failed.

        Each file is either as it was before the step or as it is after it.
        """
        record = (after if path_of(name, None) in changed else before).record
        files = {}
        for key in before.files | after.files:
            which = after if path_of(name, key) in changed else before
            if key in which.files:
                files[key] = which.files[key]
        aside = {key for key in now if is_of(name, key) and key.startswith(".tmp/")}
        found = Workflow(record, files, aside)

        assert isinstance(raised, CrashError | StorageError | IncompleteClearError)
        if record != before.record and record is not None:
            # The step changed the record and failed nevertheless. That is only right if the process
            # died or the storage failed for good: the nonce makes up for a lost reply, and a reset
            # that cannot collect returns.
            assert kind in ("crash", "outage")
        if kind in ("error before", "refusal", "outage"):
            # A process that lives removes the temporary files that it made.
            assert all(map(is_moved, aside - before.aside))
        if handle is not None:
            # A run finds what was there before or what should be there after, and nothing else.
            for task in self.tasks:
                seen, *allowed = (
                    handle.newest(workflow, task) for workflow in (found, before, after)
                )
                assert seen in allowed
        elif record == before.record:
            # No file is deleted as long as a run may read it.
            live = before.live()
            assert all(files.get(key) == it for key, it in before.files.items() if key[1] in live)
        return found

    def teardown(self) -> None:
        try:
            for handle in self.handles if self.is_sound else ():
                self.read_by(handle, "read")
        finally:
            empty(self.backend)


def empty(backend: Backend) -> None:
    if isinstance(backend, MemoryBackend):
        backend.forget()
    elif isinstance(backend, LocalBackend | GenericBackend):
        if os.path.exists(backend.root):
            shutil.rmtree(backend.root)
    elif isinstance(backend, S3Backend):
        assert backend.unfinished_uploads() == []
        keys = [{"Key": backend.inside + key} for key in glance(backend)]
        if keys:
            backend.client.delete_objects(Bucket=backend.bucket, Delete={"Objects": keys})
        assert not glance(backend)


def quiet() -> None:
    """Is called first in the other process, which so imports this module, and silences its log."""
    logging.disable()
