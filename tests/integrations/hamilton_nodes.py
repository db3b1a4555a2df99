"""Nodes of Hamilton's graph as tasks of a run of a `CheckpointStore`.

    graph = driver.Builder().with_modules(pipeline).build()
    run = resume(store, "model", inputs, on_input_change="reset", tasks=tasks_of(graph, inputs))
    builder = driver.Builder().with_modules(pipeline).with_adapters(RunNodes(run))
    builder.build().execute(["plot"], inputs=inputs)

A node is computed again if an input changed that it depends on, or the source of a function on the
way; all others are loaded. A driver's configuration counts as inputs, too: pass it along in
`inputs`. A node that reads a file or calls a helper which changes needs an input that says so.
Nodes that a dynamic executor runs, in parallel blocks and beside them, are computed each time.
"""

from collections.abc import Mapping
from typing import Any

from hamilton.driver import Driver
from hamilton.lifecycle import GraphExecutionHook, NodeExecutionMethod

from checkpoint_store import CheckpointNotFoundError, Run, Task


def tasks_of(graph: Driver, inputs: Mapping[str, Any]) -> dict[str, Task]:
    """What each node depends on. Its version is Hamilton's digest of its source."""
    nodes = {node.name: node for node in graph.list_available_variables()}
    computed = {name for name, node in nodes.items() if not node.is_external_input}
    given = inputs.keys() | graph.graph.config.keys()
    tasks = {}
    for name in computed:
        needed = nodes[name].required_dependencies | (nodes[name].optional_dependencies & given)
        needed |= nodes[name].optional_dependencies & computed
        after = needed & computed
        tasks[name] = Task(uses=needed - after, after=after, version=nodes[name].version)
    return tasks


class RunNodes(NodeExecutionMethod, GraphExecutionHook):
    def __init__(self, run: Run) -> None:
        self._run = run

    def run_before_graph_execution(self, *, overrides: Any, **_: Any) -> None:
        if overrides:
            raise ValueError("results that follow from overrides would be stored: leave them out")

    def run_after_graph_execution(self, **_: Any) -> None:
        pass

    def run_to_execute_node(
        self, *, node_name: str, node_callable: Any, node_kwargs: Any, task_id: Any, **_: Any
    ) -> Any:
        if task_id is not None:
            return node_callable(**node_kwargs)
        try:
            return self._run.load(node_name)
        except CheckpointNotFoundError:
            return self._run.dump(node_name, node_callable(**node_kwargs))
