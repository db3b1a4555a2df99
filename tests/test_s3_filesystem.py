"""S3 on two servers, each behind a proxy that counts and breaks requests."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import fsspec.asyn
import fsspec.config
import pytest
from fsspec.callbacks import Callback
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_store import CheckpointStore, StorageError, _store, resume
from checkpoint_store._filesystems import s3, s3_engine, s3_transfers
from checkpoint_store._filesystems.base import SMALL_BYTES, Entry, Filesystem, Page, Stored
from checkpoint_store._filesystems.s3 import S3Filesystem
from checkpoint_store._steps import drive, list_all

from .harness.buckets import Bucket
from .harness.faults import Unordered
from .harness.servers import Proxy, Request, Response, error

MiB = 1024**2
ONCE = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}

on_moto = pytest.mark.parametrize("s3_server", ["moto"], indirect=True)
on_ministack = pytest.mark.parametrize("s3_server", ["ministack"], indirect=True)


def connect(bucket: Bucket, endpoint: str, **options: Any) -> S3Filesystem:
    options = {**bucket.options(endpoint), **options}
    return S3Filesystem(bucket.name, "root", options, max_concurrency=8)


def names_in(fs: S3Filesystem, folder: str) -> list[str]:
    files = drive(fs, list_all("all", Filesystem.list_files, folder))
    return [file.name for file in files]


@pytest.fixture
def fs(bucket: Bucket, proxy: Proxy) -> Iterator[S3Filesystem]:
    fs = connect(bucket, proxy.endpoint)
    yield fs
    fs.close()


@pytest.fixture
def impatient(bucket: Bucket, proxy: Proxy) -> Iterator[S3Filesystem]:
    fs = connect(bucket, proxy.endpoint, **ONCE)
    yield fs
    fs.close()


@pytest.fixture
def store(bucket: Bucket, proxy: Proxy) -> Iterator[CheckpointStore]:
    options = bucket.options(proxy.endpoint)
    with CheckpointStore(f"s3://{bucket.name}/root", storage_options=options) as store:
        yield store


@pytest.fixture
def impatient_store(bucket: Bucket, proxy: Proxy) -> Iterator[CheckpointStore]:
    options = {**bucket.options(proxy.endpoint), **ONCE}
    with CheckpointStore(f"s3://{bucket.name}/root", storage_options=options) as store:
        yield store


def counted(proxy: Proxy) -> list[tuple[str, int]]:
    return [(request.method, request.status) for request in proxy.take()]


def always(response: Response) -> Any:
    async def answer(_: Request) -> Response:
        return response

    return answer


# Round trips and what they cost


@pytest.mark.parametrize("name", ["load@1", "a%2Fb", "a+b", "a b", "~é%", ".fingerprint"])
def test_a_file_lands_under_exactly_its_key(fs: S3Filesystem, bucket: Bucket, name: str) -> None:
    fs.write(f"wf/{name}", [b"one", bytearray(b"two"), memoryview(b"three")])
    assert [f"root/wf/{name}"] == bucket.keys()
    assert bucket.get(f"root/wf/{name}") == b"onetwothree"
    assert fs.read(f"wf/{name}") == b"onetwothree"
    assert names_in(fs, "wf") == [name]
    assert fs.delete([f"wf/{name}"]) == {}
    assert bucket.keys() == []


def test_without_a_prefix_folders_are_at_the_root(bucket: Bucket) -> None:
    fs = S3Filesystem(bucket.name, "", bucket.storage_options, max_concurrency=1)
    fs.write("wf/a", [b"1"])
    assert bucket.keys() == ["wf/a"]
    assert fs.list_folders("a".__eq__).items == ["wf"]
    fs.close()


def test_every_primitive_is_one_request(fs: S3Filesystem, proxy: Proxy) -> None:
    fs.write("wf/a", [b"data"])
    assert counted(proxy) == [("PUT", 200)]
    fs.read("wf/a")
    assert counted(proxy) == [("GET", 200)]
    fs.read_small("wf/a")
    assert counted(proxy) == [("GET", 200)]
    assert fs.contains("wf/a")
    assert counted(proxy) == [("GET", 206)]
    assert not fs.contains("wf/b")
    assert counted(proxy) == [("GET", 404)]
    names_in(fs, "wf")
    assert counted(proxy) == [("GET", 200)]
    names_in(fs, "none")
    assert counted(proxy) == [("GET", 200)]
    fs.list_folders(bool)
    assert counted(proxy) == [("GET", 200)]
    fs.open_read("wf/a").close()
    assert counted(proxy) == [("GET", 200)]
    upload = fs.open_write("wf/b")
    upload.write(b"small")
    upload.commit()
    assert counted(proxy) == [("PUT", 200)]
    assert fs.delete(["wf/a", "wf/b", "wf/c"]) == {}
    assert counted(proxy) == [("POST", 200)]
    assert fs.delete([]) == {}
    assert counted(proxy) == []


def test_making_one_does_no_io() -> None:
    S3Filesystem("bucket", "root", {"endpoint_url": "http://127.0.0.1:1"}, max_concurrency=1)


@pytest.mark.parametrize("size", [0, 1, MiB, MiB + 1, 20 * MiB])
def test_a_file_of_any_size_is_written_and_read_whole(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy, size: int
) -> None:
    data = os.urandom(size)
    fs.write("wf/a", [data[:7], data[7:]])
    assert counted(proxy) == [("PUT", 200)]
    assert data == bucket.get("root/wf/a")
    assert data == fs.read("wf/a")
    assert fs.contains("wf/a")
    small = fs.read_small("wf/a")
    assert data[:SMALL_BYTES] == small.data
    assert bucket.client.head_object(Bucket=bucket.name, Key="root/wf/a")["ETag"] == small.etag


def test_a_large_body_is_sent_whole_when_it_is_sent_again(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    answers = [error(500, "InternalError")]

    async def fail_once(_: Request) -> Response | None:
        return answers.pop() if answers else None

    proxy.on_request = fail_once
    data = os.urandom(3 * MiB)
    fs.write("wf/a", [data[:MiB], data[MiB:]])
    assert counted(proxy) == [("PUT", 500), ("PUT", 200)]
    assert data == bucket.get("root/wf/a")


def test_writing_makes_no_copy_of_a_large_body(bucket: Bucket) -> None:
    fs = connect(bucket, bucket.endpoint)
    fs.write("wf/a", [b"1"])
    data = bytes(32 * MiB)
    tracemalloc.start()
    fs.write("wf/a", [b"header", data, b"trailer"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MiB
    fs.close()


def test_what_exceeds_one_put_is_uploaded_in_parts(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PUT_BYTES", 10 * MiB)
    data = os.urandom(11 * MiB)
    fs.write("wf/a", [data[:MiB], data[MiB:]])
    assert [method for method, _ in counted(proxy)] == ["POST", "PUT", "PUT", "POST"]
    assert data == bucket.get("root/wf/a")


def test_a_write_in_parts_that_fails_leaves_nothing(
    fs: S3Filesystem, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PUT_BYTES", 10 * MiB)
    with pytest.raises(TypeError):
        fs.write("wf/a", [bytes(11 * MiB), "no bytes"])  # type: ignore[list-item]
    assert bucket.keys() + uploads(bucket) == []


def test_2500_files_are_listed_in_three_requests(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    names = [f"t{number:04}" for number in range(2500)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put(f"root/wf/{name}", b"1"), names))
    assert counted(proxy) == []
    first = fs.list_files("wf")
    assert names[:1000] == [file.name for file in first.items]
    assert len(proxy.take()) == 1
    second = fs.list_files("wf", first.more)
    third = fs.list_files("wf", second.more)
    assert [names[1000:2000], names[2000:]] == [
        [file.name for file in page.items] for page in (second, third)
    ]
    assert third.more is None
    assert len(proxy.take()) == 2
    assert drive(fs, list_all("all", Filesystem.list_folders, bool)) == ["wf"] * 3
    assert len(proxy.take()) == 3
    for page in [names[:1000], names[1000:2000], names[2000:]]:
        assert fs.delete([f"wf/{name}" for name in page]) == {}
    assert counted(proxy) == [("POST", 200)] * 3
    assert names_in(fs, "wf") == []


def test_listings_skip_siblings_subfolders_and_folder_markers(
    fs: S3Filesystem, bucket: Bucket
) -> None:
    for key in ["root/wf", "root/wf/", "root/wf/a", "root/wf/sub/b", "root/wf-1/c", "root/wf1/d"]:
        bucket.put(key, b"")
    bucket.put("root2/wf/e", b"")
    bucket.put("root/", b"")
    assert names_in(fs, "wf") == ["a"]
    assert fs.list_folders(bool).items == ["wf-1", "wf", "wf1"]
    assert fs.list_folders("a".__eq__).items == ["wf"]


def test_a_foreign_write_and_delete_are_seen_at_once(fs: S3Filesystem, bucket: Bucket) -> None:
    assert names_in(fs, "wf") == []
    assert not fs.contains("wf/a")
    bucket.put("root/wf/a", b"foreign")
    assert names_in(fs, "wf") == ["a"]
    assert fs.contains("wf/a")
    assert fs.read("wf/a") == b"foreign"
    bucket.client.delete_object(Bucket=bucket.name, Key="root/wf/a")
    assert names_in(fs, "wf") == []
    assert not fs.contains("wf/a")


# Lists in no order


def fill(store: CheckpointStore, bucket: Bucket) -> None:
    """Four workflows with nine files each, and a folder that holds nothing of ours."""
    for number in range(4):
        run = resume(store, f"wf/{number}", {"a": 1}, on_input_change="reset")
        run.dump_many({f"task-{task}": task for task in range(8)})
        bucket.put(f"root/wf%2F{number}/foreign", b"")
        bucket.put(f"root/foreign/{number}", b"")


def test_where_lists_are_in_no_order_each_workflow_is_named_once(
    store: CheckpointStore, bucket: Bucket, proxy: Proxy
) -> None:
    fill(store, bucket)
    proxy.on_request = Unordered(proxy, 5)
    folders = drive(store._filesystem, list_all("all", Filesystem.list_folders, bool))
    assert len(folders) > 3 * len(set(folders))
    assert sorted(store.workflows()) == ["wf/0", "wf/1", "wf/2", "wf/3"]
    assert store.prune(timedelta(days=1)) == []
    assert sorted(store.prune(timedelta(), dry_run=True)) == ["wf/0", "wf/1", "wf/2", "wf/3"]
    assert sorted(store.prune(timedelta())) == ["wf/0", "wf/1", "wf/2", "wf/3"]
    assert list(store.workflows()) == []


def test_where_lists_are_in_no_order_workflows_are_named_as_they_come(
    store: CheckpointStore, bucket: Bucket, proxy: Proxy
) -> None:
    fill(store, bucket)
    proxy.on_request = Unordered(proxy, 5)
    proxy.take()
    assert next(store.workflows())
    assert len(proxy.take()) == 1


def test_where_lists_are_in_no_order_nothing_else_is_different(
    store: CheckpointStore, bucket: Bucket, proxy: Proxy
) -> None:
    fill(store, bucket)
    proxy.on_request = Unordered(proxy, 5)
    values = {f"task-{task}": task for task in range(8)}
    run = store.run("wf/1")
    assert run.tasks() == set(values)
    assert run.load_many() == values
    mixed = resume(store, "wf/1", {"a": 2}, on_input_change="reuse")
    mixed.dump_many({"task-0": "new", "task-9": 9})
    assert mixed.load_many() == {**values, "task-0": "new", "task-9": 9}
    described = store.describe("wf/1")
    assert (described.tasks, described.retired, described.mixed) == (9, 0, True)
    resume(store, "wf/1", {"a": 2}, on_input_change="reset").dump("task", 1)
    described = store.describe("wf/1")
    assert (described.tasks, described.retired, store.collect("wf/1")) == (1, 0, 0)
    assert store.clear("wf/2") == 8
    assert bucket.keys().count("root/wf%2F2/foreign") == 1
    store._filesystem.remove_all()
    assert bucket.keys() == []


# Folders of which the second piece begins the disorder, or only a later one has a file of ours.
PIECES = [
    ["a/.fingerprint", "b/.fingerprint", "a/x@0123456789abcdef"],
    ["b/.fingerprint", "a/.fingerprint", "b/x@0123456789abcdef", "a/x@0123456789abcdef"],
    ["a/foreign", "b/.fingerprint", "a/.fingerprint", "b/foreign", "a/x@0123456789abcdef"],
    ["a/.fingerprint", "b/foreign", "a/x@0123456789abcdef", "b/.fingerprint"],
    ["a/.fingerprint", "a/sub/x", "a/x@0123456789abcdef", "b/.fingerprint"],
]


@pytest.mark.parametrize("keys", PIECES)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_a_folder_that_comes_in_pieces_is_one_workflow(
    monkeypatch: pytest.MonkeyPatch, keys: list[str], size: int
) -> None:
    store = CheckpointStore("s3://bucket/root")

    async def listed(_: str, start: int | None) -> Page[Entry]:
        start = start or 0
        page = [Entry(key) for key in keys[start:][:size]]
        return Page(page, start + size if start + size < 9 else None)

    filesystem: Any = store._filesystem
    monkeypatch.setattr(filesystem._engine, "list", listed)
    assert sorted(store.workflows()) == ["a", "b"]


@given(st.lists(st.text("ab.-0é", max_size=3).map("{}/".format)), st.booleans())
def test_what_is_distinct_is_told_of_any_order(texts: list[str], ordered: bool) -> None:  # noqa: FBT001
    if ordered:
        texts.sort()
    distinct = _store._Distinct()
    assert list(dict.fromkeys(texts)) == [text for text in texts if distinct.is_new(text)]


# Missing, and everything that is not


def test_only_a_missing_key_is_missing(fs: S3Filesystem) -> None:
    for operation in (fs.read, fs.read_small, fs.open_read):
        with pytest.raises(FileNotFoundError):
            operation("wf/a")
    assert not fs.contains("wf/a")


def every_operation(fs: S3Filesystem) -> list[Any]:
    return [
        lambda: fs.read("wf/a"),
        lambda: fs.read_small("wf/a"),
        lambda: fs.contains("wf/a"),
        lambda: fs.open_read("wf/a"),
        lambda: fs.write("wf/a", [b"1"]),
        lambda: fs.swap("wf/a", None, b"1"),
        lambda: fs.swap("wf/a", Stored(b"1", '"0"'), b"2"),
        lambda: fs.delete(["wf/a"]),
        lambda: fs.list_files("wf"),
        lambda: fs.list_folders(bool),
        lambda: fs.open_write("wf/a").commit(),
    ]


def test_a_missing_bucket_is_an_error_with_a_remedy(bucket: Bucket) -> None:
    options = {**bucket.storage_options, **ONCE}
    fs = S3Filesystem("no-such-bucket", "root", options, max_concurrency=1)
    for operation in every_operation(fs):
        with pytest.raises(OSError, match=r"NoSuchBucket.*: create the bucket") as caught:
            operation()
        assert not isinstance(caught.value, FileNotFoundError)
    fs.close()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", PermissionError),
        (404, "NoSuchUpload", OSError),
        (404, "", OSError),
        (500, "InternalError", OSError),
    ],
)
def test_other_answers_are_errors_that_say_what_s3_said(
    impatient: S3Filesystem, proxy: Proxy, status: int, code: str, expected: type[OSError]
) -> None:
    response = error(status, code) if code else Response(status)
    message = f"S3 answered {status} {code or 'without an error code'}"
    proxy.on_request = always(response)
    for operation in every_operation(impatient):
        with pytest.raises(expected, match=message) as caught:
            operation()
        assert not isinstance(caught.value, FileNotFoundError)
        assert code == "" or f"The message of {code}" in str(caught.value)


def test_nothing_but_a_read_finds_a_key_missing(impatient: S3Filesystem, proxy: Proxy) -> None:
    proxy.on_request = always(error(404, "NoSuchKey"))
    for operation in (
        lambda: impatient.write("wf/a", [b"1"]),
        lambda: impatient.swap("wf/a", None, b"1"),
        lambda: impatient.list_files("wf"),
        lambda: impatient.delete(["wf/a"]),
    ):
        with pytest.raises(OSError, match="S3 answered 404 NoSuchKey") as caught:
            operation()
        assert not isinstance(caught.value, FileNotFoundError)


@on_moto
def test_missing_credentials_say_how_to_give_them(bucket: Bucket) -> None:
    options = {"endpoint_url": bucket.endpoint, "client_kwargs": {"region_name": "us-east-1"}}
    fs = S3Filesystem(bucket.name, "root", options, max_concurrency=1)
    with pytest.raises(OSError, match=r"AWS_ACCESS_KEY_ID.*AWS_PROFILE.*storage_options"):
        fs.read("wf/a")
    fs.close()


@on_moto
def test_an_unreachable_endpoint_says_what_to_check(bucket: Bucket) -> None:
    fs = connect(bucket, "http://127.0.0.1:1", **ONCE)
    with pytest.raises(OSError, match="check endpoint_url"):
        fs.read("wf/a")
    fs.close()


def test_no_secret_gets_into_messages_and_logs(
    impatient: S3Filesystem, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "checkpoint_store")
    for code in ["SignatureDoesNotMatch", "InvalidAccessKeyId"]:
        response = error(403, code)
        response.body = response.body.replace(
            b"</Error>", b"<StringToSign>test-secret</StringToSign></Error>"
        )
        proxy.on_request = always(response)
        for operation in every_operation(impatient):
            with pytest.raises(PermissionError, match="check the credentials") as caught:
                operation()
            assert "test-secret" not in f"{caught.value!r} {caplog.text} {impatient!r}"


def test_a_missing_s3fs_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'checkpoint-store\[s3\]'"):
        S3Filesystem("bucket", "root", {}, max_concurrency=1)


def test_importing_it_does_not_import_s3fs() -> None:
    script = (
        "import sys\n"
        "from checkpoint_store._filesystems.s3 import S3Filesystem\n"
        "S3Filesystem('bucket', 'root', {}, max_concurrency=1)\n"
        "sys.exit('s3fs' in sys.modules or 'botocore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@on_moto
def test_a_botocore_that_would_drop_conditions_is_refused(
    fs: S3Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.model

    shape = SimpleNamespace(members={"Bucket": None, "Key": None, "Body": None})
    monkeypatch.setattr(botocore.model.OperationModel, "input_shape", shape)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="pip install --upgrade 'aiobotocore"):
            fs.write("wf/a", [b"1"])


# Options


@on_moto
def test_an_option_that_s3fs_does_not_know_is_an_error_with_a_remedy(bucket: Bucket) -> None:
    for options in ({"secrt": "x"}, {"client_kwargs": {"regin_name": "x"}}):
        with pytest.raises(OSError, match="check the names of the storage options"):
            connect(bucket, bucket.endpoint, **options).read("wf/a")


# Closing


class _Closing(Callback):
    """Closes a store as soon as the first result is there."""

    def __init__(self, store: CheckpointStore) -> None:
        super().__init__()
        self._store = store

    def relative_update(self, inc: int = 1) -> None:
        del inc
        self._store.close()


def test_what_is_at_work_when_its_store_is_closed_fails_and_says_so(
    store: CheckpointStore,
) -> None:
    run = store.run("wf")
    payloads = {f"t{number}": b"x" * number for number in range(200)}
    run.write_many(payloads)
    closed = "the store was closed while this was at work"
    with pytest.raises(StorageError, match=closed):
        run.read_many(callback=_Closing(store))
    with pytest.raises(StorageError, match=closed) as caught:
        run.write_many(dict.fromkeys(payloads, b"new"), callback=_Closing(store))
    now = run.read_many()
    assert now.keys() == payloads.keys()
    assert 100 < len(caught.value.failures) < 200
    assert all(now[task] == b"new" for task in now.keys() - caught.value.failures)

    reader, writer = run.open("t199"), run.open("t", "wb")
    store.close()
    with pytest.raises(StorageError, match=closed), reader:
        reader.read()
    with pytest.raises(StorageError, match=closed), writer:
        writer.write(b"x")
    assert "t" not in run


@on_moto
def test_requests_that_begin_while_the_client_closes_all_come_to_an_end(
    fs: S3Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = asyncio.run_coroutine_threadsafe

    def begin_and_close(*arguments: Any) -> Any:
        future = begin(*arguments)
        fs.close()
        return future

    fs.write("wf/a", [b"1"])
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", begin_and_close)
    outcomes = dict(fs.read_many(["wf/a"] * 20))
    assert outcomes.keys() == set(range(20))
    assert {str(outcome) for outcome in outcomes.values()} <= {s3_engine._CLOSED, str(b"1")}
    assert s3_engine._CLOSED in map(str, outcomes.values())


@on_moto
def test_no_date_is_parsed_when_a_file_is_read(fs: S3Filesystem, proxy: Proxy) -> None:
    headers = {"ETag": '"1"', "Last-Modified": "whatever"}
    proxy.on_request = always(Response(200, headers, b"line\nrest"))
    assert fs.read("wf/a") == b"line\nrest"
    assert len(proxy.take()) == 1


# Retries


@on_moto
def test_a_server_that_is_always_busy_is_asked_five_times(fs: S3Filesystem, proxy: Proxy) -> None:
    proxy.on_request = always(error(503, "SlowDown"))
    with pytest.raises(OSError, match=r"S3 answered 503 SlowDown.*: try again later"):
        fs.read("wf/a")
    assert counted(proxy) == [("GET", 503)] * 5


@on_moto
def test_the_users_retries_win(impatient: S3Filesystem, proxy: Proxy) -> None:
    proxy.on_request = always(error(503, "SlowDown"))
    for operation in every_operation(impatient):
        proxy.take()
        with pytest.raises(OSError, match="SlowDown"):
            operation()
        assert len(proxy.take()) == 1


def break_off(proxy: Proxy, times: int) -> Any:
    remaining = iter(range(times))

    async def answer(request: Request) -> Response:
        response = await proxy.forward(request)
        if next(remaining, None) is not None:
            response.cut = len(response.body) // 2
        return response

    return answer


def test_a_body_that_breaks_off_is_read_again(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    data = os.urandom(MiB)
    bucket.put("root/wf/a", data)
    proxy.on_request = break_off(proxy, 2)
    assert data == fs.read("wf/a")
    assert len(proxy.take()) == 3
    bucket.put("root/wf/a", data[:1000])
    proxy.on_request = break_off(proxy, 1)
    assert data[:1000] == fs.read_small("wf/a").data
    assert len(proxy.take()) == 2


def test_a_body_that_always_breaks_off_is_an_error(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    bucket.put("root/wf/a", os.urandom(1000))
    proxy.on_request = break_off(proxy, 99)
    for read in (fs.read, fs.read_small):
        with pytest.raises(Exception, match=r"[Cc]ontent|payload|transfer"):
            read("wf/a")
        assert len(proxy.take()) == 3


def test_a_stream_that_breaks_off_is_an_error(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    bucket.put("root/wf/a", os.urandom(1000))
    proxy.on_request = break_off(proxy, 1)
    stream = fs.open_read("wf/a")
    with pytest.raises(Exception, match=r"[Cc]ontent|payload|transfer"):
        list(iter(lambda: stream.read(100), b""))
    stream.close()


# Conditional writes


def test_a_swap_wants_what_was_read(fs: S3Filesystem, bucket: Bucket, proxy: Proxy) -> None:
    assert not fs.swap("wf/a", Stored(b"", '"0"'), b"0")
    assert counted(proxy) == [("PUT", 404)]
    assert fs.swap("wf/a", None, b"1")
    assert not fs.swap("wf/a", None, b"2")
    first = fs.read_small("wf/a")
    assert fs.swap("wf/a", first, b"3")
    assert not fs.swap("wf/a", first, b"4")
    assert bucket.get("root/wf/a") == b"3"
    expected = [("PUT", 200), ("PUT", 412), ("GET", 200), ("PUT", 200), ("PUT", 412)]
    assert expected == counted(proxy)


def test_the_first_change_of_a_record_is_tried_again_to_see_it_refused(
    store: CheckpointStore, proxy: Proxy
) -> None:
    assert store.conditional_writes is None
    assert store.run("wf").is_current()
    assert counted(proxy) == [("GET", 404), ("PUT", 200), ("PUT", 412), ("GET", 200)]
    assert store.conditional_writes is True
    store.run("other")
    assert counted(proxy) == [("GET", 404), ("PUT", 200)]


def test_so_is_a_first_replacement(store: CheckpointStore, bucket: Bucket, proxy: Proxy) -> None:
    direct = CheckpointStore(f"s3://{bucket.name}/root", storage_options=bucket.storage_options)
    with direct:
        direct.write_fingerprint("wf", "v1")
    store.write_fingerprint("wf", "v2")
    assert store.conditional_writes is True
    assert counted(proxy) == [("GET", 200), ("PUT", 200), ("PUT", 412)]


@pytest.mark.parametrize(
    ("status", "code", "known"),
    [
        (412, "PreconditionFailed", True),
        (409, "ConditionalRequestConflict", True),
        (409, "OperationAborted", None),
    ],
)
def test_a_refusal_is_no_error_and_shows_that_conditions_are_honoured(
    fs: S3Filesystem, proxy: Proxy, status: int, code: str, known: Literal[True] | None
) -> None:
    proxy.on_request = always(error(status, code))
    assert not fs.swap("wf/a", None, b"1")
    assert known is fs.conditional_writes
    assert [("PUT", status)] == counted(proxy)


def test_a_server_that_ignores_conditions_is_noticed(store: CheckpointStore, proxy: Proxy) -> None:
    async def strip(request: Request) -> None:
        request.headers = {
            name: value
            for name, value in request.headers.items()
            if not name.lower().startswith("if-")
        }

    proxy.on_request = strip
    run = store.run("wf")
    assert counted(proxy) == [("GET", 404), ("PUT", 200), ("PUT", 200), ("PUT", 200)]
    assert store.conditional_writes is False
    # The last of the three is in force.
    assert run.is_current()
    store.run("other")
    assert counted(proxy) == [("GET", 200), ("GET", 404), ("PUT", 200)]


def test_a_clear_in_between_neither_looks_like_ignored_conditions_nor_is_undone(
    store: CheckpointStore, bucket: Bucket, proxy: Proxy
) -> None:
    cleared: list[bytes] = []

    async def clear_before_the_repetition(_: Request) -> None:
        if len(proxy.requests) == 2:
            cleared.append(bucket.get("root/wf/.fingerprint"))
            bucket.client.delete_object(Bucket=bucket.name, Key="root/wf/.fingerprint")

    proxy.on_request = clear_before_the_repetition
    run = store.run("wf")
    assert counted(proxy) == [("GET", 404), ("PUT", 200), ("PUT", 200), ("PUT", 412)]
    assert store.conditional_writes is True
    assert run.token not in cleared[0].decode()
    assert run.is_current()


def test_a_failed_repetition_leaves_it_unknown_and_the_change_done(
    impatient_store: CheckpointStore, proxy: Proxy
) -> None:
    async def fail_the_repetition(_: Request) -> Response | None:
        return error(500, "InternalError") if len(proxy.requests) == 2 else None

    proxy.on_request = fail_the_repetition
    assert impatient_store.run("wf").is_current()
    assert impatient_store.conditional_writes is None
    impatient_store.run("other")
    assert impatient_store.conditional_writes is True


def test_an_applied_swap_whose_reply_is_lost_is_refused(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    async def lose_the_first(request: Request) -> Response | None:
        if proxy.requests:
            return None
        response = await proxy.forward(request)
        response.cut = 0
        return response

    proxy.on_request = lose_the_first
    assert not fs.swap("wf/a", None, b"mine")
    assert counted(proxy) == [("PUT", 0), ("PUT", 412)]
    assert bucket.get("root/wf/a") == b"mine"


@on_ministack
def test_of_racing_creates_one_wins(fs: S3Filesystem, bucket: Bucket) -> None:
    for number in range(20):
        key = f"wf/{number}"
        barrier = threading.Barrier(8)

        def create(name: int, key: str = key, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return fs.swap(key, None, b"%d" % name)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert sum(won) == 1
        assert b"%d" % won.index(True) == bucket.get(f"root/{key}")


@on_ministack
def test_of_racing_swaps_none_is_lost(fs: S3Filesystem, bucket: Bucket) -> None:
    assert fs.swap("wf/count", None, b"0")

    def increment(_: int) -> int:
        won = 0
        for _ in range(25):
            old = fs.read_small("wf/count")
            won += fs.swap("wf/count", old, b"%d" % (int(old.data) + 1))
        return won

    with ThreadPoolExecutor(8) as pool:
        won = sum(pool.map(increment, range(8)))
    assert won > 0
    assert b"%d" % won == bucket.get("root/wf/count")


# Deleting


def test_files_that_could_not_be_deleted_are_returned(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    async def refuse_one(request: Request) -> Response:
        request.body = request.body.replace(b"root/wf/b", b"root/wf/other")
        request.headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("content-md5", "x-amz-sdk-checksum-algorithm")
            and not name.lower().startswith("x-amz-checksum")
        }
        response = await proxy.forward(request)
        start = response.body.index(b"</DeleteResult>") if b"</Del" in response.body else -2
        head = response.body[:start] if start >= 0 else b"<DeleteResult>"
        response.body = head + (
            b"<Error><Key>root/wf/b</Key><Code>AccessDenied</Code><Message>No</Message></Error>"
            b"<Error><Key>root/wf/c</Key><Code>NoSuchKey</Code><Message>Gone</Message></Error>"
            b"</DeleteResult>"
        )
        return response

    for name in "ab":
        bucket.put(f"root/wf/{name}", b"1")
    proxy.on_request = refuse_one
    assert fs.delete(["wf/a", "wf/b", "wf/c"]) == {"wf/b": "AccessDenied: No"}
    assert bucket.keys() == ["root/wf/b"]


# Streams


def uploads(bucket: Bucket) -> list[Any]:
    return list(bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", ()))


def test_a_large_upload_appears_whole_and_only_when_committed(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    data = os.urandom(20 * MiB)
    upload = fs.open_write("wf/a")
    for start in range(0, len(data), 3 * MiB):
        upload.write(memoryview(data)[start : start + 3 * MiB])
    assert bucket.keys() == []
    upload.commit()
    assert counted(proxy) == [
        ("POST", 200),
        *[("PUT", 200)] * 4,
        ("POST", 200),
    ]
    assert data == bucket.get("root/wf/a")
    upload.discard()
    assert bucket.keys() == ["root/wf/a"]
    assert uploads(bucket) == []


def test_a_stream_is_read_in_one_request_and_in_pieces(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    data = os.urandom(5 * MiB)
    bucket.put("root/wf/a", data)
    stream = fs.open_read("wf/a")
    pieces = [stream.read(MiB), stream.read(MiB)]
    while piece := stream.read(MiB):
        pieces.append(piece)
    assert [MiB] * 5 == [len(piece) for piece in pieces]
    assert data == b"".join(pieces)
    assert stream.read(MiB) == b""
    stream.close()
    assert counted(proxy) == [("GET", 200)]


@pytest.mark.parametrize("size", [1, 20 * MiB])
def test_a_discarded_upload_leaves_nothing(fs: S3Filesystem, bucket: Bucket, size: int) -> None:
    upload = fs.open_write("wf/a")
    upload.write(bytes(size))
    assert (size > 1) == bool(uploads(bucket))
    upload.discard()
    upload.discard()
    assert uploads(bucket) == []
    for operation in (upload.commit, lambda: upload.write(bytes(20 * MiB))):
        with pytest.raises(ValueError, match="discarded"):
            operation()
    assert bucket.keys() + uploads(bucket) == []


def test_a_failed_part_aborts_the_upload(fs: S3Filesystem, bucket: Bucket, proxy: Proxy) -> None:
    async def refuse_the_second_part(request: Request) -> Response | None:
        return error(403, "AccessDenied") if "partNumber=2" in request.query else None

    proxy.on_request = refuse_the_second_part
    upload = fs.open_write("wf/a")
    upload.write(bytes(10 * MiB))
    assert len(uploads(bucket)) == 1
    with pytest.raises(PermissionError):
        upload.write(bytes(10 * MiB))
    assert bucket.keys() + uploads(bucket) == []


def test_an_error_inside_a_successful_completion_is_noticed(
    impatient: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    async def fail_to_complete(request: Request) -> Response | None:
        if request.method == "POST" and request.query.startswith("uploadId"):
            response = error(200, "InternalError")
            response.body = b'<?xml version="1.0" encoding="UTF-8"?>\n' + response.body
            return response
        return None

    proxy.on_request = fail_to_complete
    upload = impatient.open_write("wf/a")
    upload.write(bytes(10 * MiB))
    with pytest.raises(OSError, match="InternalError"):
        upload.commit()
    assert bucket.keys() + uploads(bucket) == []


def test_an_upload_that_cannot_be_aborted_is_only_logged(
    impatient: S3Filesystem, bucket: Bucket, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "checkpoint_store")
    upload = impatient.open_write("wf/a")
    upload.write(bytes(10 * MiB))
    (pending,) = uploads(bucket)
    bucket.client.abort_multipart_upload(
        Bucket=bucket.name, Key="root/wf/a", UploadId=pending["UploadId"]
    )
    proxy.on_request = always(error(404, "NoSuchUpload"))
    upload.discard()
    assert "could not be aborted: S3 answered 404 NoSuchUpload" in caplog.text


def test_ten_thousand_parts_hold_429_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Client:
        async def begin_upload(self, _: str) -> str:
            return "1"

        async def call(self, operation: str, **parameters: Any) -> dict[str, str]:
            assert operation == "upload_part"
            sizes.append(len(parameters["Body"]))
            return {"ETag": "1"}

        async def guarded(self, request: Any) -> Any:
            return await request

        def run(self, request: Any) -> None:
            loop.run_until_complete(request)

        def finish(self, request: Any, _: float) -> None:
            request.close()

    loop = asyncio.new_event_loop()
    monkeypatch.setattr(s3_transfers, "_PART_BYTES", 1)
    upload = s3_transfers.MultipartUpload(Client(), "key")  # type: ignore[arg-type]
    upload.write(bytes(55_000))
    assert len(sizes) == 10_000
    assert sum(sizes) == 55_000
    assert 55_000 * 6 * MiB > 322 * 1024**3
    upload.discard()
    loop.close()


def test_open_streams_do_not_block_other_calls(bucket: Bucket) -> None:
    bucket.put("root/wf/a", bytes(4 * MiB))
    fs = S3Filesystem(bucket.name, "root", bucket.storage_options, max_concurrency=1)
    streams = [fs.open_read("wf/a") for _ in range(12)]
    thread = threading.Thread(target=fs.read, args=("wf/a",), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    for stream in streams:
        stream.close()
    fs.close()


# Options


@on_moto
def test_options_are_merged_and_not_changed(bucket: Bucket) -> None:
    options = {**bucket.storage_options, "config_kwargs": {"read_timeout": 7}}
    before = {**options, "config_kwargs": {"read_timeout": 7}}
    fs = S3Filesystem(bucket.name, "root", options, max_concurrency=3)
    fs.write("wf/a", [b"1"])
    assert before == options
    config = fs._engine._fs._s3.meta.config
    assert (
        config.connect_timeout,
        config.read_timeout,
        config.retries["total_max_attempts"],
    ) == (10, 7, 5)
    assert fs.max_concurrency == 3
    fs.close()


@on_moto
def test_neither_the_environment_nor_options_switch_caches_on(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["USE_LISTINGS_CACHE", "VERSION_AWARE", "ASYNCHRONOUS", "SKIP_INSTANCE_CACHE"]:
        monkeypatch.setenv(f"FSSPEC_S3_{name}", "1")
    monkeypatch.setenv("FSSPEC_S3_KEY", "key-of-the-environment")
    configuration: dict[str, Any] = {}
    fsspec.config.set_conf_env(configuration)
    assert configuration["s3"]["use_listings_cache"]
    monkeypatch.setattr(fsspec.config, "conf", configuration)
    options = {**bucket.storage_options, "use_listings_cache": True, "skip_instance_cache": False}
    del options["key"]
    first = S3Filesystem(bucket.name, "root", options, max_concurrency=1)
    second = S3Filesystem(bucket.name, "root", options, max_concurrency=1)
    for fs in (first, second):
        fs.write("wf/a", [b"1"])
        assert fs._engine._fs.dircache.use_listings_cache is False
        assert fs._engine._fs.version_aware is False
        assert fs._engine._fs.key == "key-of-the-environment"
    assert first._engine._fs is not second._engine._fs
    first.close()
    second.close()


@on_moto
def test_additional_parameters_reach_the_requests_that_know_them(
    bucket: Bucket, proxy: Proxy
) -> None:
    headers = []

    async def note(request: Request) -> None:
        headers.append({name.lower() for name in request.headers})

    proxy.on_request = note
    additional = {"ServerSideEncryption": "AES256"}
    fs = connect(bucket, proxy.endpoint, s3_additional_kwargs=additional)
    fs.write("wf/a", [b"1"])
    fs.read("wf/a")
    assert ["x-amz-server-side-encryption" in names for names in headers] == [True, False]
    fs.close()


# Threads, processes and loops


def test_32_threads_share_one_client(
    bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    made = []
    set_session = s3fs.S3FileSystem.set_session

    async def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(self)
        await asyncio.sleep(0.1)  # As when credentials are fetched.
        return await set_session(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "set_session", counting)
    fs = connect(bucket, proxy.endpoint)
    barrier = threading.Barrier(32)

    def work(number: int) -> bytes:
        barrier.wait()
        fs.write(f"wf/{number}", [b"%d" % number])
        return fs.read(f"wf/{number}")

    with ThreadPoolExecutor(32) as pool:
        assert [b"%d" % number for number in range(32)] == list(pool.map(work, range(32)))
    assert len(made) == 1
    assert len(proxy.take()) == 64
    fs.close()


def test_closing_drops_the_connections_and_the_next_call_opens_new_ones(
    fs: S3Filesystem, proxy: Proxy
) -> None:
    fs.close()
    for _ in range(2):
        fs.write("wf/a", [b"1"])
        assert proxy.connections == 1
        fs.close()
        fs.close()
        deadline = time.monotonic() + 60
        while proxy.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert proxy.connections == 0


FORK = """
import os, sys, time
from checkpoint_store._filesystems.s3 import S3Filesystem

