"""Threads, forked and spawned processes, event loops, and the end of the interpreter."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import select
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    ContentionError,
    Run,
    StorageError,
    plan,
    resume,
)

from ..harness import ROOT
from ..harness.backends import KINDS, RECORD, Backend, make_backend
from ..harness.contract import INPUTS
from ..harness.environment import TIMEOUT, forks_beside_threads, needs_fork

pytestmark = forks_beside_threads


# What one process writes to memory:// no other sees.
SHARED_KINDS = [kind for kind in KINDS if kind != "memory"]
# moto checks conditions without a lock, and the generic filesystem not at all.
RACE_FREE_KINDS = ["local", "ministack"]

every_kind = pytest.mark.parametrize("backend", KINDS, indirect=True)
every_shared_kind = pytest.mark.parametrize("backend", SHARED_KINDS, indirect=True)
every_race_free_kind = pytest.mark.parametrize("backend", RACE_FREE_KINDS, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return make_backend(request.param, tmp_path, request)


def in_fork(*functions: Callable[[], object]) -> None:
    """Runs each function in a forked child of its own, all at the same time."""
    children = [fork(function) for function in functions]
    for process, end in children:
        with os.fdopen(end, "rb") as pipe:
            ended, _, _ = select.select([pipe], [], [], TIMEOUT)
            if not ended:
                os.kill(process, 9)
            _, status = os.waitpid(process, 0)
            assert ended, "the child hangs"
            assert status == 0, pipe.read().decode()


def fork(function: Callable[[], object]) -> tuple[int, int]:
    """The child, and a pipe in which stands what it raised, and which ends when it does."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # noqa: BLE001
            os.write(writer, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(status)
    os.close(writer)
    return process, reader


# Threads


@every_kind
def test_threads_share_a_store_and_a_run(backend: Backend, store: CheckpointStore) -> None:
    together = threading.Barrier(32)
    run = store.run("wf")
    # Others than these overwrite in place, where a reader may find it corrupt for a moment.
    shared = "shared" if backend.conditional_writes else "shared-{}"

    def work(number: int) -> None:
        task, data = f"task-{number}", bytes([number]) * 1000
        together.wait(TIMEOUT)
        for _ in range(3):
            run.write(task, data)
            assert data == run.read(task)
            assert task in run
            run.write(shared.format(number), data)
            assert len(set(run.read(shared.format(number)))) == 1
            with run.open(f"stream-{number}", "wb") as stream:
                stream.write(data)
            assert run.read_many([task, f"stream-{number}"]).keys() == {task, f"stream-{number}"}
        assert task in run.tasks()
        assert store.run("wf").token == run.token
        run.delete(f"stream-{number}")

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32), timeout=TIMEOUT))
    names = [f"task-{number}" for number in range(32)]
    assert {*names, *(shared.format(number) for number in range(32))} == run.tasks()
    assert backend.unfinished_uploads() == []


@every_kind
def test_threads_share_the_first_use_of_a_store(backend: Backend) -> None:
    with backend.store() as writer:
        writer.run("wf").write("task", b"data")
    together = threading.Barrier(32)
    with backend.store() as store:

        def work(_: int) -> bytes:
            together.wait(TIMEOUT)
            return store.run("wf").read("task")

        with ThreadPoolExecutor(32) as pool:
            assert set(pool.map(work, range(32), timeout=TIMEOUT)) == {b"data"}
    gc.collect()


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can, so that a race has a chance to happen."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("backend", ["memory", *RACE_FREE_KINDS], indirect=True)
@pytest.mark.usefixtures("switching")
def test_threads_that_start_one_workflow_start_it_once(store: CheckpointStore) -> None:
    together = threading.Barrier(8)

    def start(_: int) -> list[Run]:
        runs = []
        for turn in range(25):
            together.wait(TIMEOUT)
            runs.append(resume(store, f"wf{turn}", INPUTS, on_input_change="reset"))
        return runs

    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(start, range(8), timeout=TIMEOUT))
    for runs in zip(*started, strict=True):
        assert len({run.token for run in runs}) == 1
        actions = Counter(run.decision.action for run in runs if run.decision)
        assert actions == {"start": 1, "continue": 7}


# Forks


