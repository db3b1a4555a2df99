"""Assets of Dagster as tasks of a run of a `CheckpointStore`.

    @asset(code_version="1", metadata={"uses": ["day"]})
    def orders(): ...

    tasks = tasks_of(assets)
    run = resume(store, "report", inputs, on_input_change="reset", tasks=tasks)
    io = {"io_manager": RunIOManager(run)}
    if selection := missing(run, assets):
        materialize(assets, selection=selection, resources=io)

Dagster knows which assets an asset comes after and its code version, and not which inputs it reads,
as from its configuration: `metadata` says it, and one without `uses` depends on all inputs. What
returns nothing is never stored, and of partitioned assets each partition would need a run.
"""

from collections.abc import Iterable, Sequence

from dagster import AssetKey, AssetsDefinition, InputContext, IOManager, OutputContext

from checkpoint_store import Run, Task


def name_of(key: AssetKey) -> str:
    return key.to_escaped_user_string()


def tasks_of(assets: Iterable[AssetsDefinition]) -> dict[str, Task]:
    """What each asset depends on. Those that are not among `assets` are nobody's concern here."""
    specs = [spec for asset in assets for spec in asset.specs]
    known = {spec.key for spec in specs}
    return {
        name_of(spec.key): Task(
            uses=spec.metadata.get("uses"),
            after=[name_of(dep.asset_key) for dep in spec.deps if dep.asset_key in known],
            version=spec.code_version,
        )
        for spec in specs
    }


def missing(run: Run, assets: Iterable[AssetsDefinition]) -> Sequence[AssetKey]:
    """The assets that have to be materialized."""
    stored = run.tasks()
    return [key for asset in assets for key in asset.keys if name_of(key) not in stored]


class RunIOManager(IOManager):
    def __init__(self, run: Run) -> None:
        self._run = run

    def handle_output(self, context: OutputContext, obj: object) -> None:
        if context.has_asset_partitions:
            raise ValueError("partitions of an asset would share one checkpoint")
        self._run.dump(name_of(context.asset_key), obj)

    def load_input(self, context: InputContext) -> object:
        return self._run.load(name_of(context.asset_key))
