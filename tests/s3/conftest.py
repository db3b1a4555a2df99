"""The S3 filesystem, and a store on it, behind a proxy that may break what passes through it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from checkpoint_store import CheckpointStore
from checkpoint_store._filesystems.s3 import S3Filesystem

from ..harness.buckets import Bucket
from ..harness.s3 import ONCE, connect, open_store
from ..harness.servers import Proxy


@pytest.fixture
def fs(bucket: Bucket, proxy: Proxy) -> Iterator[S3Filesystem]:
    fs = connect(bucket, proxy.endpoint)
    yield fs
    fs.close()


@pytest.fixture
def impatient(bucket: Bucket, proxy: Proxy) -> Iterator[S3Filesystem]:
    """A filesystem that tries each request once, because its user said so."""
    fs = connect(bucket, proxy.endpoint, **ONCE)
    yield fs
    fs.close()


@pytest.fixture
def store(bucket: Bucket, proxy: Proxy) -> Iterator[CheckpointStore]:
    with open_store(bucket, proxy.endpoint) as store:
        yield store


@pytest.fixture
def impatient_store(bucket: Bucket, proxy: Proxy) -> Iterator[CheckpointStore]:
    """A store that tries each request once, because its user said so."""
    with open_store(bucket, proxy.endpoint, **ONCE) as store:
        yield store