@needs_fork
@every_shared_kind
def test_a_fork_before_the_first_use_works_in_parent_and_child(store: CheckpointStore) -> None:
    def child() -> None:
        run = resume(store, "child", INPUTS, on_input_change="raise")
        run.dump("task", "child")
        assert run.load("task") == "child"

    in_fork(child)
    assert resume(store, "child", INPUTS, on_input_change="raise").load("task") == "child"
    in_fork(child)


@needs_fork
@every_kind
def test_a_fork_after_the_first_use_works_in_parent_and_child(
    backend: Backend, store: CheckpointStore
) -> None:
    run = resume(store, "wf", INPUTS, on_input_change="raise")
    run.dump("parent", 1)

    def child() -> None:
        assert run.load("parent") == 1
        run.dump(f"child-{os.getpid()}", 2)
        with run.open("stream", "wb") as stream:
            stream.write(b"from the child")
        in_fork(lambda: run.load("parent"))
        store.close()

    in_fork(child, child)
    run.dump("parent", 3)
    assert run.load("parent") == 3
    if backend.kind != "memory":
        assert len(run.tasks()) == 4
        assert run.read("stream") == b"from the child"


@needs_fork
@every_kind
def test_a_fork_beside_busy_threads_hangs_nowhere(store: CheckpointStore) -> None:
    run = store.run("wf")
    run.write("task", b"data")
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            run.write(f"task-{number}", b"data")
            assert run.read(f"task-{number}") == b"data"
            store.run("wf")
            run.tasks()

    def child() -> None:
        assert run.read("task") == b"data"
        run.write(f"child-{os.getpid()}", b"data")
        resume(store, f"wf-{os.getpid()}", INPUTS, on_input_change="raise").write("task", b"data")

    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(work, number) for number in range(4)]
        try:
            for _ in range(4):
                in_fork(child, child)
        finally:
            stop.set()
        for future in busy:
            future.result(TIMEOUT)


@needs_fork
@every_kind
def test_a_child_that_drops_an_open_stream_leaves_it_to_its_parent(
    backend: Backend, store: CheckpointStore
) -> None:
    run = store.run("wf")
    streams = [run.open("small", "wb"), run.open("large", "wb")]
    streams[0].write(b"begun")
    streams[1].write(bytes(9 * 1024**2))

    def child() -> None:
        with pytest.warns(ResourceWarning):
            streams.clear()

    in_fork(child)
    for stream in streams:
        stream.write(b" and finished")
        stream.close()
    assert run.read("small") == b"begun and finished"
    assert run.read("large") == bytes(9 * 1024**2) + b" and finished"
    assert backend.unfinished_uploads() == []


@needs_fork
@every_kind
def test_a_child_that_exits_leaves_an_open_stream_to_its_parent(store: CheckpointStore) -> None:
    stream = store.run("wf").open("task", "wb")
    stream.write(b"data")
    process = multiprocessing.get_context("fork").Process(target=gc.collect)
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 0
    stream.close()
    assert store.run("wf").read("task") == b"data"


# Processes


def use(store: CheckpointStore, run: Run, number: int) -> tuple[int, str]:
    assert run.load("parent") == {"from": "parent"}
    assert store.run(run.workflow_id).token == run.token
    run.dump(f"child-{number}", number)
    assert run.is_current()
    return os.getpid(), run.token


@every_shared_kind
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_stores_and_runs_are_handed_to_processes(store: CheckpointStore, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    run = resume(store, "wf", INPUTS, on_input_change="raise")
    run.dump("parent", {"from": "parent"})
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, context) as pool:
        results = list(pool.map(use, [store] * 6, [run] * 6, range(6), timeout=TIMEOUT))
    assert {token for _, token in results} == {run.token}
    assert os.getpid() not in {process for process, _ in results}
    expected = {f"child-{number}": number for number in range(6)}
    assert expected == run.load_many(expected)


# Event loops


@every_kind
def test_calls_work_beside_and_within_a_running_event_loop(store: CheckpointStore) -> None:
    async def main() -> None:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        run.dump("direct", 1)
        assert run.load("direct") == 1
        with run.open("stream", "wb") as stream:
            stream.write(b"data")

        async def work(number: int) -> None:
            await asyncio.to_thread(run.dump, f"task-{number}", number)
            assert await asyncio.to_thread(run.load, f"task-{number}") == number

        await asyncio.gather(*map(work, range(20)))
        assert len(await asyncio.to_thread(run.tasks)) == 22

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))
    assert store.run("wf").load("direct") == 1


