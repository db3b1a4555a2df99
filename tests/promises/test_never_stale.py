"""Never stale: the policy decides what of other inputs is returned, on every kind of storage.

The table of policies is here, and what becomes of a workflow that was reset or reused. The storage
is looked at, and tampered with, by another way than the code under test.
"""

from __future__ import annotations

from typing import Any

import pytest

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    CorruptRecordError,
    Decision,
    InputChange,
    InputChangedError,
    Run,
    UnsupportedFormatError,
    fingerprint,
    plan,
    resume,
)
from checkpoint_store._policy import POLICIES

from ..harness import backends
from ..harness.backends import EMULATORS, RECORD, also_on
from ..harness.contract import (
    INPUTS,
    OTHER_INPUTS,
    corrupt,
    key_of,
    mixed,
    newer,
    no_record,
    other_inputs,
    refuse_to_delete,
    same_inputs,
    without_fingerprint,
)

# The policy table


TABLE: list[tuple[Any, Any, Any, Any]] = [
    (no_record, "start", "start", "start"),
    (same_inputs, "continue", "continue", "continue"),
    (other_inputs, "reuse", "reset", "raise"),
    (mixed, "reuse", "reset", "raise"),
    (without_fingerprint, "reuse", "reset", "raise"),
    (corrupt, CorruptRecordError, "reset", CorruptRecordError),
    (newer, UnsupportedFormatError, UnsupportedFormatError, UnsupportedFormatError),
]


@pytest.mark.parametrize(
    ("prepare", "policy", "expected"),
    [
        pytest.param(prepare, policy, outcome, id=f"{prepare.__name__}-{policy}")
        for prepare, *outcomes in TABLE
        for policy, outcome in zip(POLICIES, outcomes, strict=True)
    ],
)
@also_on("sftp", *EMULATORS)
def test_the_policy_table_holds(
    backend: backends.Backend, store: CheckpointStore, prepare: Any, policy: Any, expected: Any
) -> None:
    prepare(backend, store)
    before = backend.files()
    if isinstance(expected, type):
        for function in (plan, resume):
            with pytest.raises(expected):
                function(store, "wf", INPUTS, on_input_change=policy)
        assert before == backend.files()
        return
    planned = plan(store, "wf", INPUTS, on_input_change=policy)
    assert before == backend.files()
    assert expected == planned.action
    assert policy == planned.policy
    assert fingerprint(INPUTS) == planned.current
    assert (planned.change is None) == (expected in ("start", "continue"))
    if expected == "raise":
        with pytest.raises(InputChangedError) as caught:
            resume(store, "wf", INPUTS, on_input_change=policy)
        assert before == backend.files()
        found = caught.value
        assert ("wf", planned.stored, planned.current, planned.change) == (
            found.workflow_id, found.stored, found.current, found.change,
        )  # fmt: skip
        return
    run = resume(store, "wf", INPUTS, on_input_change=policy)
    assert planned == run.decision
    assert fingerprint(INPUTS) == run.fingerprint
    assert ({"old"} if expected in ("continue", "reuse") else set()) == run.tasks()
    assert run.is_current()
    if expected == "reset":
        assert [f"wf/{RECORD}"] == list(backend.files())


def test_a_change_names_the_inputs(store: CheckpointStore) -> None:
    resume(store, "wf", {"same": 1, "gone": 2, "other": 3}, on_input_change="raise")
    decision = plan(store, "wf", {"same": 1, "other": 4, "new": 5}, on_input_change="reset")
    assert decision == Decision(
        "reset",
        "reset",
        fingerprint({"same": 1, "gone": 2, "other": 3}),
        fingerprint({"same": 1, "other": 4, "new": 5}),
        InputChange(
            ("new",), ("gone",), ("other",), "added: 'new'; removed: 'gone'; changed: 'other'"
        ),
    )


def test_ignored_inputs_do_not_matter(store: CheckpointStore) -> None:
    first = resume(store, "wf", {**INPUTS, "now": 1}, on_input_change="raise", ignore=["now"])
    again = resume(store, "wf", {**INPUTS, "now": 2}, on_input_change="raise", ignore={"now"})
    without = resume(store, "wf", INPUTS, on_input_change="raise")
    assert first.token == again.token == without.token
    with pytest.raises(InputChangedError):
        resume(store, "wf", {**INPUTS, "now": 2}, on_input_change="raise")


def test_an_explicit_fingerprint_is_compared_as_it_is(store: CheckpointStore) -> None:
    for number, given in enumerate(("v1", " v1 ", "é\ud800", "\ud83d\ude00", "f" * 1024)):
        name = f"wf{number}"
        run = resume(store, name, fingerprint=given, on_input_change="raise")
        assert given == run.fingerprint == store.read_fingerprint(name)
        assert run.token == resume(store, name, fingerprint=given, on_input_change="raise").token
        for other in (given[:-1] + "x", given + " ", given.swapcase())[
            : 3 if len(given) < 9 else 1
        ]:
            if other != given:
                with pytest.raises(InputChangedError):
                    resume(store, name, fingerprint=other, on_input_change="raise")


# Reset


