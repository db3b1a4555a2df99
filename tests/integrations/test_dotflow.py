"""dotflow 1.0.1 on a `CheckpointStore`: its own contract, and what it does not keep alone."""

from __future__ import annotations

import multiprocessing
import os
import unittest
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from checkpoint_store import CheckpointStore, InputChangedError, Task, resume

from ..harness.backends import make_backend

pytest.importorskip("dotflow", reason="needs the extra integrations")

from dotflow import Config, DotFlow, action
from dotflow.core.context import Context
from dotflow.providers import StorageFile
from dotflow.testing import StorageContract

from .dotflow_storage import RunStorage

pytestmark = [
    pytest.mark.slow,
    # dotflow forks for its parallel mode, as Python 3.12 and later warn.
    pytest.mark.filterwarnings(
        r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning"
    ),
]

CALLS: list[str] = []
MEANWHILE: list[Callable[[], None]] = []
WORKFLOW = "11111111-2222-3333-4444-555555555555"


@action
def extract(initial_context: Any) -> Any:
    CALLS.append("extract")
    while MEANWHILE:
        MEANWHILE.pop()()
    return {"rows": [int(number) for number in initial_context.storage["rows"]]}


@action
def total(initial_context: Any, previous_context: Any) -> Any:
    CALLS.append("total")
    if initial_context.storage.get("dies"):
        os._exit(1)
    return sum(previous_context.storage["rows"])


@action
class Ends:
    @action
    def low(self, initial_context: Any) -> Any:
        return min(initial_context.storage["rows"])

    @action
    def high(self, initial_context: Any) -> Any:
        return max(initial_context.storage["rows"])


@action
def spread(previous_context: Any) -> Any:
    low, high = (context.storage for context in previous_context.storage)
    return high - low


def start(
    storage: Any, initial: Any, steps: Any = (extract, total), **options: Any
) -> tuple[list[Any], list[str]]:
    """Runs the steps with fixed task ids, and returns their results and which of them ran."""
    CALLS.clear()
    flow = DotFlow(config=Config(storage=storage), workflow_id=WORKFLOW)
    for number, step in enumerate(steps):
        flow.task.add(step=step, initial_context=initial)
        flow.task.queue[-1].task_id = str(number)
    flow.start(resume=True, **options)
    return flow.result_storage(), CALLS


def resume_and_start(
    store: CheckpointStore, rows: Any, policy: Any, **more: Any
) -> tuple[list[Any], list[str]]:
    run = resume(store, WORKFLOW, {"rows": rows}, on_input_change=policy)
    return start(RunStorage(run), {"rows": rows, **more})


def test_only_the_steps_that_depend_on_a_change_run_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    first, second = f"{WORKFLOW}-0", f"{WORKFLOW}-1"
    tasks = {first: Task(uses=["rows"]), second: Task(uses=["unit"], after=[first])}

    def run(**inputs: Any) -> list[str]:
        handle = resume(store, WORKFLOW, inputs, on_input_change="reset", tasks=tasks)
        return list(start(RunStorage(handle), inputs)[1])

    assert run(rows=[1, 2], unit="EUR") == ["extract", "total"]
    assert run(rows=[1, 2], unit="USD") == ["total"]
    assert run(rows=[1, 3], unit="USD") == ["extract", "total"]


