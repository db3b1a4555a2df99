"""Never torn: a file is whole and the right one, or an error, on every kind of storage.

Files are damaged and exchanged by another way than the code under test.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from checkpoint_store import (
    CheckpointStore,
    CheckpointStoreError,
    CorruptCheckpointError,
    CorruptRecordError,
    InvalidNameError,
    Run,
    StorageError,
    UnsupportedFormatError,
    plan,
    resume,
)
from checkpoint_store._policy import POLICIES

from ..harness import MIB, backends
from ..harness.backends import EMULATORS, RECORD, also_on
from ..harness.contract import (
    INPUTS,
    OTHER_INPUTS,
    TASKS,
    USED,
    checkpoints,
    flipped,
    key_of,
    newer,
    record_of,
    resumed,
)
from ..harness.records import sealed

# Streams


def assert_untouched(backend: backends.Backend, before: dict[str, bytes]) -> None:
    """Not even a temporary file or a part of an upload has come to what was there `before`."""
    gc.collect()
    assert before == backend.files()
    assert backend.unfinished_uploads() == []


@also_on("sftp", *EMULATORS)
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


@also_on(*EMULATORS)
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


@also_on("sftp", *EMULATORS)
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
@also_on("sftp", *EMULATORS)
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


# Damage


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


@also_on("sftp", *EMULATORS)
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


@also_on(*EMULATORS)
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


def test_a_hostile_record_with_declared_tasks_is_an_error_everywhere_and_nothing_is_deleted(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    resumed(store).dump_many({"load": 1, "plot": 2, "report": 3})
    run = resumed(store, "reuse", day="2026-11-24")
    run.dump("load", 4)
    record, before = record_of(backend), checkpoints(backend)
    del record["checksum"]
    (key, token), *_ = record["tasks"].items()
    assert len(before) == 4
    assert record["base_tasks"]
    hostile: list[tuple[dict[str, Any], type[CheckpointStoreError]]] = [
        ({"tasks": []}, CorruptRecordError),
        ({"base_tasks": None}, CorruptRecordError),
        ({"base_tasks": {key: "c" * 16}}, CorruptRecordError),
        ({"base": None}, CorruptRecordError),
        ({"tasks": {key[:-1]: token}}, CorruptRecordError),
        ({"tasks": {key: token, "0" * 64: token}}, CorruptRecordError),
        ({"tasks": {key: record["token"]}}, CorruptRecordError),
        ({"tasks": {key: record["base"]}}, CorruptRecordError),
        ({"tasks": {key: next(iter(record["base_tasks"].values()))}}, CorruptRecordError),
        ({"tasks": {key: "../../x"}}, CorruptRecordError),
        ({"tasks": {key: 10**4_000}}, CorruptRecordError),
        ({"workflow": "WF"}, InvalidNameError),
        ({"checkpoint_store": 3}, UnsupportedFormatError),
    ]
    calls: list[Callable[[], object]] = [
        run.is_current,
        lambda: store.read_fingerprint("wf"),
        lambda: store.describe("wf"),
        lambda: store.run("wf"),
        lambda: store.run("wf", tasks=TASKS),
        lambda: store.write_fingerprint("wf", "v1"),
        lambda: store.collect("wf"),
        *(
            partial(call, store, "wf", USED, on_input_change=policy, tasks=tasks)
            for call in (plan, resume)
            for policy in ("raise", "reuse")
            for tasks in (TASKS, None)
        ),
    ]
    for changes, error in hostile:
        data = sealed({**record, **changes})
        backend.put(f"wf/{RECORD}", data)
        for call in calls:
            with pytest.raises(error, match="'wf'"):
                call()
        assert before == checkpoints(backend)
        assert data == backend.files()[f"wf/{RECORD}"]
    backend.put(f"wf/{RECORD}", sealed({**record, **hostile[0][0]}))
    assert resumed(store, "reset").tasks() == set()
    assert checkpoints(backend) == {}


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


def test_one_damaged_among_many_is_an_error(backend: backends.Backend, run: Run) -> None:
    run.write_many({"a": b"1", "b": b"2", "c": b"3"})
    key = key_of(run, "b")
    backend.put(key, backend.files()[key][:-1])
    with pytest.raises(CorruptCheckpointError, match="'b'"):
        run.read_many()
