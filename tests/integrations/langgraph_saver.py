"""A LangGraph checkpointer on a run of a `CheckpointStore`.

    run = resume(store, "report", inputs, on_input_change="reset")
    graph = builder.compile(checkpointer=RunSaver(run))
    config = {"configurable": {"thread_id": "report"}}
    graph.invoke(None if graph.get_state(config).values else inputs, config)

It reads the run once and writes each call through, so make one for each time that a graph is run.
A checkpoint of LangGraph is the state of the whole graph, so there are no tasks to declare.
"""

import asyncio
from typing import Any

from langgraph.checkpoint.base import get_checkpoint_metadata
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver

from checkpoint_store import Run


class RunSaver(InMemorySaver):
    def __init__(self, run: Run, **options: Any) -> None:
        super().__init__(**options)
        self._run = run
        for name, payload in sorted(run.read_many().items()):
            kind, _, data = payload.partition(b"\n")
            call = super().put if name.endswith(".put") else super().put_writes
            call(*self.serde.loads_typed((kind.decode(), data)))

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        metadata = get_checkpoint_metadata(config, metadata)
        self._append("put", config, checkpoint, metadata, new_versions)
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        self._append("put_writes", config, writes, task_id, task_path)
        super().put_writes(config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        for name in self._run.tasks():
            if name.rsplit(".", 2)[0] == str(thread_id):
                self._run.delete(name)
        super().delete_thread(thread_id)

    def _append(self, method: str, config: Any, *arguments: Any) -> None:
        at = {"checkpoint_ns": "", "checkpoint_id": None, **config["configurable"]}
        at = {key: at[key] for key in ("thread_id", "checkpoint_ns", "checkpoint_id")}
        kind, data = self.serde.dumps_typed(({"configurable": at}, *arguments))
        name = f"{at['thread_id']}.{uuid6()}.{method}"  # They sort in the order of the calls.
        self._run.write(name, kind.encode() + b"\n" + data)

    async def aput(self, *arguments: Any) -> Any:
        return await asyncio.to_thread(self.put, *arguments)

    async def aput_writes(self, *arguments: Any, **options: Any) -> None:
        await asyncio.to_thread(self.put_writes, *arguments, **options)

    async def adelete_thread(self, thread_id: str) -> None:
        await asyncio.to_thread(self.delete_thread, thread_id)
