"""Conditional writes on S3, replies that are lost or broken off, and what is tried again."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest

from checkpoint_store import CheckpointStore
from checkpoint_store._filesystems.base import Stored
from checkpoint_store._filesystems.s3 import S3Filesystem

from ..harness import MIB
from ..harness.buckets import Bucket
from ..harness.s3 import always, counted, every_operation, on_ministack, on_moto
from ..harness.servers import Proxy, Request, Response, error

# Retries


@on_moto
def test_a_server_that_is_always_busy_is_asked_five_times(fs: S3Filesystem, proxy: Proxy) -> None:
    proxy.on_request = always(error(503, "SlowDown"))
    with pytest.raises(OSError, match=r"S3 answered 503 SlowDown.*: try again later"):
        fs.read("wf/a")
    assert counted(proxy) == [("GET", 503)] * 5


@on_moto
def test_the_users_retries_win(impatient: S3Filesystem, proxy: Proxy) -> None:
    proxy.on_request = always(error(503, "SlowDown"))
    for operation in every_operation(impatient):
        proxy.take()
        with pytest.raises(OSError, match="SlowDown"):
            operation()
        assert len(proxy.take()) == 1


def break_off(proxy: Proxy, times: int) -> Any:
    remaining = iter(range(times))

    async def answer(request: Request) -> Response:
        response = await proxy.forward(request)
        if next(remaining, None) is not None:
            response.cut = len(response.body) // 2
        return response

    return answer


def test_a_body_that_breaks_off_is_read_again(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    data = os.urandom(MIB)
    bucket.put("root/wf/a", data)
    proxy.on_request = break_off(proxy, 2)
    assert data == fs.read("wf/a")
    assert len(proxy.take()) == 3
    bucket.put("root/wf/a", data[:1000])
    proxy.on_request = break_off(proxy, 1)
    assert data[:1000] == fs.read_small("wf/a").data
    assert len(proxy.take()) == 2


def test_a_body_that_always_breaks_off_is_an_error(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    bucket.put("root/wf/a", os.urandom(1000))
    proxy.on_request = break_off(proxy, 99)
    for read in (fs.read, fs.read_small):
        with pytest.raises(Exception, match=r"[Cc]ontent|payload|transfer"):
            read("wf/a")
        assert len(proxy.take()) == 3


def test_a_stream_that_breaks_off_is_an_error(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    bucket.put("root/wf/a", os.urandom(1000))
    proxy.on_request = break_off(proxy, 1)
    stream = fs.open_read("wf/a")
    with pytest.raises(Exception, match=r"[Cc]ontent|payload|transfer"):
        list(iter(lambda: stream.read(100), b""))
    stream.close()


# Conditional writes


def test_a_swap_wants_what_was_read(fs: S3Filesystem, bucket: Bucket, proxy: Proxy) -> None:
    assert not fs.swap("wf/a", Stored(b"", '"0"'), b"0")
    assert counted(proxy) == [("PUT", 404)]
    assert fs.swap("wf/a", None, b"1")
    assert not fs.swap("wf/a", None, b"2")
    first = fs.read_small("wf/a")
    assert fs.swap("wf/a", first, b"3")
    assert not fs.swap("wf/a", first, b"4")
    assert bucket.get("root/wf/a") == b"3"
    expected = [("PUT", 200), ("PUT", 412), ("GET", 200), ("PUT", 200), ("PUT", 412)]
    assert expected == counted(proxy)


def test_the_first_change_of_a_record_is_tried_again_to_see_it_refused(
    store: CheckpointStore, proxy: Proxy
) -> None:
    assert store.conditional_writes is None
    assert store.run("wf").is_current()
    assert counted(proxy) == [("GET", 404), ("PUT", 200), ("PUT", 412), ("GET", 200)]
    assert store.conditional_writes is True
    store.run("other")
    assert counted(proxy) == [("GET", 404), ("PUT", 200)]


def test_so_is_a_first_replacement(store: CheckpointStore, bucket: Bucket, proxy: Proxy) -> None:
    direct = CheckpointStore(f"s3://{bucket.name}/root", storage_options=bucket.storage_options)
    with direct:
        direct.write_fingerprint("wf", "v1")
    store.write_fingerprint("wf", "v2")
    assert store.conditional_writes is True
    assert counted(proxy) == [("GET", 200), ("PUT", 200), ("PUT", 412)]


@pytest.mark.parametrize(
    ("status", "code", "known"),
    [
        (412, "PreconditionFailed", True),
        (409, "ConditionalRequestConflict", True),
        (409, "OperationAborted", None),
    ],
)
def test_a_refusal_is_no_error_and_shows_that_conditions_are_honoured(
    fs: S3Filesystem, proxy: Proxy, status: int, code: str, known: Literal[True] | None
) -> None:
    proxy.on_request = always(error(status, code))
    assert not fs.swap("wf/a", None, b"1")
    assert known is fs.conditional_writes
    assert [("PUT", status)] == counted(proxy)


def test_a_server_that_ignores_conditions_is_noticed(store: CheckpointStore, proxy: Proxy) -> None:
    async def strip(request: Request) -> None:
        request.headers = {
            name: value
            for name, value in request.headers.items()
            if not name.lower().startswith("if-")
        }

    proxy.on_request = strip
    run = store.run("wf")
    assert counted(proxy) == [("GET", 404), ("PUT", 200), ("PUT", 200), ("PUT", 200)]
    assert store.conditional_writes is False
    # The last of the three is in force.
    assert run.is_current()
    store.run("other")
    assert counted(proxy) == [("GET", 200), ("GET", 404), ("PUT", 200)]


def test_a_clear_in_between_neither_looks_like_ignored_conditions_nor_is_undone(
    store: CheckpointStore, bucket: Bucket, proxy: Proxy
) -> None:
    cleared: list[bytes] = []

    async def clear_before_the_repetition(_: Request) -> None:
        if len(proxy.requests) == 2:
            cleared.append(bucket.get("root/wf/.fingerprint"))
            bucket.client.delete_object(Bucket=bucket.name, Key="root/wf/.fingerprint")

    proxy.on_request = clear_before_the_repetition
    run = store.run("wf")
    assert counted(proxy) == [("GET", 404), ("PUT", 200), ("PUT", 200), ("PUT", 412)]
    assert store.conditional_writes is True
    assert run.token not in cleared[0].decode()
    assert run.is_current()


def test_a_failed_repetition_leaves_it_unknown_and_the_change_done(
    impatient_store: CheckpointStore, proxy: Proxy
) -> None:
    async def fail_the_repetition(_: Request) -> Response | None:
        return error(500, "InternalError") if len(proxy.requests) == 2 else None

    proxy.on_request = fail_the_repetition
    assert impatient_store.run("wf").is_current()
    assert impatient_store.conditional_writes is None
    impatient_store.run("other")
    assert impatient_store.conditional_writes is True


def test_an_applied_swap_whose_reply_is_lost_is_refused(
    fs: S3Filesystem, bucket: Bucket, proxy: Proxy
) -> None:
    async def lose_the_first(request: Request) -> Response | None:
        if proxy.requests:
            return None
        response = await proxy.forward(request)
        response.cut = 0
        return response

    proxy.on_request = lose_the_first
    assert not fs.swap("wf/a", None, b"mine")
    assert counted(proxy) == [("PUT", 0), ("PUT", 412)]
    assert bucket.get("root/wf/a") == b"mine"


@on_ministack
def test_of_racing_creates_one_wins(fs: S3Filesystem, bucket: Bucket) -> None:
    for number in range(20):
        key = f"wf/{number}"
        barrier = threading.Barrier(8)

        def create(name: int, key: str = key, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return fs.swap(key, None, b"%d" % name)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert sum(won) == 1
        assert b"%d" % won.index(True) == bucket.get(f"root/{key}")


@on_ministack
def test_of_racing_swaps_none_is_lost(fs: S3Filesystem, bucket: Bucket) -> None:
    assert fs.swap("wf/count", None, b"0")

    def increment(_: int) -> int:
        won = 0
        for _ in range(25):
            old = fs.read_small("wf/count")
            won += fs.swap("wf/count", old, b"%d" % (int(old.data) + 1))
        return won

    with ThreadPoolExecutor(8) as pool:
        won = sum(pool.map(increment, range(8)))
    assert won > 0
    assert b"%d" % won == bucket.get("root/wf/count")
