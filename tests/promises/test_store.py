"""What a store and its runs can be asked, and how long they live, on every kind of storage."""

from __future__ import annotations

import inspect
import itertools
import pickle

import pytest

from checkpoint_store import (
    CheckpointStore,
    Decision,
    InputChangedError,
    Run,
    StorageError,
    fingerprint,
    resume,
)

from ..harness import backends
from ..harness.backends import EMULATORS, RECORD, also_on
from ..harness.contract import INPUTS, OTHER_INPUTS, untouchable

# The store's own methods


def test_read_fingerprint_tells_what_is_recorded(store: CheckpointStore, run: Run) -> None:
    assert fingerprint(INPUTS) == run.fingerprint
    assert fingerprint(INPUTS) == store.read_fingerprint("wf")
    assert store.read_fingerprint("none") is None
    store.run("unlabelled")
    assert store.read_fingerprint("unlabelled") is None


def test_write_fingerprint_makes_a_record_where_there_is_none(store: CheckpointStore) -> None:
    store.write_fingerprint("wf", "v1")
    assert store.read_fingerprint("wf") == "v1"
    assert resume(store, "wf", fingerprint="v1", on_input_change="raise").decision == Decision(
        "continue", "raise", "v1", "v1", None
    )


def test_write_fingerprint_of_the_same_changes_nothing(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    store.write_fingerprint("wf", "v1")
    store.run("wf").write("task", b"data")
    before = backend.files()
    store.write_fingerprint("wf", "v1")
    assert before == backend.files()


def test_write_fingerprint_labels_what_has_none(store: CheckpointStore) -> None:
    run = store.run("wf")
    run.write("task", b"data")
    store.write_fingerprint("wf", "v1")
    found = resume(store, "wf", fingerprint="v1", on_input_change="raise")
    assert run.token == found.token
    assert found.read("task") == b"data"


def test_write_fingerprint_of_another_begins_a_new_generation(store: CheckpointStore) -> None:
    store.write_fingerprint("wf", "v1")
    old = store.run("wf")
    old.write("task", b"data")
    store.write_fingerprint("wf", "v2")
    new = resume(store, "wf", fingerprint="v2", on_input_change="raise")
    assert old.token != new.token
    assert new.tasks() == set()
    assert store.collect("wf") == 1


def test_write_fingerprint_never_labels_what_a_reuse_mixed(
    store: CheckpointStore, run: Run
) -> None:
    run.write("task", b"old")
    resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    store.write_fingerprint("wf", fingerprint(INPUTS))
    assert resume(store, "wf", INPUTS, on_input_change="raise").tasks() == set()


def test_run_gives_the_current_generation_whatever_its_inputs(
    store: CheckpointStore, run: Run
) -> None:
    run.write("task", b"data")
    found = store.run("wf")
    assert (run.token, run.fingerprint, None) == (found.token, found.fingerprint, found.decision)
    assert found.read("task") == b"data"


def test_run_of_what_a_reuse_mixed_claims_no_inputs(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    run.write("task", b"old")
    resume(store, "wf", OTHER_INPUTS, on_input_change="reuse").write("new", b"other")
    found = store.run("wf")
    assert found.fingerprint is None
    assert found.read_many() == {"task": b"old", "new": b"other"}
    found.write("third", b"")
    assert b'"inputs": null' in backend.files()[f"wf/third@{found.token}"]
    with pytest.raises(InputChangedError, match="is a mixture of several inputs"):
        store.run("wf", fingerprint=fingerprint(INPUTS))


def test_run_makes_a_record_without_a_fingerprint_where_there_is_none(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    run = store.run("wf")
    assert run.fingerprint is None
    assert [f"wf/{RECORD}"] == list(backend.files())
    assert run.token == store.run("wf").token


def test_run_with_a_fingerprint_refuses_every_other(store: CheckpointStore) -> None:
    run = store.run("wf", fingerprint="v1")
    assert run.fingerprint == "v1" == store.read_fingerprint("wf")
    assert run.token == store.run("wf", fingerprint="v1").token
    with pytest.raises(InputChangedError) as caught:
        store.run("wf", fingerprint="v2")
    error = caught.value
    assert (error.workflow_id, error.stored, error.current) == ("wf", "v1", "v2")
    store.run("unlabelled")
    with pytest.raises(InputChangedError):
        store.run("unlabelled", fingerprint="v1")


def test_workflows_lists_each_once_with_its_exact_name(store: CheckpointStore) -> None:
    assert list(store.workflows()) == []
    for name in ("wf", "a/b", "é", "x.y"):
        run = store.run(name)
        run.write_many({"a": b"", "b": b""})
    assert sorted(store.workflows()) == ["a/b", "wf", "x.y", "é"]


def test_workflows_is_lazy(store: CheckpointStore) -> None:
    untouchable(store)
    found = store.workflows()
    assert inspect.isgenerator(found)
    with pytest.raises(StorageError, match="was asked for list_folders"):
        next(found)


def test_workflows_includes_what_has_no_record(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    run.write("task", b"data")
    backend.remove(f"wf/{RECORD}")
    assert list(store.workflows()) == ["wf"]
    assert store.clear("wf") == 1
    assert list(store.workflows()) == []


def test_is_current_until_the_workflow_is_reset_reused_or_cleared(store: CheckpointStore) -> None:
    first = resume(store, "wf", INPUTS, on_input_change="raise")
    assert first.is_current()
    second = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    assert (first.is_current(), second.is_current()) == (False, True)
    third = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert (second.is_current(), third.is_current()) == (False, True)
    store.clear("wf")
    assert not third.is_current()


# The objects themselves


def test_reprs_say_what_it_is(store: CheckpointStore, run: Run) -> None:
    assert repr(store) == f"CheckpointStore({store.url!r})"
    assert repr(run).startswith("Run(workflow_id='wf', fingerprint='fp1:sha256:")
    assert repr(run).endswith(")")
    assert "_filesystem" not in repr(run)


@also_on("sftp", *EMULATORS)
def test_a_store_closes_and_opens_again(backend: backends.Backend) -> None:
    store = backend.store()
    store.close()
    with store as entered:
        assert entered is store
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        run.write("task", b"1")
    assert run.read("task") == b"1"
    run.write("task", b"2")
    store.close()
    store.close()
    with store:
        assert run.read("task") == b"2"


@also_on("sftp", *EMULATORS)
def test_a_store_and_a_run_survive_pickling(backend: backends.Backend) -> None:
    with backend.store(serializer=pickle) as store:
        run = resume(store, "wf", OTHER_INPUTS, on_input_change="raise")
        run.dump("old", {1, 2})
        run = resume(store, "wf", INPUTS, on_input_change="reuse")
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            other_store, other = pickle.loads(pickle.dumps((store, run), protocol))
            with other_store:
                assert (run.workflow_id, run.fingerprint, run.token, run.decision) == (
                    other.workflow_id, other.fingerprint, other.token, other.decision,
                )  # fmt: skip
                assert other.load("old") == {1, 2}
                other.dump(f"new-{protocol}", None)
                assert f"new-{protocol}" in run
                assert repr(store) == repr(other_store)
                assert run.token == other_store.run("wf").token


def test_a_store_does_nothing_until_it_is_asked(backend: backends.Backend) -> None:
    before = backend.everything()
    for _ in range(100):
        backend.store()
    assert before == backend.everything()


def test_max_concurrency_must_be_positive(backend: backends.Backend) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_concurrency"):
            backend.store(max_concurrency=wrong)


def test_a_run_cannot_be_changed(run: Run) -> None:
    for name, value in itertools.product(("token", "workflow_id", "decision"), ("x", None)):
        with pytest.raises(AttributeError):
            setattr(run, name, value)
