"""What declared tasks save when one late input changes, and what they cost when a run is resumed.

The pipeline has 12 tasks in a row after 200 mapped ones, and its last task alone uses the input
that changes. Nothing is computed: what is measured is resuming, reading what is kept and writing
the rest, so a pipeline whose tasks take time saves that on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, pairwise
from pathlib import Path

from checkpoint_store import CheckpointStore, Task, resume

from .clients import SMALL, store_at
from .s3 import LATENCY
from .server import Server
from .timing import LIBRARY, Contender, Result, compare

_MAPPED = [f"load-{number}" for number in range(200)]
_LINE = [f"step-{number}" for number in range(12)]
_TASKS = {
    **dict.fromkeys(_MAPPED, Task(uses=["day"])),
    _LINE[0]: Task(uses=[], after=_MAPPED),
    **{task: Task(uses=[], after=[before]) for before, task in pairwise(_LINE[:-1])},
    _LINE[-1]: Task(uses=["colour"], after=[_LINE[-2]]),
}
_KEYS = (1, 100, 500)

FLOORS = WHOLE, PLAIN = "reset of the whole workflow", "resume without tasks"
"""The floors of these rows, which are the library itself."""

_colours = count()


def rows(folder: Path, server: Server, rounds: int) -> Iterator[Result]:
    yield _changes("local", CheckpointStore(folder, durable=False), rounds)
    for keys in _KEYS:
        yield _resumes("local", CheckpointStore(folder, durable=False), keys, rounds, times=100)
    with server.latency(LATENCY):
        yield _changes("S3", store_at(server, "partial"), rounds)
        for keys in _KEYS:
            yield _resumes("S3", store_at(server, "partial"), keys, rounds, times=5)


def requests(server: Server) -> dict[str, int]:
    """How many requests a change takes on S3 under a whole and under a partial reset."""
    found = {}
    for name, tasks in (("whole", None), ("partial", _TASKS)):
        store = store_at(server, f"requests-{name}")
        _change(store, tasks)
        before = server.requests()
        _change(store, tasks)
        found[name] = server.requests() - before
    return found


def _changes(place: str, store: CheckpointStore, rounds: int) -> Result:
    return compare(
        f"{place}: 1 of 212 tasks depends on the change",
        [
            Contender(WHOLE, lambda: _change(store, None)),
            Contender(LIBRARY, lambda: _change(store, _TASKS)),
        ],
        rounds=rounds,
        clock="wall",
    )


def _change(store: CheckpointStore, tasks: dict[str, Task] | None) -> None:
    """Resumes the workflow with another colour, reads what is kept, and writes the rest."""
    inputs = {"day": "2026-11-23", "colour": next(_colours)}
    workflow = "whole" if tasks is None else "partial"
    run = resume(store, workflow, inputs, on_input_change="reset", tasks=tasks)
    found = run.read_many(_TASKS)
    run.write_many({task: SMALL for task in _TASKS if task not in found})
    assert len(found) in (0, 0 if tasks is None else len(_TASKS) - 1)


def _resumes(place: str, store: CheckpointStore, keys: int, rounds: int, *, times: int) -> Result:
    tasks = {f"task-{number}": Task(uses=["day"], version=number) for number in range(keys)}

    def repeated(call: Callable[[], object]) -> None:
        for _ in range(times):
            call()

    plain = partial(resume, store, "plain", {"day": "2026-11-23"}, on_input_change="reset")
    ours = partial(
        resume, store, f"keys-{keys}", {"day": "2026-11-23"}, on_input_change="reset", tasks=tasks
    )
    return compare(
        f"{place}: resume, different tasks: {keys}",
        [
            Contender(PLAIN, lambda: repeated(plain)),
            Contender(LIBRARY, lambda: repeated(ours)),
        ],
        rounds=rounds,
        clock="wall",
        operations=times,
    )
