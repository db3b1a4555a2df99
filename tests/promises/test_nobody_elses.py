"""Nobody else's: no workflow touches another, whatever they are called, on any kind of storage.

Siblings, foreign files and what lies beside the root are compared to the byte, and by another way
than the code under test.
"""

from __future__ import annotations

from typing import Any

import pytest

from checkpoint_store import CheckpointStore, Run, StorageError, plan, resume

from ..harness import backends
from ..harness.backends import EMULATORS, HOSTILE_NAMES, RECORD, SIBLINGS, also_on
from ..harness.contract import INPUTS, OTHER_INPUTS, corrupt, newer

# Clear and collect


def plant_siblings(backend: backends.Backend, store: CheckpointStore) -> dict[str, bytes]:
    """Makes workflows and files that resemble `wf`, and returns their files."""
    for number, name in enumerate(backend.distinct(["wf", *SIBLINGS])[1:]):
        run = resume(store, name, {"sibling": number}, on_input_change="raise")
        run.write("t", name.encode())
        run.write("wf", name.encode())
        reused = resume(store, name, {"sibling": -1}, on_input_change="reuse")
        reused.write("t", name.encode())
    for key in ("wf-file", "wf0/notes", "wf%/x@0123456789abcdef", "readme", "other/wf/t"):
        backend.put(key, key.encode())
    return backend.files()


