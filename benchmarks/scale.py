"""What operations on a whole workflow, or in a store of many, cost as the number grows."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Protocol

from checkpoint_store import CheckpointStore

from .clients import WORKFLOW, Boto3, resumed, store_at
from .s3 import LATENCY
from .server import Server

CHECKPOINTS = (1_000, 3_000, 10_000, 30_000, 100_000)
WORKFLOWS = (100, 300, 1_000, 3_000, 10_000)

FLOOR = "delete plainly"

Step = tuple[str, Callable[[], object]]


@dataclass
class Curve:
    """One operation over `n`: median seconds, and what Python had allocated at most, in bytes."""

    place: str
    of: str
    operation: str
    n: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)


class Place(Protocol):
    name: str

    def filled(self, workflows: int, checkpoints: int) -> CheckpointStore:
        """A store with that many workflows, the first of them `WORKFLOW`, each with so many
        checkpoints."""

    def delete_plainly(self) -> None:
        """Deletes the files of `WORKFLOW` with the calls that are the floor there."""

    def measured(self) -> AbstractContextManager[object]:
        """Within it an operation takes what it takes there."""


class Local:
    name = "local"

    def __init__(self, folder: Path) -> None:
        self._root = folder

    def filled(self, workflows: int, checkpoints: int) -> CheckpointStore:
        shutil.rmtree(self._root, ignore_errors=True)
        filling = CheckpointStore(self._root, durable=False)
        for name in _names(WORKFLOW, workflows):
            resumed(filling, name).write_many(dict.fromkeys(_names("task", checkpoints), b""))
        return CheckpointStore(self._root)

    def delete_plainly(self) -> None:
        folder = self._root / WORKFLOW
        with os.scandir(folder) as entries:
            for entry in entries:
                os.unlink(entry.path)
        folder.rmdir()

    def measured(self) -> AbstractContextManager[object]:
        return nullcontext()


class S3:
    """Only the first checkpoint is written; the server is told the names that others would have."""

    name = "S3"

    def __init__(self, server: Server) -> None:
        self._server = server
        self._boto3 = Boto3(server)
        self._store = store_at(server, "scale")

    def filled(self, workflows: int, checkpoints: int) -> CheckpointStore:
        self._server.tell("empty")
        resumed(self._store).write("task", b"")
        written = next(self._boto3.pages(f"scale/{WORKFLOW}/"))
        keys = {
            key.replace(f"/{WORKFLOW}/", f"/{workflow}/").replace("/task@", f"/{task}@")
            for key in written
            for workflow in _names(WORKFLOW, workflows)
            for task in _names("task", checkpoints)
        }
        self._server.tell("fill", "\n".join(sorted(keys - set(written))).encode())
        return self._store

    def delete_plainly(self) -> None:
        self._boto3.clear(f"scale/{WORKFLOW}/")

    def measured(self) -> AbstractContextManager[object]:
        return self._server.latency(LATENCY)


def _names(first: str, number: int) -> Iterator[str]:
    yield first
    yield from (f"{first}-{each}" for each in range(1, number))


def _checkpoints(place: Place, n: int) -> Iterator[Step]:
    store = place.filled(1, n)
    run = resumed(store)
    yield "list", lambda: _expect(n, len(run.tasks()))
    yield "resume", lambda: resumed(store)
    store.write_fingerprint(WORKFLOW, "of other inputs")
    yield "collect", lambda: _expect(n, store.collect(WORKFLOW))
    store = place.filled(1, n)
    yield "clear", lambda: _expect(n, store.clear(WORKFLOW))
    place.filled(1, n)
    yield FLOOR, place.delete_plainly


def _workflows(place: Place, n: int) -> Iterator[Step]:
    store = place.filled(n, 1)
    yield "list", lambda: _expect(n, sum(1 for _ in store.workflows()))
    yield "resume one", lambda: resumed(store)
    store.write_fingerprint(WORKFLOW, "of other inputs")
    yield "collect one", lambda: _expect(1, store.collect(WORKFLOW))
    yield "clear one", lambda: _expect(0, store.clear(WORKFLOW))


def _expect(expected: int, actual: int) -> None:
    assert expected == actual, (expected, actual)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def curves(
    place: Place,
    rounds: int,
    checkpoints: Sequence[int],
    workflows: Sequence[int],
) -> list[Curve]:
    found: dict[tuple[str, str], Curve] = {}
    for of, steps, sizes in (
        ("checkpoints", _checkpoints, checkpoints),
        ("workflows", _workflows, workflows),
    ):
        for n in sizes:
            seconds: dict[str, list[float]] = {}
            peaks: dict[str, int] = {}
            # The last round is for the memory alone, because tracing it takes time.
            for turn in range(rounds + 1):
                for operation, call in steps(place, n):
                    with place.measured():
                        if turn < rounds:
                            seconds.setdefault(operation, []).append(_seconds(call))
                        else:
                            peaks[operation] = _peak(call)
            for operation in seconds:
                curve = found.setdefault((of, operation), Curve(place.name, of, operation))
                curve.n.append(n)
                curve.seconds.append(float(f"{median(seconds[operation]):.4g}"))
                curve.peak.append(peaks[operation])
    return list(found.values())
