"""Clients of S3: their options, and how they bear threads, forks, loops and closing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec.asyn
import fsspec.config
import pytest
from fsspec.callbacks import Callback

from checkpoint_store import CheckpointStore, StorageError
from checkpoint_store._filesystems import s3_engine
from checkpoint_store._filesystems.base import Filesystem, anything
from checkpoint_store._filesystems.s3 import S3Filesystem
from checkpoint_store._steps import Each, Steps, call, drive

from ..harness import ROOT
from ..harness.buckets import Bucket
from ..harness.environment import needs_fork
from ..harness.s3 import connect, on_moto
from ..harness.servers import Proxy, Request, Response, error

# Options


@on_moto
def test_an_option_that_s3fs_does_not_know_is_an_error_with_a_remedy(bucket: Bucket) -> None:
    for options in ({"secrt": "x"}, {"client_kwargs": {"regin_name": "x"}}):
        with pytest.raises(OSError, match="check the names of the storage options"):
            connect(bucket, bucket.endpoint, **options).read("wf/a")


@on_moto
def test_options_are_merged_and_not_changed(bucket: Bucket) -> None:
    options = {**bucket.storage_options, "config_kwargs": {"read_timeout": 7}}
    before = {**options, "config_kwargs": {"read_timeout": 7}}
    fs = S3Filesystem(bucket.name, "root", options, max_concurrency=3)
    fs.write("wf/a", [b"1"])
    assert before == options
    config = fs._engine._fs._s3.meta.config
    assert (
        config.connect_timeout,
        config.read_timeout,
        config.retries["total_max_attempts"],
    ) == (10, 7, 5)
    assert fs.max_concurrency == 3
    fs.close()


@on_moto
def test_neither_the_environment_nor_options_switch_caches_on(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["USE_LISTINGS_CACHE", "VERSION_AWARE", "ASYNCHRONOUS", "SKIP_INSTANCE_CACHE"]:
        monkeypatch.setenv(f"FSSPEC_S3_{name}", "1")
    monkeypatch.setenv("FSSPEC_S3_KEY", "key-of-the-environment")
    configuration: dict[str, Any] = {}
    fsspec.config.set_conf_env(configuration)
    assert configuration["s3"]["use_listings_cache"]
    monkeypatch.setattr(fsspec.config, "conf", configuration)
    options = {**bucket.storage_options, "use_listings_cache": True, "skip_instance_cache": False}
    del options["key"]
    first = S3Filesystem(bucket.name, "root", options, max_concurrency=1)
    second = S3Filesystem(bucket.name, "root", options, max_concurrency=1)
    for fs in (first, second):
        fs.write("wf/a", [b"1"])
        assert fs._engine._fs.dircache.use_listings_cache is False
        assert fs._engine._fs.version_aware is False
        assert fs._engine._fs.key == "key-of-the-environment"
    assert first._engine._fs is not second._engine._fs
    first.close()
    second.close()


@on_moto
def test_additional_parameters_reach_the_requests_that_know_them(
    bucket: Bucket, proxy: Proxy
) -> None:
    headers = []

    async def note(request: Request) -> None:
        headers.append({name.lower() for name in request.headers})

    proxy.on_request = note
    additional = {"ServerSideEncryption": "AES256"}
    fs = connect(bucket, proxy.endpoint, s3_additional_kwargs=additional)
    fs.write("wf/a", [b"1"])
    fs.read("wf/a")
    assert ["x-amz-server-side-encryption" in names for names in headers] == [True, False]
    fs.close()


# Closing


class _Closing(Callback):
    """Closes a store as soon as the first result is there."""

    def __init__(self, store: CheckpointStore) -> None:
        super().__init__()
        self._store = store

    def relative_update(self, inc: int = 1) -> None:
        del inc
        self._store.close()


def test_what_is_at_work_when_its_store_is_closed_fails_and_says_so(
    store: CheckpointStore,
) -> None:
    run = store.run("wf")
    payloads = {f"t{number}": b"x" * number for number in range(200)}
    run.write_many(payloads)
    closed = "the store was closed while this was at work"
    with pytest.raises(StorageError, match=closed):
        run.read_many(callback=_Closing(store))
    with pytest.raises(StorageError, match=closed) as caught:
        run.write_many(dict.fromkeys(payloads, b"new"), callback=_Closing(store))
    now = run.read_many()
    assert now.keys() == payloads.keys()
    assert 100 < len(caught.value.failures) < 200
    assert all(now[task] == b"new" for task in now.keys() - caught.value.failures)

    reader, writer = run.open("t199"), run.open("t", "wb")
    store.close()
    with pytest.raises(StorageError, match=closed), reader:
        reader.read()
    with pytest.raises(StorageError, match=closed), writer:
        writer.write(b"x")
    assert "t" not in run


@on_moto
def test_requests_that_begin_while_the_client_closes_all_come_to_an_end(
    fs: S3Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = asyncio.run_coroutine_threadsafe

    def begin_and_close(*arguments: Any) -> Any:
        future = begin(*arguments)
        fs.close()
        return future

    fs.write("wf/a", [b"1"])
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", begin_and_close)
    outcomes: dict[int, Any] = {}

    def steps() -> Steps[None]:
        reads = (call("", Filesystem.read, "wf/a", anything) for _ in range(20))
        yield Each(reads, outcomes.__setitem__)

    drive(fs, steps())
    assert outcomes.keys() == set(range(20))
    closed = f": {s3_engine._CLOSED}"
    assert {str(outcome) for outcome in outcomes.values()} <= {closed, str(b"1")}
    assert closed in map(str, outcomes.values())


# Threads, processes and loops


def test_32_threads_share_one_client(
    bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    made = []
    set_session = s3fs.S3FileSystem.set_session

    async def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(self)
        await asyncio.sleep(0.1)  # As when credentials are fetched.
        return await set_session(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "set_session", counting)
    fs = connect(bucket, proxy.endpoint)
    barrier = threading.Barrier(32)

    def work(number: int) -> bytes:
        barrier.wait()
        fs.write(f"wf/{number}", [b"%d" % number])
        return fs.read(f"wf/{number}")

    with ThreadPoolExecutor(32) as pool:
        assert [b"%d" % number for number in range(32)] == list(pool.map(work, range(32)))
    assert len(made) == 1
    assert len(proxy.take()) == 64
    fs.close()


def test_closing_drops_the_connections_and_the_next_call_opens_new_ones(
    fs: S3Filesystem, proxy: Proxy
) -> None:
    fs.close()
    for _ in range(2):
        fs.write("wf/a", [b"1"])
        assert proxy.connections == 1
        fs.close()
        fs.close()
        deadline = time.monotonic() + 60
        while proxy.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert proxy.connections == 0


FORK = """
import os, sys, time
from checkpoint_store._filesystems.base import Filesystem, anything
from checkpoint_store._filesystems.s3 import S3Filesystem
from checkpoint_store._steps import Each, Steps, call, drive

