"""Whoever changes a record has its lock, and is told at once if that is its own thread."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_store import (
    CheckpointStore,
    ContentionError,
    InputChangedError,
    resume,
)
from checkpoint_store._filesystems import locks, memory
from checkpoint_store._filesystems.base import Stored
from checkpoint_store._filesystems.locks import lock_name

from ..harness.backends import Backend, make_backend
from ..harness.environment import needs_fork

PATIENCE = 60
"""Seconds until what hangs fails the test. Nothing is expected to take nearly as long."""

CHANGES: dict[str, Callable[[CheckpointStore], object]] = {
    "start": lambda store: resume(store, "wf", fingerprint="B", on_input_change="raise"),
    "reset": lambda store: resume(store, "wf", fingerprint="C", on_input_change="reset"),
    "say": lambda store: store.write_fingerprint("wf", "D"),
    "clear": lambda store: store.clear("wf"),
}


@pytest.fixture(params=["local", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return make_backend(request.param, tmp_path, request)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for what it holds itself need not wait long."""
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.5)


class During:
    """Has something done in the midst of the next change of a record, under its lock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: CheckpointStore) -> None:
        self._filesystem = store._filesystem
        self._patch = monkeypatch

    def __call__(self, interruption: Callable[[], object]) -> None:
        read_small, swap = self._filesystem.read_small, self._filesystem.swap

        def interrupted(key: str) -> Stored:
            self._patch.setattr(self._filesystem, "read_small", read_small)
            interruption()
            return read_small(key)

        def begun(key: str, old: Stored | None, data: bytes) -> bool:
            self._patch.setattr(self._filesystem, "swap", swap)
            self._patch.setattr(self._filesystem, "read_small", interrupted)
            return swap(key, old, data)

        self._patch.setattr(self._filesystem, "swap", begun)


def outcome_of(change: Callable[[], object]) -> str:
    try:
        change()
    except ContentionError as error:
        return str(error)
    except InputChangedError:
        return "the other one had won"
    return "done"


@pytest.mark.parametrize("name", CHANGES)
def test_a_signal_handler_that_changes_what_its_thread_is_changing_is_told_at_once(
    name: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    store = backend.store()

    def handle(*_: object) -> None:
        told.append(outcome_of(lambda: CHANGES[name](store)))

    before = signal.signal(signal.SIGINT, handle)
    try:
        During(monkeypatch, store)(lambda: signal.raise_signal(signal.SIGINT))
        run = resume(store, "wf", fingerprint="A", on_input_change="raise")
    finally:
        signal.signal(signal.SIGINT, before)
    [message] = told
    assert "this very thread" in message
    assert "after that call has returned" in message
    assert run.is_current()
    # Afterwards it may.
    assert "this very thread" not in outcome_of(lambda: CHANGES[name](store))


def test_it_is_told_of_another_store_too_and_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path / "root")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    for number, url in enumerate((tmp_path / "root", tmp_path / "link")):
        told: list[str] = []

        def interrupt(other: CheckpointStore, name: str, told: list[str] = told) -> None:
            told.append(outcome_of(lambda: other.clear(name)))

        During(monkeypatch, store)(lambda: interrupt(CheckpointStore(url), f"wf{number}"))  # noqa: B023
        store.run(f"wf{number}")
        assert "this very thread" in told[0]


def test_another_workflow_may_be_changed_unless_it_shares_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    names = [f"wf-{number}" for number in range(1000)]
    shares = next(name for name in names if lock_name(name) == lock_name("wf"))
    other = next(name for name in names if lock_name(name) != lock_name("wf"))
    told: list[str] = []

    def interrupt() -> None:
        told.extend(outcome_of(lambda name=name: store.run(name)) for name in (shares, other))

    During(monkeypatch, store)(interrupt)
    store.run("wf")
    assert "or one that shares its lock" in told[0]
    assert told[1] == "done"


def test_a_handler_may_read_and_write_checkpoints_meanwhile(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = backend.store()
    run = resume(store, "wf", fingerprint="A", on_input_change="raise")
    read: list[bytes] = []

    def interrupt() -> None:
        run.write("task", b"data")
        read.append(run.read("task"))

    During(monkeypatch, store)(interrupt)
    resume(store, "wf", fingerprint="B", on_input_change="reuse")
    assert read == [b"data"]
    assert run.read("task") == b"data"


def test_another_thread_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", PATIENCE)
    store = CheckpointStore(tmp_path)
    told: list[str] = []
    thread = threading.Thread(
        target=lambda: told.append(
            outcome_of(lambda: resume(store, "wf", fingerprint="B", on_input_change="raise"))
        )
    )

    def interrupt() -> None:
        thread.start()
        while len(locks._at_work) < 2:
            assert thread.is_alive()

    During(monkeypatch, store)(interrupt)
    run = resume(store, "wf", fingerprint="A", on_input_change="raise")
    thread.join(PATIENCE)
    assert told == ["the other one had won"]
    assert run.is_current()
    assert set() == locks._at_work


@needs_fork
@pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning")
def test_a_forked_child_holds_nothing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    status: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(bool(locks._at_work or memory._swapping))
        status.append(os.waitpid(child, 0)[1])
        assert locks._at_work or memory._swapping

    store = backend.store()
    During(monkeypatch, store)(fork)
    assert store.run("wf").is_current()
    assert status == [0]


def test_an_interrupt_leaves_nothing_locked(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    store = backend.store()
    During(monkeypatch, store)(interrupt)
    try:
        store.run("wf")
    except KeyboardInterrupt:
        # Here its traceback still keeps everything that the call had.
        assert store.run("wf").is_current()


@pytest.mark.parametrize("when", ["before it is acquired", "as it is", "before its release"])
def test_an_interrupt_at_the_edge_leaves_nothing_locked(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts = [KeyboardInterrupt()]

    class Lock(locks.FileLock):
        def acquire(self, *args: object, **kwargs: object) -> object:
            if when == "before it is acquired" and interrupts:
                raise interrupts.pop()
            acquired = super().acquire(*args, **kwargs)
            if when == "as it is" and interrupts:
                raise interrupts.pop()
            return acquired

        def release(self, *args: object, **kwargs: object) -> None:
            if when == "before its release" and interrupts:
                raise interrupts.pop()
            super().release(*args, **kwargs)

    monkeypatch.setattr(locks, "FileLock", Lock)
    store = CheckpointStore(tmp_path)
    try:
        store.run("wf")
    except KeyboardInterrupt:
        assert resume(store, "wf", fingerprint="A", on_input_change="reset").is_current()
    assert interrupts == []
    assert set() == locks._at_work
