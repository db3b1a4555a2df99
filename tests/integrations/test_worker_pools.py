"""One run in the workers of multiprocessing, concurrent.futures and dask.distributed, on S3."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointNotFoundError, CheckpointStore, Run, resume

from ..harness.backends import Backend, make_backend
from ..harness.environment import TIMEOUT, forks_beside_threads
from .worker_pools import load_or_compute

pytestmark = forks_beside_threads

WORKERS = 4
NAMES = [f"square-{number}" for number in range(8)]
SQUARES = [number**2 for number in range(8)]


def square(folder: Path, number: int) -> int:
    """Leaves a file that tells who computed what, and waits until all workers have begun."""
    (folder / f"{os.getpid()}-{number}-{secrets.token_hex(4)}").touch()
    wait_until(lambda: len(processes(folder)) >= WORKERS)
    return number**2


def processes(folder: Path) -> set[int]:
    return {int(path.name.partition("-")[0]) for path in folder.iterdir()}


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def wait_and_square(folder: Path, number: int) -> int:
    (folder / "begun").touch()
    wait_until((folder / "go").exists)
    return number**2


def with_futures(work: Callable[..., int]) -> list[int]:
    with ProcessPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, NAMES, range(8), timeout=TIMEOUT))


def with_multiprocessing(method: str, work: Callable[..., int]) -> list[int]:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    with multiprocessing.get_context(method).Pool(WORKERS) as pool:
        return pool.starmap_async(work, zip(NAMES, range(8), strict=True)).get(TIMEOUT)


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return make_backend("moto", tmp_path, request)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


def check(backend: Backend, run: Run, folder: Path, pool: Callable[..., list[int]]) -> None:
    """The pool computes everything with all of its workers, and others then nothing."""
    work = partial(load_or_compute, run, partial(square, folder))
    assert pool(work) == SQUARES
    assert len(processes(folder)) == WORKERS
    assert os.getpid() not in processes(folder)
    with ThreadPoolExecutor(WORKERS) as threads:
        assert list(threads.map(work, NAMES, range(8), timeout=TIMEOUT)) == SQUARES
    assert len(list(folder.iterdir())) == len(NAMES)
    assert len(backend.files()) == len(NAMES) + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "pool",
    [with_futures, partial(with_multiprocessing, "fork"), partial(with_multiprocessing, "spawn")],
    ids=["futures", "fork", "spawn"],
)
def test_the_processes_of_a_pool_share_a_run(
    backend: Backend, store: CheckpointStore, folder: Path, pool: Callable[..., list[int]]
) -> None:
    run = resume(store, "squares", {"upto": 8}, on_input_change="raise")
    check(backend, run, folder, pool)


# dask.distributed


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="needs the extra integrations")
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(n_workers=WORKERS, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(WORKERS, TIMEOUT)
        yield client


@pytest.mark.slow
def test_the_workers_of_dask_share_a_run(
    backend: Backend, store: CheckpointStore, folder: Path, client: Any
) -> None:
    def with_dask(work: Callable[..., int]) -> list[int]:
        return client.gather(client.map(work, NAMES, range(8)))

    run = resume(store, "squares", {"upto": 8}, on_input_change="raise")
    check(backend, run, folder, with_dask)


@pytest.mark.slow
def test_results_that_dask_loses_with_a_worker_are_loaded_and_not_computed_again(
    store: CheckpointStore, folder: Path, client: Any
) -> None:
    run = resume(store, "squares", {"upto": 8}, on_input_change="raise")
    futures = client.map(partial(load_or_compute, run, partial(square, folder)), NAMES, range(8))
    assert client.gather(futures) == SQUARES

    def held_by(worker: str) -> bool:
        return any(worker in workers for workers in client.who_has(futures).values())

    worker, process = next(iter(client.run(os.getpid).items()))
    assert held_by(worker)
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: not held_by(worker))

    assert client.gather(futures) == SQUARES
    assert len(list(folder.iterdir())) == len(NAMES)


@pytest.mark.slow
def test_a_late_worker_of_dask_stays_out_of_the_next_generation(
    store: CheckpointStore, folder: Path, client: Any
) -> None:
    late = resume(store, "squares", {"upto": 8}, on_input_change="raise")
    future = client.submit(load_or_compute, late, wait_and_square, "square", folder, 3)
    wait_until((folder / "begun").exists)
    run = resume(store, "squares", {"upto": 9}, on_input_change="reset")
    (folder / "go").touch()

    assert future.result(TIMEOUT) == 9
    assert not client.submit(late.is_current).result(TIMEOUT)
    assert late.load("square") == 9
    with pytest.raises(CheckpointNotFoundError, match="compute it"):
        client.submit(run.load, "square").result(TIMEOUT)
    assert store.collect("squares") == 1
