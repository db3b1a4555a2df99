"""S3 on two servers, each behind a proxy that counts and breaks requests."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_store import CheckpointStore, resume
from checkpoint_store._filesystems import s3
from checkpoint_store._filesystems.base import SMALL_BYTES, Entry, Filesystem, Page
from checkpoint_store._filesystems.loop import wait_for
from checkpoint_store._filesystems.s3 import S3Filesystem
from checkpoint_store._steps import drive, list_all

from ..harness import MIB
from ..harness.buckets import Bucket
from ..harness.faults import Unordered
from ..harness.memory import at_most
from ..harness.s3 import ONCE, always, connect, counted, every_operation, names_in, on_moto
from ..harness.servers import Proxy, Request, Response, error

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


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 20 * MIB])
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
    data = os.urandom(3 * MIB)
    fs.write("wf/a", [data[:MIB], data[MIB:]])
    assert counted(proxy) == [("PUT", 500), ("PUT", 200)]
    assert data == bucket.get("root/wf/a")


def test_writing_makes_no_copy_of_a_large_body(bucket: Bucket) -> None:
    fs = connect(bucket, bucket.endpoint)
    fs.write("wf/a", [b"1"])
    data = bytes(32 * MIB)
    with at_most(8 * MIB):
        fs.write("wf/a", [b"header", data, b"trailer"])
    fs.close()


def test_what_exceeds_one_put_is_uploaded_in_parts(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PUT_BYTES", 10 * MIB)
    data = os.urandom(11 * MIB)
    fs.write("wf/a", [data[:MIB], data[MIB:]])
    assert [method for method, _ in counted(proxy)] == ["POST", "PUT", "PUT", "POST"]
    assert data == bucket.get("root/wf/a")


def test_a_write_in_parts_that_fails_leaves_nothing(
    fs: S3Filesystem, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PUT_BYTES", 10 * MIB)
    with pytest.raises(TypeError):
        fs.write("wf/a", [bytes(11 * MIB), "no bytes"])  # type: ignore[list-item]
    assert bucket.keys() + bucket.uploads() == []


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
    assert drive(fs, list_all("all", Filesystem.list_folders, bool)) == ["wf"]
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


def folders_as_they_come(store: CheckpointStore) -> list[str]:
    """The folders of all files of a list, as often as the list comes to another folder."""
    filesystem: Any = store._filesystem
    names: list[str] = []
    more, is_last = None, False
    while not is_last:
        page = wait_for(filesystem._engine.list(filesystem._root, more))
        names += [file.name.partition("/")[0] for file in page.items]
        more, is_last = page.more, page.more is None
    return [name for name, _ in itertools.groupby(names)]


def test_where_lists_are_in_no_order_each_workflow_is_named_once(
    store: CheckpointStore, bucket: Bucket, proxy: Proxy
) -> None:
    fill(store, bucket)
    proxy.on_request = Unordered(proxy, 5)
    folders = folders_as_they_come(store)
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
    distinct = s3._Distinct()
    assert list(dict.fromkeys(texts)) == [text for text in texts if distinct.is_new(text)]


# Missing, and everything that is not


def test_only_a_missing_key_is_missing(fs: S3Filesystem) -> None:
    for operation in (fs.read, fs.read_small, fs.open_read):
        with pytest.raises(FileNotFoundError):
            operation("wf/a")
    assert not fs.contains("wf/a")


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


@on_moto
def test_no_date_is_parsed_when_a_file_is_read(fs: S3Filesystem, proxy: Proxy) -> None:
    headers = {"ETag": '"1"', "Last-Modified": "whatever"}
    proxy.on_request = always(Response(200, headers, b"line\nrest"))
    assert fs.read("wf/a") == b"line\nrest"
    assert len(proxy.take()) == 1


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
