"""Eight processes race for one workflow; and the judge of the races is no pushover."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from checkpoint_store import CheckpointStore
from checkpoint_store._filesystems.local import LocalFilesystem

from ..harness.backends import make_backend
from ..harness.environment import forks_beside_threads, needs_fork
from ..harness.races import (
    Call,
    judge_checkpoints,
    judge_record,
    key_of,
    race_once,
    racers,
)

pytestmark = forks_beside_threads

# What happened where enough happened.
OUTCOMES = (
    "start", "continue", "reset", "raise", "reuse", "run", "read", "write", "clear", "collect",
    "dump", "load", "retired", "count", "continue, keeping tasks", "reset, keeping tasks",
)  # fmt: skip


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize(("kind", "seeds", "operations"), [("local", 4, 100), ("ministack", 2, 60)])
def test_processes_that_race_are_told_what_one_after_the_other_would_be(
    kind: str, seeds: int, operations: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    counts: Counter[str] = Counter()
    backend = make_backend(kind, tmp_path, request)
    with backend.store(durable=False) as store, racers(store) as race:
        for seed in range(seeds):
            counts += race_once(race, store, seed, operations)
    assert all(counts[outcome] for outcome in OUTCOMES), counts


_T = TypeVar("_T")


class _Unlocked(LocalFilesystem):
    def _locked(self, folder: str, change: Callable[[], _T]) -> _T:  # noqa: ARG002
        self._make_folder(".locks")
        return change()


@pytest.mark.slow
@needs_fork
def test_a_race_on_a_storage_without_locks_is_noticed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store._filesystem = _Unlocked(str(tmp_path), durable=True)
    store._filesystem.made_by = partial(_Unlocked, str(tmp_path), durable=True)
    with racers(store) as race, pytest.raises(AssertionError, match=r"no order explains"):
        race_once(race, store, 0, 100)


def at(start: int, end: int, kind: str, **told: Any) -> Call:
    return Call(0, start, end, kind, **told)


FIRST = at(0, 1, "start", given="A", token="a")
SECOND = at(2, 3, "reset", given="B", seen="A", token="b")


def told(given: str, token: str, keys: str = "", version: int = 1, **more: Any) -> dict[str, Any]:
    """What a call was told that was given two inputs, and tokens for the first few tasks."""
    tokens = tuple((key_of(str(task), given, version), key) for task, key in enumerate(keys))
    return {"given": given, "token": token, "keys": tokens, **more}


BEGUN = at(0, 1, "start", **told("1 1", "a", "xyz"))
KEPT = at(2, 3, "reset", seen="1 1", **told("1 2", "b", "xYz"))
MIXED = at(
    2,
    3,
    "reuse",
    seen="1 1",
    base="a",
    **told("1 2", "b", "xYz"),
    older=((key_of("1", "1 2", 1), "y"),),
)

POSSIBLE = {
    "a call that had its effect before one that began earlier": [
        at(0, 9, "continue", given="A", seen="A", token="a"),
        at(1, 2, "start", given="A", token="a"),
    ],
    "of two resets the one that began later came first": [
        FIRST,
        at(2, 9, "reset", given="C", seen="B", token="c"),
        at(3, 8, "reset", given="B", seen="A", token="b"),
        at(10, 11, "read", seen="C"),
    ],
    "a read beside a reset that finds the old": [
        FIRST,
        at(2, 9, "reset", given="B", seen="A", token="b"),
        at(3, 4, "read", seen="A"),
        at(5, 6, "read", seen="B"),
    ],
    "a clear between two starts": [
        FIRST,
        at(2, 9, "clear"),
        at(3, 4, "start", given="A", token="c"),
    ],
    "a fingerprint for what is there, and one for what is new": [
        at(0, 1, "run", token="a"),
        at(2, 3, "write", given="A"),
        at(4, 5, "continue", given="A", seen="A", token="a"),
        at(6, 7, "write", given="B"),
        at(8, 9, "run", seen="B", token="b"),
    ],
    "an overlay, twice, that no strict run takes for its own": [
        FIRST,
        at(2, 3, "reuse", given="B", seen="A", token="b", base="a"),
        at(4, 5, "reuse", given="A", seen="A", token="b", base="a"),
        at(6, 7, "raise", given="A", seen="A"),
        at(8, 9, "reset", given="A", seen="A", token="c"),
    ],
    "a reset that keeps what uses the other input": [BEGUN, KEPT],
    "two resets that keep different tasks, beside each other": [
        BEGUN,
        at(2, 8, "reset", seen="1 1", **told("2 1", "b", "XyZ")),
        at(3, 9, "reset", seen="2 1", **told("1 2", "c", "QRS")),
    ],
    "a new version, which two declare at once": [
        BEGUN,
        at(2, 9, "continue", seen="1 1", **told("1 1", "a", "XyZ", 2)),
        at(3, 8, "continue", seen="1 1", **told("1 1", "a", "XyZ", 2)),
        at(10, 11, "continue", seen="1 1", **told("1 1", "a", "xyz")),
    ],
    "tasks that are declared late, beside a reset that keeps them": [
        FIRST._replace(given="1 1"),
        at(2, 9, "continue", seen="1 1", **told("1 1", "a", "xyz")),
        at(3, 8, "reset", seen="1 1", **told("1 2", "b", "xYz")),
    ],
    "a mixture, of which a reset keeps what was pure": [
        BEGUN,
        MIXED,
        at(4, 5, "reset", seen="1 1", **told("1 2", "c", "xQz")),
    ],
}

IMPOSSIBLE = {
    "two winners": [
        at(0, 5, "start", given="A", token="a"),
        at(1, 4, "start", given="A", token="b"),
    ],
    "no winner": [at(0, 1, "continue", given="A", seen="A", token="a")],
    "a lost update": [
        FIRST,
        at(2, 9, "reset", given="B", seen="A", token="b"),
        at(3, 8, "reset", given="C", seen="A", token="c"),
    ],
    "a stale read": [FIRST, SECOND, at(4, 5, "read", seen="A")],
    "a read of what was cleared": [FIRST, at(2, 3, "clear"), at(4, 5, "read", seen="A")],
    "a read that misses the record": [FIRST, at(2, 3, "read")],
    "a read that goes back": [
        FIRST,
        at(2, 9, "reset", given="B", seen="A", token="b"),
        at(3, 4, "read", seen="B"),
        at(5, 6, "read", seen="A"),
    ],
    "a read of what comes later": [FIRST, at(2, 3, "read", seen="B"), SECOND._replace(start=4)],
    "a retired generation": [
        FIRST,
        SECOND,
        at(4, 5, "reset", given="A", seen="B", token="c"),
        at(6, 7, "continue", given="A", seen="A", token="a"),
    ],
    "a run of a retired generation": [FIRST, SECOND, at(4, 5, "run", seen="B", token="a")],
    "a lost fingerprint": [FIRST, at(2, 3, "write", given="B"), at(4, 5, "read", seen="A")],
    "a lost clear": [FIRST, at(2, 3, "clear"), at(4, 5, "reset", given="B", seen="A", token="b")],
    "a refusal of the same inputs": [FIRST, at(2, 3, "raise", given="A", seen="A")],
    "a strict run of a mixture": [
        FIRST,
        at(2, 3, "reuse", given="B", seen="A", token="b", base="a"),
        at(4, 5, "continue", given="A", seen="A", token="b", base="a"),
    ],
    "a reuse of a retired generation": [
        FIRST,
        SECOND,
        at(4, 5, "reuse", given="A", seen="B", token="c", base="a"),
    ],
    "one token twice": [FIRST, SECOND._replace(token="a")],
    "a token that is kept although its input changed": [
        BEGUN,
        at(2, 3, "reset", seen="1 1", **told("1 2", "b", "xyz")),
    ],
    "a token that is kept although its version is another": [
        BEGUN,
        at(2, 3, "continue", seen="1 1", **told("1 1", "a", "xyz", 2)),
    ],
    "a token that is not kept": [
        BEGUN,
        at(2, 3, "reset", seen="1 1", **told("1 2", "b", "XYz")),
    ],
    "tasks that are declared late, and lost by a reset beside it": [
        FIRST._replace(given="1 1"),
        at(2, 9, "continue", seen="1 1", **told("1 1", "a", "xyz")),
        at(3, 8, "reset", seen="1 1", **told("1 2", "b", "XYZ")),
    ],
    "a token that comes back": [
        BEGUN,
        KEPT,
        at(4, 5, "reset", seen="1 2", **told("1 1", "c", "xyz")),
    ],
    "a token that comes back after a clear": [
        BEGUN,
        at(2, 3, "clear"),
        at(4, 5, "start", **told("1 1", "c", "xyz")),
    ],
    "two tokens for one new key": [
        FIRST._replace(given="1 1"),
        at(2, 9, "continue", seen="1 1", **told("1 1", "a", "xyz")),
        at(3, 8, "continue", seen="1 1", **told("1 1", "a", "xyZ")),
    ],
    "a mixture, of which a reset keeps all": [
        BEGUN,
        MIXED,
        at(4, 5, "reset", seen="1 1", **told("1 2", "c", "xYz")),
    ],
    "a reuse that finds nothing older": [BEGUN, MIXED._replace(older=())],
    "a reuse of another version": [
        BEGUN,
        at(
            2,
            3,
            "reuse",
            seen="1 1",
            base="a",
            **told("2 1", "b", "XyZ", 2),
            older=((key_of("0", "2 1", 2), "x"),),
        ),
    ],
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_calls_that_an_order_explains_are_accepted(name: str) -> None:
    judge_record(POSSIBLE[name])


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_calls_that_no_order_explains_are_refused(name: str) -> None:

    with pytest.raises(AssertionError, match=r"no order explains|have one token"):
        judge_record(IMPOSSIBLE[name])


def wrote(start: int, end: int, number: int, token: str = "a") -> Call:
    return at(start, end, "dump", token=token, task="t", number=number)


def read(start: int, end: int, number: int, origin: str | None = "a", **told: str) -> Call:
    asked = {"token": "a", "task": "t", **told}
    return at(start, end, "load", number=number, **asked)._replace(origin=origin)


TRUE = {
    "the last write": [wrote(0, 1, 1), wrote(2, 3, 2), read(4, 5, 2)],
    "the write before one that is under way": [wrote(0, 1, 1), wrote(2, 9, 2), read(3, 4, 1)],
    "the write that is under way": [wrote(0, 1, 1), wrote(2, 9, 2), read(3, 4, 2)],
    "nothing yet": [wrote(2, 9, 1), read(3, 4, 0, None)],
    "nothing, after a write in another generation": [wrote(0, 1, 1, "z"), read(3, 4, 0, None)],
    "the base": [wrote(0, 1, 1, "z"), read(2, 3, 1, "z", base="z")],
    "the overlay": [wrote(0, 1, 1, "z"), wrote(2, 3, 2), read(4, 5, 2, base="z")],
}
FALSE = {
    "a lost write": [wrote(0, 1, 1), read(2, 3, 0, None)],
    "an older write": [wrote(0, 1, 1), wrote(2, 3, 2), read(4, 5, 1)],
    "a write of the future": [wrote(0, 1, 1), read(2, 3, 2), wrote(4, 5, 2)],
    "a write of nobody": [read(2, 3, 1)],
    "a write of another generation": [wrote(0, 1, 1, "z"), read(2, 3, 1, "z")],
    "the base below a write": [
        wrote(0, 1, 1, "z"),
        wrote(2, 3, 2),
        read(4, 5, 1, "z", base="z"),
    ],
    "a lost base": [wrote(0, 1, 1, "z"), read(2, 3, 0, None, base="z")],
}


@pytest.mark.parametrize("name", TRUE)
def test_reads_that_may_be_are_accepted(name: str) -> None:
    judge_checkpoints(TRUE[name])


@pytest.mark.parametrize("name", FALSE)
def test_reads_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(AssertionError, match="number="):
        judge_checkpoints(FALSE[name])
