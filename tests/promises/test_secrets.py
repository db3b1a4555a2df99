"""Credentials are in no repr, message, traceback, log record, output or stored byte.

A store is given canaries wherever credentials may be given, and everything is done with it that can
be done, while nothing works. A pickle of a store or run holds them, which is documented.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NoReturn
from urllib.parse import quote

import fsspec
import pytest

from checkpoint_store import CheckpointStore, CheckpointStoreError, Run, plan, resume
from checkpoint_store._command.command import main

from ..harness.backends import GenericBackend, MotoBackend, PlainFileSystem
from ..harness.faults import STATUSES, FaultProxy, Kind, kind_of
from ..harness.servers import Request, Response, error

pytestmark = [pytest.mark.usefixtures("no_aws_environment"), pytest.mark.slow]

KEY, SECRET, TOKEN = "canary-KEY-53091", "canary/SECRET+53092", "canary=TOKEN=53093"
NESTED = "canary-nested-key-of-32-bytes-53"
CANARIES = (KEY, SECRET, TOKEN, NESTED)

CREDENTIALS: dict[str, Any] = {
    "key": KEY,
    "secret": SECRET,
    "token": TOKEN,
    # Of the customer's own encryption.
    "s3_additional_kwargs": {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": NESTED},
    "client_kwargs": {"region_name": "us-east-1"},
}
IMPATIENT = {"retries": {"total_max_attempts": 1}, "connect_timeout": 1, "read_timeout": 0.1}
UNREACHABLE = "http://127.0.0.1:1"


def forms(canary: str) -> set[str]:
    """What it may look like elsewhere."""
    return {canary, quote(canary, safe=""), base64.b64encode(canary.encode()).decode()}


def found_in(text: str) -> list[str]:
    return [canary for canary in CANARIES if any(form in text for form in forms(canary))]


class Watch:
    """Remembers everything that anybody could come to see."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.errors: list[BaseException] = []

    def see(self, *things: object) -> None:
        for thing in things:
            self.texts += [repr(thing), str(thing), f"{thing}"]

    def attempt(self, call: Callable[[], object]) -> Any:
        """What the call returns, or None where it raises an error of the library's."""
        try:
            result = call()
        except CheckpointStoreError as caught:
            self.errors.append(caught)
            self.see_error(caught)
            return None
        self.see(result)
        return result

    def see_error(self, caught: BaseException) -> None:
        self.texts.append("".join(traceback.format_exception(caught)))
        # By what it says itself: dask, where it is imported, has all errors pickle their causes.
        self.texts.append(pickle.dumps(caught.__reduce_ex__(4)).decode("latin-1"))
        link: BaseException | None = caught
        while link is not None:
            # aiohttp keeps a whole request in the args of an exception, and shows it in none.
            if not type(link).__module__.startswith("aiohttp"):
                self.see(link, link.args)
            if isinstance(link, CheckpointStoreError):
                self.see(vars(link))
            link = link.__cause__ or link.__context__

    def see_files(self, files: dict[str, bytes]) -> None:
        self.texts += [key + data.decode("latin-1") for key, data in files.items()]


@pytest.fixture
def watch(
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Watch]:
    caplog.set_level(logging.DEBUG, "checkpoint_store")
    monkeypatch.setattr(
        "checkpoint_store._steps.time", SimpleNamespace(sleep=lambda _: None), raising=True
    )
    watch = Watch()
    yield watch
    for record in caplog.get_records("setup") + caplog.get_records("call"):
        if record.name == "checkpoint_store":
            watch.see(record, vars(record), record.getMessage())
    watch.see(*(warning.message for warning in recwarn))
    watch.texts += capfd.readouterr()
    assert watch.texts
    assert found_in("\n".join(watch.texts)) == []


# Everything that can be done


def stream(run: Run, mode: Any, watch: Watch) -> object:
    with run.open("t", mode) as opened:
        watch.see(opened)
        return opened.read() if mode == "rb" else opened.write(b"x" * 100)