@dataclass
class Clock:
    """Stands in for `time`, so that no test has to wait until something expires."""

    now: float = 0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Contract(StorageContract):
    kind: str

    @pytest.fixture(autouse=True)
    def prepare(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.backend = make_backend(self.kind, tmp_path, request)
        clock = Clock()
        for module in (RunStorage.__module__, StorageContract.__module__):
            monkeypatch.setattr(f"{module}.time", clock)

    def make_storage(self) -> RunStorage:
        return RunStorage(self.backend.store().run("contract"))


class TestContractInMemory(Contract, unittest.TestCase):
    kind = "memory"


class TestContractOnDisk(Contract, unittest.TestCase):
    kind = "local"


class TestContractOnS3(Contract, unittest.TestCase):
    kind = "moto"


@pytest.fixture(params=["local", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return make_backend(request.param, tmp_path, request).store()


def in_new_process(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result(300)


def test_a_flow_whose_process_died_is_resumed_by_another(store: CheckpointStore) -> None:
    with pytest.raises(BrokenProcessPool):
        in_new_process(resume_and_start, store, [1, 2], "raise", dies=True)
    resumed = in_new_process(resume_and_start, store, [1, 2], "raise")
    assert resumed == ([{"rows": [1, 2]}, 3], ["total"])
    again = in_new_process(resume_and_start, store, [1, 2], "raise")
    assert again == ([{"rows": [1, 2]}, 3], [])


def test_each_policy_does_to_a_flow_what_it_should(store: CheckpointStore) -> None:
    assert resume_and_start(store, [1, 2], "reset") == ([{"rows": [1, 2]}, 3], ["extract", "total"])
    with pytest.raises(InputChangedError, match="'rows'"):
        resume_and_start(store, [1, 4], "raise")
    assert resume_and_start(store, [1, 4], "reuse") == ([{"rows": [1, 2]}, 3], [])
    assert resume_and_start(store, [1, 4], "reset") == ([{"rows": [1, 4]}, 5], ["extract", "total"])
    assert resume_and_start(store, [1, 4], "raise") == ([{"rows": [1, 4]}, 5], [])


def test_a_step_that_is_a_class_hands_on_the_contexts_of_its_methods(
    store: CheckpointStore,
) -> None:
    for _ in range(2):
        run = resume(store, WORKFLOW, {"rows": [1, 4]}, on_input_change="raise")
        results, _ = start(RunStorage(run), {"rows": [1, 4]}, (Ends, spread))
        assert [context.storage for context in results[0]] == [1, 4]
        assert results[1] == 3


def test_forked_workers_write_into_the_run(store: CheckpointStore) -> None:
    run = resume(store, WORKFLOW, {"rows": [1, 4]}, on_input_change="raise")
    results, _ = start(RunStorage(run), {"rows": [1, 4]}, [extract] * 3, mode="parallel")
    assert results == [{"rows": [1, 4]}] * 3
    assert len(run.load_many([f"{WORKFLOW}-{number}" for number in range(3)])) == 3


# What dotflow's own file storage does, and ours does not


@dataclass
class Both:
    """One flow on dotflow's own file storage and one on ours, under the same policy."""

    folder: Path

    def __post_init__(self) -> None:
        self.theirs = StorageFile(path=str(self.folder / "theirs"))
        self.store = CheckpointStore(self.folder / "ours")

    def start_theirs(self, rows: Any, policy: str) -> Any:
        return start(self.theirs, {"rows": rows}, on_input_change=policy)[0][-1]

    def start_ours(self, rows: Any, policy: Any) -> Any:
        return resume_and_start(self.store, rows, policy)[0][-1]


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def test_a_change_within_a_large_array_is_noticed_by_ours_and_not_by_theirs(both: Both) -> None:
    before, after = np.arange(2000), np.arange(2000)
    after[1000] = 0  # numpy leaves the middle out of the text that dotflow compares.
    assert both.start_theirs(before, "raise") == both.start_ours(before, "raise") == 1_999_000

    assert both.start_theirs(after, "raise") == 1_999_000
    with pytest.raises(InputChangedError, match="'rows'"):
        both.start_ours(after, "raise")
    assert both.start_ours(after, "reset") == 1_998_000


def test_a_late_worker_of_the_old_inputs_is_kept_out_by_ours_and_not_by_theirs(both: Both) -> None:
    assert both.start_theirs([1, 2], "reset") == both.start_ours([1, 2], "reset") == 3
    ours = RunStorage(both.store.run(WORKFLOW))

    def finish_late(storage: Any) -> Callable[[], None]:
        key = storage.key(SimpleNamespace(workflow_id=WORKFLOW, task_id="1"))
        return lambda: storage.post(key, Context(3))

    MEANWHILE.append(finish_late(both.theirs))
    assert both.start_theirs([1, 4], "reset") == 3
    MEANWHILE.append(finish_late(ours))
    assert both.start_ours([1, 4], "reset") == 5


def test_clearing_a_workflow_keeps_its_sibling_in_ours_and_not_in_theirs(both: Both) -> None:
    names = ("orders", "orders-eu")
    ours = {name: RunStorage(both.store.run(name)) for name in names}
    for name in names:
        both.theirs.post(f"{name}-0", Context(name))
        ours[name].post(f"{name}-0", Context(name))

    both.theirs.clear("orders")
    both.store.clear("orders")

    assert both.theirs.get("orders-eu-0").storage is None
    assert ours["orders"].get("orders-0").storage is None
    assert ours["orders-eu"].get("orders-eu-0").storage == "orders-eu"


def test_a_step_that_failed_before_hands_on_its_result_in_ours_and_more_in_theirs(
    both: Both,
) -> None:
    def fail() -> None:
        raise OSError("no network")

    for start_one, expected in ((both.start_ours, 3), (both.start_theirs, None)):
        MEANWHILE.append(fail)
        assert start_one([1, 2], "raise") is None
        assert start_one([1, 2], "raise") == expected
