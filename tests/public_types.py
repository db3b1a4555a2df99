"""Type-checked by `mypy --strict` and never run: what the public names are to a type checker."""

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Literal, assert_type

from fsspec.callbacks import Callback

import checkpoint_store
from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    CheckpointStoreError,
    Decision,
    Description,
    FingerprintError,
    IncompleteClearError,
    InputChange,
    InputChangedError,
    Run,
    StorageError,
    Task,
    TaskDescription,
    fingerprint,
    plan,
    register,
    resume,
)

Policy = Literal["reuse", "reset", "raise"]
Action = Literal["start", "continue", "reuse", "reset", "raise"]


class Model:
    layers: int


def stores(path: os.PathLike[str], options: Mapping[str, object]) -> None:
    CheckpointStore("s3://bucket/prefix")
    CheckpointStore(path, serializer=pickle, durable=False, max_concurrency=4)
    CheckpointStore("s3://bucket", serializer=json, storage_options=options)
    CheckpointStore(b"s3://bucket")  # type: ignore[arg-type]
    CheckpointStore("x", pickle)  # type: ignore[call-arg]
    store = CheckpointStore("memory://")
    assert_type(store.url, str)
    assert_type(store.conditional_writes, bool | None)
    assert_type(store.read_fingerprint("wf"), str | None)
    assert_type(store.write_fingerprint("wf", "v1"), None)
    assert_type(store.run("wf"), Run)
    assert_type(store.run("wf", fingerprint="v1"), Run)
    assert_type(store.clear("wf"), int)
    assert_type(store.collect("wf"), int)
    assert_type(store.workflows(), Iterator[str])
    assert_type(store.close(), None)
    with CheckpointStore("memory://") as entered:
        assert_type(entered, CheckpointStore)
    store.conditional_writes = True  # type: ignore[misc]
    store.clear(5)  # type: ignore[arg-type]


def resuming(store: CheckpointStore, policy: Policy, inputs: dict[str, object]) -> None:
    assert_type(resume(store, "wf", inputs, on_input_change="reset"), Run)
    assert_type(resume(store, "wf", [1, 2], on_input_change=policy, ignore={"now"}), Run)
    assert_type(resume(store, "wf", fingerprint="v1", on_input_change="raise"), Run)
    assert_type(plan(store, "wf", inputs, on_input_change="reuse", ignore=["now"]), Decision)
    assert_type(plan(store, "wf", fingerprint="v1", on_input_change=policy), Decision)
    resume(store, "wf", inputs)  # type: ignore[call-overload]
    resume(store, "wf", on_input_change="reset")  # type: ignore[call-overload]
    resume(store, "wf", inputs, on_input_change="keep")  # type: ignore[call-overload]
    resume(store, "wf", inputs, "reset")  # type: ignore[call-overload]
    resume(store, "wf", inputs, fingerprint="v1", on_input_change="reset")  # type: ignore[call-overload]
    resume(store, "wf", fingerprint="v1", on_input_change="reset", ignore=["a"])  # type: ignore[call-overload]
    plan(store, "wf", inputs)  # type: ignore[call-overload]


def running(run: Run, data: bytes | bytearray | memoryview, model: Model) -> None:
    assert_type(run.workflow_id, str)
    assert_type(run.fingerprint, str | None)
    assert_type(run.token, str)
    assert_type(run.decision, Decision | None)
    assert_type("task" in run, bool)
    assert_type(run.tasks(), set[str])
    assert_type(run.read("task"), bytes)
    assert_type(run.write("task", data), None)
    assert_type(run.load("task"), Any)
    assert_type(run.dump("task", model), Model)
    assert_type(run.dump("task", 42), int)
    assert_type(run.delete("task"), None)
    assert_type(run.read_many(), dict[str, bytes])
    assert_type(run.read_many(["task"]), dict[str, bytes])
    assert_type(run.load_many({"task"}), dict[str, Any])
    assert_type(run.write_many({"task": data}), None)
    assert_type(run.dump_many({"task": model}), None)
    assert_type(run.is_current(), bool)
    assert_type(run.open("task"), BinaryIO)
    assert_type(run.open("task", "rb"), BinaryIO)
    with run.open("task", "wb") as file:
        assert_type(file.write(data), int)
        assert_type(file.tell(), int)
        assert_type(file.discard(), None)
    run.open("task", "r")  # type: ignore[call-overload]
    run.write("task", "text")  # type: ignore[arg-type]
    run.token = "other"  # type: ignore[misc]


