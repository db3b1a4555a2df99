"""Declared tasks: a reset keeps what does not depend on the change, on every kind of storage.

What a task is declared to depend on decides, and nothing else: what is kept is neither copied nor
touched, and what is not kept never comes back. The storage is looked at by another way than the
code under test.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from checkpoint_store import (
    CheckpointStore,
    InputChangedError,
    InvalidTaskError,
    Run,
    Task,
    UnsupportedFormatError,
    _record,
    plan,
    resume,
)

from ..harness import backends
from ..harness.backends import EMULATORS, RECORD, also_on
from ..harness.contract import (
    EVERY,
    OLD,
    TASKS,
    UNCHANGED,
    USED,
    at_hand,
    check_every_way_of_reading,
    checkpoints,
    computed,
    decision_of,
    found_by,
    only,
    record_of,
    resumed,
)

NEW_DECLARATION = "the declaration is new"


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    return computed(store)


# Reset


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"colour": "blue"}, ["load", "train"]),
        ({"rate": 0.2}, ["load"]),
        ({"day": "2026-11-24"}, []),
    ],
    ids=["last", "middle", "first"],
)
@also_on(*EMULATORS)
def test_a_reset_keeps_what_does_not_depend_on_the_change(
    backend: backends.Backend,
    store: CheckpointStore,
    run: Run,
    change: dict[str, Any],
    kept: list[str],
) -> None:
    before = checkpoints(backend)
    assert len(before) == len(EVERY)
    new = resumed(store, **change)
    check_every_way_of_reading(new, only(*kept))
    # What is kept is in the same files as ever, and the others are gone.
    after = {name: data for name, data in before.items() if name.partition("@")[0] in kept}
    assert after == checkpoints(backend)
    assert (run.is_current(), new.is_current()) == (False, True)
    found = decision_of(new)
    assert found.action == "reset"
    assert dict.fromkeys(kept, UNCHANGED) == found.kept
    assert found.recomputed.keys() == TASKS.keys() - kept
    new.dump_many(dict.fromkeys(EVERY, "new"))
    assert found_by(new) == dict.fromkeys(EVERY, "new")
    assert len(checkpoints(backend)) == len(EVERY)


def test_what_depends_on_an_input_is_not_brought_back_with_it(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    old = record_of(backend)
    resumed(store, rate=0.2).dump_many({"train": "other", "report": "other"})
    run.dump_many({"train": "late", "plot": "late", "report": "late"})
    third = resumed(store)
    assert found_by(third) == only("load")
    new = record_of(backend)
    assert old["tasks"].keys() == new["tasks"].keys()
    shared = {*old["tasks"].values(), old["token"]} & {*new["tasks"].values(), new["token"]}
    assert {name.partition("@")[2] for name in checkpoints(backend)} == shared
    assert len(shared) == 1


@at_hand
def test_resets_in_a_row_keep_what_none_of_them_concerns(store: CheckpointStore, run: Run) -> None:
    assert run.tasks() == set(EVERY)
    for number in range(3):
        new = resumed(store, rate=number, colour=number)
        assert found_by(new, ["load", "train", "plot"]) == only("load")
        new.dump("train", number)


@at_hand
def test_a_reset_without_declarations_keeps_nothing(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    assert run.tasks() == set(EVERY)
    new = resumed(store, tasks=None, colour="blue")
    assert found_by(new) == {}
    assert checkpoints(backend) == {}
    assert "tasks" not in record_of(backend)
    assert found_by(resumed(store, colour="blue")) == {}


@pytest.mark.parametrize("policy", ["reuse", "reset", "raise"])
@at_hand
def test_the_same_inputs_and_declarations_go_on_under_every_policy(
    backend: backends.Backend, store: CheckpointStore, run: Run, policy: str
) -> None:
    before = backend.files()
    again = resumed(store, policy)
    assert before == backend.files()
    assert run.token == again.token
    assert found_by(again) == OLD
    found = decision_of(again)
    assert (found.action, found.kept, found.recomputed) == (
        "continue", dict.fromkeys(TASKS, UNCHANGED), {},
    )  # fmt: skip


@at_hand
def test_a_start_keeps_and_recomputes_nothing(store: CheckpointStore) -> None:
    found = decision_of(resumed(store, "raise"))
    assert (found.action, found.kept) == ("start", {})


@at_hand
def test_ignored_inputs_matter_to_no_task(store: CheckpointStore, run: Run) -> None:
    tasks = {**TASKS, "all": Task()}

    def ignoring(now: int, **changes: Any) -> Run:
        inputs = {**USED, **changes, "now": now}
        return resume(store, "wf", inputs, on_input_change="reset", ignore=["now"], tasks=tasks)

    first = ignoring(1)
    assert run.token == first.token
    first.dump("all", "old")
    assert ignoring(2).tasks() == {*EVERY, "all"}
    assert ignoring(3, colour="blue").tasks() == {"load", "train"}


@at_hand
def test_an_input_that_is_added_or_removed_concerns_those_that_use_all(
    store: CheckpointStore,
) -> None:
    tasks = {**TASKS, "all": Task(), "after all": Task(uses=[], after=["all"])}
    names = [*tasks, "report"]
    resumed(store, tasks=tasks).dump_many(dict.fromkeys(names, "old"))
    longer = resumed(store, tasks=tasks, size=1)
    assert found_by(longer, names) == dict.fromkeys(TASKS, "old")
    assert decision_of(longer).recomputed == {
        "all": "input 'size' changed",
        "after all": "through 'all': input 'size' changed",
    }
    longer.dump_many(dict.fromkeys(names, "new"))
    shorter = resumed(store, tasks=tasks)
    assert found_by(shorter, names) == dict.fromkeys(TASKS, "new")
    assert decision_of(shorter).recomputed["all"] == "input 'size' changed"


# Declarations that change while the inputs stay


@also_on("sftp", *EMULATORS)
def test_another_version_is_computed_anew_and_an_earlier_one_found_again(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    newer = {**TASKS, "train": replace(TASKS["train"], version=2)}
    for policy in ("raise", "reuse", "reset"):
        second = resumed(store, policy, newer)
        assert run.token == second.token
        assert found_by(second) == only("load", "report")
    assert decision_of(resumed(store, "raise", TASKS)).recomputed == {}
    second.dump_many({"train": "second", "plot": "second"})
    assert found_by(second) == {**OLD, "train": "second", "plot": "second"}
    assert found_by(resumed(store, "raise")) == OLD
    assert store.collect("wf") == 0
    # A reset keeps the present version alone.
    third = resumed(store, "reset", newer, colour="blue")
    assert found_by(third) == {**only("load"), "train": "second"}
    assert len(checkpoints(backend)) == 2
    assert found_by(resumed(store, "raise", TASKS, colour="blue")) == only("load")


@at_hand
def test_a_new_declaration_is_said_to_be_new_and_so_is_what_comes_after_it(
    store: CheckpointStore, run: Run
) -> None:
    assert run.tasks() == set(EVERY)
    newer = {**TASKS, "train": replace(TASKS["train"], version=2)}
    found = decision_of(resumed(store, "raise", newer))
    assert (found.action, found.kept) == ("continue", {"load": UNCHANGED})
    assert found.recomputed == {
        "train": NEW_DECLARATION,
        "plot": f"through 'train': {NEW_DECLARATION}",
    }


@at_hand
def test_a_task_under_another_name_is_computed_anew_although_its_key_is_known(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    assert run.tasks() == set(EVERY)
    tasks = {"fetch": TASKS["load"], **TASKS}
    del tasks["load"]
    tasks["train"] = replace(TASKS["train"], after=["fetch"])
    renamed = resumed(store, "reset", tasks)
    # The name is no part of the key, but it is one of the file. Who comes after it names it.
    assert decision_of(renamed).kept == {"fetch": UNCHANGED}
    assert found_by(renamed, [*EVERY, "fetch"]) == only("report")
    renamed.dump("fetch", "anew")
    assert found_by(renamed, [*EVERY, "fetch"]) == {**only("report"), "fetch": "anew"}
    assert found_by(resumed(store)) == OLD
    # What a key still keeps is there until a reset for which nobody declares it.
    resumed(store, "reset", {"plot": Task(uses=["colour"])}, colour="blue")
    assert checkpoints(backend) == {}


@pytest.mark.parametrize(
    ("declaration", "kept"),
    [
        (Task(uses=["rate"]), ["load", "report"]),
        (Task(uses=["rate"], after=["load", "check"]), ["load", "report"]),
        (Task(uses=["rate", "day"], after=["load"]), ["load", "report"]),
        (Task(uses=("rate", "rate"), after=("load", "load")), list(EVERY)),
    ],
    ids=["removed", "added", "an input more", "the same"],
)
@at_hand
def test_another_dependency_is_another_task(
    store: CheckpointStore, run: Run, declaration: Task, kept: list[str]
) -> None:
    tasks = {**TASKS, "check": Task(uses=[]), "train": declaration}
    assert run.tasks() == set(EVERY)
    assert found_by(resumed(store, "raise", tasks)) == only(*kept)
    assert found_by(resumed(store, "raise")) == OLD


def test_a_task_that_is_declared_late_is_computed_anew(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    first = resumed(store, tasks=None)
    first.dump_many(OLD)
    assert {name.partition("@")[2] for name in checkpoints(backend)} == {first.token}
    late = resumed(store, "raise")
    assert first.token == late.token
    assert first.is_current()
    # Under the token of the generation is what every input may have gone into.
    assert found_by(late) == only("report")
    assert found_by(resumed(store, tasks=None)) == OLD
    late.dump_many(dict.fromkeys(TASKS, "late"))
    assert store.collect("wf") == 0
    assert found_by(late) == {**only("report"), **dict.fromkeys(TASKS, "late")}
    assert found_by(resumed(store, colour="blue")) == {"load": "late", "train": "late"}
    assert len(checkpoints(backend)) == 2


@at_hand
def test_tasks_that_are_declared_alike_share_a_token(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    tasks = {f"load-{number}": Task(uses=["day"]) for number in range(2_000)}
    some = ("load-0", "load-1999")
    resumed(store, tasks=tasks).dump_many(dict.fromkeys(some, "old"))
    [token] = record_of(backend)["tasks"].values()
    assert {f"{name}@{token}" for name in some} == checkpoints(backend).keys()
    new = resumed(store, tasks=tasks, colour="blue")
    assert len(decision_of(new).kept) == 2_000
    assert found_by(new, [*some, "load-1"]) == dict.fromkeys(some, "old")
    assert found_by(resumed(store, tasks=tasks, day="another"), some) == {}


# Without a policy


def test_a_run_of_the_store_declares_tasks_for_the_recorded_inputs(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    before = backend.files()
    found = store.run("wf", tasks=TASKS)
    assert before == backend.files()
    assert (run.token, run.fingerprint) == (found.token, found.fingerprint)
    assert found_by(found) == OLD
    assert found_by(store.run("wf", fingerprint=run.fingerprint, tasks=TASKS)) == OLD
    newer = {**TASKS, "load": replace(TASKS["load"], version=2)}
    assert found_by(store.run("wf", tasks=newer)) == only("report")
    assert found_by(store.run("wf")) == only("report")
    with pytest.raises(InvalidTaskError, match="the input 'dya', which is not: did you mean 'day'"):
        store.run("wf", tasks={"a": Task(uses=["dya"])})
    with pytest.raises(InputChangedError):
        store.run("wf", fingerprint="another", tasks=TASKS)


@at_hand
def test_a_run_of_the_store_refuses_tasks_where_the_inputs_are_not_known(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    resume(store, "text", fingerprint="v1", on_input_change="raise")
    resume(store, "mixed", USED, on_input_change="raise")
    resume(store, "mixed", {**USED, "day": 1}, on_input_change="reuse")
    before = backend.files()
    for name, why in (("none", "no rec"), ("text", "no rec"), ("mixed", "is a mixture")):
        with pytest.raises(InvalidTaskError, match=rf"workflow '{name}' .*{why}.*: resume it with"):
            store.run(name, tasks=TASKS)
    assert before == backend.files()


# Raise


def test_raise_names_what_a_reset_would_keep_and_changes_nothing(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    before = backend.files()
    inputs = {**USED, "rate": 0.2}
    with pytest.raises(
        InputChangedError,
        match=r"'reset' to start over \(which keeps 'load' and computes 'train', 'plot' anew\)",
    ) as caught:
        resume(store, "wf", inputs, on_input_change="raise", tasks=TASKS)
    assert caught.value.change is not None
    assert caught.value.change.changed == ("rate",)
    planned = plan(store, "wf", inputs, on_input_change="raise", tasks=TASKS)
    assert (planned.action, planned.kept) == ("raise", {"load": UNCHANGED})
    assert planned.recomputed == {
        "train": "input 'rate' changed",
        "plot": "through 'train': input 'rate' changed",
    }
    assert before == backend.files()
    assert found_by(run) == OLD
    assert run.is_current()


# What is said and stored

CANARY = "canary-of-an-input-53094"


@pytest.mark.parametrize("policy", ["reuse", "reset", "raise"])
@at_hand
def test_a_decision_is_told_with_names_and_never_with_values(
    backend: backends.Backend,
    store: CheckpointStore,
    caplog: pytest.LogCaptureFixture,
    policy: Any,
) -> None:
    caplog.set_level(logging.DEBUG, "checkpoint_store")
    tasks = {**TASKS, "train": replace(TASKS["train"], version=f"{CANARY}-version")}
    resumed(store, day=f"{CANARY}-day", rate=f"{CANARY}-old", tasks=tasks)
    told: list[object] = []
    try:
        new = resumed(store, policy, tasks, day=f"{CANARY}-day", rate=f"{CANARY}-new")
        told += [new, decision_of(new)]
    except InputChangedError as error:
        told += [error, vars(error)]
    written = [caplog.text, *(f"{thing!r}{thing}" for thing in told), repr(backend.files())]
    assert [text for text in written if CANARY in text] == []
    logged = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert any("'train'" in text for text in written)
    if policy != "raise":
        assert f"workflow 'wf': 'load' kept: {UNCHANGED}" in logged
        what = "kept: reused, although" if policy == "reuse" else "computed anew:"
        assert f"workflow 'wf': 'train' {what} input 'rate' changed" in logged
        assert f"workflow 'wf': 'plot' {what} through 'train': input 'rate' changed" in logged


# Deleting with what comes after it


def test_a_task_is_deleted_with_all_that_comes_after_it(store: CheckpointStore, run: Run) -> None:
    tasks = {**TASKS, "other": Task(uses=["rate"]), "both": Task(after=["other", "plot"])}
    wide = resumed(store, "raise", tasks)
    wide.dump_many({"other": 1, "both": 2})
    assert wide.tasks() == {*EVERY, "other", "both"}
    wide.delete("train", dependents=True)
    assert wide.tasks() == {"load", "report", "other"}
    wide.delete("train", dependents=True)
    wide.delete("load")
    assert wide.tasks() == run.tasks() | {"other"} == {"report", "other"}


@at_hand
def test_what_comes_after_a_task_that_is_not_declared_is_not_known(
    store: CheckpointStore, run: Run
) -> None:
    for reader, task in ((run, "report"), (run, "none"), (resumed(store, tasks=None), "load")):
        with pytest.raises(InvalidTaskError, match=f"task '{task}' was not declared"):
            reader.delete(task, dependents=True)
    assert found_by(run) == OLD


# The version that is released


def test_a_version_that_knows_no_declarations_refuses_the_workflow_and_deletes_nothing(
    backend: backends.Backend, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record_of(backend)["checkpoint_store"] == 2
    before = backend.files()
    # It looks at the number before anything else, and this is the one that it knows up to.
    monkeypatch.setattr(_record, "VERSION", 1)
    for policy in ("reuse", "reset", "raise"):
        for inputs in (USED, {**USED, "day": "another"}):
            for function in (plan, resume):
                with pytest.raises(UnsupportedFormatError, match=r"knows up to 1\): upgrade"):
                    function(store, "wf", inputs, on_input_change=policy)  # type: ignore[operator]
    calls: list[Any] = [store.run, store.read_fingerprint, store.describe, store.collect]
    for call in (*calls, lambda name: store.write_fingerprint(name, "v1")):
        with pytest.raises(UnsupportedFormatError, match="upgrade"):
            call("wf")
    assert before == backend.files()
    # To clear is to remove whatever it is, and needs no understanding.
    assert store.clear("wf") == len(EVERY)
    assert f"wf/{RECORD}" not in backend.files()
    assert run.tasks() == set()
