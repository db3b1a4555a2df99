"""What the tests of the promises share: the inputs, and the states a workflow can be found in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from checkpoint_store import CheckpointStore, Run, fingerprint, resume
from checkpoint_store._filesystems.base import Filesystem
from checkpoint_store._filesystems.loop import LoopFilesystem

from . import backends
from .backends import RECORD, Untouchable

INPUTS = {"day": "2026-11-23", "limit": 5}
OTHER_INPUTS = {"day": "2026-11-24", "limit": 5}


def key_of(run: Run, segment: str) -> str:
    return f"wf/{segment}@{run.token}"


def untouchable(store: CheckpointStore) -> CheckpointStore:
    """Returns the store, which from now on fails the test if it reads or writes anything."""
    store._filesystem = Untouchable()
    return store


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