def retaining(store: CheckpointStore, description: Description, callback: Callback) -> None:
    assert_type(store.describe("wf"), Description)
    assert_type(store.prune(timedelta(days=30), dry_run=True, callback=callback), list[str])
    assert_type(store.clear("wf", callback=callback), int)
    assert_type(description.workflow_id, str)
    assert_type(description.fingerprint, str | None)
    assert_type(description.tasks, int)
    assert_type(description.live, Mapping[str, TaskDescription])
    assert_type(description.live["task"].size, int)
    assert_type(description.live["task"].written, datetime | None)
    assert_type(description.live["task"].since, datetime | None)
    assert_type(description.retired, int)
    assert_type(description.size, int)
    assert_type(description.newest, datetime | None)
    assert_type(description.oldest, datetime | None)
    store.prune(30)  # type: ignore[arg-type]


def deciding(decision: Decision, change: InputChange) -> None:
    assert_type(decision.action, Action)
    assert_type(decision.policy, Policy)
    assert_type(decision.stored, str | None)
    assert_type(decision.current, str)
    assert_type(decision.change, InputChange | None)
    assert_type(change.added, tuple[str, ...])
    assert_type(change.removed, tuple[str, ...])
    assert_type(change.changed, tuple[str, ...])
    assert_type(change.reason, str)
    decision.action = "start"  # type: ignore[misc]
    change.reason = ""  # type: ignore[misc]


def declaring(store: CheckpointStore, run: Run, decision: Decision) -> None:
    tasks = {"load": Task(uses=["day"]), "plot": Task(uses=(), after={"load"}, version=2)}
    assert_type(resume(store, "wf", {}, on_input_change="reset", tasks=tasks), Run)
    assert_type(plan(store, "wf", {}, on_input_change="reset", tasks=tasks), Decision)
    assert_type(store.run("wf", tasks=tasks), Run)
    assert_type(run.delete("load", dependents=True), None)
    assert_type(decision.kept, Mapping[str, str])
    assert_type(decision.recomputed, Mapping[str, str])
    Task(["day"])  # type: ignore[call-arg]
    resume(store, "wf", fingerprint="v1", on_input_change="reset", tasks=tasks)  # type: ignore[call-overload]
    resume(store, "wf", {}, on_input_change="reset", tasks={"load": "day"})  # type: ignore[call-overload]


def fingerprinting(model: Model) -> None:
    assert_type(fingerprint({"a": 1}), str)
    assert_type(fingerprint(model, ignore=("now",)), str)
    register(Model, lambda model: {"layers": model.layers}, tag="acme.Model/1")
    register(Model, lambda _: 5)
    fingerprint({}, ("now",))  # type: ignore[call-arg]


def failing(error: Exception) -> None:
    if isinstance(error, InputChangedError):
        assert_type(error.workflow_id, str)
        assert_type(error.stored, str | None)
        assert_type(error.current, str)
        assert_type(error.change, InputChange)
    if isinstance(error, FingerprintError):
        assert_type(error.path, str)
        assert_type(error.reason, str)
    if isinstance(error, StorageError):
        assert_type(error.errno, int | None)
        assert_type(error.failures, dict[str, str])
    if isinstance(error, IncompleteClearError):
        assert_type(error.failures, dict[str, str])
    missing: KeyError = CheckpointNotFoundError("task")
    storage: OSError = StorageError("full")
    value: ValueError = FingerprintError("no")
    base: CheckpointStoreError = storage if isinstance(storage, StorageError) else StorageError("x")
    raise base from (missing or value)


assert_type(checkpoint_store.__all__, list[str])
