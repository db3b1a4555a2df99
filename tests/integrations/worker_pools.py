"""Tasks for the workers of a pool, which share one run of a `CheckpointStore`.

    run = resume(store, "sizes", inputs, on_input_change="reset")
    work = partial(load_or_compute, run, measure)

    with ProcessPoolExecutor() as pool:
        sizes = list(pool.map(work, names, paths))
    with multiprocessing.get_context("spawn").Pool() as pool:
        sizes = pool.starmap(work, zip(names, paths))
    with dask.distributed.Client() as client:
        sizes = client.gather(client.map(work, names, paths))

Futures come without a graph: declare `tasks=` by the names that the workers use, where it pays off.
The run reaches each worker as a pickle, credentials included. A worker that is late, because the
workflow has been reset meanwhile, writes into the generation it was given and harms nobody; ask
`run.is_current()` before you report success.
"""

from collections.abc import Callable
from typing import Any

from checkpoint_store import CheckpointNotFoundError, Run


def load_or_compute(run: Run, function: Callable[..., Any], task: str, *arguments: Any) -> Any:
    """What the task has stored, or what the function returns, which is stored first."""
    try:
        return run.load(task)
    except CheckpointNotFoundError:
        return run.dump(task, function(*arguments))
