"""Random histories of a few workflows, each step of which must go as a model says: a dict.

Two processes resume, run, write, read, delete, collect and clear workflows whose names are siblings
and affixes of each other. Often some of the tasks are declared: to use one input or several, after
one another, in another version or late. Files are damaged, exchanged and lost by another way than
the library's. Any step may fail at any of its primitives, as in `test_crashes`: before it takes
effect, after it with the reply lost, for ever, or with the end of the process, which is then opened
anew. The steps are in `harness.histories`, the model in `harness.model`.

The model is exact. A step must return or raise what the model does, and leave exactly the files
that the model holds, all others as they were to the byte. Only after a fault each file may be as
before or as after the step, within the orders that are promised; which it is, is then looked up.

    CHECKPOINT_STORE_HEAVY=1 pytest tests/protocol/test_stateful.py

makes 1,000 histories of 500 steps on each kind of storage.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from ..harness import taps
from ..harness.backends import MemoryBackend, make_backend
from ..harness.environment import HEAVY
from ..harness.histories import MEANT_TO_BE_MET, History, Storage, quiet
from ..harness.model import GIVEN

pytestmark = pytest.mark.slow


HISTORIES = {"ministack": 200, "local": 200, "memory": 250}
"""How many are made where time is short."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=quiet) as pool:
        yield pool


@pytest.mark.parametrize("kind", [*HISTORIES, "moto", "generic"] if HEAVY else HISTORIES)
def test_every_history_goes_as_the_model_says(
    kind: str, pool: ProcessPoolExecutor, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert len({given.fingerprint for given in GIVEN}) == len(GIVEN)
    monkeypatch.setattr(taps, "MOST_CALLS", 10_000)
    monkeypatch.setattr(logging.getLogger("checkpoint_store"), "disabled", True)
    if kind == "memory":
        storage = Storage(MemoryBackend, None)
    else:
        backend = make_backend(kind, tmp_path, request)
        storage = Storage(lambda: backend, pool)
    # Without all that is meant to be met it would show nothing. What is rare may be missing by
    # chance, and then as many histories are made again.
    for _ in range(5):
        run_state_machine_as_test(
            partial(History, storage),
            settings=settings(
                max_examples=1_000 if HEAVY else HISTORIES[kind],
                stateful_step_count=500 if HEAVY else 75,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if all(storage.met[met] for met in MEANT_TO_BE_MET):
            break
    storage.close()
    missing = {met for met in MEANT_TO_BE_MET if not storage.met[met]}
    assert not missing
