"""What the library promises, on every kind of storage.

The storage is looked at, and tampered with, by another way than the code under test.
"""

from __future__ import annotations

import array
import gc
import inspect
import itertools
import json
import logging
import pickle
import re
import struct
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import xxhash

import checkpoint_store
from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    CheckpointStoreError,
    ContentionError,
    CorruptCheckpointError,
    CorruptRecordError,
    Decision,
    FingerprintError,
    IncompleteClearError,
    InputChange,
    InputChangedError,
    InvalidNameError,
    InvalidPolicyError,
    InvalidURLError,
    Run,
    SerializationError,
    StorageError,
    UnsupportedFormatError,
    fingerprint,
    plan,
    resume,
)
from checkpoint_store._filesystems.s3 import S3Filesystem
from checkpoint_store._record import decode_record, encode_record

from .harness import backends
from .harness.backends import (
    HOSTILE_NAMES,
    RECORD,
    SIBLINGS,
    TOO_LONG_NAMES,
    UNUSABLE_NAMES,
    Untouchable,
)

backend = backends.backend

POLICIES = ("reuse", "reset", "raise")
INPUTS = {"day": "2026-11-23", "limit": 5}
OTHER_INPUTS = {"day": "2026-11-24", "limit": 5}
MIB = 1024 * 1024


@pytest.fixture
def store(backend: backends.Backend) -> Iterator[CheckpointStore]:
    with backend.store() as store:
        yield store


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    return resume(store, "wf", INPUTS, on_input_change="raise")


def key_of(run: Run, segment: str) -> str:
    return f"wf/{segment}@{run.token}"


def untouchable(store: CheckpointStore) -> CheckpointStore:
    """The store, with any further input or output a failure."""
    store._filesystem = Untouchable()
    return store


# Bytes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n",
        bytes(24),
        bytes(range(256)) * 300,
        bytearray(b"changeable"),
        memoryview(b"a view of it")[2:6],
        memoryview(array.array("d", [1.0, 2.5])),
        memoryview(bytes(range(24))).cast("B", (2, 3, 4)),
    ],
    ids=lambda data: f"{type(data).__name__}-{len(data)}",
)
def test_bytes_are_read_as_they_were_written(run: Run, data: bytes) -> None:
    run.write("task", data)
    assert bytes(data) == run.read("task")


