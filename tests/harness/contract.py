"""What the tests of the promises share: the inputs, and the states a workflow can be found in."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    Decision,
    Run,
    Task,
    fingerprint,
    plan,
    resume,
)
from checkpoint_store._filesystems.base import Filesystem
from checkpoint_store._filesystems.loop import LoopFilesystem

from . import backends
from .backends import RECORD, Untouchable

INPUTS = {"day": "2026-11-23", "limit": 5}
OTHER_INPUTS = {"day": "2026-11-24", "limit": 5}

TASKS = {
    "load": Task(uses=["day"]),
    "train": Task(uses=["rate"], after=["load"]),
    "plot": Task(uses=["colour"], after=["train"]),
}
USED = {"day": "2026-11-23", "rate": 0.1, "colour": "red"}
"""The inputs that `TASKS` use, each task one of them. A task `report` is not declared."""

EVERY = (*TASKS, "report")
OLD = {task: f"{task} of the old inputs" for task in EVERY}
UNCHANGED = "everything used is unchanged"

at_hand = pytest.mark.parametrize("backend", ["memory", "local", "generic"], indirect=True)
"""For what is decided before anything is sent: no server makes a difference, and these are fast."""


def key_of(run: Run, segment: str) -> str:
    return f"wf/{segment}@{run.token}"


def untouchable(store: CheckpointStore) -> CheckpointStore:
    """Returns the store, which from now on fails the test if it reads or writes anything."""
    store._filesystem = Untouchable()
    return store


# Declared tasks


def resumed(
    store: CheckpointStore, policy: Any = "reset", tasks: Any = TASKS, **changes: Any
) -> Run:
    """A run of the workflow `wf` on `USED` with changes. The plan was what it decided."""
    inputs = {**USED, **changes}
    planned = plan(store, "wf", inputs, on_input_change=policy, tasks=tasks)
    run = resume(store, "wf", inputs, on_input_change=policy, tasks=tasks)
    assert planned == run.decision
    return run


def computed(store: CheckpointStore) -> Run:
    """A run on `USED` that has computed every task."""
    run = resumed(store)
    run.dump_many(OLD)
    return run


def only(*tasks: str) -> dict[str, str]:
    return {task: OLD[task] for task in tasks}


def decision_of(run: Run) -> Decision:
    assert run.decision is not None
    return run.decision


def found_by(run: Run, tasks: Sequence[str] = EVERY) -> dict[str, Any]:
    """What the run loads of these tasks, which is all that a listing shows to it."""
    found = run.load_many(tasks)
    assert found == run.load_many()
    return found


def check_every_way_of_reading(run: Run, expected: Mapping[str, object]) -> None:
    """Checks that the run finds these tasks by all its calls, and that a worker does, too."""
    payloads = {task: json.dumps(value).encode() for task, value in expected.items()}
    worker = pickle.loads(pickle.dumps(run))
    assert expected == found_by(worker) == found_by(run)
    assert payloads.keys() == worker.tasks()
    assert payloads == worker.read_many()
    for task in EVERY:
        assert (task in worker) == (task in expected)
        if task in expected:
            assert payloads[task] == worker.read(task)
            assert expected[task] == worker.load(task)
            with worker.open(task) as stream:
                assert payloads[task] == stream.read()
        else:
            for read in (worker.read, worker.load, worker.open):
                with pytest.raises(CheckpointNotFoundError):
                    read(task)
    worker._filesystem.close()


def checkpoints(backend: backends.Backend) -> dict[str, bytes]:
    """The checkpoint files of the workflow `wf`, by their names."""
    files = {key.removeprefix("wf/"): data for key, data in backend.files().items()}
    return {name: data for name, data in files.items() if name != RECORD}


def record_of(backend: backends.Backend) -> dict[str, Any]:
    """What is in the record of the workflow `wf`."""
    record: dict[str, Any] = json.loads(backend.files()[f"wf/{RECORD}"])
    return record


# States of the workflow `wf`


def no_record(backend: backends.Backend, _: CheckpointStore) -> None:
    assert backend.files() == {}


def same_inputs(backend: backends.Backend, store: CheckpointStore) -> None:
    resume(store, "wf", INPUTS, on_input_change="raise").write("old", b"old")
    assert len(backend.files()) == 2


def other_inputs(backend: backends.Backend, store: CheckpointStore) -> None:
    resume(store, "wf", OTHER_INPUTS, on_input_change="raise").write("old", b"old")
    assert len(backend.files()) == 2


def mixed(backend: backends.Backend, store: CheckpointStore) -> None:
    same_inputs(backend, store)
    resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    record = json.loads(backend.files()[f"wf/{RECORD}"])
    assert record["base"]
    assert fingerprint(INPUTS) == record["fingerprint"]


def without_fingerprint(backend: backends.Backend, store: CheckpointStore) -> None:
    store.run("wf").write("old", b"old")
    assert json.loads(backend.files()[f"wf/{RECORD}"])["fingerprint"] is None


def corrupt(backend: backends.Backend, store: CheckpointStore) -> None:
    same_inputs(backend, store)
    backend.put(f"wf/{RECORD}", backend.files()[f"wf/{RECORD}"][:-9])


def newer(backend: backends.Backend, store: CheckpointStore) -> None:
    same_inputs(backend, store)
    record = json.loads(backend.files()[f"wf/{RECORD}"])
    backend.put(f"wf/{RECORD}", json.dumps({**record, "checkpoint_store": 3}).encode())


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def refuse_to_delete(
    patch: pytest.MonkeyPatch, filesystem: Filesystem, refused: Callable[[str], bool]
) -> None:
    """Makes the storage keep the keys that `refused` picks, with a reason."""
    delete = filesystem.delete

    def split(keys: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        kept = {key: "not allowed" for key in keys if refused(key)}
        return kept, [key for key in keys if key not in kept]

    def delete_others(keys: Sequence[str]) -> dict[str, str]:
        kept, others = split(keys)
        return kept | delete(others)

    if not isinstance(filesystem, LoopFilesystem):
        patch.setattr(filesystem, "delete", delete_others)
        return
    adelete = filesystem.adelete

    async def adelete_others(keys: Sequence[str]) -> dict[str, str]:
        kept, others = split(keys)
        return kept | await adelete(others)

    patch.setattr(filesystem, "adelete", adelete_others)
