"""A dotflow storage on a run of a `CheckpointStore`.

    run = resume(store, workflow_id, inputs, on_input_change="reset")
    flow = DotFlow(config=Config(storage=RunStorage(run)), workflow_id=workflow_id)
    flow.start(resume=True)

The policy has been applied before dotflow starts, and dotflow sees nothing but this generation of
this workflow, so its own fingerprint check always finds what it wrote itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from dotflow.abc.storage import Storage
from dotflow.core.context import Context

from checkpoint_store import CheckpointNotFoundError, Run


class RunStorage(Storage):
    def __init__(self, run: Run) -> None:
        self._run = run
        self._lock = threading.RLock()

    def key(self, task: Callable[..., Any]) -> str:
        return f"{task.workflow_id}-{task.task_id}"  # type: ignore[attr-defined]

    def post(self, key: str, context: Context, ttl: float | None = None, **_: Any) -> None:
        expires = None if ttl is None else time.time() + ttl
        self._run.dump(key, {"value": _plain(context.storage), "expires": expires})

    def get(self, key: str) -> Context:
        try:
            stored = self._run.load(key)
        except CheckpointNotFoundError:
            return Context()
        expired = stored["expires"] is not None and time.time() >= stored["expires"]
        return Context() if expired else Context(storage=stored["value"])

    def delete(self, key: str) -> bool:
        present = key in self._run
        self._run.delete(key)
        return present

    def delete_prefix(self, prefix: str) -> int:
        return sum(self.delete(key) for key in self.list_keys(prefix))

    def list_keys(self, prefix: str) -> Iterable[str]:
        return [key for key in self._run.tasks() if key.startswith(prefix)]

    def atomic_swap(self, key: str, expected: Any, new: Any, **options: Any) -> bool:
        with self._lock:  # Among the threads of this process.
            if self.get(key).storage != expected:
                return False
            self.post(key, new if isinstance(new, Context) else Context(storage=new), **options)
            return True


def _plain(value: Any) -> Any:
    """Steps that are classes return a list of contexts."""
    if isinstance(value, list):
        return [item.storage if isinstance(item, Context) else item for item in value]
    return value
