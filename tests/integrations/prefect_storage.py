"""Results of Prefect's tasks on a run of a `CheckpointStore`.

    @task(result_storage_key="extract", cache_result_in_memory=False)
    def extract(day): ...

    tasks = {"extract": Task(uses=["day"]), "plot": Task(uses=["colour"], after=["extract"])}
    run = resume(store, "orders", inputs, on_input_change="reset", tasks=tasks)
    pipeline.with_options(result_storage=RunStorage.of(run), persist_result=False)(day)

A task whose key has a result in this generation of the workflow is not run again. What comes after
what Prefect knows only while it runs, so it is declared here, by the keys of results. Prefect's own
memory knows keys and no generations, so without `cache_result_in_memory=False` nested flows with
a run each would get each other's results. Whatever goes wrong when Prefect reads a result counts
as a missing one: a damaged result is computed again.
"""

import asyncio
from typing import Any, Self

from prefect.filesystems import WritableFileSystem
from pydantic import PrivateAttr

from checkpoint_store import Run


class RunStorage(WritableFileSystem):
    _run: Run = PrivateAttr()

    @classmethod
    def of(cls, run: Run) -> Self:
        storage = cls()
        storage._run = run
        # Prefect demands it. Nothing of the run is in there, and no credentials.
        storage.save("checkpoint-store-run", overwrite=True, _sync=True)
        return storage

    def read_path(self, path: str, **_: Any) -> bytes:
        return self._run.read(path)

    def write_path(self, path: str, content: bytes, **_: Any) -> None:
        self._run.write(path, content)

    async def aread_path(self, path: str) -> bytes:
        return await asyncio.to_thread(self._run.read, path)

    async def awrite_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(self._run.write, path, content)
