"""Prefect 3, offline on a server of its own, with its results in a `CheckpointStore`.

It reads its settings when it is imported, so that happens in other processes than this one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from checkpoint_store import CheckpointStore, InputChangedError, Run, Task, resume

from ..harness.backends import make_backend
from ..harness.environment import TIMEOUT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("prefect") is None, reason="needs the extra integrations"
    ),
]


def start(results: CheckpointStore | Path, prices: list[int], policy: Any) -> Any:
    """Runs a flow with its results in a store or, without ours, in a folder, and tells which of
    its tasks ran."""
    from prefect import flow, task

    from .prefect_storage import RunStorage

    calls = []

    @task(result_storage_key="prices", cache_result_in_memory=False)
    def get_prices(prices: list[int]) -> list[int]:
        calls.append("prices")
        return prices

    @task(result_storage_key="total", cache_result_in_memory=False)
    def get_total(prices: list[int]) -> int:
        calls.append("total")
        return sum(prices)

    @flow(persist_result=False)
    def pipeline(prices: list[int]) -> int:
        return get_total(get_prices(prices))

    if isinstance(results, CheckpointStore):
        run = resume(results, "sum", {"prices": prices}, on_input_change=policy)
        return pipeline.with_options(result_storage=RunStorage.of(run))(prices), calls
    return pipeline.with_options(result_storage=results)(prices), calls


def start_declared(store: CheckpointStore, unit: str) -> Any:
    """Runs a flow of which the last task alone uses the unit, and tells which of its tasks ran."""
    from prefect import flow, task

    from .prefect_storage import RunStorage

    calls = []

    @task(result_storage_key="total", cache_result_in_memory=False)
    def get_total() -> int:
        calls.append("total")
        return 6

    @task(result_storage_key="text", cache_result_in_memory=False)
    def get_text(total: int) -> str:
        calls.append("text")
        return f"{total} {unit}"

    @flow(persist_result=False)
    def pipeline() -> str:
        return get_text(get_total())

    tasks = {"total": Task(uses=[]), "text": Task(uses=["unit"], after=["total"])}
    run = resume(store, "text", {"unit": unit}, on_input_change="reset", tasks=tasks)
    return pipeline.with_options(result_storage=RunStorage.of(run))(), calls


def start_on_a_loop(store: CheckpointStore) -> Any:
    """Also tells whether the loop had to wait for the storage."""
    from prefect import flow, task

    from .prefect_storage import RunStorage

    calls = []
    waited = []

    @task(result_storage_key="answer", cache_result_in_memory=False)
    async def get_answer() -> int:
        calls.append("answer")
        return 42

    @flow(persist_result=False)
    async def pipeline() -> int:
        return await get_answer()

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            waited.append(threading.current_thread() is threading.main_thread())
            return method(*arguments)

        return call

    storage = RunStorage.of(store.run("answer"))
    with patch.multiple(Run, read=watched(Run.read), write=watched(Run.write)):
        answer = asyncio.run(pipeline.with_options(result_storage=storage)())
    assert waited
    return answer, calls, any(waited)


def start_nested(store: CheckpointStore, *, in_memory: bool) -> list[int]:
    """Runs a flow within another for two workflows in turn, and for the first one again."""
    from prefect import flow, task

    from .prefect_storage import RunStorage

    @task(result_storage_key="double", cache_result_in_memory=in_memory)
    def double(number: int) -> int:
        return 2 * number

    @flow(persist_result=False)
    def inner(number: int) -> int:
        return double(number)

    @flow(persist_result=False)
    def outer() -> list[int]:
        return [inner.with_options(result_storage=runs[number])(number) for number in (1, 2, 1)]

    runs = {number: RunStorage.of(store.run(f"nested-{number}")) for number in (1, 2)}
    return outer()


def set_environment(values: dict[str, str]) -> None:
    os.environ.update(values)


Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Calls a function in a process that has a Prefect of its own."""
    environment = {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(TIMEOUT),
        "DO_NOT_TRACK": "1",
    }
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, set_environment, (environment,)) as pool:
        yield lambda *arguments, **options: pool.submit(*arguments, **options).result(TIMEOUT)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointStore]:
    with make_backend(getattr(request, "param", "moto"), tmp_path, request).store() as store:
        yield store


@pytest.mark.parametrize("store", ["local", "moto"], indirect=True)
def test_a_flow_that_is_run_again_loads_its_results(call: Call, store: CheckpointStore) -> None:
    assert call(start, store, [1, 2], "raise") == (3, ["prices", "total"])
    assert store.run("sum").tasks() == {"prices", "total"}
    store.run("sum").delete("total")
    assert call(start, store, [1, 2], "raise") == (3, ["total"])


def test_each_policy_does_to_a_flow_what_it_should(call: Call, store: CheckpointStore) -> None:
    assert call(start, store, [1, 2], "raise") == (3, ["prices", "total"])
    with pytest.raises(InputChangedError, match="'prices'"):
        call(start, store, [1, 4], "raise")
    assert call(start, store, [1, 4], "reuse") == (3, [])
    assert call(start, store, [1, 4], "reset") == (5, ["prices", "total"])


def test_only_the_tasks_that_depend_on_a_change_run_again(
    call: Call, store: CheckpointStore
) -> None:
    assert call(start_declared, store, "EUR") == ("6 EUR", ["total", "text"])
    assert call(start_declared, store, "USD") == ("6 USD", ["text"])
    assert call(start_declared, store, "USD") == ("6 USD", [])


def test_prefect_alone_returns_the_result_of_the_old_inputs(call: Call, tmp_path: Path) -> None:
    assert call(start, tmp_path, [1, 2], None) == (3, ["prices", "total"])
    assert call(start, tmp_path, [1, 4], None) == (3, [])


def test_a_flow_on_an_event_loop_loads_its_results_beside_it(
    call: Call, store: CheckpointStore
) -> None:
    assert call(start_on_a_loop, store) == (42, ["answer"], False)
    assert call(start_on_a_loop, store) == (42, [], False)


def test_a_damaged_result_is_computed_again(call: Call, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    call(start, store, [1, 2], "raise")
    (file,) = tmp_path.glob("sum/total@*")
    file.write_bytes(file.read_bytes()[:-1])
    assert call(start, store, [1, 2], "raise") == (3, ["total"])


@pytest.mark.parametrize(("in_memory", "last"), [(False, 2), (True, 4)])
def test_nested_flows_with_a_run_each_need_prefect_to_remember_nothing(
    call: Call, tmp_path: Path, *, in_memory: bool, last: int
) -> None:
    store = CheckpointStore(tmp_path)
    assert call(start_nested, store, in_memory=in_memory) == [2, 4, last]
