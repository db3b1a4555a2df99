"""How large and how old workflows are, pruning the old ones, and the progress of long work."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fsspec.callbacks import Callback

from checkpoint_store import CheckpointStore, StorageError, Task, _store, resume
from checkpoint_store._filesystems.base import Entry, Page

from ..harness.backends import SIBLINGS, Backend
from ..harness.contract import corrupt, newer

A_DAY = timedelta(days=1)


@pytest.fixture
def local(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "root", durable=False)


def age(store: CheckpointStore, by: timedelta, *workflow_ids: str) -> None:
    """Makes the files of local workflows older."""
    for workflow_id in workflow_ids:
        for file in (Path(store.url) / workflow_id).iterdir():
            then = file.stat().st_mtime - by.total_seconds()
            os.utime(file, (then, then))


class Recorded(Callback):
    """A callback as fsspec's own are, which keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[int] = []

    def call(self, *_: Any, **__: Any) -> None:
        self.values.append(self.value)


def test_a_description_counts_and_measures_what_is_there(
    backend: Backend, store: CheckpointStore
) -> None:
    started = datetime.now(UTC) - timedelta(seconds=5)  # Some clocks of storage know seconds only.
    run = resume(store, "wf", {"day": 1}, on_input_change="raise")
    run.write("a", b"x" * 1000)
    reused = resume(store, "wf", {"day": 2}, on_input_change="reuse")
    reused.write("a", b"y")
    reused.write("b", b"y")
    found = store.describe("wf")
    assert (found.workflow_id, found.fingerprint) == ("wf", run.fingerprint)
    assert (found.mixed, found.tasks, found.retired) == (True, 2, 0)
    assert str(found).endswith(f"fingerprint {run.fingerprint} mixed with other inputs")
    stored = backend.files()
    assert found.size == sum(len(data) for key, data in stored.items() if key.startswith("wf/"))
    assert found.oldest is not None
    assert found.newest is not None
    assert started <= found.oldest <= found.newest <= datetime.now(UTC) + timedelta(seconds=5)


def test_a_description_tells_the_size_and_age_of_each_task(store: CheckpointStore) -> None:
    tasks = {"load": Task(uses=["day"]), "plot": Task(uses=["colour"], after=["load"])}
    resume(store, "wf", {"day": 1, "colour": 1}, on_input_change="reset", tasks=tasks).write_many(
        {"load": b"x" * 1000, "plot": b"", "undeclared": b""}
    )
    before = store.describe("wf").live
    assert list(before) == ["load", "plot", "undeclared"]
    assert before["load"].size == 1000 + before["plot"].size
    run = resume(store, "wf", {"day": 1, "colour": 2}, on_input_change="reset", tasks=tasks)
    assert store.describe("wf").live == {"load": before["load"]}
    run.write("plot", b"")
    after = store.describe("wf")
    assert (after.tasks, after.retired) == (2, 0)
    assert after.live["load"] == before["load"]
    for live in after.live.values():
        assert live.since == live.written
    run.write("load", b"again")
    again = store.describe("wf").live["load"]
    assert again.size < before["load"].size
    assert again.written == again.since


def test_the_age_of_an_origin_is_that_of_its_first_checkpoint(local: CheckpointStore) -> None:
    tasks = {"a": Task(uses=[]), "b": Task(uses=[]), "c": Task(uses=[], version=2)}
    run = resume(local, "wf", {}, on_input_change="reset", tasks=tasks)
    run.write_many(dict.fromkeys("abc", b""))
    for path in Path(local.url, "wf").glob("a@*"):
        os.utime(path, (86400, 86400))
    live = local.describe("wf").live
    assert (
        live["a"].written == live["a"].since == live["b"].since == datetime(1970, 1, 2, tzinfo=UTC)
    )
    assert live["c"].written == live["c"].since
    older = {"c": Task(uses=[], version=1)}
    resume(local, "wf", {}, on_input_change="reset", tasks=older).write("c", b"older version")
    assert local.describe("wf").live["c"].size == live["c"].size + len(b"older version")


def test_a_description_counts_retired_files_and_not_those_of_others(
    backend: Backend, store: CheckpointStore
) -> None:
    late = resume(store, "wf", {"day": 1}, on_input_change="raise")
    resume(store, "wf", {"day": 2}, on_input_change="reset").write("b", b"")
    late.write("a", b"")
    backend.put("wf/notes.txt", b"not ours")
    for sibling in ("wf1", "wf/t"):
        store.run(sibling).write("a", b"")
    found = store.describe("wf")
    assert (found.mixed, found.tasks, found.retired) == (False, 1, 1)
    assert "1 checkpoint and 1 retired" in str(found)
    assert "mixed" not in str(found)
    assert found.size < sum(len(data) for data in backend.files().values())


def test_a_workflow_that_is_not_there_is_described_as_nothing(store: CheckpointStore) -> None:
    found = store.describe("absent")
    assert (found.fingerprint, found.tasks, found.size, found.newest) == (None, 0, 0, None)
    assert str(found) == "absent: nothing"