options = {"key": "k", "secret": "s", "endpoint_url": sys.argv[1],
           "client_kwargs": {"region_name": "us-east-1"},
           "config_kwargs": {"read_timeout": 600}}
fs = S3Filesystem(sys.argv[2], "root", options, max_concurrency=4)
fs.write("wf/a", [b"parent"])
stream = fs.open_read("wf/a")
child = os.fork()
if not child:
    assert fs.read("wf/a") == b"parent"
    fs.write("wf/b", [b"child"])
    try:
        stream.read(1)
    except RuntimeError as error:
        assert "before the fork" in str(error)
    if sys.argv[3] == "close":
        stream.close()
        fs.close()
    if sys.argv[3] == "drop":
        del fs, stream
    if sys.argv[3] == "_exit":
        os._exit(0)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert fs.read("wf/b") == b"child"
assert stream.read(10) == b"parent"
stream.close()
"""


@needs_fork
@pytest.mark.parametrize("ending", ["exit", "_exit", "drop", "close"])
def test_parent_and_child_of_a_fork_do_not_disturb_each_other(bucket: Bucket, ending: str) -> None:
    assert run(FORK, bucket, ending) == ""


def test_a_child_does_not_close_what_it_inherited() -> None:
    s3_engine._close(os.getpid() + 1, fsspec.asyn.get_loop(), None)


def test_leaving_without_closing_is_silent(bucket: Bucket) -> None:
    script = FORK.partition("child =")[0] + "fs.open_write('wf/c').write(bytes(2**23))\n"
    assert run(script, bucket) == ""


def run(script: str, bucket: Bucket, *arguments: str) -> str:
    # Since Python 3.12 a fork beside threads is deprecated.
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(
        [*command, bucket.endpoint, bucket.name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@on_moto
def test_a_call_in_fsspecs_own_loop_is_refused(fs: S3Filesystem) -> None:
    async def call() -> None:
        fs.read("wf/a")

    with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
        fsspec.asyn.sync(fsspec.asyn.get_loop(), call)


@on_moto
def test_an_interrupted_request_is_given_up(fs: S3Filesystem, proxy: Proxy) -> None:
    fs.write("wf/a", [b"1"])
    arrived = threading.Event()
    release = threading.Event()

    async def refuse_the_first_write(request: Request) -> Response | None:
        if request.method != "PUT" or arrived.is_set():
            return None
        arrived.set()
        await asyncio.to_thread(release.wait, 60)
        return error(503, "SlowDown")

    def interrupt() -> None:
        arrived.wait(60)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    proxy.on_request = refuse_the_first_write
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fs.write("wf/a", [b"2"])
    thread.join()
    release.set()
    time.sleep(2)  # Longer than it takes until the second try.
    assert fs.read("wf/a") == b"1"
