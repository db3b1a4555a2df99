"""Declared tasks in a workflow that is reused, and runs that are late, on every kind of storage.

A task whose inputs are unchanged has its own results under `reuse`, too. The others read what the
same declaration has made of the older inputs, and what is computed then is no strict run's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, InputChangedError, Run, Task, resume

from ..harness import backends
from ..harness.backends import EMULATORS, also_on
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

NEWER = {**TASKS, "train": replace(TASKS["train"], version=2)}


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    return computed(store)


@pytest.fixture
def reused(store: CheckpointStore, run: Run) -> Run:
    """A run that reuses it with another rate."""
    assert run.tasks() == set(EVERY)
    return resumed(store, "reuse", rate=0.2)


def mixed(run: Run) -> None:
    """Every task is computed by a run that reuses others."""
    run.dump_many(dict.fromkeys(EVERY, "mixed"))


# Reuse


@also_on("sftp", *EMULATORS)
def test_reuse_reads_through_only_where_something_has_changed(
    backend: backends.Backend, run: Run, reused: Run
) -> None:
    files = checkpoints(backend)
    check_every_way_of_reading(reused, OLD)
    found = decision_of(reused)
    assert (found.action, found.recomputed) == ("reuse", {})
    assert found.kept == {
        "load": UNCHANGED,
        "train": "reused, although input 'rate' changed",
        "plot": "reused, although through 'train': input 'rate' changed",
    }
    mixed(reused)
    assert found_by(reused) == dict.fromkeys(EVERY, "mixed")
    # It wrote in place what has the same key, and everything else beside the old.
    assert checkpoints(backend).keys() >= files.keys()
    assert len(checkpoints(backend)) == 2 * len(EVERY) - 1
    assert found_by(run) == {**OLD, "load": "mixed"}
    assert (run.is_current(), reused.is_current()) == (False, True)


@at_hand
def test_reuse_is_loud_about_the_inputs_and_says_what_becomes_of_the_tasks(
    store: CheckpointStore, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    assert run.tasks() == set(EVERY)
    caplog.set_level(logging.INFO, "checkpoint_store")
    resumed(store, "reuse", rate=0.2)
    logged = [(r.levelname, r.getMessage()) for r in caplog.records if "conditional" not in r.msg]
    reused = "kept: reused, although"
    assert logged == [
        ("WARNING", "workflow 'wf': reuse (changed: 'rate')"),
        ("INFO", f"workflow 'wf': 'load' kept: {UNCHANGED}"),
        ("INFO", f"workflow 'wf': 'train' {reused} input 'rate' changed"),
        ("INFO", f"workflow 'wf': 'plot' {reused} through 'train': input 'rate' changed"),
    ]


def test_reuse_never_reads_another_version(store: CheckpointStore, run: Run) -> None:
    assert run.tasks() == set(EVERY)
    newer = resumed(store, "reuse", NEWER, colour="blue")
    assert found_by(newer) == only("load", "report")
    assert decision_of(newer).kept == {"load": UNCHANGED}
    assert decision_of(newer).recomputed == {
        "train": "the declaration is new",
        "plot": "input 'colour' changed",
    }
    newer.dump_many({"train": "newer", "plot": "newer"})
    # The older version is still what the base has of it, for who declares that.
    assert found_by(resumed(store, "reuse", colour="blue")) == OLD
    assert found_by(resumed(store, "reuse", NEWER, colour="blue")) == {
        **only("load", "report"),
        "train": "newer",
        "plot": "newer",
    }


@at_hand
def test_an_older_version_of_the_base_is_read_by_who_declares_it(
    store: CheckpointStore, run: Run
) -> None:
    assert run.tasks() == set(EVERY)
    resumed(store, "raise", NEWER).dump_many({"train": "newer", "plot": "newer"})
    second = resumed(store, "reuse", NEWER, rate=0.2)
    assert found_by(second) == {**only("load", "report"), "train": "newer", "plot": "newer"}
    assert found_by(resumed(store, "reuse", rate=0.2)) == OLD


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, {"load": "mixed", **only("train", "plot")}),
        ({"rate": 0.2}, {"load": "mixed"}),
        ({"day": "another"}, {}),
    ],
    ids=["the old inputs", "the new ones", "others"],
)
def test_a_strict_run_keeps_of_a_mixture_what_stood_in_the_base(
    backend: backends.Backend,
    store: CheckpointStore,
    reused: Run,
    changes: dict[str, Any],
    kept: dict[str, str],
) -> None:
    mixed(reused)
    before = backend.files()
    names = ", ".join(map(repr, kept)) or "no task"
    with pytest.raises(InputChangedError, match=rf"is a mixture .* \(which keeps {names} and"):
        resume(store, "wf", {**USED, **changes}, on_input_change="raise", tasks=TASKS)
    assert before == backend.files()
    strict = resumed(store, **changes)
    assert found_by(strict) == kept
    found = decision_of(strict)
    assert (found.action, found.kept.keys()) == ("reset", kept.keys())
    assert found.recomputed.keys() == TASKS.keys() - kept
    assert len(checkpoints(backend)) == len(kept)
    assert (record_of(backend)["base"], record_of(backend)["base_tasks"]) == (None, {})


def test_a_second_reuse_reads_the_base_and_not_what_the_first_has_made_of_other_inputs(
    store: CheckpointStore, reused: Run
) -> None:
    mixed(reused)
    # The generation is that of the first, in which a task that is not declared has its newest.
    of_all = {"load": "mixed", "report": "mixed"}
    second = resumed(store, "reuse", rate=0.3)
    assert reused.token == second.token
    assert found_by(second) == {**of_all, **only("train", "plot")}
    second.dump("train", "third")
    again = resumed(store, "reuse", rate=0.2)
    assert found_by(again) == dict.fromkeys(EVERY, "mixed")
    earlier = "computed by an earlier run that reused other checkpoints"
    assert decision_of(again).kept == {"load": UNCHANGED, "train": earlier, "plot": earlier}
    back = resumed(store, "reuse")
    assert found_by(back) == {**of_all, **only("train", "plot")}
    assert decision_of(back).kept == dict.fromkeys(TASKS, UNCHANGED)
    assert found_by(resumed(store, "reuse", rate=0.3)) == {
        **of_all,
        **only("plot"),
        "train": "third",
    }
    assert store.collect("wf") == 0


@at_hand
def test_a_reuse_without_declarations_loses_nothing_that_was_declared(
    store: CheckpointStore, run: Run
) -> None:
    assert run.tasks() == set(EVERY)
    plain = resumed(store, "reuse", tasks=None, rate=0.2)
    assert found_by(plain) == only("report")
    mixed(plain)
    assert store.collect("wf") == 0
    assert found_by(resumed(store, "reuse", rate=0.2)) == {**OLD, "report": "mixed"}
    assert found_by(resumed(store)) == only("load", "train", "plot")


@at_hand
def test_declared_tasks_read_nothing_of_inputs_that_are_not_known(store: CheckpointStore) -> None:
    resume(store, "wf", fingerprint="v1", on_input_change="raise").dump_many(OLD)
    reused = resumed(store, "reuse")
    assert found_by(reused) == only("report")
    found = decision_of(reused)
    assert (found.kept, found.recomputed["load"]) == ({}, "the fingerprint differs")
    mixed(reused)
    assert decision_of(resumed(store)).kept == {}
    assert resumed(store).tasks() == set()


def test_deleting_in_a_mixed_run_takes_the_older_checkpoints_along(
    backend: backends.Backend, store: CheckpointStore, reused: Run
) -> None:
    reused.dump("train", "mixed")
    assert len(checkpoints(backend)) == len(EVERY) + 1
    reused.delete("train", dependents=True)
    assert found_by(reused) == only("load", "report")
    assert {name.partition("@")[0] for name in checkpoints(backend)} == {"load", "report"}
    assert found_by(resumed(store)) == only("load")


# Runs that are late


@pytest.fixture
def late(backend: backends.Backend) -> Iterator[tuple[CheckpointStore, Run]]:
    """A run on `USED`, of a store of its own, that does not know what others do meanwhile."""
    with backend.store() as store:
        run = resumed(store)
        run.dump_many(OLD)
        yield store, run


@pytest.mark.parametrize("policy", ["reset", "reuse"])
def test_what_a_late_run_writes_is_read_where_nothing_has_changed_and_nowhere_else(
    store: CheckpointStore, late: tuple[CheckpointStore, Run], policy: str
) -> None:
    old_store, old = late
    with old.open("load", "wb") as stream:
        new = resumed(store, policy, rate=0.2)
        new.dump_many({"train": "new", "plot": "new", "report": "new"})
        stream.write(b'"late"')
    old.dump_many({"train": "late", "plot": "late", "report": "late"})
    fresh = {"train": "new", "plot": "new", "report": "new"}
    assert new.read_many() == dict.fromkeys(fresh, b'"new"') | {"load": b'"late"'}
    old.dump("load", "late")
    assert found_by(new) == {**fresh, "load": "late"}
    assert not old.is_current()
    # What only the late run sees goes, whoever collects it, and nothing else.
    assert old_store.collect("wf") == (3 if policy == "reset" else 0)
    assert found_by(new) == {**fresh, "load": "late"}
    assert store.collect("wf") == 0
    assert found_by(old) == {
        "load": "late",
        **({} if policy == "reset" else dict.fromkeys(fresh, "late")),
    }


@at_hand
def test_what_a_late_run_of_a_mixture_writes_is_no_strict_runs(
    store: CheckpointStore, reused: Run
) -> None:
    strict = resumed(store, rate=0.2)
    mixed(reused)
    assert found_by(strict) == {"load": "mixed"}
    assert store.collect("wf") == len(EVERY) - 1
    assert found_by(strict) == {"load": "mixed"}


@at_hand
def test_a_late_run_deletes_nothing_of_a_task_whose_inputs_have_changed(
    store: CheckpointStore, late: tuple[CheckpointStore, Run]
) -> None:
    _, old = late
    new = resumed(store, rate=0.2)
    new.dump_many({"train": "new", "plot": "new", "report": "new"})
    old.delete("train", dependents=True)
    old.delete("report")
    assert found_by(new) == {**only("load"), "train": "new", "plot": "new", "report": "new"}
    # The two have one checkpoint in common, which either may delete.
    old.delete("load")
    assert found_by(new) == {"train": "new", "plot": "new", "report": "new"}


@at_hand
def test_a_late_run_with_other_declarations_does_not_disturb_one_of_the_same_inputs(
    store: CheckpointStore, late: tuple[CheckpointStore, Run]
) -> None:
    old_store, old = late
    newer = resumed(store, "raise", NEWER)
    newer.dump_many({"train": "newer", "plot": "newer"})
    old.dump_many({"train": "late", "plot": "late"})
    assert (old.is_current(), newer.is_current()) == (True, True)
    assert old_store.collect("wf") == 0
    assert found_by(old) == {**OLD, "train": "late", "plot": "late"}
    assert found_by(newer) == {**only("load", "report"), "train": "newer", "plot": "newer"}


@at_hand
def test_clearing_ends_what_was_kept(
    backend: backends.Backend, store: CheckpointStore, late: tuple[CheckpointStore, Run]
) -> None:
    _, old = late
    resumed(store, rate=0.2)
    assert store.clear("wf") == 1
    assert backend.files() == {}
    old.dump("load", "late")
    new = resumed(store)
    assert found_by(new) == {}
    assert store.collect("wf") == 1
    tasks = {**TASKS, "more": Task()}
    assert resumed(store, "raise", tasks).tasks() == set()
