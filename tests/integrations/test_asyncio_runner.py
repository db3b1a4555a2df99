"""A runner on asyncio, on a disk and on S3."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, InputChangedError, resume

from ..harness import servers
from ..harness.backends import S3Backend, make_backend
from ..harness.environment import TIMEOUT
from .asyncio_runner import run_steps


class Pipeline:
    """Two steps that wait for each other, and a third that takes the results of both."""

    def __init__(self, prices: list[int]) -> None:
        self.prices = prices
        self.calls: list[str] = []
        self.fails = False

    @property
    def steps(self) -> dict[str, tuple[Callable[..., Any], ...]]:
        self.together = asyncio.Barrier(2)
        return {
            "total": (self.total, "prices", "rate"),
            "prices": (self.get_prices,),
            "rate": (self.get_rate,),
        }

    async def get_prices(self) -> list[int]:
        self.calls.append("prices")
        await self.together.wait()
        return self.prices

    async def get_rate(self) -> int:
        self.calls.append("rate")
        await self.together.wait()
        return 2

    async def total(self, prices: list[int], rate: int) -> int:
        self.calls.append("total")
        if self.fails:
            raise OSError("no network")
        return sum(prices) * rate

    def start(self, store: CheckpointStore, policy: Any) -> Any:
        async def main() -> Any:
            inputs = {"prices": self.prices}
            run = await asyncio.to_thread(resume, store, "sum", inputs, on_input_change=policy)
            return await run_steps(run, self.steps)

        self.calls.clear()
        return asyncio.run(asyncio.wait_for(main(), TIMEOUT))["total"]


@pytest.fixture(params=["local", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckpointStore]:
    with make_backend(request.param, tmp_path, request).store() as store:
        yield store


def test_steps_run_beside_each_other_and_then_never_again(store: CheckpointStore) -> None:
    pipeline = Pipeline([1, 2])
    assert pipeline.start(store, "raise") == 6
    assert sorted(pipeline.calls) == ["prices", "rate", "total"]
    assert pipeline.start(store, "raise") == 6
    assert pipeline.calls == []


def test_what_was_finished_before_a_failure_is_kept(store: CheckpointStore) -> None:
    pipeline = Pipeline([1, 2])
    pipeline.fails = True
    with pytest.raises(ExceptionGroup) as error:
        pipeline.start(store, "raise")
    assert error.group_contains(OSError, match="no network")
    pipeline.fails = False
    assert pipeline.start(store, "raise") == 6
    assert pipeline.calls == ["total"]


def test_each_policy_does_to_a_pipeline_what_it_should(store: CheckpointStore) -> None:
    assert Pipeline([1, 2]).start(store, "raise") == 6
    changed = Pipeline([1, 4])
    with pytest.raises(InputChangedError, match="'prices'"):
        changed.start(store, "raise")
    assert changed.start(store, "reuse") == 6
    assert changed.calls == []
    assert changed.start(store, "reset") == 10
    assert sorted(changed.calls) == ["prices", "rate", "total"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_aws_environment")
def test_the_event_loop_goes_on_while_the_store_waits(moto_server: str) -> None:
    async def slow_down(_: servers.Request) -> None:
        await asyncio.sleep(0.5)

    async def turns(work: Coroutine[Any, Any, Any]) -> int:
        """How often the loop comes around until the work is done."""
        task = asyncio.create_task(work)
        count = 0
        while not task.done():
            count += 1
            await asyncio.sleep(0.001)
        assert task.result()
        return count

    with (
        servers.Proxy(moto_server).running() as proxy,
        S3Backend(moto_server, through=proxy.endpoint).store() as store,
    ):
        run = store.run("wf")
        run.dump("rate", 2)
        proxy.on_request = slow_down

        async def load_without_a_thread() -> Any:
            return run.load("rate")

        assert asyncio.run(turns(load_without_a_thread())) <= 2
        assert asyncio.run(turns(run_steps(run, {"rate": (pytest.fail,)}))) > 10
