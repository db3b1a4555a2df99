"""What servers, proxies and credentials do that are not a tidy S3, as seen in the field."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from botocore.config import Config

from checkpoint_store import CheckpointStore, StorageError, resume
from checkpoint_store._filesystems.s3 import S3Filesystem

from ..harness import MIB, ROOT
from ..harness.buckets import Bucket
from ..harness.faults import Kind, kind_of
from ..harness.s3 import on_ministack, open_store
from ..harness.servers import Proxy, Request, Response, error

pytestmark = on_ministack


def header(request: Request, name: str) -> str | None:
    return next((value for key, value in request.headers.items() if key.lower() == name), None)


# A server that takes no part whose checksum the creation of its upload has not declared


def insist_on_declared_checksums(proxy: Proxy) -> list[tuple[str | None, bool]]:
    """LocalStack 4.14. Returns what each upload declared, and whether its parts had a checksum."""
    seen: list[tuple[str | None, bool]] = []

    async def answer(request: Request) -> Response | None:
        kind = kind_of(request)
        if kind is Kind.BEGIN:
            seen.append((header(request, "x-amz-checksum-algorithm"), False))
        elif kind is Kind.PART:
            declared, _ = seen[-1]
            seen[-1] = (declared, header(request, "x-amz-checksum-crc32") is not None)
        elif kind is Kind.COMPLETE:
            declared, is_sent = seen[-1]
            if is_sent != (declared == "CRC32"):
                return error(400, "InvalidPart")
        return None

    proxy.on_request = answer
    return seen


@pytest.mark.skipif(
    not hasattr(Config(), "request_checksum_calculation"),
    reason="this botocore sends no checksums unasked",
)
@pytest.mark.parametrize(
    ("config", "declared"),
    [({}, "CRC32"), ({"request_checksum_calculation": "when_required"}, None)],
)
def test_the_checksum_of_parts_is_declared_when_an_upload_begins(
    bucket: Bucket, proxy: Proxy, config: dict[str, Any], declared: str | None
) -> None:
    with open_store(bucket, proxy.endpoint, config_kwargs=config) as store:
        seen = insist_on_declared_checksums(proxy)
        run = store.run("wf")
        with run.open("x", "wb") as stream:
            stream.write(bytes(13 * MIB))
        assert seen == [(declared, declared is not None)]
        assert run.read("x") == bytes(13 * MIB)


def test_an_algorithm_of_the_users_own_is_not_overruled(bucket: Bucket, proxy: Proxy) -> None:
    sha256 = {"ChecksumAlgorithm": "SHA256"}
    with open_store(bucket, proxy.endpoint, s3_additional_kwargs=sha256) as store:
        seen = insist_on_declared_checksums(proxy)
        with store.run("wf").open("x", "wb") as stream:
            stream.write(bytes(13 * MIB))
        assert seen == [("SHA256", False)]


# Servers that refuse an ETag as it was given


def quoted_etags_are_refused(proxy: Proxy) -> list[str]:
    """Ceph RGW 16.2. Returns the ETags that are given."""
    given = []

    async def answer(request: Request) -> Response | None:
        etag = header(request, "if-match")
        if etag is None:
            return None
        given.append(etag)
        if etag.startswith('"'):
            return error(412, "PreconditionFailed")
        headers = {
            name: value for name, value in request.headers.items() if name.lower() != "if-match"
        }
        return await proxy.forward(replace(request, headers={**headers, "If-Match": f'"{etag}"'}))

    proxy.on_request = answer
    return given


def etags_are_made_weak(proxy: Proxy) -> list[str]:
    """A proxy that compresses, before a server that takes an ETag with or without its quotes."""
    given = []

    async def answer(request: Request) -> Response | None:
        etag = header(request, "if-match")
        if etag is not None:
            given.append(etag)
        if etag is not None and etag.startswith("W/"):
            return error(412, "PreconditionFailed")
        headers = {
            name: f'"{value}"' if name.lower() == "if-match" else value
            for name, value in request.headers.items()
        }
        reply = await proxy.forward(replace(request, headers=headers))
        weak = {
            name: f"W/{value}" if name.lower() == "etag" else value
            for name, value in reply.headers.items()
        }
        return replace(reply, headers=weak)

    proxy.on_request = answer
    return given


@pytest.mark.parametrize("behave", [quoted_etags_are_refused, etags_are_made_weak])
def test_an_etag_that_is_refused_though_nothing_changed_is_given_bare_from_then_on(
    store: CheckpointStore, proxy: Proxy, behave: Callable[[Proxy], list[str]]
) -> None:
    given = behave(proxy)
    first = resume(store, "wf", {"day": 1}, on_input_change="reset")
    first.write("x", b"1")
    second = resume(store, "wf", {"day": 2}, on_input_change="reset")
    assert second.token != first.token
    assert second.tasks() == set()
    resume(store, "wf", {"day": 3}, on_input_change="reset")
    assert ['"' in etag for etag in given] == [True, False, False]
    assert store.conditional_writes is True


@pytest.mark.parametrize("behave", [quoted_etags_are_refused, etags_are_made_weak])
def test_a_bare_etag_still_protects_what_somebody_else_has_changed(
    store: CheckpointStore, proxy: Proxy, behave: Callable[[Proxy], list[str]]
) -> None:
    behave(proxy)
    filesystem = store._filesystem
    assert filesystem.swap("wf/a", None, b"1")
    old = filesystem.read_small("wf/a")
    assert filesystem.swap("wf/a", old, b"2")
    assert not filesystem.swap("wf/a", old, b"3")
    assert not filesystem.swap("wf/missing", old, b"3")
    assert filesystem.read_small("wf/a").data == b"2"


def test_a_version_that_did_change_is_not_written_with_a_bare_etag(
    store: CheckpointStore, proxy: Proxy
) -> None:
    filesystem = store._filesystem
    assert filesystem.swap("wf/a", None, b"1")
    old = filesystem.read_small("wf/a")
    assert isinstance(filesystem, S3Filesystem)
    filesystem.write("wf/a", [b"somebody else's"])
    proxy.take()
    assert not filesystem.swap("wf/a", old, b"2")
    assert [request.method for request in proxy.take()] == ["PUT", "GET"]
    assert filesystem.swap("wf/a", filesystem.read_small("wf/a"), b"2")
    proxy.take()
    assert not filesystem.swap("wf/a", old, b"3")
    assert [request.method for request in proxy.take()] == ["PUT"]


@pytest.mark.parametrize(
    ("status", "code"), [(412, "PreconditionFailed"), (409, "OperationAborted")]
)
def test_a_server_that_refuses_for_ever_is_not_called_contention(
    store: CheckpointStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    resume(store, "wf", {"day": 1}, on_input_change="reset")

    async def answer(request: Request) -> Response | None:
        return error(status, code) if header(request, "if-match") is not None else None

    proxy.on_request = answer
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(StorageError, match=r"refused 10 .* still the one they named: .*proxy"):
        resume(store, "wf", {"day": 2}, on_input_change="reset")


# 429, with or without a body


def test_a_429_without_a_body_is_tried_again_after_the_pause_that_it_asks_for(
    store: CheckpointStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.run("wf")
    answers = [Response(429, {"Retry-After": "7"}), Response(429, {"Retry-After": "3600"})]
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float, *arguments: Any) -> None:
        if seconds > 1:
            pauses.append(seconds)
        await sleep(min(seconds, 0.01), *arguments)

    async def answer(request: Request) -> Response | None:
        return answers.pop(0) if answers and request.method == "PUT" else None

    proxy.on_request = answer
    monkeypatch.setattr("asyncio.sleep", note)
    run.write("x", b"1")
    assert pauses == [7.0, 20.0]
    assert run.read("x") == b"1"


def test_a_429_that_stays_is_given_up_after_five_tries_as_a_busy_server(
    store: CheckpointStore, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.run("wf")
    sleep = asyncio.sleep

    async def answer(_: Request) -> Response | None:
        return Response(429)

    proxy.take()
    proxy.on_request = answer
    monkeypatch.setattr("asyncio.sleep", lambda seconds, *a: sleep(min(seconds, 0.01), *a))
    with pytest.raises(StorageError, match=r"429 SlowDown.*: try again later, or lower") as caught:
        run.write("x", b"1")
    assert "endpoint_url" not in str(caught.value)
    assert len(proxy.take()) == 5


# Credentials, clocks and policies


def expire(proxy: Proxy, *, times: int) -> list[str]:
    """Refuses the credentials so many times. Returns those that were given."""
    given: list[str] = []

    async def answer(request: Request) -> Response | None:
        given.append(header(request, "authorization") or "")
        return error(400, "ExpiredToken") if len(given) <= times else None

    proxy.on_request = answer
    return given


def test_expired_credentials_are_looked_for_anew_once(
    bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "old-secret")
    options = {**bucket.options(proxy.endpoint), "key": None, "secret": None}
    with CheckpointStore(f"s3://{bucket.name}/root", storage_options=options) as store:
        run = store.run("wf")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "new-secret")
        given = expire(proxy, times=1)
        data = bytes(range(256)) * 8192  # More than a piece: it is sent again from its beginning.
        run.write("x", data)
        assert ["new-key" in credentials for credentials in given] == [False, True]
        assert run.read("x") == data


def test_credentials_that_stay_expired_are_an_error_with_a_remedy(
    store: CheckpointStore, proxy: Proxy
) -> None:
    run = store.run("wf")
    given = expire(proxy, times=100)
    with pytest.raises(StorageError, match=r"ExpiredToken.*: renew the credentials"):
        run.write("x", b"1")
    assert len(given) == 2


OPERATIONS: dict[str, Callable[[S3Filesystem], object]] = {
    "read": lambda fs: fs.read("wf/a"),
    "contains": lambda fs: fs.contains("wf/a"),
    "write": lambda fs: fs.write("wf/a", [b"1"]),
    "swap": lambda fs: fs.swap("wf/a", None, b"1"),
    "list": lambda fs: fs.list_files("wf"),
    "delete": lambda fs: fs.delete(["wf/a"]),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (404, "NoSuchBucket", "create the bucket, or correct the URL or endpoint_url"),
        (301, "PermanentRedirect", "give the bucket's region"),
        (400, "AuthorizationHeaderMalformed", "give the bucket's region"),
        (403, "RequestTimeTooSkewed", "set the clock of this machine"),
        (403, "AccessDenied", "allow s3:"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_said_by_every_operation(
    store: CheckpointStore, proxy: Proxy, operation: str, status: int, code: str, remedy: str
) -> None:
    async def answer(request: Request) -> Response:
        # botocore asks for the region of a bucket that has moved, and a HEAD has no body.
        return Response(status) if request.method == "HEAD" else error(status, code)

    proxy.on_request = answer
    filesystem = store._filesystem
    assert isinstance(filesystem, S3Filesystem)
    with pytest.raises(OSError, match=rf"S3 answered {status} {code} .*: {remedy}") as caught:
        OPERATIONS[operation](filesystem)
    assert not str(caught.value).endswith("None")
    assert ("bucket policy" in str(caught.value)) == (
        code == "AccessDenied" and operation in ("write", "swap")
    )


def test_an_error_without_a_message_ends_with_its_remedy(
    store: CheckpointStore, proxy: Proxy
) -> None:
    async def answer(_: Request) -> Response:
        body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
        return Response(403, {"Content-Type": "application/xml"}, body)

    proxy.on_request = answer
    with pytest.raises(StorageError) as caught:
        store.read_fingerprint("wf")
    assert str(caught.value).endswith(
        f"403 RequestTimeTooSkewed for bucket {store.url.split('/')[2]!r}: "
        "set the clock of this machine"
    )


# Uploads that are interrupted or dropped


@pytest.mark.parametrize("kind", [Kind.BEGIN, Kind.PART, Kind.COMPLETE])
def test_an_interrupt_while_an_upload_is_at_work_leaves_none_behind(
    store: CheckpointStore, bucket: Bucket, proxy: Proxy, kind: Kind, monkeypatch: Any
) -> None:
    run = store.run("wf")
    done = threading.Event()
    client = store._filesystem._engine  # type: ignore[attr-defined]
    interrupted: list[bool] = []

    async def answer(request: Request) -> Response | None:
        if kind_of(request) is not kind or interrupted:
            return None
        reply = await proxy.forward(request)
        interrupted.append(True)  # The server has done it, and its reply is on the way.
        done.set()
        await asyncio.sleep(0.2)
        return reply

    class Waiting:
        """Stands in for the future that the main thread waits for when Ctrl-C is pressed."""

        def __init__(self, future: Any) -> None:
            self.future = future

        def result(self, seconds: float | None = None) -> Any:
            if interrupted:
                return self.future.result(seconds)
            while not self.future.done():
                if done.wait(0.01):
                    raise KeyboardInterrupt
            return self.future.result()

        def cancel(self) -> None:
            self.future.cancel()

    submit = asyncio.run_coroutine_threadsafe
    monkeypatch.setattr(
        "asyncio.run_coroutine_threadsafe",
        lambda *arguments: Waiting(submit(*arguments)),
    )
    proxy.on_request = answer
    with pytest.raises(KeyboardInterrupt), run.open("x", "wb") as stream:
        stream.write(bytes(13 * MIB))
    assert interrupted == [True]
    monkeypatch.undo()
    client.run(asyncio.sleep(0.5))
    assert bucket.uploads() == []


def test_a_stream_that_is_dropped_on_fsspecs_own_thread_leaves_no_upload(
    store: CheckpointStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.run("wf")
    stream = run.open("x", "wb")
    stream.write(bytes(13 * MIB))
    assert [upload["Key"] for upload in bucket.uploads()] == ["root/wf/x@" + run.token]
    cycle: list[Any] = [stream]
    cycle.append(cycle)
    client = store._filesystem._engine  # type: ignore[attr-defined]

    waiting: list[str] = []
    result = Future.result

    def noted(future: Future[Any], timeout: float | None = None) -> Any:
        waiting.append(threading.current_thread().name)
        return result(future, timeout)

    async def collect() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Future, "result", noted)
            gc.collect()
        waiting.append("collected")

    del stream, cycle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        client.run(collect())
    client.run(asyncio.sleep(0.5))
    assert bucket.uploads() == []
    # Nor was the reply waited for, which only that thread could have received.
    assert "fsspecIO" not in waiting[: waiting.index("collected")]


# At exit


AT_EXIT = """
import atexit, sys
from checkpoint_store import CheckpointStore, StorageError
endpoint, url, connect = sys.argv[1:]
options = {"key": "test", "secret": "test-secret", "endpoint_url": endpoint,
           "client_kwargs": {"region_name": "us-east-1"}}
run = CheckpointStore(url, storage_options=options).run("wf") if connect else None

def write():
    if run is None:
        try:
            CheckpointStore(url, storage_options=options).run("late")
        except StorageError as error:
            print(error)
        return
    for size in (1, 2**20, 2**20 + 1, 2**24):
        run.write(f"size {size}", bytes(size))
    print(*sorted(len(data) for data in run.read_many().values()))

atexit.register(write)
"""


def at_exit(bucket: Bucket, endpoint: str, connect: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, endpoint, f"s3://{bucket.name}/root", connect],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_written_at_exit_may_have_any_size(bucket: Bucket) -> None:
    assert at_exit(bucket, bucket.endpoint, "yes") == [f"1 {2**20} {2**20 + 1} {2**24}"]


def test_a_new_connection_at_exit_says_why_there_is_none(bucket: Bucket) -> None:
    (line,) = at_exit(bucket, bucket.endpoint.replace("127.0.0.1", "localhost"), "")
    assert "the interpreter is exiting" in line