options = {"key": "k", "secret": "s", "endpoint_url": sys.argv[1],
           "client_kwargs": {"region_name": "us-east-1"},
           "config_kwargs": {"read_timeout": 600}}
fs = S3Filesystem(sys.argv[2], "root", options, max_concurrency=4)
fs.write("wf/a", [b"parent"])
stream = fs.open_read("wf/a")
child = os.fork()
if not child:
    assert fs.read("wf/a") == b"parent"
    fs.write("wf/b", [b"child"])
    try:
        stream.read(1)
    except RuntimeError as error:
        assert "before the fork" in str(error)
    if sys.argv[3] == "close":
        stream.close()
        fs.close()
    if sys.argv[3] == "drop":
        del fs, stream
    if sys.argv[3] == "_exit":
        os._exit(0)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert fs.read("wf/b") == b"child"
assert stream.read(10) == b"parent"
stream.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("ending", ["exit", "_exit", "drop", "close"])
def test_parent_and_child_of_a_fork_do_not_disturb_each_other(bucket: Bucket, ending: str) -> None:
    assert run(FORK, bucket, ending) == ""


def test_a_child_does_not_close_what_it_inherited() -> None:
    s3_engine._close(os.getpid() + 1, fsspec.asyn.get_loop(), None)


def test_leaving_without_closing_is_silent(bucket: Bucket) -> None:
    script = FORK.partition("child =")[0] + "fs.open_write('wf/c').write(bytes(2**23))\n"
    assert run(script, bucket) == ""


def run(script: str, bucket: Bucket, *arguments: str) -> str:
    # Since Python 3.12 a fork beside threads is deprecated.
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(
        [*command, bucket.endpoint, bucket.name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@on_moto
def test_a_call_in_fsspecs_own_loop_is_refused(fs: S3Filesystem) -> None:
    async def call() -> None:
        fs.read("wf/a")

    with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
        fsspec.asyn.sync(fsspec.asyn.get_loop(), call)


@on_moto
def test_an_interrupted_request_is_given_up(fs: S3Filesystem, proxy: Proxy) -> None:
    fs.write("wf/a", [b"1"])
    arrived = threading.Event()
    release = threading.Event()

    async def refuse_the_first_write(request: Request) -> Response | None:
        if request.method != "PUT" or arrived.is_set():
            return None
        arrived.set()
        await asyncio.to_thread(release.wait, 60)
        return error(503, "SlowDown")

    def interrupt() -> None:
        arrived.wait(60)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    proxy.on_request = refuse_the_first_write
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fs.write("wf/a", [b"2"])
    thread.join()
    release.set()
    time.sleep(2)  # Longer than it takes until the second try.
    assert fs.read("wf/a") == b"1"
