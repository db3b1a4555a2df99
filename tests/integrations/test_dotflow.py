"""dotflow 1.0.1 on a `CheckpointStore`: its own contract, and what it does not keep alone."""

from __future__ import annotations

import unittest
import uuid
from pathlib import Path
from typing import Any

import pytest
from dotflow import Config, DotFlow, action
from dotflow.providers import StorageFile
from dotflow.testing import StorageContract

from checkpoint_store import CheckpointStore, InputChangedError, resume

from .dotflow_storage import RunStorage

CALLS: list[str] = []


@action
def extract(initial_context: Any) -> Any:
    CALLS.append("extract")
    return {"rows": initial_context.storage["rows"]}


@action
def total(previous_context: Any) -> Any:
    CALLS.append("total")
    return sum(previous_context.storage["rows"])


def start(storage: Any, workflow_id: str, rows: list[int], **policy: str) -> Any:
    """Runs both steps with fixed task ids, as a second process would, and returns the result."""
    CALLS.clear()
    flow = DotFlow(config=Config(storage=storage), workflow_id=workflow_id)
    for step in (extract, total):
        flow.task.add(step=step, initial_context={"rows": rows})
    for number, task in enumerate(flow.task.queue):
        task.task_id = str(number)
    flow.start(resume=True, **policy)
    return flow.result_storage()[-1]


class TestContract(StorageContract, unittest.TestCase):
    def make_storage(self) -> RunStorage:
        return RunStorage(CheckpointStore(f"memory://{uuid.uuid4()}").run("contract"))


def test_a_resumed_flow_skips_what_it_has_and_resets_on_other_inputs(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    workflow_id = str(uuid.uuid4())

    def run(rows: list[int], policy: Any) -> Any:
        run = resume(store, workflow_id, {"rows": rows}, on_input_change=policy)
        return start(RunStorage(run), workflow_id, rows)

    assert run([1, 2], "reset") == 3
    assert CALLS == ["extract", "total"]
    assert run([1, 2], "raise") == 3
    assert CALLS == []
    with pytest.raises(InputChangedError, match="'rows'"):
        run([1, 2, 4], "raise")
    assert run([1, 2, 4], "reset") == 7
    assert CALLS == ["extract", "total"]


def test_dotflow_alone_returns_a_stale_result_after_a_crash_within_its_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = str(uuid.uuid4())
    storage = StorageFile(path=str(tmp_path))
    assert start(storage, workflow_id, [1, 2], on_input_change="reset") == 3

    def crash(**_: Any) -> None:
        raise KeyboardInterrupt

    # A worker of the old inputs writes late, and the reset dies before it writes its fingerprint.
    late = {path.name: path.read_bytes() for path in (tmp_path / "tasks").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("dotflow.core.workflow.write_fingerprint", crash)
        with pytest.raises(KeyboardInterrupt):
            start(storage, workflow_id, [1, 2, 4], on_input_change="reset")
    for name, data in late.items():
        if not name.endswith("_input_fp"):
            (tmp_path / "tasks" / name).write_bytes(data)

    assert start(storage, workflow_id, [1, 2, 4], on_input_change="raise") == 3