def test_reset_hides_the_old_checkpoints_and_deletes_them(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    run.write_many({"a": b"1", "b": b"2"})
    assert {key_of(run, "a"), key_of(run, "b")} < backend.files().keys()
    new = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert run.token != new.token
    assert {f"wf/{RECORD}"} == backend.files().keys()
    assert "a" not in new
    assert not run.is_current()
    with pytest.raises(CheckpointNotFoundError):
        run.read("a")


def test_a_late_worker_of_an_earlier_generation_changes_nothing_in_the_next(
    store: CheckpointStore, run: Run
) -> None:
    new = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    new.write("task", b"new")
    run.write("task", b"late")
    run.write("only", b"late")
    assert new.read("task") == b"new"
    assert new.tasks() == {"task"}
    assert run.read("task") == b"late"
    run.delete("task")
    assert new.read("task") == b"new"


def test_inputs_that_come_back_do_not_bring_back_their_old_checkpoints(
    store: CheckpointStore, run: Run
) -> None:
    run.write("task", b"first")
    resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    run.write("task", b"late")
    third = resume(store, "wf", INPUTS, on_input_change="reset")
    assert run.token != third.token
    assert third.tasks() == set()


def test_a_reset_whose_collecting_fails_has_happened(
    backend: backends.Backend,
    store: CheckpointStore,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run.write("task", b"old")
    with monkeypatch.context() as patch:
        refuse_to_delete(patch, store._filesystem, lambda _: True)
        new = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert key_of(run, "task") in backend.files()
    assert new.tasks() == set()
    [warning] = [r.getMessage() for r in caplog.records if "out of reach" in r.getMessage()]
    assert "'wf'" in warning
    assert "not allowed" in warning
    assert store.collect("wf") == 1
    assert [f"wf/{RECORD}"] == list(backend.files())


# Reuse of changed inputs


@also_on("sftp", *EMULATORS)
def test_reuse_reads_its_own_first_and_the_base_after_it(store: CheckpointStore, run: Run) -> None:
    run.write_many({"a": b"old a", "b": b"old b"})
    reused = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    assert run.token != reused.token
    reused.write("b", b"new b")
    reused.write("c", b"new c")
    assert reused.tasks() == {"a", "b", "c"}
    assert reused.read_many() == {"a": b"old a", "b": b"new b", "c": b"new c"}
    assert reused.read_many(["c", "a"]) == {"c": b"new c", "a": b"old a"}
    assert "a" in reused
    with reused.open("a") as stream:
        assert stream.read() == b"old a"
    assert run.read_many() == {"a": b"old a", "b": b"old b"}


def test_an_old_strict_run_sees_only_its_own_beside_a_reuse(
    store: CheckpointStore, run: Run
) -> None:
    reused = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    reused.write("task", b"from other inputs")
    assert "task" not in run
    assert run.tasks() == set()
    run.write("task", b"own")
    assert run.read("task") == b"own"
    assert reused.read("task") == b"from other inputs"
    assert not run.is_current()


def test_delete_under_reuse_hides_the_base_too(store: CheckpointStore, run: Run) -> None:
    run.write_many({"only old": b"old", "both": b"old"})
    reused = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    reused.write("both", b"new")
    for task in ("only old", "both"):
        reused.delete(task)
        assert task not in reused
        with pytest.raises(CheckpointNotFoundError):
            reused.read(task)
    assert reused.tasks() == set()


@pytest.mark.parametrize("inputs", [INPUTS, OTHER_INPUTS, {"third": 3}])
def test_a_second_reuse_goes_on_in_the_first_ones_generation(
    backend: backends.Backend, store: CheckpointStore, run: Run, inputs: dict[str, Any]
) -> None:
    run.write("task", b"old")
    first = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    before = backend.files()
    second = resume(store, "wf", inputs, on_input_change="reuse")
    assert before == backend.files()
    assert first.token == second.token
    assert second.read("task") == b"old"
    assert second.decision is not None
    assert second.decision.action == "reuse"


@pytest.mark.parametrize("inputs", [INPUTS, OTHER_INPUTS])
def test_a_strict_run_after_a_reuse_takes_everything_for_changed(
    store: CheckpointStore, run: Run, inputs: dict[str, Any]
) -> None:
    run.write("old", b"old")
    reused = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    reused.write("new", b"new")
    with pytest.raises(InputChangedError):
        resume(store, "wf", inputs, on_input_change="raise")
    with pytest.raises(InputChangedError):
        store.run("wf", fingerprint=fingerprint(inputs))
    strict = resume(store, "wf", inputs, on_input_change="reset")
    assert strict.tasks() == set()
    assert strict.token not in (run.token, reused.token)


def test_reuse_keeps_the_old_fingerprint_in_the_record(store: CheckpointStore, run: Run) -> None:
    assert fingerprint(INPUTS) == run.fingerprint
    reused = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    assert fingerprint(INPUTS) == store.read_fingerprint("wf")
    assert fingerprint(OTHER_INPUTS) == reused.fingerprint


def test_a_run_of_the_store_reads_through_to_the_base(store: CheckpointStore, run: Run) -> None:
    run.write("task", b"old")
    reused = resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    found = store.run("wf")
    assert reused.token == found.token
    assert found.read("task") == b"old"
