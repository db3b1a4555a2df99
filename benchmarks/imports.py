"""Starting up: imports, a store, and its first S3 request, in a fresh interpreter each time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import cast

import boto3

from .clients import client_options, storage_options, store_at
from .s3 import LATENCY
from .server import Server
from .timing import LIBRARY, Clock, Contender, Result, Seconds, compare

_MEASURE = """
import time
processor, wall = time.process_time(), time.perf_counter()
{code}
print(time.perf_counter() - wall, time.process_time() - processor)
"""
_BOTO3 = """
import boto3
client = boto3.client("s3", **{client_options})
try:
    client.get_object(Bucket="{bucket}", Key="first")
except client.exceptions.NoSuchKey:
    pass
"""
_S3FS = """
import s3fs
try:
    s3fs.S3FileSystem(**{storage_options}).cat_file("{bucket}/first")
except FileNotFoundError:
    pass
"""
_LIBRARY = """
from checkpoint_store import CheckpointStore
CheckpointStore("s3://{bucket}", storage_options={storage_options}).read_fingerprint("first")
"""


def _fresh(code: str) -> Seconds:
    command = [sys.executable, "-c", _MEASURE.format(code=code)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wall, processor = map(float, printed.split())
    return {"wall": wall, "processor": processor}


def _compare(
    name: str,
    codes: Mapping[str, str],
    *,
    rounds: int,
    clock: Clock,
    target: float | None = None,
) -> Result:
    contenders = [Contender(each, partial(_fresh, code)) for each, code in codes.items()]
    return compare(
        name,
        contenders,
        rounds=rounds,
        clock=clock,
        target=target,
        measure=lambda contender: cast(Seconds, contender.call()),
    )


def rows(server: Server, rounds: int) -> Iterator[Result]:
    yield _compare(
        "import",
        {"import fsspec": "import fsspec", LIBRARY: "import checkpoint_store"},
        rounds=rounds,
        clock="processor",
        target=1.3,
    )
    yield compare(
        "construct, S3",
        [
            Contender("boto3.client", lambda: boto3.client("s3", **client_options(server))),
            Contender(LIBRARY, lambda: store_at(server, "construct")),
        ],
        rounds=rounds,
        clock="processor",
        limit=1e-3,
    )
    values = {
        "bucket": server.bucket,
        "client_options": client_options(server),
        "storage_options": storage_options(server),
    }
    codes = {"boto3": _BOTO3, LIBRARY: _LIBRARY, "s3fs": _S3FS}
    with server.latency(LATENCY):
        yield _compare(
            "import and first request, S3",
            {name: code.format(**values) for name, code in codes.items()},
            rounds=rounds,
            clock="wall",
        )