@also_on("sftp", *EMULATORS)
def test_clear_keeps_every_sibling_byte_for_byte(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    siblings, outside = plant_siblings(backend, store), backend.outside()
    run = resume(store, "wf", INPUTS, on_input_change="raise")
    run.write_many({"t": b"1", "t2": b"2"})
    assert siblings.keys() < backend.files().keys()
    assert store.clear("wf") == 2
    assert siblings == backend.files()
    assert outside == backend.outside()


def test_clear_of_a_sibling_keeps_the_others(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    store.run("wf").write("t", b"wf")
    expected = plant_siblings(backend, store)
    for name in backend.distinct(["wf", *SIBLINGS])[1:]:
        prefix = f"{SIBLINGS[name]}/"
        assert f"{prefix}{RECORD}" in expected
        assert store.clear(name) == 3
        expected = {key: data for key, data in expected.items() if not key.startswith(prefix)}
        assert expected == backend.files()


@also_on("sftp", *EMULATORS)
def test_reset_keeps_every_sibling_byte_for_byte(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    siblings, outside = plant_siblings(backend, store), backend.outside()
    old = resume(store, "wf", INPUTS, on_input_change="raise")
    old.write_many({"t": b"1", "t2": b"2"})
    assert siblings.keys() < backend.files().keys()
    resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    after = backend.files()
    assert siblings == {key: after[key] for key in after if not key.startswith("wf/")}
    assert outside == backend.outside()


@also_on("sftp", *EMULATORS)
def test_clear_removes_a_workflow_and_may_be_repeated(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    run.write_many({"a": b"1", "b": b"2", "c": b"3"})
    assert len(backend.files()) == 4
    assert store.clear("wf") == 3
    assert backend.files() == {}
    assert store.clear("wf") == 0
    assert store.clear("never") == 0
    assert store.read_fingerprint("wf") is None
    assert plan(store, "wf", INPUTS, on_input_change="raise").action == "start"


def test_clear_finishes_what_an_interrupted_one_left(
    backend: backends.Backend, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> Any:
        raise OSError("interrupted")

    run.write_many({"a": b"1", "b": b"2"})
    with monkeypatch.context() as patch:
        patch.setattr(store._filesystem, "list_files", interrupt)
        patch.setattr(store._filesystem, "alist_files", interrupt, raising=False)
        patch.setattr(store._filesystem, "list_leftovers", interrupt)
        with pytest.raises(StorageError, match="interrupted"):
            store.clear("wf")
    assert len(backend.files()) >= 2
    assert store.read_fingerprint("wf") is None
    assert list(store.workflows()) == ["wf"]
    new = resume(store, "wf", INPUTS, on_input_change="raise")
    assert new.tasks() == set()
    assert store.clear("wf") == 2
    assert backend.files() == {}


def test_clear_of_many_checkpoints_leaves_none(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    if isinstance(backend, backends.S3Backend):
        for number in range(12):  # test_requests.py has more than a page.
            run.write(f"task-{number}", b"data")
    else:
        # Files as another process of ours would have written them; their content is no matter.
        for number in range(2100):
            backend.put(f"wf/task-{number}@{run.token}", b"")
    expected = sum("@" in key for key in backend.files())
    assert expected == store.clear("wf")
    assert backend.files() == {}


@also_on("sftp", *EMULATORS)
def test_a_worker_that_writes_after_a_clear_is_out_of_reach(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    run.write("task", b"before")
    store.clear("wf")
    run.write("task", b"late")
    assert run.read("task") == b"late"
    assert list(store.workflows()) == ["wf"]
    new = resume(store, "wf", INPUTS, on_input_change="raise")
    assert new.tasks() == set()
    assert store.collect("wf") == 1
    assert [f"wf/{RECORD}"] == list(backend.files())


def test_clear_removes_a_corrupt_workflow_and_one_of_a_newer_version(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    for prepare in (corrupt, newer):
        prepare(backend, store)
        assert len(backend.files()) == 2
        assert store.clear("wf") == 1
        assert backend.files() == {}


# Foreign files and folders


FOREIGN = (
    "wf/notes.txt",
    "wf/.hidden",
    "wf/a%2fb@0123456789abcdef",
    "wf/a b@0123456789abcdef",
    "wf/.a@0123456789abcdef",
    "wf/a@0123456789ABCDEF",
    "wf/a@012345",
    "wf/a@",
    "wf/@0123456789abcdef",
    "wf/.fingerprint.bak",
    "wf/sub/a@0123456789abcdef",
    "wf/sub@0123456789abcdef/file",
)


@also_on("sftp", *EMULATORS)
def test_foreign_files_are_left_alone_and_never_listed(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    foreign = {key: key.encode() for key in FOREIGN}
    for key, data in foreign.items():
        backend.put(key, data)
    run.write("task", b"data")
    assert run.tasks() == {"task"}
    assert run.read_many() == {"task": b"data"}
    run.delete("task")
    resume(store, "wf", OTHER_INPUTS, on_input_change="reset").write("task", b"data")
    assert {*foreign, f"wf/{RECORD}"} < backend.files().keys()
    assert store.clear("wf") == 1
    assert foreign == backend.files()
    assert list(store.workflows()) == []
    assert store.clear("wf") == 0
    assert foreign == backend.files()


@also_on("sftp", *EMULATORS)
def test_a_foreign_folder_is_no_workflow(backend: backends.Backend, store: CheckpointStore) -> None:
    for key in ("other/readme", "not%2fours/.fingerprint", ".git/.fingerprint", "a b/.fingerprint",
                "deep/er/.fingerprint", ".fingerprint", "a@0123456789abcdef"):  # fmt: skip
        backend.put(key, b"foreign")
    assert list(store.workflows()) == []
    store.run("wf")
    assert list(store.workflows()) == ["wf"]


# Hostile names


@also_on("sftp")
def test_hostile_names_are_workflows_like_any_other(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    names, outside = backend.distinct(HOSTILE_NAMES), backend.outside()
    runs = {}
    for name in names:
        runs[name] = resume(store, name, fingerprint=name, on_input_change="raise")
        runs[name].write("task", name.encode("utf-8", "surrogatepass"))
    assert len(names) >= 120
    assert sorted(names) == sorted(store.workflows())
    assert 2 * len(names) == len(backend.files())
    assert outside == backend.outside()
    for name in names:
        found = resume(store, name, fingerprint=name, on_input_change="raise")
        assert runs[name].token == found.token, name
        assert name.encode("utf-8", "surrogatepass") == found.read("task"), name
    for name in names:
        assert store.clear(name) == 1, name
    assert backend.files() == {}
    assert outside == backend.outside()


@also_on("sftp", *EMULATORS)
def test_hostile_names_are_tasks_like_any_other(backend: backends.Backend, run: Run) -> None:
    names, outside = backend.distinct(HOSTILE_NAMES), backend.outside()
    payloads = {name: name.encode("utf-8", "surrogatepass") for name in names}
    run.write_many(payloads)
    assert set(names) == run.tasks()
    assert 1 + len(names) == len(backend.files())
    assert outside == backend.outside()
    assert payloads == run.read_many(names)
    for name in names[:20]:
        run.delete(name)
        assert name not in run, name
    assert set(names[20:]) == run.tasks()
