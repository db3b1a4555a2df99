"""A runner of coroutines whose results are checkpoints of a `CheckpointStore`.

    run = await asyncio.to_thread(resume, store, "page", inputs, on_input_change="reset")
    results = await run_steps(run, {
        "fetch": (fetch,),
        "parse": (parse, "fetch"),
        "report": (report, "fetch", "parse"),
    })

Each step is a coroutine function and the names of the steps whose results it takes. Steps run as
soon as they can. If one fails, the others are cancelled, and what was finished is kept.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from checkpoint_store import CheckpointNotFoundError, Run


async def run_steps(
    run: Run, steps: Mapping[str, tuple[Callable[..., Any], ...]]
) -> dict[str, Any]:
    async def finish(name: str, function: Callable[..., Any], *needed: str) -> Any:
        # The store's calls block, and so stay out of the event loop.
        try:
            return await asyncio.to_thread(run.load, name)
        except CheckpointNotFoundError:
            arguments = [await tasks[need] for need in needed]
            return await asyncio.to_thread(run.dump, name, await function(*arguments))

    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(finish(name, *step)) for name, step in steps.items()}
    return {name: task.result() for name, task in tasks.items()}