A, B = {"day": "A"}, {"day": "B"}
OF_A_STORE: dict[str, Callable[[CheckpointStore, Watch], object]] = {
    "resume": lambda store, _: resume(store, "wf", A, on_input_change="raise"),
    "plan": lambda store, _: plan(store, "wf", B, on_input_change="reuse"),
    "reuse": lambda store, _: resume(store, "wf", B, on_input_change="reuse"),
    "reset": lambda store, _: resume(store, "wf", A, on_input_change="reset"),
    "run": lambda store, _: store.run("wf"),
    "read_fingerprint": lambda store, _: store.read_fingerprint("wf"),
    "write_fingerprint": lambda store, _: store.write_fingerprint("wf", "v1"),
    "workflows": lambda store, _: list(store.workflows()),
    "describe": lambda store, _: store.describe("wf"),
    "prune": lambda store, _: store.prune(timedelta(0)),
    "collect": lambda store, _: store.collect("wf"),
    "clear": lambda store, _: store.clear("wf"),
    "conditional_writes": lambda store, _: store.conditional_writes,
    "url": lambda store, _: store.url,
    "close": lambda store, _: store.close(),
}
OF_A_RUN: dict[str, Callable[[Run, Watch], object]] = {
    "write": lambda run, _: run.write("t", b"data"),
    "dump": lambda run, _: run.dump("t", 1),
    "dump what it cannot": lambda run, _: run.dump("t", object()),
    "write_many": lambda run, _: run.write_many({"t": b"1", "u": b"2"}),
    "dump_many": lambda run, _: run.dump_many({"t": 1, "u": 2}),
    "open": lambda run, watch: stream(run, "wb", watch),
    "open to read": lambda run, watch: stream(run, "rb", watch),
    "read": lambda run, _: run.read("t"),
    "load": lambda run, _: run.load("t"),
    "read_many": lambda run, _: run.read_many(),
    "load_many": lambda run, _: run.load_many(["t", "u"]),
    "tasks": lambda run, _: run.tasks(),
    "in": lambda run, _: "t" in run,
    "is_current": lambda run, _: run.is_current(),
    "delete": lambda run, _: run.delete("t"),
    "fields": lambda run, _: (run.workflow_id, run.fingerprint, run.token, run.decision),
}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_everything_public_is_done() -> None:
    fields = {"workflow_id", "fingerprint", "token", "decision"}
    assert public(CheckpointStore) - OF_A_STORE.keys() == set()
    assert public(Run) - OF_A_RUN.keys() == fields


def do_everything(store: CheckpointStore, run: Run, watch: Watch) -> None:
    watch.see(store, store._filesystem, run, run._filesystem, run.decision)
    watch.see(vars(type(store)), store._serializer, store.__doc__)
    for of_a_run in OF_A_RUN.values():
        watch.attempt(lambda do=of_a_run: do(run, watch))  # type: ignore[misc]
    for of_a_store in OF_A_STORE.values():
        watch.attempt(lambda do=of_a_store: do(store, watch))  # type: ignore[misc]


# S3

Hook = Callable[[Request], Response | None]


def echoing(status: int, code: str, **elements: str) -> Response:
    """An error as S3 words it, which repeats parts of the request."""
    body = "".join(f"<{name}>{value}</{name}>" for name, value in elements.items())
    made = error(status, code)
    return replace(made, body=made.body.replace(b"</Error>", f"{body}</Error>".encode()))


def conditional(request: Request) -> bool:
    return kind_of(request) in (Kind.CREATE_RECORD, Kind.SWAP_RECORD)


def reading(request: Request) -> bool:
    return kind_of(request) in (Kind.READ, Kind.READ_RECORD)


