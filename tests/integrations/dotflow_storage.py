"""A dotflow storage on a run of a `CheckpointStore`.

    tasks = {f"{workflow_id}-0": Task(uses=["rows"])}  # A step comes after the one before it.
    run = resume(store, workflow_id, inputs, on_input_change="reset", tasks=tasks)
    flow = DotFlow(config=Config(storage=RunStorage(run)), workflow_id=workflow_id)
    flow.start(resume=True)

The policy has been applied before dotflow starts, so leave out its own. Fix the ids of its tasks.
"""

import threading
import time
from typing import Any

from dotflow.abc.storage import Storage
from dotflow.core.context import Context

from checkpoint_store import CheckpointNotFoundError, Run


class RunStorage(Storage):
    _swapping = threading.Lock()

    def __init__(self, run: Run) -> None:
        self._run = run

    def key(self, task: Any) -> str:
        return f"{task.workflow_id}-{task.task_id}"

    def post(self, key: str, context: Context, ttl: float | None = None, **_: Any) -> None:
        expires = None if ttl is None else time.time() + ttl
        value = context.storage  # Of a step that is a class, a list of contexts.
        parts = isinstance(value, list) and [x.storage for x in value if isinstance(x, Context)]
        self._run.dump(key, {"value": parts or value, "many": bool(parts), "expires": expires})

    def get(self, key: str) -> Context:
        try:
            stored = self._run.load(key)
        except CheckpointNotFoundError:
            return Context()
        if stored["expires"] is not None and time.time() >= stored["expires"]:
            return Context()
        return Context([Context(x) for x in stored["value"]] if stored["many"] else stored["value"])

    def delete(self, key: str) -> bool:
        present = key in self._run
        self._run.delete(key)
        return present

    def delete_prefix(self, prefix: str) -> int:
        return sum(self.delete(key) for key in self.list_keys(prefix))

    def list_keys(self, prefix: str) -> list[str]:
        return [key for key in self._run.tasks() if key.startswith(prefix)]

    def atomic_swap(self, key: str, expected: Any, new: Any, **options: Any) -> bool:
        with self._swapping:  # Among the threads of this process.
            if matches := self.get(key).storage == expected:
                self.post(key, new if isinstance(new, Context) else Context(new), **options)
            return matches
