"""LangGraph on a `CheckpointStore`: its own conformance suite, and graphs that are resumed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest

from checkpoint_store import CheckpointStore, InputChangedError, resume

from ..harness.backends import make_backend

pytest.importorskip("langgraph.checkpoint.conformance", reason="needs the extra integrations")

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.test_utils import (
    generate_checkpoint,
    generate_config,
    generate_metadata,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from .langgraph_saver import RunSaver

pytestmark = pytest.mark.slow

THREAD: Any = {"configurable": {"thread_id": "sum"}}


@pytest.fixture(params=["memory", "local", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointStore]:
    with make_backend(request.param, tmp_path, request).store() as store:
        yield store


class Reopened(RunSaver):
    """Reads with a saver that has just been made, as another process would."""

    def get_tuple(self, config: Any) -> Any:
        return RunSaver(self._run).get_tuple(config)

    def list(self, config: Any, **options: Any) -> Any:
        return RunSaver(self._run).list(config, **options)


def test_the_saver_conforms(store: CheckpointStore) -> None:
    @checkpointer_test(name="RunSaver")
    async def saver() -> AsyncIterator[BaseCheckpointSaver[Any]]:
        yield Reopened(store.run("wf"))
        store.clear("wf")

    report = asyncio.run(validate(saver))
    results = report.results.values()
    assert [failure for result in results for failure in result.failures] == []
    assert report.passed_all_base()
    assert sum(result.tests_passed for result in results) >= 58


def test_a_saver_that_is_made_later_sees_the_calls_in_their_order(store: CheckpointStore) -> None:
    saver = RunSaver(store.run("wf"))
    place = saver.put(generate_config("thread"), generate_checkpoint(), generate_metadata(), {})
    for value in range(3):
        saver.put_writes(place, [("channel", value)], "task")
    [(_, _, first)] = RunSaver(store.run("wf")).get_tuple(place).pending_writes
    assert first == 0


def test_deleting_a_thread_keeps_its_sibling(store: CheckpointStore) -> None:
    saver = RunSaver(store.run("wf"))
    for thread in ("sum", "sum.eu", "sum-eu"):
        saver.put(generate_config(thread), generate_checkpoint(), generate_metadata(), {})
    saver.delete_thread("sum")
    kept = [found.config["configurable"]["thread_id"] for found in Reopened(saver._run).list(None)]
    assert sorted(kept) == ["sum-eu", "sum.eu"]


class State(TypedDict):
    prices: list[int]
    sum: int
    rate: int
    total: int


def tell_of_sum(saver: BaseCheckpointSaver[Any]) -> threading.Event:
    """Is set when the saver has stored what the node for the sum has returned."""
    put_writes = saver.put_writes
    stored = threading.Event()

    def put_writes_and_tell(config: Any, writes: Any, *arguments: Any) -> None:
        put_writes(config, writes, *arguments)
        if "sum" in dict(writes):
            stored.set()

    saver.put_writes = put_writes_and_tell
    return stored


class Pipeline:
    """Two nodes beside each other, and one after both."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = False

    def sum(self, state: State) -> Any:
        self.calls.append("sum")
        return {"sum": sum(state["prices"])}

    def rate(self, _: State) -> Any:
        self.calls.append("rate")
        if self.fails:
            assert self.stored.wait(300)
            raise OSError("no network")
        return {"rate": 2}

    def total(self, state: State) -> Any:
        self.calls.append("total")
        return {"total": state["sum"] * state["rate"]}

    def compile(self, saver: BaseCheckpointSaver[Any]) -> Any:
        graph = StateGraph(State)
        for name in ("sum", "rate", "total"):
            graph.add_node(f"get_{name}", getattr(self, name))
        graph.add_edge(START, "get_sum")
        graph.add_edge(START, "get_rate")
        graph.add_edge(["get_sum", "get_rate"], "get_total")
        return graph.compile(checkpointer=saver)

    def start(self, saver: BaseCheckpointSaver[Any], prices: list[int]) -> int:
        """Goes on where the thread was interrupted, and has nothing to do if it was finished."""
        self.calls.clear()
        self.stored = tell_of_sum(saver)
        graph = self.compile(saver)
        begun = graph.get_state(THREAD).values
        graph.invoke(None if begun else {"prices": prices}, THREAD)
        return int(graph.get_state(THREAD).values["total"])

    def start_on(self, store: CheckpointStore, prices: list[int], policy: Any) -> int:
        run = resume(store, "sum", {"prices": prices}, on_input_change=policy)
        return self.start(RunSaver(run), prices)


def test_a_graph_goes_on_where_it_failed(store: CheckpointStore) -> None:
    pipeline = Pipeline()
    pipeline.fails = True
    with pytest.raises(OSError, match="no network"):
        pipeline.start_on(store, [1, 2], "raise")
    assert sorted(pipeline.calls) == ["rate", "sum"]

    pipeline.fails = False
    assert pipeline.start_on(store, [1, 2], "raise") == 6
    assert pipeline.calls == ["rate", "total"]
    assert pipeline.start_on(store, [1, 2], "raise") == 6
    assert pipeline.calls == []


def test_each_policy_does_to_a_graph_what_it_should(store: CheckpointStore) -> None:
    pipeline = Pipeline()
    assert pipeline.start_on(store, [1, 2], "raise") == 6
    with pytest.raises(InputChangedError, match="'prices'"):
        pipeline.start_on(store, [1, 4], "raise")
    assert pipeline.start_on(store, [1, 4], "reuse") == 6
    assert pipeline.calls == []
    assert pipeline.start_on(store, [1, 4], "reset") == 10
    assert sorted(pipeline.calls) == ["rate", "sum", "total"]


def test_langgraph_alone_goes_on_with_the_old_inputs() -> None:
    pipeline, saver = Pipeline(), InMemorySaver()
    pipeline.fails = True
    with pytest.raises(OSError, match="no network"):
        pipeline.start(saver, [1, 2])
    pipeline.fails = False
    assert pipeline.start(saver, [1, 4]) == 6


def test_a_graph_on_an_event_loop_is_resumed_too(store: CheckpointStore) -> None:
    async def start(inputs: Any) -> Any:
        graph = Pipeline().compile(RunSaver(store.run("wf")))
        return await graph.ainvoke(inputs, THREAD)

    assert asyncio.run(start({"prices": [1, 2]}))["total"] == 6
    assert asyncio.run(start(None))["total"] == 6