# The end of the interpreter

UNCLOSED = """
import pickle, sys
store = pickle.load(sys.stdin.buffer)
run = store.run("wf")
handles = [run.open("small", "wb"), run.open("large", "wb")]
handles[0].write(b"data")
handles[1].write(bytes(9 * 1024**2))
reader = run.open("there")
reader.read(1)
print("done")
"""

NORMAL = """
import pickle, sys
from checkpoint_store import CheckpointNotFoundError, plan, resume
store = pickle.load(sys.stdin.buffer)
plan(store, "normal", {"a": 1}, on_input_change="reset")
run = resume(store, "normal", {"a": 1}, on_input_change="reset")
run.dump("task", 1)
assert run.load("task") == 1
run.write_many({f"task-{number}": b"data" for number in range(40)})
assert len(run.read_many()) == 41
with run.open("stream", "wb") as stream:
    stream.write(bytes(9 * 1024**2))
with run.open("stream") as stream:
    assert len(stream.read()) == 9 * 1024**2
try:
    run.load("none")
except CheckpointNotFoundError:
    pass
run = resume(store, "normal", {"a": 2}, on_input_change="reset")
run.dump("task", 2)
assert next(store.workflows())
if "close" in sys.argv:
    store.close()
print("done")
"""


def interpret(script: str, store: CheckpointStore, temporary: Path, *arguments: str) -> None:
    """Runs a script that gets the store, warnings being errors, and expects a clean end and an
    empty folder for temporary files."""
    root = str(ROOT)
    if store.url.startswith("plain:"):
        # The warning that it has no conditional writes would end up on stderr.
        prepare = "import logging; logging.disable()\nimport sys; sys.path.append"
        script = f"{prepare}({root!r}); import tests.harness.backends\n{script}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        input=pickle.dumps(store),
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary)},
    )
    assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"done\n", "")
    assert os.listdir(temporary) == []


def test_a_pickle_of_memory_is_refused_in_another_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with CheckpointStore("memory://pickled") as store:
        run = pickle.loads(pickle.dumps(store.run("wf")))
        assert run.dump("task", 1) == 1
        with pytest.raises(AssertionError, match="remote URL"):
            interpret(NORMAL, store, tmp_path_factory.mktemp("temporary"))
        assert store.clear("wf") == 1


@every_shared_kind
@pytest.mark.parametrize("arguments", [[], ["close"]], ids=["unclosed", "closed"])
def test_normal_use_ends_without_a_warning(
    store: CheckpointStore, tmp_path_factory: pytest.TempPathFactory, arguments: Sequence[str]
) -> None:
    interpret(NORMAL, store, tmp_path_factory.mktemp("temporary"), *arguments)