FAULTS: dict[str, Hook] = {
    **{name: lambda _, make=make: make() for name, make in STATUSES.items()},  # type: ignore[misc]
    "unknown key": lambda _: echoing(403, "InvalidAccessKeyId", AWSAccessKeyId=KEY),
    "wrong signature": lambda request: echoing(
        403,
        "SignatureDoesNotMatch",
        AWSAccessKeyId=KEY,
        StringToSign=f"AWS4-HMAC-SHA256 {TOKEN}",
        CanonicalRequest=f"x-amz-security-token:{request.headers['X-Amz-Security-Token']}",
    ),
    "expired": lambda _: echoing(400, "ExpiredToken", **{"Token-0": TOKEN}),
    "another region": lambda _: echoing(301, "PermanentRedirect", Endpoint="s3.example"),
    "reset": lambda _: Response(cut=0),
    "truncated": lambda _: Response(200, {"ETag": '"1"'}, b"x" * 100, cut=10),
    "contention": lambda request: error(412, "Precondition") if conditional(request) else None,
    "corrupt": lambda request: Response(200, {"ETag": '"1"'}, b"no") if reading(request) else None,
    # A server, or what stands before it, that returns what it is sent.
    "reflected": lambda request: Response(200, {"ETag": '"1"'}, repr(request.headers).encode()),
    "undeletable": lambda request: Response(
        200, {}, b"<DeleteResult><Error><Key>some/root/wf/t</Key><Code>AccessDenied</Code>"
        b"<Message>No</Message></Error></DeleteResult>",
    ) if kind_of(request) is Kind.DELETE else None,
}  # fmt: skip


@pytest.fixture
def proxy(moto_server: str) -> Iterator[FaultProxy]:
    with FaultProxy(moto_server).running() as proxy:
        assert isinstance(proxy, FaultProxy)
        yield proxy


@pytest.fixture
def backend(moto_server: str, proxy: FaultProxy) -> MotoBackend:
    made = MotoBackend(moto_server)
    made.storage_options = {
        **CREDENTIALS,
        "endpoint_url": proxy.endpoint,
        "config_kwargs": {**IMPATIENT, "read_timeout": 20},
    }
    return made


@contextmanager
def started(backend: MotoBackend | GenericBackend) -> Iterator[tuple[CheckpointStore, Run]]:
    """A store, and a run that has written checkpoints."""
    with backend.store() as store:
        run = resume(store, "wf", A, on_input_change="raise")
        run.dump_many({"t": 1, "u": 2})
        yield store, run


def test_the_canaries_are_sent_and_found_where_they_are(
    backend: MotoBackend, proxy: FaultProxy
) -> None:
    sent: list[str] = []

    async def hook(request: Request) -> None:
        sent.append(repr(request.headers))

    proxy.on_request = hook
    with started(backend) as (store, run):
        assert set(found_in("".join(sent))) == {KEY, TOKEN, NESTED}  # A secret only signs.
        for pickled in (pickle.dumps(store), pickle.dumps(run)):
            assert found_in(pickled.decode("latin-1")) == list(CANARIES)
    watch = Watch()
    watch.attempt(lambda: (_ for _ in ()).throw(CheckpointStoreError(f"it is {SECRET}")))
    assert found_in("\n".join(watch.texts)) == [SECRET]


def test_nothing_is_shown_or_stored_where_all_is_well(backend: MotoBackend, watch: Watch) -> None:
    with started(backend) as (store, run):
        keys = backend.keys()
        watch.see_files(backend.everything())
        assert len(watch.texts) == len(keys) == 4
        watch.see(*(backend.client.head_object(Bucket=backend.bucket, Key=key) for key in keys))
        do_everything(store, run, watch)
    watch.see_files(backend.everything())
    # Behind the runs' backs the workflow has been cleared, and another run is asked for.
    assert len(watch.errors) <= 4


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_nothing_is_shown_or_stored_whatever_s3_answers(
    backend: MotoBackend, proxy: FaultProxy, watch: Watch, fault: Hook
) -> None:
    async def hook(request: Request) -> Response | None:
        return fault(request)

    with started(backend) as (store, run):
        proxy.on_request = hook
        do_everything(store, run, watch)
        proxy.on_request = None
    assert len(watch.errors) >= 3
    watch.see_files(backend.everything())


