"""Those who talk to the S3 of the benchmarks, each with as many requests in flight."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import boto3
import s3fs
from botocore.config import Config
from dotflow.core.context import Context
from dotflow.providers import StorageS3
from obstore.store import S3Store

from checkpoint_store import CheckpointStore, Run, resume

from .server import Server

IN_FLIGHT = 32
WORKFLOW = "orders"
_REGION, _KEY, _SECRET = "us-east-1", "benchmark", "benchmark"
SMALL = os.urandom(4096)
_TEXT = SMALL.hex()[:4096]

Do = Callable[[], object]


def client_options(server: Server) -> dict[str, Any]:
    """As boto3 takes them."""
    return {
        "endpoint_url": server.endpoint,
        "aws_access_key_id": _KEY,
        "aws_secret_access_key": _SECRET,
        "region_name": _REGION,
    }


def storage_options(server: Server) -> dict[str, Any]:
    """As fsspec takes them."""
    return {
        "endpoint_url": server.endpoint,
        "key": _KEY,
        "secret": _SECRET,
        "client_kwargs": {"region_name": _REGION},
    }


def store_at(server: Server, root: str) -> CheckpointStore:
    return CheckpointStore(
        f"s3://{server.bucket}/{root}",
        max_concurrency=IN_FLIGHT,
        storage_options=storage_options(server),
    )


def resumed(store: CheckpointStore, workflow_id: str = WORKFLOW) -> Run:
    return resume(store, workflow_id, {"day": "2026-11-23"}, on_input_change="reset")


class Boto3:
    def __init__(self, server: Server) -> None:
        self._bucket = server.bucket
        self._pool = ThreadPoolExecutor(IN_FLIGHT)
        self._client = boto3.client(
            "s3", config=Config(max_pool_connections=IN_FLIGHT), **client_options(server)
        )

    def put(self, key: str) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=SMALL)

    def get(self, key: str) -> bytes:
        body: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return body

    def write(self, keys: Sequence[str]) -> None:
        list(self._pool.map(self.put, keys))

    def read(self, keys: Sequence[str]) -> list[bytes]:
        return list(self._pool.map(self.get, keys))

    def pages(self, prefix: str) -> Iterator[list[str]]:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
            yield [item["Key"] for item in page.get("Contents", ())]

    def clear(self, prefix: str) -> None:
        for keys in self.pages(prefix):
            objects = [{"Key": key} for key in keys]
            reply = self._client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True}
            )
            assert not reply.get("Errors")


def s3fs_files(server: Server, paths: Sequence[str]) -> tuple[Do, Do]:
    files = s3fs.S3FileSystem(
        **storage_options(server),
        config_kwargs={"max_pool_connections": IN_FLIGHT},
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    keys = [f"{server.bucket}/s3fs/{path}" for path in paths]
    return (
        lambda: files.pipe(dict.fromkeys(keys, SMALL), batch_size=IN_FLIGHT),
        lambda: files.cat(keys, batch_size=IN_FLIGHT),
    )


def dotflow_files(server: Server, paths: Sequence[str]) -> tuple[Do, Do]:
    environment = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
    }
    with patch.dict(os.environ, environment):
        files = StorageS3(bucket=server.bucket, prefix="dotflow/", region=_REGION)
    pool = ThreadPoolExecutor(IN_FLIGHT)
    context = Context(storage=_TEXT)
    return (
        lambda: list(pool.map(lambda path: files.post(path, context), paths)),
        lambda: list(pool.map(files.get, paths)),
    )


def obstore_files(server: Server, paths: Sequence[str]) -> tuple[Do, Do]:
    files = S3Store(
        server.bucket,
        prefix="obstore",
        endpoint=server.endpoint,
        access_key_id=_KEY,
        secret_access_key=_SECRET,
        region=_REGION,
        client_options={"allow_http": True},
    )

    async def get(path: str) -> object:
        return await (await files.get_async(path)).bytes_async()

    async def all_of(call: Callable[[str], Awaitable[object]]) -> None:
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(path: str) -> None:
            async with slots:
                await call(path)

        await asyncio.gather(*map(one, paths))

    return (
        lambda: asyncio.run(all_of(lambda path: files.put_async(path, SMALL))),
        lambda: asyncio.run(all_of(get)),
    )