@every_shared_kind
def test_an_interpreter_ends_beside_unclosed_handles_and_leaves_nothing(
    backend: Backend, store: CheckpointStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store.run("wf").write("there", bytes(1024**2))
    before = backend.files()
    # The warning about the handles is what they deserve, but here it would be an error.
    script = f"import warnings; warnings.simplefilter('ignore')\n{UNCLOSED}"
    interpret(script, store, tmp_path_factory.mktemp("temporary"))
    assert before == backend.files()
    assert backend.unfinished_uploads() == []


# Races

_together: Barrier


def _race(barrier: Barrier) -> None:
    global _together
    _together = barrier


def race(function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
    """Calls the function in as many processes as there are arguments, and gathers the results."""
    count = len(arguments[0])
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count, timeout=TIMEOUT)
    with ProcessPoolExecutor(count, context, _race, (barrier,)) as pool:
        return list(pool.map(function, *arguments, timeout=2 * TIMEOUT))


ROUNDS = 25


def create_records(store: CheckpointStore, name: str) -> list[bool]:
    won = []
    for number in range(ROUNDS):
        _together.wait()
        key = f"wf{number}/{RECORD}"
        won.append(store._filesystem.swap(key, None, name.encode()))
    return won


@needs_fork
@every_race_free_kind
def test_of_processes_that_create_one_record_exactly_one_wins(
    backend: Backend, store: CheckpointStore
) -> None:
    names = [f"process-{number}" for number in range(8)]
    outcomes = race(create_records, [store] * 8, names)
    files = backend.files()
    for number, won in enumerate(zip(*outcomes, strict=True)):
        assert sum(won) == 1
        assert names[won.index(True)].encode() == files[f"wf{number}/{RECORD}"]


def swap_records(store: CheckpointStore, name: str) -> list[bool]:
    won = []
    for number in range(ROUNDS):
        old = store._filesystem.read_small(f"wf/{RECORD}")
        _together.wait()
        won.append(
            store._filesystem.swap(f"wf/{RECORD}", old, f"{name} in round {number}".encode())
        )
        _together.wait()
    return won


@needs_fork
@every_race_free_kind
def test_of_processes_that_swap_one_version_exactly_one_wins(
    backend: Backend, store: CheckpointStore
) -> None:
    backend.put(f"wf/{RECORD}", b"first")
    names = [f"process-{number}" for number in range(8)]
    outcomes = race(swap_records, [store] * 8, names)
    winners = [won.index(True) for won in zip(*outcomes, strict=True)]
    assert {sum(won) for won in zip(*outcomes, strict=True)} == {1}
    last = f"{names[winners[-1]]} in round {ROUNDS - 1}"
    assert last.encode() == backend.files()[f"wf/{RECORD}"]


def reset_again(store: CheckpointStore, number: int) -> list[tuple[str, str]]:
    seen = []
    for turn in range(ROUNDS):
        _together.wait()
        run = resume(store, "wf", {"turn": turn}, on_input_change="reset")
        assert run.decision is not None
        seen.append((run.token, run.decision.action))
        run.write(f"task-{number}", b"%d" % turn)
        _together.wait()
        assert set(run.read_many().values()) == {b"%d" % turn}
        assert len(run.tasks()) == 8
    return seen


@needs_fork
@every_race_free_kind
def test_processes_that_reset_to_the_same_inputs_get_one_generation_and_lose_nothing(
    store: CheckpointStore,
) -> None:
    outcomes = race(reset_again, [store] * 8, range(8))
    for turn, seen in enumerate(zip(*outcomes, strict=True)):
        assert len({token for token, _ in seen}) == 1
        actions = Counter(action for _, action in seen)
        assert actions == {"start" if turn == 0 else "reset": 1, "continue": 7}


def resume_and_write(store: CheckpointStore, number: int) -> int:
    """Resumes with one of two inputs, and reads only what came from these."""
    _together.wait()
    read = 0
    for turn in range(60):
        inputs = (number + turn // 5) % 2
        with suppress(ContentionError):
            run = resume(store, "wf", {"inputs": inputs}, on_input_change="reset")
            for task in ("a", "b"):
                try:
                    assert run.load(task)["inputs"] == inputs, "stale"
                    read += 1
                except CheckpointNotFoundError:
                    run.dump(task, {"inputs": inputs, "by": [number, turn]})
            assert {value["inputs"] for value in run.load_many().values()} <= {inputs}, "stale"
    return read


def clear_and_collect(store: CheckpointStore, number: int) -> int:
    _together.wait()
    for turn in range(40):
        with suppress(ContentionError):
            (store.clear if turn % 2 else store.collect)("wf")
        store.run("wf2").write(f"task-{number}-{turn}", b"beside")
    return 0


@needs_fork
@every_race_free_kind
def test_resets_writers_and_clears_beside_each_other_never_give_a_stale_result(
    backend: Backend, store: CheckpointStore
) -> None:
    work = [resume_and_write] * 6 + [clear_and_collect] * 2
    read = race(call, work, [store] * 8, range(8))
    assert sum(read) > 0
    assert len(store.run("wf2").tasks()) == 80
    store.clear("wf")
    assert {key.partition("/")[0] for key in backend.files()} == {"wf2"}
    assert plan(store, "wf", INPUTS, on_input_change="raise").action == "start"


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def write_much(store: CheckpointStore, number: int) -> int:
    run = store.run("wf")
    _together.wait()
    for turn in range(40):
        try:
            run.write(f"task-{number}", b"%d" % turn)
            store.collect("wf")
        except StorageError as error:
            raise AssertionError(str(error)) from error
    return 40


@needs_fork
@every_race_free_kind
def test_collecting_never_disturbs_the_writers_of_the_generation(
    backend: Backend, store: CheckpointStore
) -> None:
    run = store.run("wf")
    race(write_much, [store] * 8, range(8))
    assert run.read_many() == {f"task-{number}": b"39" for number in range(8)}
    assert len(backend.files()) == 9
