"""Nothing lost: a write that returned is found, whoever else is at work, on every kind of storage.

The storage is looked at, and tampered with, by another way than the code under test.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import pytest

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    ContentionError,
    CorruptRecordError,
    InputChangedError,
    Run,
    StorageError,
    UnsupportedFormatError,
    resume,
)
from checkpoint_store._record import decode_record, encode_record

from ..harness import MIB, backends
from ..harness.backends import EMULATORS, RECORD, also_on
from ..harness.contract import INPUTS, OTHER_INPUTS, corrupt, newer

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
@also_on("sftp", *EMULATORS)
def test_bytes_are_read_as_they_were_written(run: Run, data: bytes) -> None:
    run.write("task", data)
    assert bytes(data) == run.read("task")


@also_on(*EMULATORS)
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


@also_on("sftp", *EMULATORS)
def test_a_missing_checkpoint_is_an_error_that_is_also_a_key_error(run: Run) -> None:
    calls: list[Callable[[str], object]] = [run.read, run.load, run.open]
    for call in calls:
        with pytest.raises(CheckpointNotFoundError, match=r"'task' of workflow 'wf'") as caught:
            call("task")
        assert isinstance(caught.value, KeyError)
        assert not str(caught.value).startswith(('"', "'"))
    assert "task" not in run
    assert run.tasks() == set()


@also_on("sftp", *EMULATORS)
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


@also_on("sftp", *EMULATORS)
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
        record = decode_record(old.data, "wf")._replace(nonce=str(len(tries)))
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


# Collecting


@also_on("sftp", *EMULATORS)
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


# Many at once


@also_on("sftp", *EMULATORS)
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
