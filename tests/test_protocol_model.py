"""The record and collect protocol: searched exhaustively as a model, which is tied to the code."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

import pytest

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    CheckpointStoreError,
    StorageError,
    resume,
)
from checkpoint_store._filesystems.base import Entry, Filesystem, Page

from . import protocol_model as model
from .protocol_model import (
    A_RAISE,
    ALSO_WRONG,
    B_BEGINS,
    B_REUSE,
    CHANGE,
    CLEAR,
    COLLECT,
    DESIGN,
    ERROR,
    LABEL,
    ONE_KEY,
    REFUSED,
    WRONG,
    A,
    B,
    Program,
    Search,
    System,
)

SHORTEST = {
    "one key per task with list-and-delete": ("LOST", 9),
    "deleting only foreign headers": ("LOST", 12),
    "the same with If-Match": ("LOST", 12),
    "token keys but deleting what is not mine": ("LOST", 11),
    "reading the record before listing": ("LOST", 13),
    "clear that deletes the record last": ("LOST", 7),
    "reset without nonce": ("LOST", 17),
    "reuse that writes into the old generation": ("STALE", 5),
    "a record with a base equals inputs": ("STALE", 5),
    "collecting the base": ("LOST", 9),
    "one key per task, and a late write": ("LOST", 10),
    "a create sent again and arriving after a clear": ("LOST", 13),
    "a create repeated after a clear": ("LOST", 13),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGN)
def test_the_design_is_right_in_every_state(name: str) -> None:
    found = Search(DESIGN[name]).explore()
    assert found.wrong is None
    assert found.states > 1000


@pytest.mark.parametrize("name", [*WRONG, *ALSO_WRONG])
def test_a_wrong_variant_is_found_wrong(name: str) -> None:
    promise, steps = SHORTEST[name]
    found = Search({**WRONG, **ALSO_WRONG}[name]).explore(merge=False)
    assert found.wrong is not None
    assert found.wrong.startswith(promise)
    assert len(found.trace) <= steps


@pytest.mark.parametrize("name", [*WRONG, *ALSO_WRONG])
def test_a_wrong_variant_differs_from_the_design_by_nothing_but_its_rules(name: str) -> None:
    system = {**WRONG, **ALSO_WRONG}[name]
    assert Search(System(system.programs, timeouts=system.timeouts)).explore().wrong is None


@pytest.mark.parametrize("name", [*WRONG, *ALSO_WRONG])
def test_merging_states_that_are_the_same_hides_nothing(name: str) -> None:
    system = {**WRONG, **ALSO_WRONG}[name]
    found = Search(system).explore(merge=False)
    merged = Search(system).explore()
    assert merged.wrong is not None
    assert merged.depth == found.depth


def test_only_the_late_write_makes_one_key_per_task_wrong_for_one_process() -> None:
    assert Search(System([CHANGE], ONE_KEY, timeouts=0)).explore().wrong is None
    assert "late" in Search(System([CHANGE], ONE_KEY)).explore(merge=False).trace[-1]


# The model and the code.

PRIMITIVES = {
    "read": ("read_small", "record"),
    "swap": ("swap", "record"),
    "detach": ("detach", "record"),
    "get": ("read", "checkpoint"),
    "put": ("write", "checkpoint"),
    "delete": ("delete", "checkpoint"),
    "list": ("list_files", "list"),
}
"""What the code calls for a request of the model, and on which kind of key."""


class Step(NamedTuple):
    """An operation, and what happens to its first request of a kind."""

    program: Program
    verb: str = ""
    fault: str = ""


XYZ = "xyz"
A_THREE, B_THREE = (model.worker, "A", "reset", XYZ), (model.worker, "B", "reset", XYZ)
A_LABEL = (model.labeller, "A", XYZ)

OPERATIONS: dict[str, list[Step]] = {
    "start": [Step(A)],
    "continue": [Step(A), Step(A)],
    "continue, with a new task": [Step(A), Step(A_THREE)],
    "raise": [Step(B), Step(A_RAISE)],
    "reuse": [Step(A), Step(B_REUSE)],
    "reuse, with a new task": [Step(A), Step((model.worker, "B", "reuse", XYZ))],
    "reuse what was reused": [Step(A), Step(B_REUSE), Step(B_REUSE)],
    "reset, two pages": [Step(A_THREE), Step(B_THREE)],
    "reset what was reused": [Step(A_THREE), Step(B_REUSE), Step(A_THREE)],
    "collect, nothing there": [Step(COLLECT)],
    "collect, all live": [Step(A_THREE), Step(COLLECT)],
    "collect, a base": [Step(A_THREE), Step(B_REUSE), Step(COLLECT)],
    "collect, two pages": [Step(A_THREE), Step(B_BEGINS, "delete", "failed"), Step(COLLECT)],
    "collect, no record": [Step(A_THREE), Step(CLEAR, "delete", "failed"), Step(COLLECT)],
    "clear, nothing there": [Step(CLEAR)],
    "clear, two pages": [Step(A_THREE), Step(CLEAR)],
    "clear again": [Step(A_THREE), Step(CLEAR, "delete", "failed"), Step(CLEAR)],
    "label what is there": [Step(A_LABEL)],
    "label, the same again": [Step(LABEL), Step(LABEL)],
    **{
        f"{name}, {verb} {fault}": [*earlier, Step(program, verb, fault)]
        for name, earlier, program, verb, faults in [
            ("start", [], A, "swap", ("lost", "failed", "refused")),
            ("reset", [Step(A_THREE)], B, "swap", ("lost", "failed", "refused")),
            ("reuse", [Step(A)], B_REUSE, "swap", ("lost", "failed", "refused")),
            ("reset", [Step(A_THREE)], B_THREE, "delete", ("lost", "failed")),
            ("start", [], A_THREE, "put", ("lost", "failed")),
            ("clear", [Step(A_THREE)], CLEAR, "detach", ("lost", "failed")),
            ("clear", [Step(A_THREE)], CLEAR, "delete", ("lost", "failed")),
        ]
        for fault in faults
    },
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_code_calls_what_the_model_requests(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint_store._filesystems.base.PAGE", 2)
    # The model has every order in which pages may be listed and deleted, this the plainest.
    monkeypatch.setattr("checkpoint_store._protocol.PAGES_AT_ONCE", 1)
    expected = requests_of_the_model(OPERATIONS[name])
    called = calls_of_the_code(OPERATIONS[name])
    if name == "collect, no record":
        assert (
            called.pop() == PRIMITIVES["list"]
        )  # While one page is looked at, the next is listed.
    assert called == [PRIMITIVES[verb] for verb in expected]


def test_every_request_of_the_model_is_compared_with_the_code() -> None:
    compared = {verb for steps in OPERATIONS.values() for verb in requests_of_the_model(steps)}
    assert set(PRIMITIVES) == compared


def requests_of_the_model(steps: Sequence[Step]) -> list[str]:
    """Those of the last step, each step having the storage to itself."""
    rules, storage, numbers = model.Rules(), model.Storage(), count()
    for program, faulty, fault in steps:
        verbs: list[str] = []
        listed: set[model.File] = set()
        generator, reply = program[0](rules, *program[1:]), None
        with suppress(StopIteration, model.StoppedError):
            while True:
                request = model.drawn(generator.send(reply), next(numbers))
                verb = request[0]
                first = verb not in verbs
                if verb == "list":
                    reply = tuple(sorted(storage.files - listed)[:2])
                    listed.update(reply)
                    # To ask again after the last page changes nothing.
                    verbs += [verb] if reply else []
                    continue
                verbs.append(verb)
                [(after, reply)] = model.apply(rules, 2, storage, request)
                if first and verb == faulty:
                    outcome = REFUSED if fault == "refused" else ERROR
                    reply = (request[2], outcome) if verb == "swap" else outcome
                    after = after if fault == "lost" else storage
                storage = after
    return verbs


def calls_of_the_code(steps: Sequence[Step]) -> list[tuple[str, str]]:
    store = CheckpointStore(f"memory://protocol-{uuid.uuid4().hex}")
    filesystem = store._filesystem
    for step in steps:
        recorder = Recorder(filesystem, PRIMITIVES.get(step.verb, ("",))[0], step.fault)
        store._filesystem = recorder  # type: ignore[assignment]
        with suppress(CheckpointStoreError):
            perform(store, *step.program)
    store._filesystem = filesystem
    store.clear("wf")
    return recorder.calls


def perform(store: CheckpointStore, program: Any, *arguments: Any) -> None:
    """What a program of the model does, done with the library."""
    if program is model.collector:
        store.collect("wf")
    elif program is model.clearer:
        store.clear("wf")
    elif program is model.labeller:
        inputs, tasks = arguments
        run = store.run("wf")
        assert run.fingerprint in (None, inputs)
        for task in tasks:
            run.write(task, b"")
        store.write_fingerprint("wf", inputs)
    else:
        assert program is model.worker
        inputs, policy, tasks = arguments
        run = resume(store, "wf", fingerprint=inputs, on_input_change=policy)
        for task in tasks:
            try:
                run.read(task)
            except CheckpointNotFoundError:
                with suppress(StorageError):
                    run.write(task, b"")


class Recorder:
    """A filesystem that notes which primitives are called on which kind of key."""

    def __init__(self, filesystem: Filesystem, faulty: str, fault: str) -> None:
        self.calls: list[tuple[str, str]] = []
        self._filesystem = filesystem
        self._faulty = faulty
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._filesystem, name)
        return self._noting(name, attribute) if callable(attribute) else attribute

    def list_files(self, folder: str, more: Any = None) -> Page[Entry]:
        page = self._filesystem.list_files(folder, more)
        if any("@" in file.name for file in page.items):
            self.calls.append(("list_files", "list"))
        return page

    def list_leftovers(self, folder: str, more: Any = None) -> Page[str]:
        return self._filesystem.list_leftovers(folder, more)

    def _noting(self, name: str, primitive: Any) -> Any:
        def call(*arguments: Any) -> Any:
            keys = arguments[0] if name == "delete" else [arguments[1 if name == "detach" else 0]]
            [kind] = {"record" if key.endswith(".fingerprint") else "checkpoint" for key in keys}
            self.calls.append((name, kind))
            if name != self._faulty:
                return primitive(*arguments)
            self._faulty = ""
            if self._fault == "refused":
                return False
            if self._fault == "lost":
                primitive(*arguments)
            raise TimeoutError(name)

        return call
