"""Checkpoints on S3 with a fixed time a request, beside boto3 with 32 threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from .clients import (
    SMALL,
    WORKFLOW,
    Boto3,
    dotflow_files,
    obstore_files,
    resumed,
    s3fs_files,
    store_at,
)
from .server import Server
from .timing import LIBRARY, Contender, Result, compare

LATENCY = 0.02
_CHECKPOINTS = 500
_UNFENCED = "no fence, no identity check"


def server_rate(server: Server) -> float:
    """Requests a second through the fastest client, which is a lower bound for the server."""
    paths = [f"rate-{number}" for number in range(2_000)]
    write, read = obstore_files(server, paths)
    write()
    start = time.perf_counter()
    read()
    return len(paths) / (time.perf_counter() - start)


def rows(server: Server, rounds: int) -> Iterator[Result]:
    with server.latency(LATENCY):
        yield from _many(server, rounds)


def _many(server: Server, rounds: int) -> Iterator[Result]:
    paths = [f"task-{number}" for number in range(_CHECKPOINTS)]
    store = store_at(server, "many")
    raw = Boto3(server)
    keys = [f"raw/{path}" for path in paths]

    run = resumed(store)
    payloads = dict.fromkeys(paths, SMALL)

    def read() -> None:
        assert resumed(store).read_many(paths) == payloads

    peers = {
        "s3fs": s3fs_files(server, paths),
        "dotflow StorageS3": dotflow_files(server, paths),
        "obstore": obstore_files(server, paths),
    }
    for number, (what, plain, ours) in enumerate(
        (
            (f"write {_CHECKPOINTS}", raw.write, lambda: run.write_many(payloads)),
            (f"resume, read {_CHECKPOINTS}", raw.read, read),
        )
    ):
        yield compare(
            f"S3: {what}",
            [
                Contender("boto3, 32 threads", partial(plain, keys), _UNFENCED),
                Contender(LIBRARY, ours),
                *(Contender(name, calls[number], _UNFENCED) for name, calls in peers.items()),
            ],
            rounds=rounds,
            clock="wall",
            operations=_CHECKPOINTS,
            target=1.0,
        )


def clear_rows(server: Server, rounds: int, *, checkpoints: int) -> Iterator[Result]:
    """Clearing empties the bucket, so the server puts back before each turn what it has saved."""
    store = store_at(server, "clear")
    resumed(store).write_many({f"task-{number}": b"" for number in range(checkpoints)})
    raw = Boto3(server)
    raw.write([f"raw/task-{number}" for number in range(checkpoints)])
    server.tell("save")

    def restore() -> None:
        server.tell("restore")

    def clear() -> None:
        assert store.clear(WORKFLOW) == checkpoints

    with server.latency(LATENCY):
        yield compare(
            f"S3: clear {checkpoints:,}",
            [
                Contender("boto3: list, delete", lambda: raw.clear("raw/"), "no fence", restore),
                Contender(LIBRARY, clear, prepare=restore),
            ],
            rounds=rounds,
            clock="wall",
            operations=checkpoints,
            target=1.2,
        )
