"""Checkpoints on a local disk, beside plain files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import diskcache
import joblib
from dotflow.core.context import Context
from dotflow.providers import StorageFile

from checkpoint_store import CheckpointStore, Run, resume

from .timing import LIBRARY, Contender, Result, compare

_SMALL = os.urandom(4096)
_TEXT = _SMALL.hex()[:4096]
_LARGE = os.urandom(64 * 1024**2)
_UNSAFE = "no fsync, no checksum, no fence"

Write = Callable[[str], object]


def write_file(path: Path, data: bytes, *, durable: bool) -> None:
    """The least that never shows a torn file and, if durable, survives a power failure."""
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.write(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_file(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def run_at(folder: Path, *, durable: bool) -> Run:
    store = CheckpointStore(folder, durable=durable)
    return resume(store, "orders", {"day": "2026-11-23"}, on_input_change="reset")


def rows(folder: Path, rounds: int) -> Iterator[Result]:
    yield _small_writes(folder / "fast", rounds, durable=False)
    yield _small_writes(folder / "durable", rounds, durable=True)
    yield _small_reads(folder / "reads", rounds)
    yield from _large(folder / "large", rounds)


def _peers(folder: Path) -> Iterator[tuple[str, str, Write, Write]]:
    """Name, what it lacks, how it writes the small payload under a name, and how it reads it."""
    files = StorageFile(path=str(folder / "dotflow"))
    context = Context(storage=_TEXT)
    yield (
        "dotflow StorageFile",
        f"{_UNSAFE}, no atomic replace",
        lambda name: files.post(name, context),
        files.get,
    )
    dumps = folder / "joblib"
    dumps.mkdir()
    yield (
        "joblib",
        f"{_UNSAFE}, no atomic replace",
        lambda name: joblib.dump(_SMALL, dumps / name),
        lambda name: joblib.load(dumps / name),
    )
    cache = diskcache.Cache(folder / "diskcache", eviction_policy="none")
    yield "diskcache", _UNSAFE, lambda name: cache.set(name, _SMALL), cache.get


def _small_writes(folder: Path, rounds: int, *, durable: bool) -> Result:
    operations = 25 if durable else 200
    numbers = count()

    def each(write: Write) -> Callable[[], None]:
        def call() -> None:
            for _ in range(operations):
                write(f"task-{next(numbers)}")

        return call

    run = run_at(folder / "ours", durable=durable)
    raw = folder / "raw"
    raw.mkdir()
    contenders = [
        Contender(
            "temp, write, fsync, rename, fsync folder" if durable else "temp, write, rename",
            each(lambda name: write_file(raw / name, _SMALL, durable=durable)),
            "no checksum, no fence",
        ),
        Contender(LIBRARY, each(lambda name: run.write(name, _SMALL))),
    ]
    if not durable:
        contenders += [Contender(name, each(w), lacks) for name, lacks, w, _ in _peers(folder)]
    return compare(
        f"write 4 KiB, {'durable' if durable else 'durable=False'}",
        contenders,
        rounds=rounds,
        clock="wall" if durable else "processor",
        operations=operations,
        target=1.15 if durable else 1.5,
    )


def _small_reads(folder: Path, rounds: int) -> Result:
    names = [f"task-{number}" for number in range(500)]

    def each(read: Write) -> Callable[[], None]:
        def call() -> None:
            for name in names:
                read(name)

        return call

    run = run_at(folder / "ours", durable=False)
    raw = folder / "raw"
    raw.mkdir()
    peers = list(_peers(folder))
    for name in names:
        write_file(raw / name, _SMALL, durable=False)
        run.write(name, _SMALL)
        for _, _, write, _ in peers:
            write(name)
    return compare(
        "read 4 KiB",
        [
            Contender("open, read", each(lambda name: read_file(raw / name)), "no checksum"),
            Contender(LIBRARY, each(run.read)),
            *(Contender(name, each(read), "no checksum") for name, _, _, read in peers),
        ],
        rounds=rounds,
        clock="processor",
        operations=len(names),
        target=2.0,
    )


def _large(folder: Path, rounds: int) -> Iterator[Result]:
    folder.mkdir()
    for durable in (False, True):
        run = run_at(folder / "ours", durable=durable)
        raw = folder / "raw"
        yield compare(
            f"write 64 MiB, {'durable' if durable else 'durable=False'}",
            [
                Contender(
                    "temp, write, fsync, rename" if durable else "temp, write, rename",
                    lambda: write_file(raw, _LARGE, durable=durable),  # noqa: B023
                    "no checksum, no fence",
                ),
                Contender(LIBRARY, lambda: run.write("large", _LARGE)),  # noqa: B023
            ],
            rounds=rounds,
            clock="wall" if durable else "processor",
            target=1.15,
        )
    yield compare(
        "read 64 MiB, verified",
        [
            Contender("open, read", lambda: read_file(raw), "no checksum"),
            Contender(LIBRARY, lambda: run.read("large")),
        ],
        rounds=rounds,
        clock="processor",
        target=1.15,
    )
