"""Dagster materializes the assets that depend on a change, and loads the rest through a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointNotFoundError, CheckpointStore, resume

if importlib.util.find_spec("dagster") is None:
    pytest.skip("needs the extra integrations", allow_module_level=True)

from dagster import (
    AssetsDefinition,
    DagsterInstance,
    StaticPartitionsDefinition,
    asset,
    materialize,
)

from .dagster_assets import RunIOManager, missing, tasks_of

INPUTS = {"day": 3, "rate": 2, "colour": "red"}
now: dict[str, Any] = {}
computed: list[str] = []


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral(tempdir=str(tmp_path / "dagster")) as instance:
        yield instance


def assets(version: str = "1") -> list[AssetsDefinition]:
    @asset(metadata={"uses": ["day"]})
    def loaded() -> int:
        computed.append("loaded")
        return int(now["day"])

    @asset(key_prefix=["models", "small"], code_version=version, metadata={"uses": ["rate"]})
    def trained(loaded: int) -> int:
        computed.append("trained")
        return loaded * int(now["rate"])

    @asset(metadata={"uses": ["colour"]}, ins={})
    def legend() -> str:
        computed.append("legend")
        return str(now["colour"])

    @asset(deps=[legend], metadata={"uses": []})
    def everything() -> str:
        computed.append("everything")
        return "all"

    return [loaded, trained, legend, everything]


def materialized(
    store: CheckpointStore, instance: DagsterInstance, version: str = "1", **changes: Any
) -> set[str]:
    """Which assets were computed."""
    computed.clear()
    now.update({**INPUTS, **changes})
    wanted = assets(version)
    tasks = tasks_of(wanted)
    run = resume(store, "report", dict(now), on_input_change="reset", tasks=tasks)
    if selection := missing(run, wanted):
        done = materialize(
            wanted,
            selection=selection,
            resources={"io_manager": RunIOManager(run)},
            instance=instance,
        )
        assert done.success
    assert missing(run, wanted) == []
    assert run.load("models/small/trained") == now["day"] * now["rate"]
    return set(computed)


def test_only_what_depends_on_a_change_is_materialized(
    tmp_path: Path, instance: DagsterInstance
) -> None:
    store = CheckpointStore(tmp_path / "store")
    everything = {"loaded", "trained", "legend", "everything"}
    assert materialized(store, instance) == everything
    assert materialized(store, instance) == set()
    assert materialized(store, instance, colour="blue") == {"legend", "everything"}
    assert materialized(store, instance, colour="blue", rate=5) == {"trained"}
    assert materialized(store, instance, colour="blue", rate=5, day=4) == {"loaded", "trained"}
    assert materialized(store, instance, "2", colour="blue", rate=5, day=4) == {"trained"}


def test_what_was_never_stored_is_an_error_to_dagster(
    tmp_path: Path, instance: DagsterInstance
) -> None:
    now.update(INPUTS)
    wanted = assets()
    run = resume(CheckpointStore(tmp_path / "store"), "report", INPUTS, on_input_change="reset")
    with pytest.raises(CheckpointNotFoundError, match="models/small"):
        run.load("models/small/trained")
    done = materialize(
        wanted,
        selection=[next(iter(wanted[1].keys))],
        resources={"io_manager": RunIOManager(run)},
        instance=instance,
        raise_on_error=False,
    )
    assert not done.success


def test_a_partitioned_asset_is_refused(tmp_path: Path, instance: DagsterInstance) -> None:
    @asset(partitions_def=StaticPartitionsDefinition(["a", "b"]))
    def part() -> int:
        return 1

    run = CheckpointStore(tmp_path / "store").run("report")
    with pytest.raises(Exception, match="would share one checkpoint"):
        materialize(
            [part],
            resources={"io_manager": RunIOManager(run)},
            instance=instance,
            partition_key="a",
        )
    assert run.tasks() == set()
