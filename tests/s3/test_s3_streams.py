"""Streams from and to S3: an upload is there whole or not at all, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

import pytest

from checkpoint_store._filesystems import s3_transfers
from checkpoint_store._filesystems.s3 import S3Filesystem

from ..harness import MIB
from ..harness.buckets import Bucket
from ..harness.s3 import always, counted
from ..harness.servers import Proxy, Request, Response, error


def test_a_large_upload_appears_whole_and_only_when_committed(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    data = os.urandom(20 * MIB)
    upload = fs.open_write("wf/a")
    for start in range(0, len(data), 3 * MIB):
        upload.write(memoryview(data)[start : start + 3 * MIB])
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
    assert bucket.uploads() == []


def test_a_stream_is_read_in_one_request_and_in_pieces(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    data = os.urandom(5 * MIB)
    bucket.put("root/wf/a", data)
    stream = fs.open_read("wf/a")
    pieces = [stream.read(MIB), stream.read(MIB)]
    while piece := stream.read(MIB):
        pieces.append(piece)
    assert [len(piece) for piece in pieces] == [MIB] * 5
    assert data == b"".join(pieces)
    assert stream.read(MIB) == b""
    stream.close()
    assert counted(proxy) == [("GET", 200)]


@pytest.mark.parametrize("size", [1, 20 * MIB])
def test_a_discarded_upload_leaves_nothing(fs: S3Filesystem, bucket: Bucket, size: int) -> None:
    upload = fs.open_write("wf/a")
    upload.write(bytes(size))
    assert (size > 1) == bool(bucket.uploads())
    upload.discard()
    upload.discard()
    assert bucket.uploads() == []
    for operation in (upload.commit, lambda: upload.write(bytes(20 * MIB))):
        with pytest.raises(ValueError, match="discarded"):
            operation()
    assert bucket.keys() + bucket.uploads() == []


def test_a_failed_part_aborts_the_upload(fs: S3Filesystem, bucket: Bucket, proxy: Proxy) -> None:
    async def refuse_the_second_part(request: Request) -> Response | None:
        return error(403, "AccessDenied") if "partNumber=2" in request.query else None

    proxy.on_request = refuse_the_second_part
    upload = fs.open_write("wf/a")
    upload.write(bytes(10 * MIB))
    assert len(bucket.uploads()) == 1
    with pytest.raises(PermissionError):
        upload.write(bytes(10 * MIB))
    assert bucket.keys() + bucket.uploads() == []


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
    upload.write(bytes(10 * MIB))
    with pytest.raises(OSError, match="InternalError"):
        upload.commit()
    assert bucket.keys() + bucket.uploads() == []


def test_an_upload_that_cannot_be_aborted_is_only_logged(
    impatient: S3Filesystem, bucket: Bucket, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "checkpoint_store")
    upload = impatient.open_write("wf/a")
    upload.write(bytes(10 * MIB))
    (pending,) = bucket.uploads()
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
    assert 55_000 * 6 * MIB > 322 * 1024**3
    upload.discard()
    loop.close()


def test_open_streams_do_not_block_other_calls(bucket: Bucket) -> None:
    bucket.put("root/wf/a", bytes(4 * MIB))
    fs = S3Filesystem(bucket.name, "root", bucket.storage_options, max_concurrency=1)
    streams = [fs.open_read("wf/a") for _ in range(12)]
    thread = threading.Thread(target=fs.read, args=("wf/a",), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    for stream in streams:
        stream.close()
    fs.close()