def test_a_large_checkpoint_is_read_as_it_was_written(run: Run) -> None:
    data = bytes(range(251)) * (12 * MIB // 251)
    run.write("task", data)
    assert data == run.read("task")


def test_an_empty_array_is_written_as_no_bytes(run: Run) -> None:
    run.write("task", memoryview(array.array("d")))
    assert run.read("task") == b""


def test_a_later_write_replaces_an_earlier_one(run: Run) -> None:
    run.write("task", b"a longer first version")
    run.write("task", b"second")
    assert run.read("task") == b"second"
    assert run.tasks() == {"task"}


def test_a_missing_checkpoint_is_an_error_that_is_also_a_key_error(run: Run) -> None:
    calls: list[Callable[[str], object]] = [run.read, run.load, run.open]
    for call in calls:
        with pytest.raises(CheckpointNotFoundError, match=r"'task' of workflow 'wf'") as caught:
            call("task")
        assert isinstance(caught.value, KeyError)
        assert not str(caught.value).startswith(('"', "'"))
    assert "task" not in run
    assert run.tasks() == set()


def test_a_stored_none_and_empty_bytes_are_values(run: Run) -> None:
    assert run.dump("none", None) is None
    run.write("empty", b"")
    assert "none" in run
    assert run.load("none") is None
    assert "empty" in run
    assert run.read("empty") == b""
    with run.open("empty") as stream:
        assert stream.read() == b""
    assert run.load_many(["none"]) == {"none": None}
    assert run.read_many(["empty"]) == {"empty": b""}


def test_delete_removes_one_checkpoint_and_may_be_repeated(run: Run) -> None:
    run.write("task", b"1")
    run.write("task2", b"2")
    assert run.tasks() == {"task", "task2"}
    run.delete("task")
    run.delete("task")
    run.delete("never")
    assert run.tasks() == {"task2"}
    assert "task" not in run
    with pytest.raises(CheckpointNotFoundError):
        run.read("task")


def test_another_store_finds_what_was_written(backend: backends.Backend, run: Run) -> None:
    run.write("task", b"data")
    with backend.store() as other:
        found = resume(other, "wf", INPUTS, on_input_change="raise")
        assert run.token == found.token
        assert found.read("task") == b"data"


# Keys and files


def test_a_workflow_is_one_flat_folder_of_readable_names(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    run = resume(store, "day/1", INPUTS, on_input_change="reset")
    for task in ("load", "a/b", "a.b", ".x.y.", "x@1", "100%", "é", "Load"):
        if task in backend.distinct(["load", "Load"]) or task.casefold() != "load":
            run.write(task, b"")
    names = {key.removeprefix("day%2F1/").removesuffix(f"@{run.token}") for key in backend.files()}
    expected = {RECORD, "a%2Fb", "a.b", "%2Ex.y%2E", "x%401", "100%25", "%C3%A9"}
    assert expected | set(backend.distinct(["load", "Load"])) == names


def test_a_file_is_header_line_payload_length_and_checksum(
    backend: backends.Backend, run: Run
) -> None:
    run.write("task", b"pay\nload")
    data = backend.files()[key_of(run, "task")]
    header, _, rest = data.partition(b"\n")
    parsed = json.loads(header)
    assert parsed["checkpoint_store"] == 1
    assert ("wf", "task", run.token) == (parsed["workflow"], parsed["task"], parsed["token"])
    assert fingerprint(INPUTS) == parsed["inputs"]
    sealed = header + b"\n" + b"pay\nload" + struct.pack(">Q", 8)
    assert b"pay\nload" + struct.pack(">Q", 8) + xxhash.xxh3_128_digest(sealed) == rest


def test_a_streamed_file_and_a_written_one_have_the_same_format(
    backend: backends.Backend, run: Run
) -> None:
    def without_time(task: str) -> bytes:
        data = backend.files()[key_of(run, task)]
        return re.sub(rb'"created": "[^"]*"|"task": "[^"]*"', b"", data[:-16])

    run.write("whole", b"data")
    with run.open("stream", "wb") as stream:
        stream.write(b"da")
        stream.write(b"ta")
    assert without_time("whole") == without_time("stream")


def test_the_record_is_small_readable_json(backend: backends.Backend, run: Run) -> None:
    parsed = json.loads(backend.files()[f"wf/{RECORD}"])
    assert parsed["checkpoint_store"] == 1
    assert ("wf", run.token, None) == (parsed["workflow"], parsed["token"], parsed["base"])
    assert fingerprint(INPUTS) == parsed["fingerprint"]
    assert {"day", "limit"} == set(parsed["inputs"])
    assert parsed["nonce"]


def test_no_input_is_stored_but_its_digest(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    run = resume(store, "wf", {"password": "canary-5309"}, on_input_change="raise")
    run.write("task", b"data")
    assert b"canary" not in b"".join(backend.files().values())


def test_the_record_leaves_out_too_many_digests(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    many = {f"input-{number}": number for number in range(2000)}
    run = resume(store, "wf", many, on_input_change="raise")
    assert len(backend.files()[f"wf/{RECORD}"]) <= 64 * 1024
    assert run.token == resume(store, "wf", many, on_input_change="raise").token
    change = plan(store, "wf", {**many, "input-0": 1}, on_input_change="raise").change
    assert InputChange((), (), (), "the fingerprint differs") == change


# The policy table


def no_record(backend: backends.Backend, _: CheckpointStore) -> None:
    assert backend.files() == {}


def same_inputs(backend: backends.Backend, store: CheckpointStore) -> None:
    resume(store, "wf", INPUTS, on_input_change="raise").write("old", b"old")
    assert len(backend.files()) == 2


def other_inputs(backend: backends.Backend, store: CheckpointStore) -> None:
    resume(store, "wf", OTHER_INPUTS, on_input_change="raise").write("old", b"old")
    assert len(backend.files()) == 2


def mixed(backend: backends.Backend, store: CheckpointStore) -> None:
    same_inputs(backend, store)
    resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    record = json.loads(backend.files()[f"wf/{RECORD}"])
    assert record["base"]
    assert fingerprint(INPUTS) == record["fingerprint"]


def without_fingerprint(backend: backends.Backend, store: CheckpointStore) -> None:
    store.run("wf").write("old", b"old")
    assert json.loads(backend.files()[f"wf/{RECORD}"])["fingerprint"] is None


def corrupt(backend: backends.Backend, store: CheckpointStore) -> None:
    same_inputs(backend, store)
    backend.put(f"wf/{RECORD}", backend.files()[f"wf/{RECORD}"][:-9])


def newer(backend: backends.Backend, store: CheckpointStore) -> None:
    same_inputs(backend, store)
    record = json.loads(backend.files()[f"wf/{RECORD}"])
    backend.put(f"wf/{RECORD}", json.dumps({**record, "checkpoint_store": 2}).encode())


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


def test_unusable_arguments_are_refused_before_any_io(store: CheckpointStore) -> None:
    untouchable(store)
    for function in (resume, plan):
        call: Any = function
        with pytest.raises(TypeError, match="inputs"):
            call(store, "wf", on_input_change="raise")
        with pytest.raises(TypeError, match="inputs"):
            call(store, "wf", INPUTS, fingerprint="v1", on_input_change="raise")
        for wrong in (1, b"v1", "", "f" * 1025, "é" * 513):
            with pytest.raises(FingerprintError):
                call(store, "wf", fingerprint=wrong, on_input_change="raise")
        with pytest.raises((FingerprintError, TypeError), match="ignore"):
            call(store, "wf", INPUTS, ignore="day", on_input_change="raise")
        with pytest.raises(FingerprintError, match=re.escape("inputs['f']")):
            call(store, "wf", {"f": object()}, on_input_change="raise")
    for wrong in (None, 1, "", "f" * 1025):
        with pytest.raises(FingerprintError):
            store.write_fingerprint("wf", wrong)
    for wrong in (1, "", "f" * 1025):
        with pytest.raises(FingerprintError):
            store.run("wf", fingerprint=wrong)


def test_an_unknown_policy_is_refused_before_any_io_and_lists_the_three(
    store: CheckpointStore,
) -> None:
    untouchable(store)
    unknown: list[Any] = [None, "", "Reuse", "RESET", "ignore", "raise ", b"raise", 1, ["reset"]]
    for policy in unknown:
        for function in (resume, plan):
            with pytest.raises(InvalidPolicyError) as caught:
                function(store, "wf", INPUTS, on_input_change=policy)
            assert isinstance(caught.value, ValueError)
            assert all(f"'{known}'" in str(caught.value) for known in POLICIES)


def test_a_missing_policy_is_refused_before_any_io_and_lists_the_three(
    store: CheckpointStore,
) -> None:
    untouchable(store)
    for function in (resume, plan):
        call: Any = function
        with pytest.raises(InvalidPolicyError, match=r"missing.*'reuse'.*'reset'.*'raise'"):
            call(store, "wf", INPUTS)


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
    def refuse(keys: list[str]) -> dict[str, str]:
        return dict.fromkeys(keys, "not allowed")

    run.write("task", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(store._filesystem, "delete", refuse)
        new = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert key_of(run, "task") in backend.files()
    assert new.tasks() == set()
    [warning] = [r.getMessage() for r in caplog.records if "out of reach" in r.getMessage()]
    assert "'wf'" in warning
    assert "not allowed" in warning
    assert store.collect("wf") == 1
    assert [f"wf/{RECORD}"] == list(backend.files())


# The record changes under us, or a reply is lost


def test_a_change_whose_reply_was_lost_is_recognised(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = store._filesystem.swap

    def lose_the_reply(*arguments: Any) -> bool:
        assert swap(*arguments)
        raise ConnectionResetError("the reply was lost")

    monkeypatch.setattr(store._filesystem, "swap", lose_the_reply)
    run = resume(store, "wf", INPUTS, on_input_change="raise")
    assert run.is_current()
    assert run.decision is not None
    assert run.decision.action == "start"
    new = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert new.is_current()
    assert run.token != new.token


def test_a_change_that_failed_is_an_error_and_changes_nothing(
    backend: backends.Backend, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise ConnectionResetError("refused")

    before = backend.files()
    monkeypatch.setattr(store._filesystem, "swap", fail)
    with pytest.raises(StorageError, match=r"record of workflow 'wf'.*refused"):
        resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert before == backend.files()
    assert run.is_current()


def test_who_loses_a_race_for_the_record_decides_again(
    backend: backends.Backend, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = store._filesystem.swap

    def lose(*arguments: Any) -> bool:
        monkeypatch.setattr(store._filesystem, "swap", swap)
        with backend.store() as other:
            resume(other, "wf", OTHER_INPUTS, on_input_change="raise").write("task", b"other")
        return swap(*arguments)

    monkeypatch.setattr(store._filesystem, "swap", lose)
    with pytest.raises(InputChangedError):
        resume(store, "wf", INPUTS, on_input_change="raise")
    assert store.run("wf").read_many() == {"task": b"other"}


def test_a_record_that_keeps_changing_is_contention(
    store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    swap = store._filesystem.swap

    def lose(key: str, old: Any, _: bytes) -> bool:
        tries.append(1)
        record = replace(decode_record(old.data, "wf"), nonce=str(len(tries)))
        swap(key, old, encode_record(record))
        return False

    monkeypatch.setattr(store._filesystem, "swap", lose)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(ContentionError, match="'wf'"):
        resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert len(tries) == 10
    assert run.is_current()


def test_a_storage_that_refuses_to_replace_what_is_there_is_not_called_contention(
    store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    monkeypatch.setattr(store._filesystem, "swap", lambda *_: tries.append(1))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(StorageError, match=r"'wf' cannot be changed: .* refused 10 .*If-Match"):
        resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert len(tries) == 10
    assert run.is_current()


# Reuse of changed inputs


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


@pytest.mark.parametrize(
    "value", ["text", 5, None, memoryview(b"abcd")[::2]], ids=["str", "int", "None", "every other"]
)
def test_what_is_no_bytes_is_refused_by_the_name_of_its_task(run: Run, value: Any) -> None:
    message = r"checkpoint 'odd' of workflow 'wf' takes bytes, which this \w+ does not give"
    with pytest.raises(TypeError, match=message):
        run.write("odd", value)
    with pytest.raises(TypeError, match=message):
        run.write_many({"even": b"", "odd": value})
    assert run.tasks() == set()


def test_several_checkpoints_are_given_as_a_dict_and_asked_for_as_a_collection(run: Run) -> None:
    for pairs in ([("task", b"1")], None):
        with pytest.raises(TypeError, match="give a dict"):
            run.write_many(pairs)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="give a dict"):
            run.dump_many(pairs)  # type: ignore[arg-type]
    for name in ("task", b"task"):
        with pytest.raises(TypeError, match="must be a collection of names"):
            run.read_many(name)  # type: ignore[arg-type]


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


def test_collect_keeps_live_files_and_deletes_retired_ones(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    retired = resume(store, "wf", INPUTS, on_input_change="raise")
    base = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    base.write("base", b"base")
    live = resume(store, "wf", {"third": 3}, on_input_change="reuse")
    live.write("live", b"live")
    before = backend.files()
    retired.write_many({"a": b"1", "b": b"2"})
    assert len(before) + 2 == len(backend.files())
    assert store.collect("wf") == 2
    assert before == backend.files()
    assert store.collect("wf") == 0
    assert live.read_many() == {"base": b"base", "live": b"live"}


def test_collect_deletes_nothing_without_a_record(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    run.write("task", b"data")
    backend.remove(f"wf/{RECORD}")
    before = backend.files()
    assert store.collect("wf") == 0
    assert store.collect("never") == 0
    assert before == backend.files()


def test_collect_deletes_nothing_beside_a_record_it_cannot_read(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    for prepare, error in ((corrupt, CorruptRecordError), (newer, UnsupportedFormatError)):
        prepare(backend, store)
        before = backend.files()
        with pytest.raises(error):
            store.collect("wf")
        assert before == backend.files()
        store.clear("wf")


def test_an_incomplete_clear_names_what_remains_and_why(
    store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = store._filesystem.delete

    def refuse_b(keys: list[str]) -> dict[str, str]:
        kept = {key: "not allowed" for key in keys if "/b@" in key}
        return kept | delete([key for key in keys if key not in kept])

    run.write_many({"a": b"1", "b": b"2", "c": b"3"})
    with monkeypatch.context() as patch:
        patch.setattr(store._filesystem, "delete", refuse_b)
        with pytest.raises(IncompleteClearError, match="not allowed") as caught:
            store.clear("wf")
    [(key, reason)] = caught.value.failures.items()
    assert key.endswith(f"/b@{run.token}")
    assert reason == "not allowed"
    assert store.clear("wf") == 1


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


def test_a_foreign_folder_is_no_workflow(backend: backends.Backend, store: CheckpointStore) -> None:
    for key in ("other/readme", "not%2fours/.fingerprint", ".git/.fingerprint", "a b/.fingerprint",
                "deep/er/.fingerprint", ".fingerprint", "a@0123456789abcdef"):  # fmt: skip
        backend.put(key, b"foreign")
    assert list(store.workflows()) == []
    store.run("wf")
    assert list(store.workflows()) == ["wf"]


# Streams


def assert_untouched(backend: backends.Backend, before: dict[str, bytes]) -> None:
    """Not even a temporary file or a part of an upload has come to what was there `before`."""
    gc.collect()
    assert before == backend.files()
    assert backend.unfinished_uploads() == []


def test_a_stream_writes_whatever_the_chunks(backend: backends.Backend, run: Run) -> None:
    chunks = [b"", b"a", bytearray(b"bc"), memoryview(b"xdefx")[1:-1], b"g" * 70_000, b""]
    with run.open("task", "wb") as stream:
        counts = [stream.write(chunk) for chunk in chunks]
        assert sum(counts) == stream.tell()
        assert "task" not in run
    assert [len(chunk) for chunk in chunks] == counts
    assert b"".join(chunks) == run.read("task")
    assert backend.unfinished_uploads() == []


def test_an_empty_stream_is_an_empty_checkpoint(run: Run) -> None:
    run.open("task", "wb").close()
    assert run.read("task") == b""


def test_a_large_stream_comes_back_in_any_pieces(backend: backends.Backend, run: Run) -> None:
    block = bytes(range(256)) * 4096
    with run.open("task", "wb") as stream:
        for number in range(20):
            stream.write(number.to_bytes(4) + block)
    expected = b"".join(number.to_bytes(4) + block for number in range(20))
    assert expected == run.read("task")
    with run.open("task") as reader:
        assert expected[:1] == reader.read(1)
        assert expected[1:100_000] == reader.read(99_999)
        assert expected[100_000:] == reader.read()
        assert reader.read() == b""
    assert backend.unfinished_uploads() == []


def test_a_stream_appears_when_it_is_closed(run: Run) -> None:
    run.write("task", b"old")
    stream = run.open("task", "wb")
    stream.write(b"new")
    assert run.read("task") == b"old"
    stream.close()
    assert run.read("task") == b"new"
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"more")
    assert run.read("task") == b"new"


@pytest.mark.parametrize("size", [10, 20 * MIB], ids=["small", "large"])
def test_a_stream_is_discarded_when_its_block_raises(
    backend: backends.Backend, run: Run, size: int
) -> None:
    run.write("other", b"old")
    before = backend.files()

    def fail(error: type[BaseException]) -> None:
        with run.open("task", "wb") as stream:
            stream.write(bytes(size))
            raise error

    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
    assert_untouched(backend, before)
    assert "task" not in run


def test_a_discarded_stream_leaves_the_old_checkpoint(backend: backends.Backend, run: Run) -> None:
    run.write("task", b"old")
    before = backend.files()
    with run.open("task", "wb") as stream:
        stream.write(b"new")
        stream.discard()
    assert_untouched(backend, before)


@pytest.mark.parametrize("size", [10, 20 * MIB], ids=["small", "large"])
def test_an_abandoned_stream_is_discarded(backend: backends.Backend, run: Run, size: int) -> None:
    def abandon() -> None:
        stream = run.open("task", "wb")
        stream.write(bytes(size))

    before = backend.files()
    with pytest.warns(ResourceWarning, match="'task' of workflow 'wf' was not closed: discarded"):
        abandon()
    assert_untouched(backend, before)


@pytest.mark.parametrize("size", [10, 20 * MIB], ids=["small", "large"])
def test_a_failed_write_is_final(
    backend: backends.Backend, run: Run, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    before = backend.files()
    stream = run.open("task", "wb")
    stream.write(bytes(size))
    with monkeypatch.context() as patch:
        patch.setattr(stream._upload, "write", fail)
        with pytest.raises(StorageError, match="No space left") as caught:
            stream.write(b"more")
    assert caught.value.errno == 28
    with pytest.raises(StorageError, match="failed"):
        stream.write(b"more")
    with pytest.raises(StorageError, match="failed"):
        stream.close()
    assert stream.closed
    stream.close()
    assert_untouched(backend, before)


def test_a_stream_that_cannot_be_committed_is_discarded(
    backend: backends.Backend, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("no")

    before = backend.files()
    stream = run.open("task", "wb")
    stream.write(b"data")
    monkeypatch.setattr(stream._upload, "commit", fail)
    with pytest.raises(StorageError, match="no"):
        stream.close()
    assert stream.closed
    assert_untouched(backend, before)


def test_a_stream_has_two_modes(run: Run) -> None:
    for mode in ("r", "w", "rt", "ab", "xb", "r+b", ""):
        with pytest.raises(ValueError, match="'rb' or 'wb'"):
            run.open("task", mode)  # type: ignore[call-overload]


def test_a_stream_is_verified_before_its_last_bytes(backend: backends.Backend, run: Run) -> None:
    data = bytes(range(250)) * 12_000
    run.write("task", data)
    key = key_of(run, "task")
    whole = backend.files()[key]
    start = whole.index(b"\n") + 1
    for position in (start, start + len(data) // 2, start + len(data) - 1, len(whole) - 1):
        backend.put(key, flipped(whole, position))
        with run.open("task") as stream:
            got: list[bytes] = []
            with pytest.raises(CorruptCheckpointError, match="'task' of workflow 'wf'"):
                got.extend(iter(lambda: stream.read(65_536), b""))
            assert 0 < sum(map(len, got)) < len(data)
            with pytest.raises(CorruptCheckpointError):
                stream.read()


def test_a_truncated_stream_is_corrupt(backend: backends.Backend, run: Run) -> None:
    data = bytes(3 * MIB)
    run.write("task", data)
    key = key_of(run, "task")
    whole = backend.files()[key]
    for size in (len(whole) - 1, len(whole) - 24, len(whole) // 2, whole.index(b"\n") + 1):
        backend.put(key, whole[:size])
        with run.open("task") as stream, pytest.raises(CorruptCheckpointError):
            stream.read()


def test_readers_of_one_checkpoint_do_not_disturb_each_other(run: Run) -> None:
    run.write("task", b"0123456789")
    with run.open("task") as first, run.open("task") as second:
        assert first.read(3) == b"012"
        assert second.read(5) == b"01234"
        assert first.read() == b"3456789"
        assert second.read() == b"56789"


# Corruption


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def assert_corrupt(run: Run, error: type[Exception] = CorruptCheckpointError) -> None:
    calls: list[Callable[[], object]] = [
        lambda: run.read("task"),
        lambda: run.load("task"),
        lambda: run.open("task").read(),
        lambda: run.read_many(["task"]),
        lambda: run.load_many(),
    ]
    for call in calls:
        with pytest.raises(error):
            call()


def test_a_damaged_checkpoint_is_never_a_value(backend: backends.Backend, run: Run) -> None:
    run.dump("task", "a value")
    key = key_of(run, "task")
    whole = backend.files()[key]
    newline = whole.index(b"\n")
    payload = whole.index(b"a value")
    damaged = [
        b"",
        whole[:newline],
        whole[: newline + 1],
        whole[:-1],
        whole[:-16],
        whole[1:],
        whole + b"\0",
        whole + whole,
        b"{" * 100_000,
        b"\0" * len(whole),
        whole[: newline + 1] + whole[-24:],
        flipped(whole, 0),
        flipped(whole, newline),
        flipped(whole, payload),
        flipped(whole, len(whole) - 24),
        flipped(whole, len(whole) - 1),
        flipped(whole, whole.index(b"created") + 12),
    ]
    for data in damaged:
        backend.put(key, data)
        assert_corrupt(run)
    backend.put(key, whole)
    assert run.load("task") == "a value"
    backend.put(key, whole[:-1])
    run.write("task", b"written anew")
    assert run.read("task") == b"written anew"


def test_files_that_were_swapped_are_corrupt(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    sibling = resume(store, "wf2", INPUTS, on_input_change="raise")
    run.dump("task", 1)
    run.dump("task2", 2)
    sibling.dump("task", 3)
    files = backend.files()
    foreign = files[f"wf2/task@{sibling.token}"]
    for data in (
        files[key_of(run, "task2")],
        foreign,
        foreign.replace(sibling.token.encode(), run.token.encode()),
    ):
        backend.put(key_of(run, "task"), data)
        assert_corrupt(run)

    other = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    backend.put(key_of(other, "task"), files[key_of(run, "task")])
    assert_corrupt(other)


def test_a_checkpoint_of_a_newer_format_is_no_corrupt_one(
    backend: backends.Backend, run: Run
) -> None:
    run.dump("task", 1)
    key = key_of(run, "task")
    data = backend.files()[key].replace(b'{"checkpoint_store": 1', b'{"checkpoint_store": 2')
    backend.put(key, data)
    assert_corrupt(run, UnsupportedFormatError)


def test_a_damaged_record_never_reads_as_absent(
    backend: backends.Backend, store: CheckpointStore, run: Run
) -> None:
    run.write("task", b"data")
    resume(store, "wf2", INPUTS, on_input_change="raise")
    key = f"wf/{RECORD}"
    files = backend.files()
    whole = files[key]
    damaged = [
        b"",
        b"null",
        b"{}",
        b"\xff" * 100,
        whole[:-3],
        whole[:100],
        b"[" * 50_000,
        b" " * 65_537 + whole,
        whole.replace(b'"token"', b'"tokem"'),
        whole.replace(run.token.encode(), b"../../../etc/pas"),
        whole.replace(b'"wf"', b'"xy"'),
        files[f"wf2/{RECORD}"],
    ]
    calls: list[Callable[[], object]] = [
        run.is_current,
        lambda: store.read_fingerprint("wf"),
        lambda: store.run("wf"),
        lambda: store.write_fingerprint("wf", "v1"),
        lambda: store.collect("wf"),
        lambda: plan(store, "wf", INPUTS, on_input_change="raise"),
        lambda: resume(store, "wf", INPUTS, on_input_change="raise"),
        lambda: resume(store, "wf", INPUTS, on_input_change="reuse"),
    ]
    for data in damaged:
        backend.put(key, data)
        for call in calls:
            with pytest.raises(CorruptRecordError, match="'wf'"):
                call()
        assert data == backend.files()[key]
    assert resume(store, "wf", INPUTS, on_input_change="reset").tasks() == set()


def test_a_record_of_a_newer_format_is_an_error_everywhere(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    newer(backend, store)
    before = backend.files()
    calls: list[Callable[[], object]] = [
        lambda: store.read_fingerprint("wf"),
        lambda: store.run("wf"),
        lambda: store.write_fingerprint("wf", "v1"),
        lambda: store.collect("wf"),
        *(partial(plan, store, "wf", 1, on_input_change=policy) for policy in POLICIES),
        *(partial(resume, store, "wf", 1, on_input_change=policy) for policy in POLICIES),
    ]
    for call in calls:
        with pytest.raises(UnsupportedFormatError, match="newer version"):
            call()
    assert before == backend.files()


# Serializers


class Shouting:
    """Dumps to bytes, by an object and not a module."""

    def dumps(self, value: object) -> bytes:
        return str(value).upper().encode()

    def loads(self, data: bytes) -> str:
        assert type(data) is bytes
        return data.decode()


def test_json_is_the_default_serializer(run: Run) -> None:
    value = {"a": [1, 2.5, None, "é"]}
    assert run.dump("task", value) is value
    assert value == run.load("task")
    assert json.dumps(value).encode() == run.read("task")


def named(**functions: Any) -> Any:
    return types.SimpleNamespace(__name__="named", **functions)


@pytest.mark.parametrize(
    ("serializer", "value", "loaded"),
    [
        (pickle, {("a", 1): {2, 3}}, {("a", 1): {2, 3}}),
        (Shouting(), "quiet", "QUIET"),
        (named(dumps=repr, loads=eval), (1, 2), (1, 2)),
        (named(dumps=bytearray, loads=bytes), b"x", b"x"),
    ],
    ids=["pickle", "object", "text", "bytearray"],
)
def test_the_caller_chooses_the_serializer(
    backend: backends.Backend, serializer: Any, value: object, loaded: object
) -> None:
    with backend.store(serializer=serializer) as store:
        run = store.run("wf")
        assert run.dump("task", value) is value
        assert loaded == run.load("task")
        run.dump_many({"a": value, "b": value})
        assert run.load_many() == {"task": loaded, "a": loaded, "b": loaded}


def test_a_checkpoint_of_another_serializer_is_an_error(
    backend: backends.Backend, run: Run
) -> None:
    run.dump("task", "value")
    with backend.store(serializer=pickle) as store:
        other = store.run("wf")
        for call in (lambda: other.load("task"), lambda: other.load_many(["task"])):
            with pytest.raises(SerializationError, match=r"'task'.*json.*pickle"):
                call()
        assert other.read("task") == b'"value"'
        other.dump("pickled", "value")
    with pytest.raises(SerializationError, match=r"'pickled'.*pickle.*json"):
        run.load("pickled")


def test_written_bytes_are_no_dumped_object(run: Run) -> None:
    run.write("task", b"1")
    with pytest.raises(SerializationError, match=r"'task'.*written as bytes"):
        run.load("task")


def test_a_value_that_cannot_be_dumped_is_not_written(backend: backends.Backend, run: Run) -> None:
    run.dump("task", "old")
    before = backend.files()
    circle: list[Any] = []
    circle.append(circle)
    for value, cause in ((object(), TypeError), (circle, ValueError)):
        with pytest.raises(SerializationError, match="'task' of workflow 'wf'") as caught:
            run.dump("task", value)
        assert isinstance(caught.value.__cause__, cause)
        with pytest.raises(SerializationError, match="'b' of workflow 'wf'"):
            run.dump_many({"a": 1, "b": value})
    assert before == backend.files()


def test_what_a_serializer_raises_or_makes_is_an_error_of_ours(backend: backends.Backend) -> None:
    def fail(_: object) -> Any:
        raise RuntimeError("no luck")

    with backend.store(serializer=named(dumps=str, loads=fail)) as store:
        run = store.run("wf")
        run.dump("task", 1)
        with pytest.raises(SerializationError, match=r"'task'.*no luck") as caught:
            run.load("task")
        assert isinstance(caught.value.__cause__, RuntimeError)
    with backend.store(serializer=named(dumps=len, loads=fail)) as store:
        run = store.run("wf")
        with pytest.raises(SerializationError, match=r"'task'.*int"):
            run.dump("task", "value")


@pytest.mark.parametrize("serializer", [None, object(), types.SimpleNamespace(dumps=str)])
def test_a_serializer_needs_both_functions(backend: backends.Backend, serializer: Any) -> None:
    with pytest.raises(TypeError, match=r"dumps and loads"):
        backend.store(serializer=serializer)


# Many at once


def test_many_are_written_and_read_in_the_order_asked(run: Run) -> None:
    expected = {f"task-{number}": str(number).encode() for number in range(40)}
    run.write_many(expected)
    asked = [*reversed(expected), "missing", "task-1"]
    found = run.read_many(asked)
    assert list(reversed(expected)) == list(found)
    assert expected == found
    assert expected == run.read_many()
    assert expected.keys() == run.tasks()
    assert run.read_many(iter(["task-3"])) == {"task-3": b"3"}


def test_many_objects_are_dumped_and_loaded_in_the_order_asked(run: Run) -> None:
    values = {f"task-{number}": [number, None] for number in range(12)}
    run.dump_many(values)
    assert list(reversed(values)) == list(run.load_many([*reversed(values), "missing"]))
    assert values == run.load_many()


def test_nothing_at_once_is_nothing(backend: backends.Backend, run: Run) -> None:
    before = backend.files()
    run.write_many({})
    run.dump_many({})
    assert run.read_many() == run.read_many([]) == run.load_many() == run.load_many([]) == {}
    assert before == backend.files()


def test_a_partial_failure_names_what_was_not_written(
    store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store._filesystem.write

    def fail_odd(key: str, parts: Any) -> None:
        if re.search("[13579]@", key):
            raise OSError(5, "odd one out")
        write(key, parts)

    payloads = {f"t{number}": bytes([number]) for number in range(24)}
    odd = [f"t{number}" for number in range(1, 24, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(store._filesystem, "write", fail_odd)
        if isinstance(store._filesystem, S3Filesystem):
            awrite = store._filesystem.awrite

            async def fail_odd_to_s3(key: str, parts: Any) -> None:
                if re.search("[13579]@", key):
                    raise OSError(5, "odd one out")
                await awrite(key, parts)

            patch.setattr(store._filesystem, "awrite", fail_odd_to_s3)
        for call in (
            lambda: run.write_many(payloads),
            lambda: run.dump_many(dict.fromkeys(payloads, 1)),
        ):
            expected = "12 of 24 checkpoints of workflow 'wf'.*'t1', 't3', .*'t19' and 2 more"
            with pytest.raises(StorageError, match=expected) as caught:
                call()
            assert list(caught.value.failures) == odd
            assert all("odd one out" in reason for reason in caught.value.failures.values())
    assert run.tasks() == payloads.keys() - odd


def test_one_damaged_among_many_is_an_error(backend: backends.Backend, run: Run) -> None:
    run.write_many({"a": b"1", "b": b"2", "c": b"3"})
    key = key_of(run, "b")
    backend.put(key, backend.files()[key][:-1])
    with pytest.raises(CorruptCheckpointError, match="'b'"):
        run.read_many()


# Names


def test_an_unusable_name_is_refused_before_any_io(store: CheckpointStore, run: Run) -> None:
    untouchable(store)
    run = replace(run, _filesystem=Untouchable())
    for name in (*UNUSABLE_NAMES, *TOO_LONG_NAMES):
        for call in calls_with_a_name(store, run, name):
            with pytest.raises(InvalidNameError) as caught:
                call()
            assert isinstance(caught.value, ValueError)
            assert len(str(caught.value)) < 400


def calls_with_a_name(store: CheckpointStore, run: Run, name: Any) -> list[Callable[[], object]]:
    return [
        lambda: resume(store, name, INPUTS, on_input_change="raise"),
        lambda: plan(store, name, INPUTS, on_input_change="raise"),
        lambda: store.run(name),
        lambda: store.read_fingerprint(name),
        lambda: store.write_fingerprint(name, "v1"),
        lambda: store.clear(name),
        lambda: store.collect(name),
        lambda: name in run,
        lambda: run.read(name),
        lambda: run.load(name),
        lambda: run.write(name, b""),
        lambda: run.dump(name, 1),
        lambda: run.delete(name),
        lambda: run.open(name),
        lambda: run.open(name, "wb"),
        lambda: run.read_many(["good", name]),
        lambda: run.load_many(["good", name]),
        *(
            []
            if isinstance(name, list)  # It cannot be a key of a dict.
            else [
                lambda: run.write_many({"good": b"", name: b""}),
                lambda: run.dump_many({"good": 1, name: 1}),
            ]
        ),
    ]


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


# Errors


def test_errors_survive_pickling(store: CheckpointStore, run: Run) -> None:
    change = InputChange(("a",), (), ("b",), "reason")
    errors: list[CheckpointStoreError] = [
        InvalidNameError("message"),
        InvalidPolicyError("message"),
        InvalidURLError("message"),
        FingerprintError("message", path="inputs['a']", reason="reason"),
        InputChangedError("message", workflow_id="wf", stored=None, current="v", change=change),
        CheckpointNotFoundError("message"),
        CorruptCheckpointError("message"),
        CorruptRecordError("message"),
        UnsupportedFormatError("message"),
        SerializationError("message"),
        ContentionError("message"),
        IncompleteClearError("message", failures={"key": "reason"}),
        StorageError("message", errno=28, failures={"task": "reason"}),
    ]
    assert {type(error).__name__ for error in errors} | {"CheckpointStoreError"} == {
        name for name in checkpoint_store.__all__ if name.endswith("Error")
    }
    with pytest.raises(CheckpointNotFoundError) as missing:
        run.read("task")
    with pytest.raises(InputChangedError) as changed:
        resume(store, "wf", OTHER_INPUTS, on_input_change="raise")
    for error in (*errors, missing.value, changed.value):
        copy = pickle.loads(pickle.dumps(error))
        assert type(error) is type(copy)
        assert str(error) == str(copy)
        assert error.args == copy.args
        assert vars(error) == vars(copy)
        assert getattr(error, "errno", None) == getattr(copy, "errno", None)


def test_whatever_a_filesystem_raises_becomes_a_storage_error(
    store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise PermissionError(13, "Permission denied")

    for name in ("read", "read_small", "contains", "write", "swap", "delete", "list_files",
                 "list_folders", "open_read", "open_write", "detach"):  # fmt: skip
        monkeypatch.setattr(store._filesystem, name, fail)
        monkeypatch.setattr(store._filesystem, f"a{name}", fail, raising=False)
    of_the_workflow: list[Callable[[], object]] = [
        run.tasks,
        run.read_many,
        run.is_current,
        lambda: store.read_fingerprint("wf"),
        lambda: store.write_fingerprint("wf", "v1"),
        lambda: store.run("wf"),
        lambda: store.clear("wf"),
        lambda: store.collect("wf"),
        lambda: resume(store, "wf", INPUTS, on_input_change="reset"),
        lambda: run.read_many(["task"]),
        lambda: run.write_many({"task": b""}),
        lambda: plan(store, "wf", INPUTS, on_input_change="reset"),
    ]
    of_the_task: list[Callable[[], object]] = [
        lambda: "task" in run,
        lambda: run.read("task"),
        lambda: run.write("task", b""),
        lambda: run.load("task"),
        lambda: run.dump("task", 1),
        lambda: run.delete("task"),
        lambda: run.open("task"),
        lambda: run.open("task", "wb"),
    ]
    for call in (*of_the_workflow, *of_the_task):
        with pytest.raises(StorageError, match="'wf'") as caught:
            call()
        assert "Permission denied" in str(caught.value)
        assert isinstance(caught.value, OSError)
        if call in of_the_task:
            assert "'task'" in str(caught.value)
        if not caught.value.failures:
            assert caught.value.errno == 13
            assert isinstance(caught.value.__cause__, PermissionError)
    with pytest.raises(StorageError, match="Permission denied"):
        list(store.workflows())


# Logs, secrets, conditions, pickles


def test_decisions_are_logged_and_what_is_reused_or_corrupt_is_a_warning(
    backend: backends.Backend, store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "checkpoint_store")

    def decided() -> list[tuple[str, str]]:
        logged = [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if record.name == "checkpoint_store" and "conditional" not in record.getMessage()
        ]
        caplog.clear()
        return logged

    resume(store, "wf", INPUTS, on_input_change="raise")
    assert decided() == [("INFO", "workflow 'wf': start")]
    resume(store, "wf", INPUTS, on_input_change="raise")
    assert decided() == [("INFO", "workflow 'wf': continue")]
    resume(store, "wf", OTHER_INPUTS, on_input_change="reuse")
    assert decided() == [("WARNING", "workflow 'wf': reuse (changed: 'day')")]
    resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    [(level, message)] = decided()
    assert level == "INFO"
    assert message.startswith("workflow 'wf': reset (")
    backend.put("wf/.fingerprint", b"")
    resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert decided() == [("WARNING", "workflow 'wf': reset (the record is corrupt)")]
    plan(store, "wf", INPUTS, on_input_change="reuse")
    assert decided() == []


def test_no_value_of_an_input_is_logged_or_shown(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "checkpoint_store")
    shown: list[object] = []
    for policy, value in (("raise", 1), ("reuse", 2), ("reset", 3)):
        inputs = {"password": f"canary-{value}", "count": 53091 + value}
        shown.append(plan(store, "wf", inputs, on_input_change=policy))
        run = resume(store, "wf", inputs, on_input_change=policy)
        shown += [run, run.decision]
    with pytest.raises(InputChangedError) as caught:
        resume(store, "wf", {"password": "canary-4", "count": 53095}, on_input_change="raise")
    shown += [caught.value, caught.value.change, vars(caught.value)]
    with pytest.raises(FingerprintError) as refused:
        resume(store, "wf", {"password": "canary", 5309: object()}, on_input_change="raise")
    shown.append(refused.value)
    text = "\n".join([*map(str, shown), *map(repr, shown), caplog.text])
    assert "password" in text
    assert "canary" not in text
    assert "5309" not in text.replace("inputs[5309]", "")


def test_credentials_are_not_shown_or_logged_or_stored(
    backend: backends.Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "checkpoint_store")
    shown: list[object] = []
    with backend.store() as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        run.dump("task", 1)
        resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
        shown += [store, run, store._filesystem, f"{store.url}"]
        with pytest.raises(CheckpointStoreError) as caught:
            run.read("task")
        shown.append(caught.value)
        store.clear("wf")
    if isinstance(backend, backends.S3Backend):
        monkeypatch.setattr(backend, "url", "s3://no-such-bucket/root")
        with backend.store() as store, pytest.raises(StorageError) as failed:
            resume(store, "wf", INPUTS, on_input_change="raise")
        shown += [failed.value, failed.value.__cause__]
    text = "\n".join([*map(str, shown), *map(repr, shown), caplog.text])
    assert "contract-secret" not in text
    assert "contract-key" not in text
    stored = b"".join(backend.everything().values())
    assert b"contract-secret" not in stored
    assert b"contract-key" not in stored


def test_reprs_say_what_it_is(store: CheckpointStore, run: Run) -> None:
    assert repr(store) == f"CheckpointStore({store.url!r})"
    assert repr(run).startswith("Run(workflow_id='wf', fingerprint='fp1:sha256:")
    assert repr(run).endswith(")")
    assert "_filesystem" not in repr(run)


def test_conditional_writes_are_known_after_the_first_record(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    assert store.conditional_writes in (backend.conditional_writes, None)
    resume(store, "wf", INPUTS, on_input_change="raise")
    assert store.conditional_writes is backend.conditional_writes


def test_a_storage_without_conditional_writes_is_warned_about_once(
    backend: backends.Backend, store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> int:
        return sum("no conditional writes" in record.getMessage() for record in caplog.records)

    plan(store, "wf", INPUTS, on_input_change="raise")
    assert warnings() == 0
    resume(store, "wf", INPUTS, on_input_change="raise")
    resume(store, "wf2", INPUTS, on_input_change="raise")
    store.write_fingerprint("wf", "v1")
    assert warnings() == (0 if backend.conditional_writes else 1)


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


def test_only_what_happened_is_in_the_storage(backend: backends.Backend, run: Run) -> None:
    run.write("task", b"data")
    run.dump("task", 1)
    with run.open("task", "wb") as stream:
        stream.write(b"data")
    run.write_many({"task": b"1", "task2": b"2"})
    assert {f"wf/{RECORD}", key_of(run, "task"), key_of(run, "task2")} == backend.files().keys()
    assert backend.unfinished_uploads() == []


def test_max_concurrency_must_be_positive(backend: backends.Backend) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_concurrency"):
            backend.store(max_concurrency=wrong)


def test_a_run_cannot_be_changed(run: Run) -> None:
    for name, value in itertools.product(("token", "workflow_id", "decision"), ("x", None)):
        with pytest.raises(AttributeError):
            setattr(run, name, value)