def test_nothing_is_shown_when_s3_does_not_answer(
    backend: MotoBackend, proxy: FaultProxy, watch: Watch
) -> None:
    async def hook(_: Request) -> Response:
        await asyncio.sleep(0.5)
        return Response(cut=0)

    with started(backend) as (store, run):
        token = run.token
    backend.storage_options = {**CREDENTIALS, "endpoint_url": proxy.endpoint}
    backend.storage_options["config_kwargs"] = IMPATIENT
    with backend.store() as store:
        proxy.on_request = hook
        run = replace(run, _filesystem=store._filesystem)
        assert run.token == token
        do_everything(store, run, watch)
    assert len(watch.errors) >= 20
    assert "timeout" in str(watch.errors[0].__cause__)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [("s3://no-such-bucket/root", ""), ("s3://bucket/root", UNREACHABLE)],
    ids=["no bucket", "no server"],
)
def test_nothing_is_shown_where_there_is_no_storage(
    backend: MotoBackend, watch: Watch, url: str, endpoint: str
) -> None:
    with started(backend) as (_, run):
        pass
    assert backend.storage_options is not None
    options = {**backend.storage_options, "config_kwargs": IMPATIENT}
    options["endpoint_url"] = endpoint or options["endpoint_url"]
    with CheckpointStore(url, storage_options=options) as store:
        do_everything(store, replace(run, _filesystem=store._filesystem), watch)
    assert len(watch.errors) >= 20


# What a user gets wrong

USER = f"{KEY}:{quote(SECRET, safe='')}"
MISTAKES: dict[str, dict[str, Any]] = {
    "an unknown option": {"secrets": SECRET},
    "an unknown option of the client": {"client_kwargs": {"secrets": SECRET}},
    "an unknown option of its configuration": {"config_kwargs": {"secrets": SECRET}},
    "a list": {"token": [TOKEN]},
    "bytes": {"token": TOKEN.encode()},
    "a line": {"token": f"{TOKEN}\n"},
    "a key that is a line": {"key": f"{KEY}\n"},
    "no secret": {"secret": None},
    "a list as encryption key": {"s3_additional_kwargs": {"SSECustomerKey": [NESTED]}},
    "a proxy": {"config_kwargs": {**IMPATIENT, "proxies": {"http": f"http://{USER}@127.0.0.1:1"}}},
    "a user in the endpoint": {"endpoint_url": f"http://{USER}@127.0.0.1:1"},
}
ENDPOINTS = (f"{USER}@127.0.0.1", f"http://127.0.0.1:1?token={TOKEN}", SECRET)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_an_option_that_is_wrong_is_not_repeated(
    backend: MotoBackend, watch: Watch, mistake: dict[str, Any]
) -> None:
    check_mistake(backend, watch, mistake)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=["user", "query", "nonsense"])
def test_an_endpoint_that_is_wrong_is_not_repeated(
    backend: MotoBackend, watch: Watch, endpoint: str
) -> None:
    check_mistake(backend, watch, {"endpoint_url": endpoint})
    assert found_in("\n".join(watch.texts)) == []


def check_mistake(backend: MotoBackend, watch: Watch, mistake: dict[str, Any]) -> None:
    assert backend.storage_options is not None
    options = {**backend.storage_options, "config_kwargs": IMPATIENT, **mistake}
    watch.attempt(lambda: use(backend.url, options))
    [_] = watch.errors


def use(url: str, options: dict[str, Any] | None = None) -> None:
    with CheckpointStore(url, storage_options=options) as store:
        resume(store, "wf", A, on_input_change="reset").write("t", b"data")


URLS = (
    f"s3://{KEY}:{SECRET}@bucket/root", f"s3://{SECRET}@bucket", f"s3://bucket/root?token={TOKEN}",
    f"sftp://{KEY}:{SECRET}@host/root", f"{KEY}:{SECRET}@bucket",
    f"https://host/root?token={TOKEN}", f"simplecache::s3://{KEY}:{SECRET}@bucket",
    f"memory://{KEY}:{SECRET}@root", f"file://{KEY}:{SECRET}@host/root",
    f"nonsense://{KEY}:{SECRET}@host/root?token={TOKEN}", f"s3://{KEY}:{SECRET}@bucket\n",
)  # fmt: skip


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_a_url_with_a_secret_is_refused_without_repeating_it(watch: Watch, url: str) -> None:
    watch.attempt(lambda: use(url))
    [_] = watch.errors


