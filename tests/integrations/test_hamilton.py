"""Hamilton computes what depends on a change and loads the rest, beside its own cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, InvalidTaskError, resume

if importlib.util.find_spec("hamilton") is None:
    pytest.skip("needs the extra integrations", allow_module_level=True)

from hamilton import ad_hoc_utils, driver
from hamilton.execution import executors
from hamilton.htypes import Collect, Parallelizable

from .hamilton_nodes import RunNodes, tasks_of

computed: list[str] = []


def loaded(day: str) -> list[int]:
    computed.append("loaded")
    return [len(day), 2, 3]


def trained(loaded: list[int], rate: float) -> float:
    computed.append("trained")
    return sum(loaded) * rate


def plot(trained: float, colour: Any = "red") -> str:
    computed.append("plot")
    return f"{trained} in {colour}"


def other_trained(loaded: list[int], rate: float) -> float:
    computed.append("trained")
    return sum(loaded) + rate


INPUTS = {"day": "2026-11-23", "rate": 0.5, "colour": "red"}


def pipeline(train: Any = trained) -> ModuleType:
    train.__name__ = "trained"
    return ad_hoc_utils.create_temporary_module(loaded, train, plot)


@pytest.fixture(autouse=True)
def nothing_is_computed_yet() -> Iterator[None]:
    computed.clear()
    yield
    other_trained.__name__ = "other_trained"


def executed(store: CheckpointStore, module: ModuleType, **changes: Any) -> tuple[Any, list[str]]:
    """The plot, and which nodes were computed for it."""
    computed.clear()
    inputs = {**INPUTS, **changes}
    graph = driver.Builder().with_modules(module).build()
    run = resume(store, "model", inputs, on_input_change="reset", tasks=tasks_of(graph, inputs))
    builder = driver.Builder().with_modules(module).with_adapters(RunNodes(run))
    found = builder.build().execute(["plot"], inputs=inputs)
    return found["plot"], list(computed)


def test_a_change_of_an_input_computes_what_depends_on_it(tmp_path: Path) -> None:
    store, module = CheckpointStore(tmp_path), pipeline()
    everything = ["loaded", "trained", "plot"]
    assert executed(store, module) == ("7.5 in red", everything)
    assert executed(store, module) == ("7.5 in red", [])
    assert executed(store, module, colour="blue") == ("7.5 in blue", ["plot"])
    assert executed(store, module, rate=1.0) == ("15.0 in red", ["trained", "plot"])
    assert executed(store, module, day="today") == ("5.0 in red", everything)


def test_a_change_of_the_source_computes_what_comes_after_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    executed(store, pipeline())
    assert executed(store, pipeline(other_trained)) == ("15.5 in red", ["trained", "plot"])
    assert executed(store, pipeline())[1] == []


def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    store, module = CheckpointStore(tmp_path), pipeline()
    inputs = {"day": "2026-11-23", "rate": 0.5}
    graph = driver.Builder().with_modules(module).build()
    assert tasks_of(graph, inputs)["plot"].uses == set()
    run = resume(store, "model", inputs, on_input_change="reset", tasks=tasks_of(graph, inputs))
    builder = driver.Builder().with_modules(module).with_adapters(RunNodes(run))
    assert builder.build().execute(["plot"], inputs=inputs) == {"plot": "7.5 in red"}


def test_hamiltons_own_cache_computes_the_same_nodes_or_fewer(tmp_path: Path) -> None:
    module, ours = pipeline(), CheckpointStore(tmp_path / "ours")

    def cached(**changes: Any) -> list[str]:
        computed.clear()
        builder = driver.Builder().with_modules(module).with_cache(path=str(tmp_path / "theirs"))
        builder.build().execute(["plot"], inputs={**INPUTS, **changes})
        return list(computed)

    def both(**changes: Any) -> tuple[list[str], list[str]]:
        return cached(**changes), executed(ours, module, **changes)[1]

    everything = ["loaded", "trained", "plot"]
    assert both() == (everything, everything)
    assert both() == ([], [])
    assert both(colour="blue") == (["plot"], ["plot"])
    assert both(rate=1.0, colour="blue") == (["trained", "plot"], ["trained", "plot"])
    # It keeps earlier results, which a reset has thrown away.
    assert both(colour="blue") == ([], ["trained", "plot"])
    # It goes by the content of results, and the list that is loaded for this day is the same.
    assert both(day="2026-11-24", colour="blue") == (["loaded"], everything)


def test_what_would_be_stored_wrongly_is_refused(tmp_path: Path) -> None:
    store, module = CheckpointStore(tmp_path), pipeline()
    graph = driver.Builder().with_modules(module).with_config({"rate": 2.0}).build()
    tasks = tasks_of(graph, {"day": "d"})
    with pytest.raises(InvalidTaskError, match="uses the input 'rate', which is not"):
        resume(store, "model", {"day": "d"}, on_input_change="reset", tasks=tasks)
    builder = driver.Builder().with_modules(module).with_adapters(RunNodes(store.run("model")))
    with pytest.raises(ValueError, match="overrides"):
        builder.build().execute(["plot"], inputs=INPUTS, overrides={"trained": 5})
    assert store.run("model").tasks() == set()


def numbers() -> Parallelizable[int]:
    yield from (1, 2, 3)


def squared(numbers: int) -> int:
    return numbers**2


def squares(squared: Collect[int]) -> int:
    return sum(squared)


def test_branches_of_a_parallel_block_never_share_a_checkpoint(tmp_path: Path) -> None:
    module = ad_hoc_utils.create_temporary_module(numbers, squared, squares)
    run = CheckpointStore(tmp_path).run("parallel")
    builder = driver.Builder().enable_dynamic_execution(allow_experimental_mode=True)
    parallel = builder.with_modules(module).with_adapters(RunNodes(run))
    parallel = parallel.with_remote_executor(executors.SynchronousLocalTaskExecutor())
    assert parallel.build().execute(["squares"]) == {"squares": 14}
    assert run.tasks() == set()
