"""Nodes of Hamilton's graph as tasks of a run of a `CheckpointStore`.

    graph = driver.Builder().with_modules(pipeline).build()
    run = resume(store, "model", inputs, on_input_change="reset", tasks=tasks_of(graph, inputs))
    builder = driver.Builder().with_modules(pipeline).with_adapters(RunNodes(run))
    builder.build().execute(["plot"], inputs=inputs)

A node is computed again if an input changed that it depends on, or the source of a function on the
way; all others are loaded. A driver's configuration counts as inputs, too: pass it along in
`inputs`. A node that reads a file or calls a helper which changes needs an input that says so.
"""

from collections.abc import Mapping
from typing import Any

from hamilton.driver import Driver
from hamilton.lifecycle import NodeExecutionMethod

from checkpoint_store import CheckpointNotFoundError, Run, Task


def tasks_of(graph: Driver, inputs: Mapping[str, Any]) -> dict[str, Task]:
    """What each node depends on. Its version is Hamilton's digest of its source."""
    nodes = {node.name: node for node in graph.list_available_variables()}
    needs = {
        name: node.required_dependencies | node.optional_dependencies
        for name, node in nodes.items()
        if not node.is_external_input
    }
    return {
        name: Task(
            uses=needed & inputs.keys(), after=needed & needs.keys(), version=nodes[name].version
        )
        for name, needed in needs.items()
    }


class RunNodes(NodeExecutionMethod):
    def __init__(self, run: Run) -> None:
        self._run = run

    def run_to_execute_node(
        self, *, node_name: str, node_callable: Any, node_kwargs: dict[str, Any], **_: Any
    ) -> Any:
        try:
            return self._run.load(node_name)
        except CheckpointNotFoundError:
            return self._run.dump(node_name, node_callable(**node_kwargs))
