"""What the tests of the S3 filesystem share."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoint_store import CheckpointStore
from checkpoint_store._filesystems.base import Filesystem, Stored
from checkpoint_store._filesystems.s3 import S3Filesystem
from checkpoint_store._steps import drive, list_all

from .buckets import Bucket
from .servers import Proxy, Request, Response

ONCE = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}

# Tests run on both servers, unless one of these marks says which one a test is for.
on_moto = pytest.mark.parametrize("s3_server", ["moto"], indirect=True)
on_ministack = pytest.mark.parametrize("s3_server", ["ministack"], indirect=True)


def connect(bucket: Bucket, endpoint: str, **options: Any) -> S3Filesystem:
    options = {**bucket.options(endpoint), **options}
    return S3Filesystem(bucket.name, "root", options, max_concurrency=8)


def open_store(bucket: Bucket, endpoint: str, **options: Any) -> CheckpointStore:
    options = {**bucket.options(endpoint), **options}
    return CheckpointStore(f"s3://{bucket.name}/root", storage_options=options)


def names_in(fs: S3Filesystem, folder: str) -> list[str]:
    files = drive(fs, list_all("all", Filesystem.list_files, folder))
    return [file.name for file in files]


def counted(proxy: Proxy) -> list[tuple[str, int]]:
    return [(request.method, request.status) for request in proxy.take()]


def always(response: Response) -> Any:
    async def answer(_: Request) -> Response:
        return response

    return answer


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
