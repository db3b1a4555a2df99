"""Credentials are in no repr, message, log record or stored byte; pickles are the exception."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, Run, plan, resume
from checkpoint_store.__main__ import main

from .conftest import Bucket
from .servers import Proxy, Request, Response, error

SECRETS = {"key": "canary-of-a-key", "secret": "canary-of-a-secret", "token": "canary-of-a-token"}
INPUTS = {"day": "2026-11-23"}

FAULTS: dict[str, Callable[[], Response | None]] = {
    "none": lambda: None,
    "denied": lambda: error(403, "AccessDenied"),
    "unknown key": lambda: error(403, "InvalidAccessKeyId"),
    "wrong secret": lambda: error(403, "SignatureDoesNotMatch"),
    "expired": lambda: error(400, "ExpiredToken"),
    "no bucket": lambda: error(404, "NoSuchBucket"),
    "broken": lambda: error(500, "InternalError"),
    "refused": lambda: error(412, "PreconditionFailed"),
    "cut off": lambda: Response(cut=0),
    "no S3": lambda: Response(200, {}, b"<html>Log in</html>"),
}


@pytest.fixture
def options(bucket: Bucket, proxy: Proxy) -> dict[str, Any]:
    quick = {"retries": {"mode": "standard", "total_max_attempts": 1}}
    return {**bucket.options(proxy.endpoint), **SECRETS, "config_kwargs": quick}


@pytest.fixture
def store(bucket: Bucket, options: dict[str, Any]) -> Iterator[CheckpointStore]:
    with CheckpointStore(f"s3://{bucket.name}/root", storage_options=options) as store:
        yield store


def operations(store: CheckpointStore, run: Run) -> dict[str, Callable[[], object]]:
    def stream() -> None:
        with run.open("stream", "wb") as writer:
            writer.write(b"data")

    return {
        "start": lambda: resume(store, "other", INPUTS, on_input_change="raise"),
        "continue": lambda: resume(store, "wf", INPUTS, on_input_change="raise"),
        "reuse": lambda: resume(store, "wf", {}, on_input_change="reuse"),
        "raise": lambda: resume(store, "wf", {}, on_input_change="raise"),
        "plan": lambda: plan(store, "wf", {}, on_input_change="reset"),
        "run": lambda: store.run("wf"),
        "read_fingerprint": lambda: store.read_fingerprint("wf"),
        "write_fingerprint": lambda: store.write_fingerprint("third", "v1"),
        "contains": lambda: "task" in run,
        "tasks": run.tasks,
        "read": lambda: run.read("task"),
        "read what is not there": lambda: run.read("absent"),
        "write": lambda: run.write("task", b"data"),
        "dump what cannot be": lambda: run.dump("task", object()),
        "open": lambda: run.open("task").close(),
        "stream": stream,
        "read_many": run.read_many,
        "write_many": lambda: run.write_many({"a": b"", "b": b""}),
        "delete": lambda: run.delete("task"),
        "is_current": run.is_current,
        "describe": lambda: store.describe("wf"),
        "workflows": lambda: list(store.workflows()),
        "reset": lambda: resume(store, "wf", {"day": 2}, on_input_change="reset"),
        "collect": lambda: store.collect("wf"),
        "clear": lambda: store.clear("wf"),
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_no_secret_is_shown_logged_or_stored(
    fault: str,
    bucket: Bucket,
    proxy: Proxy,
    store: CheckpointStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "checkpoint_store")
    run = resume(store, "wf", INPUTS, on_input_change="raise")
    run.write("task", b"data")

    async def answer(_: Request) -> Response | None:
        return FAULTS[fault]()

    proxy.on_request = answer
    shown = [repr(store), str(store), repr(run), repr(run.decision), repr(store._filesystem)]
    failed = []
    for name, operation in operations(store, run).items():
        try:
            shown.append(repr(operation()))
        except Exception as raised:  # noqa: BLE001
            failed.append(name)
            shown += [repr(raised), *traceback.format_exception(raised)]
    # Those that were meant to, and no others, or all that asked the server.
    assert ("read" in failed, "read what is not there" in failed) == (fault != "none", True)
    proxy.on_request = None
    records = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    ours = [record for record in caplog.records if record.name == "checkpoint_store"]
    assert ours
    keys = bucket.keys()
    stored = b"".join(key.encode() + bucket.get(key) for key in keys)
    assert stored
    everything = "\n".join([*shown, *records, stored.decode("latin-1")])
    assert [name for name, secret in SECRETS.items() if secret in everything] == []
    # The canaries are alive: a pickle, which is documented to hold them, does.
    assert all(secret.encode() in pickle.dumps(store) for secret in SECRETS.values())


@pytest.mark.parametrize("fault", ["none", "denied", "wrong secret", "no bucket"])
def test_the_command_shows_no_secret(
    fault: str,
    bucket: Bucket,
    proxy: Proxy,
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def answer(_: Request) -> Response | None:
        return FAULTS[fault]()

    proxy.on_request = answer
    given = [f"--storage-option={name}={value}" for name, value in SECRETS.items()]
    where = [f"--storage-option=endpoint_url={options['endpoint_url']}"]
    region = ['--storage-option=client_kwargs={"region_name": "us-east-1"}']
    status = main([f"s3://{bucket.name}/x", *given, *where, *region])
    output = "".join(capsys.readouterr())
    assert status == (0 if fault == "none" else 2)
    assert output
    assert [name for name, secret in SECRETS.items() if secret in output] == []