class Tomorrow(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + A_DAY + timedelta(seconds=5)


def test_pruning_removes_old_workflows_alone(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workflow_id in ("wf", *SIBLINGS):
        store.run(workflow_id).write("task", b"data")
    assert store.prune(A_DAY) == []
    monkeypatch.setattr(_store, "datetime", Tomorrow)
    everything = {"wf", *SIBLINGS}
    assert everything == set(store.prune(A_DAY, dry_run=True)) == set(store.workflows())
    assert everything == set(store.prune(A_DAY))
    assert list(store.workflows()) == []


def test_pruning_keeps_a_workflow_with_one_new_file(local: CheckpointStore) -> None:
    for workflow_id in ("old", "touched"):
        run = local.run(workflow_id)
        run.write("a", b"")
        age(local, 2 * A_DAY, workflow_id)
    run.write("b", b"")
    assert local.prune(A_DAY) == ["old"]
    assert run.tasks() == {"a", "b"}


def test_pruning_keeps_what_a_newer_version_has_written_and_says_so(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = backend.store()
    newer(backend, store)
    before = backend.everything()
    monkeypatch.setattr(_store, "datetime", Tomorrow)
    assert store.prune(A_DAY, dry_run=True) == store.prune(A_DAY) == []
    assert before == backend.everything()
    assert "'wf' is not pruned" in caplog.text
    assert "upgrade" in caplog.text


def test_pruning_clears_a_workflow_whose_record_is_damaged(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = backend.store()
    corrupt(backend, store)
    monkeypatch.setattr(_store, "datetime", Tomorrow)
    assert store.prune(A_DAY) == ["wf"]
    assert list(store.workflows()) == []


def test_pruning_looks_again_before_it_deletes(
    local: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workflow_id in ("one", "two"):
        local.run(workflow_id).write("a", b"")
    age(local, 2 * A_DAY, "one", "two")
    other = {"one": "two", "two": "one"}
    clear = local.clear

    def clear_beside_a_writer(workflow_id: str, **options: Any) -> int:
        local.run(other[workflow_id]).write("b", b"")
        return clear(workflow_id, **options)

    monkeypatch.setattr(local, "clear", clear_beside_a_writer)
    (pruned,) = local.prune(A_DAY)
    assert local.run(other[pruned]).tasks() == {"a", "b"}


def test_pruning_wants_a_timedelta(local: CheckpointStore) -> None:
    local.run("wf").write("task", b"")
    with pytest.raises(TypeError, match="timedelta"):
        local.prune(30)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be negative"):
        local.prune(-A_DAY)
    assert local.prune(timedelta.max) == []
    assert list(local.workflows()) == ["wf"]


def test_where_files_have_no_time_nothing_is_pruned(
    local: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.run("wf").write("task", b"")
    list_files = local._filesystem.list_files

    def timeless(*arguments: Any) -> Page[Entry]:
        page = list_files(*arguments)
        return Page([file._replace(written=None) for file in page.items], page.more)

    monkeypatch.setattr(local._filesystem, "list_files", timeless)
    with pytest.raises(StorageError, match="when a file was written"):
        local.prune(timedelta(0))
    assert list(local.workflows()) == ["wf"]


@pytest.mark.parametrize("callback", [5, Callback, print], ids=repr)
def test_what_is_no_callback_is_refused_before_anything_happens(
    store: CheckpointStore, callback: Any
) -> None:
    run = store.run("wf")
    run.dump("task", 1)
    for call in (
        lambda: run.read_many(callback=callback),
        lambda: run.load_many(callback=callback),
        lambda: run.write_many({"new": b""}, callback=callback),
        lambda: run.dump_many({"new": 1}, callback=callback),
        lambda: store.collect("wf", callback=callback),
        lambda: store.clear("wf", callback=callback),
        lambda: store.prune(timedelta(), callback=callback),
    ):
        with pytest.raises(TypeError, match="callback must be one of fsspec's"):
            call()
    assert run.load_many() == {"task": 1}


def test_a_callback_is_told_of_the_progress(store: CheckpointStore) -> None:
    run = resume(store, "wf", {"day": 1}, on_input_change="raise")
    names = [f"t{number}" for number in range(5)]
    told = Recorded()
    run.write_many(dict.fromkeys(names, b""), callback=told)
    run.dump_many(dict.fromkeys(names), callback=told)
    assert (told.size, told.value) == (5, 10)
    told = Recorded()
    assert len(run.read_many([*names, "absent"], callback=told)) == 5
    assert (told.size, told.value) == (6, 6)
    told = Recorded()
    assert len(run.load_many(callback=told)) == 5
    assert (told.size, told.values) == (5, [0, 1, 2, 3, 4, 5])
    told = Recorded()
    store.prune(A_DAY, callback=told)
    assert (told.size, told.value) == (1, 1)
    resume(store, "wf", {"day": 2}, on_input_change="reset").write("b", b"")
    run.write("late", b"")
    told = Recorded()
    assert store.collect("wf", callback=told) == told.value == 1
    told = Recorded()
    assert store.clear("wf", callback=told) == told.value == 1
