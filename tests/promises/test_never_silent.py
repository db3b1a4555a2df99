"""Never silent: what is refused, fails or is not guaranteed is told, on every kind of storage.

Neither an input nor a credential is told with it.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import checkpoint_store
from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    CheckpointStoreError,
    ContentionError,
    CorruptCheckpointError,
    CorruptRecordError,
    FingerprintError,
    IncompleteClearError,
    InputChange,
    InputChangedError,
    InvalidNameError,
    InvalidPolicyError,
    InvalidTaskError,
    InvalidURLError,
    Run,
    SerializationError,
    StorageError,
    UnsupportedFormatError,
    plan,
    resume,
)
from checkpoint_store._filesystems.s3 import S3Filesystem
from checkpoint_store._policy import POLICIES

from ..harness import backends
from ..harness.backends import EMULATORS, TOO_LONG_NAMES, UNUSABLE_NAMES, Untouchable, also_on
from ..harness.contract import INPUTS, OTHER_INPUTS, refuse_to_delete, untouchable

# Arguments


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


# What was not done


def test_an_incomplete_clear_names_what_remains_and_why(
    store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_many({"a": b"1", "b": b"2", "c": b"3"})
    with monkeypatch.context() as patch:
        refuse_to_delete(patch, store._filesystem, lambda key: "/b@" in key)
        with pytest.raises(IncompleteClearError, match="not allowed") as caught:
            store.clear("wf")
    [(key, reason)] = caught.value.failures.items()
    assert key.endswith(f"/b@{run.token}")
    assert reason == "not allowed"
    assert store.clear("wf") == 1


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


# Errors


def test_errors_survive_pickling(store: CheckpointStore, run: Run) -> None:
    change = InputChange(("a",), (), ("b",), "reason")
    errors: list[CheckpointStoreError] = [
        InvalidNameError("message"),
        InvalidPolicyError("message"),
        InvalidTaskError("message"),
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


# What is logged and shown


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


@also_on("sftp", *EMULATORS)
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


# Conditional writes


@also_on(*EMULATORS)
def test_conditional_writes_are_known_after_the_first_record(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    assert store.conditional_writes in (backend.conditional_writes, None)
    resume(store, "wf", INPUTS, on_input_change="raise")
    assert store.conditional_writes is backend.conditional_writes


@also_on(*EMULATORS)
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