@pytest.mark.parametrize("url", ["memory://root", "/tmp"])
def test_options_where_none_are_taken_are_not_repeated(watch: Watch, url: str) -> None:
    watch.attempt(lambda: use(url, CREDENTIALS))
    [_] = watch.errors


# Any other filesystem


class SecretiveFileSystem(PlainFileSystem):
    protocol = "secretive"

    def __init__(self, *, user: str, password: str, nested: dict[str, str]) -> None:
        assert (user, password, nested) == (KEY, SECRET, {"token": TOKEN})
        super().__init__()


fsspec.register_implementation("secretive", SecretiveFileSystem, clobber=True)
OPTIONS = {"user": KEY, "password": SECRET, "nested": {"token": TOKEN}}
METHODS = ("cat_file", "pipe_file", "put_file", "ls", "info", "rm_file", "open", "mkdir")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (None, ()),
        (PermissionError, (13, "denied")),
        (TimeoutError, ()),
        (RuntimeError, ("closed",)),
        (KeyError, ("x",)),
    ],
)
def test_nothing_is_shown_or_stored_on_any_filesystem(
    tmp_path: Any,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception] | None,
    arguments: tuple[object, ...],
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        assert kind is not None
        raise kind(*arguments)

    backend = GenericBackend(tmp_path)
    backend.url = backend.url.replace("plain", "secretive")
    backend.storage_options = OPTIONS
    with started(backend) as (store, run):
        assert found_in(pickle.dumps(run).decode("latin-1")) == [KEY, SECRET, TOKEN]
        for name in METHODS if kind else ():
            monkeypatch.setattr(SecretiveFileSystem, name, fail)
        do_everything(store, run, watch)
    assert not kind or len(watch.errors) >= 20
    watch.see_files(backend.everything())


# The command

BY_OPTIONS = [f"--storage-option={name}={CREDENTIALS[name]}" for name in ("key", "secret", "token")]
BY_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": TOKEN,
    "AWS_DEFAULT_REGION": "us-east-1",
}
COMMAND_FAULTS = ("404-bucket", "malformed", "unknown key", "expired", "reset")
AT_ONCE = '--storage-option=config_kwargs={"retries": {"total_max_attempts": 1}}'


@pytest.mark.parametrize(
    ("fault", "given"),
    [
        *((fault, "options") for fault in COMMAND_FAULTS),
        *itertools.product(["wrong signature", "no server"], ["options", "environment"]),
    ],
)
def test_a_command_that_fails_prints_no_credentials(
    backend: MotoBackend, proxy: FaultProxy, watch: Watch, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], fault: str, given: str,
) -> None:  # fmt: skip
    async def hook(request: Request) -> Response | None:
        return FAULTS[fault](request)

    proxy.on_request = None if fault == "no server" else hook
    endpoint = UNREACHABLE if fault == "no server" else proxy.endpoint
    for name, value in BY_ENVIRONMENT.items() if given == "environment" else ():
        monkeypatch.setenv(name, value)
    arguments = BY_OPTIONS if given == "options" else []

    assert (
        main([backend.url, f"--storage-option=endpoint_url={endpoint}", AT_ONCE, *arguments]) == 2
    )

    printed = capfd.readouterr()
    assert printed.err.startswith("checkpoint_store: ")
    watch.texts += printed


def test_a_check_that_finds_everything_broken_prints_no_credentials(
    backend: MotoBackend, proxy: FaultProxy, watch: Watch
) -> None:
    """As a user runs it, tracebacks and all that libraries print included."""

    async def hook(request: Request) -> Response | None:
        return None if request.method == "GET" else error(500, "InternalError")

    proxy.on_request = hook
    options = [f"--storage-option=endpoint_url={proxy.endpoint}", AT_ONCE]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-m", "checkpoint_store", backend.url, *options],
        env={**os.environ, **BY_ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    watch.texts += [done.stdout, done.stderr]
    assert done.returncode in (1, 2)
    assert "InternalError" in done.stdout + done.stderr
