"""The S3 filesystem, and a store on it, behind a proxy that may break what passes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from checkpoint_store import CheckpointStore
from checkpoint_store._filesystems import s3_transfers
from checkpoint_store._filesystems.s3 import S3Filesystem

from ..harness.buckets import Bucket, s3_client
from ..harness.faults import FaultProxy, Injection
from ..harness.s3 import ONCE, connect, open_store
from ..harness.s3_operations import BUCKET, World
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


# Operations while requests are broken, held back or sent to a server without conditions


@pytest.fixture(scope="module")
def fault_proxy(ministack_server: str) -> Iterator[FaultProxy]:
    s3_client(ministack_server).create_bucket(Bucket=BUCKET)
    with FaultProxy(ministack_server).running() as proxy:
        assert isinstance(proxy, FaultProxy)
        yield proxy


@pytest.fixture(scope="module")
def clients() -> Iterator[Callable[[str, float, int], CheckpointStore]]:
    """One store for each endpoint, timeout and number of attempts, for its connections."""
    owners: dict[tuple[str, float, int], CheckpointStore] = {}

    def owner(endpoint: str, timeout: float, attempts: int) -> CheckpointStore:
        options = {
            "key": "test",
            "secret": "test-secret",
            "endpoint_url": endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": {
                "read_timeout": timeout,
                "retries": {"mode": "standard", "total_max_attempts": attempts},
            },
        }
        if (endpoint, timeout, attempts) not in owners:
            made = CheckpointStore(f"s3://{BUCKET}/none", storage_options=options)
            made._filesystem._engine  # type: ignore[attr-defined]  # noqa: B018
            owners[endpoint, timeout, attempts] = made
        return owners[endpoint, timeout, attempts]

    yield owner
    for store in owners.values():
        store.close()


@pytest.fixture
def world(
    no_aws_environment: None,  # noqa: ARG001
    ministack_server: str,
    fault_proxy: FaultProxy,
    clients: Callable[..., CheckpointStore],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    # Retries at once, and as many as there are attempts however many have failed before.
    retries = "botocore.retries"
    monkeypatch.setattr(f"{retries}.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    monkeypatch.setattr(f"{retries}.quota.RetryQuota.acquire", lambda *_: True)
    monkeypatch.setattr("checkpoint_store._steps.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(s3_transfers, "_PART_BYTES", 1024)
    fault_proxy.on_request = None
    world = World(ministack_server, fault_proxy, clients)
    yield world
    hook, fault_proxy.on_request = fault_proxy.on_request, None
    if isinstance(hook, Injection):
        hook.release()
