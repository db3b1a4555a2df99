"""Declared tasks: which are refused, what their keys depend on, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from checkpoint_store import (
    CheckpointStore,
    InvalidNameError,
    InvalidTaskError,
    Task,
    _tasks,
    plan,
    resume,
)
from checkpoint_store._changes import InputChange
from checkpoint_store._fingerprint import input_digests
from checkpoint_store._tasks import check_tasks, declared, reasons, with_dependents

from ..harness.contract import untouchable

INPUTS = {"day": "d" * 64, "lr": "e" * 64, "colour": "c" * 64}
TASKS = {
    "extract": Task(uses=["day"]),
    "train": Task(uses=["lr"], after=["extract"], version="2"),
    "plot": Task(uses=["colour"], after=["train"]),
}


def keys(tasks: Mapping[str, Task] = TASKS, **changes: str) -> Mapping[str, str]:
    return declared(tasks, {**INPUTS, **changes}).keys


# The digests were made by sha256sum of such texts as FORMATS.md shows: that of "day" is the one of
# {"after":{},"uses":{"day":"dd…dd"},"version":null}, in which "dd…dd" has 64 letters.
def test_keys_are_what_they_have_always_been() -> None:
    tasks = {
        "day": Task(uses=["day"]),
        "text": Task(uses=["day"], version="2"),
        "number": Task(uses=["day"], version=3),
        "after": Task(uses=["lr"], after=["day"]),
        "all": Task(),
        "ä b": Task(uses=["day"]),
        "names": Task(uses=["colour"], after=["ä b"], version="é"),
    }
    assert keys(tasks) == {
        "day": "16494c97dd65199eafe1523df6cfe733051941e2f7813bf6ff4003e720457406",
        "text": "0cc2e39fbea851f87b4fdd55986253cf8bd8147485dc1e64776d4069fad3f937",
        "number": "6f46aa0e4842b184101cfa4f645ca68500f94b11f02d79a49b20398f3eb65e55",
        "after": "b9b776053de237c477964c3691083c1fb602d447c5f196d1b7edb1729144962f",
        "all": "c798a7837769ff729ef6fcd4b867ce6b487b1fa742e43d8d2eac711aff60cfcc",
        "ä b": "16494c97dd65199eafe1523df6cfe733051941e2f7813bf6ff4003e720457406",
        "names": "5586da7a9a5c1e59d23c725024c4f13a967a2831ed637285b1acbbea9b5c5d39",
    }


def test_a_key_changes_with_what_the_task_uses_and_with_nothing_else() -> None:
    before = keys()

    def changed(after: Mapping[str, str]) -> set[str]:
        return {name for name in before if before[name] != after[name]}

    assert changed(keys(colour="f" * 64)) == {"plot"}
    assert changed(keys(lr="f" * 64)) == {"train", "plot"}
    assert changed(keys(day="f" * 64)) == {"extract", "train", "plot"}
    assert changed(keys(other="f" * 64)) == set()
    newer = Task(uses=["lr"], after=["extract"], version=3)
    assert changed(keys({**TASKS, "train": newer})) == {"train", "plot"}
    assert changed(keys({**TASKS, "extract": Task(uses=["day", "lr"])})) == set(TASKS)
    assert changed(keys({**TASKS, "plot": Task(uses=["colour"])})) == {"plot"}


def test_without_uses_a_task_uses_all_inputs() -> None:
    everything = {"all": Task()}
    assert keys(everything) == keys({"all": Task(uses=list(INPUTS))})
    assert keys(everything) != keys(everything, other="f" * 64)


def test_tasks_that_are_declared_alike_have_one_key_and_order_does_not_matter() -> None:
    many = {f"load-{number}": Task(uses=["lr", "day"]) for number in range(1_000)}
    assert len(set(keys(many).values())) == 1
    assert keys(many)["load-1"] == keys({"x": Task(uses=("day", "lr"))})["x"]
    assert keys(dict(reversed(TASKS.items()))) == keys()


def test_versions_that_are_equal_but_of_another_type_have_different_keys() -> None:
    versions = [1, True, 1.0, "1", [1], [True], (1.0,)]
    many = {f"load-{number}": Task(version=version) for number, version in enumerate(versions)}
    assert len(set(keys(many).values())) == len(versions)
    assert keys({"a": Task(version=[1]), "b": Task(version=[1])})["a"] == keys(many)["load-4"]


def test_what_is_declared_alike_is_digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    digested = []

    def counting(inputs: object) -> dict[str, str]:
        digested.append(inputs)
        return input_digests(inputs)

    monkeypatch.setattr(_tasks, "input_digests", counting)
    keys(TASKS | {f"map-{number}": Task(uses=["lr"], after=["plot"]) for number in range(1_000)})
    assert len(digested) == len(TASKS) + 1


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["a"], "tasks must be a dict"),
        ({"a": "b"}, "task 'a' is declared by a str: pass Task"),
        ({"a": Task(uses=["dya"])}, "the input 'dya', which is not: did you mean 'day'"),
        ({"a": Task(uses=["xyzzy"])}, "there are 'colour', 'day', 'lr'"),
        ({"a": Task(uses=["now"])}, "'now', which ignore leaves out"),
        ({"a": Task(uses="day")}, r"uses of task \'a\' must be a collection of names"),
        ({"a": Task(uses=[1])}, "must be a collection of names"),  # type: ignore[list-item]
        ({"a": Task(after="a")}, "after of task 'a' must be a collection of names"),
        ({"load": Task(), "a": Task(after=["laod"])}, "not declared: did you mean 'load'"),
        ({"a": Task(after=["a"])}, "in a circle: 'a', 'a'"),
        ({"a": Task(after=["b"]), "b": Task(after=["a"])}, "in a circle: '[ab]', '[ab]', '[ab]'"),
        ({"a": Task(version=object())}, "the version of task 'a' has no fingerprint"),
    ],
)
def test_a_bad_declaration_is_refused_before_anything_is_read(tasks: Any, message: str) -> None:
    store = untouchable(CheckpointStore("memory://bad-tasks"))
    inputs = {"day": 1, "lr": 2, "colour": 3, "now": 4}
    with pytest.raises(InvalidTaskError, match=message):
        resume(store, "wf", inputs, on_input_change="reset", ignore=["now"], tasks=tasks)


def test_so_are_a_bad_name_an_explicit_fingerprint_and_more_than_a_record_holds() -> None:
    store: Any = untouchable(CheckpointStore("memory://bad-tasks"))
    with pytest.raises(InvalidNameError):
        resume(store, "wf", {}, on_input_change="reset", tasks={"": Task()})
    with pytest.raises(InvalidTaskError, match="pass the inputs themselves"):
        resume(store, "wf", fingerprint="v1", on_input_change="reset", tasks={"a": Task()})
    many = {f"a{number}": Task(version=number) for number in range(1_000)}
    with pytest.raises(InvalidTaskError, match=r"1000 different keys .* declare tasks alike"):
        resume(store, "wf", {}, on_input_change="reset", tasks=many)
    hundreds = {f"input {number}": number for number in range(1_000)}
    with pytest.raises(InvalidTaskError, match="put inputs together"):
        resume(store, "wf", hundreds, on_input_change="reset", tasks={"a": Task()})


def test_a_reuse_whose_keys_have_no_room_beside_those_that_it_reads_changes_nothing() -> None:
    store = CheckpointStore("memory://many-tasks")
    tasks = {f"task {number}": Task(version=number) for number in range(600)}
    run = resume(store, "wf", {"day": 1}, on_input_change="raise", tasks=tasks)
    run.write("task 0", b"old")
    for call in (plan, resume):
        with pytest.raises(InvalidTaskError, match=r"1200 different keys .* declare tasks alike"):
            call(store, "wf", {"day": 2}, on_input_change="reuse", tasks=tasks)
    assert run.is_current()
    assert store.collect("wf") == 0
    again = resume(store, "wf", {"day": 1}, on_input_change="raise", tasks=tasks)
    assert again.read_many() == {"task 0": b"old"}
    few = {name: tasks[name] for name in ("task 0", "task 1")}
    reused = resume(store, "wf", {"day": 2}, on_input_change="reuse", tasks=few)
    assert reused.read_many() == {"task 0": b"old"}
    assert resume(store, "wf", {"day": 2}, on_input_change="reset", tasks=tasks).tasks() == set()
    store.clear("wf")


def test_the_order_is_one_in_which_the_tasks_can_be_computed() -> None:
    assert list(check_tasks(dict(reversed(TASKS.items())), INPUTS)) == list(TASKS)
    given = {"b": Task(), **TASKS, "a": Task(after=["extract"])}
    assert list(check_tasks(given, INPUTS)) == list(given)


def test_the_reasons_name_an_input_a_task_before_or_the_declaration() -> None:
    given = declared({**TASKS, "other": Task()}, INPUTS)
    kept = {given.keys["extract"]}
    change = InputChange((), (), ("lr",), "changed: 'lr'")
    assert reasons(given, kept, change, "the declaration is new") == {
        "train": "input 'lr' changed",
        "plot": "through 'train': input 'lr' changed",
        "other": "input 'lr' changed",
    }
    change = InputChange(("colour",), (), ("lr",), "")
    assert reasons(given, kept, change, "")["other"] == "inputs 'colour', 'lr' changed"
    assert reasons(given, kept, None, "the declaration is new") == {
        "train": "the declaration is new",
        "plot": "through 'train': the declaration is new",
        "other": "the declaration is new",
    }


def test_dependents_are_all_that_come_after_the_last_first() -> None:
    after = {"a": (), "b": ("a",), "c": (), "d": ("b", "c"), "e": ("c",)}
    assert with_dependents(after, "a") == ["d", "b", "a"]
    assert with_dependents(after, "c") == ["e", "d", "c"]
    assert with_dependents(after, "e") == ["e"]
