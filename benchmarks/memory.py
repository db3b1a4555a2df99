"""How far the memory of a fresh process rises while a checkpoint of 64 MiB passes through it.

Linux tells the highest resident size of a process and lets it be reset; elsewhere there is no row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from checkpoint_store import CheckpointStore, Run

from .clients import resumed, store_at
from .server import Server

MIB = 1024**2
_SIZE = 64 * MIB


@dataclass
class Peak:
    """`beyond` is in bytes, and leaves out the payload that the caller holds in the end."""

    name: str
    beyond: int
    limit: int = 16 * MIB

    @property
    def kept(self) -> bool:
        return self.beyond <= self.limit


def _write(run: Run, task: str, size: int) -> Callable[[], object]:
    payload = os.urandom(size)
    return lambda: run.write(task, payload)


def _read(run: Run, task: str, _: int) -> Callable[[], object]:
    return lambda: run.read(task)


def _stream_out(run: Run, task: str, size: int) -> Callable[[], object]:
    chunk = os.urandom(MIB)

    def call() -> None:
        with run.open(task, "wb") as stream:
            for _ in range(0, size, MIB):
                stream.write(chunk)

    return call


def _stream_in(run: Run, task: str, _: int) -> Callable[[], object]:
    def call() -> None:
        with run.open(task) as stream:
            while stream.read(MIB):
                pass

    return call


_ACTIONS = {
    "write": _write,
    "read": _read,
    "streaming, write": _stream_out,
    "streaming, read": _stream_in,
}


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def _peak(action: str, run: Run) -> int:
    prepare = _ACTIONS[action]
    prepare(run, "small", MIB)()
    call = prepare(run, "large", _SIZE)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    call()
    returned = _SIZE if action == "read" else 0
    return max(0, _resident("VmHWM") - before - returned)


def rows(folder: Path, server: Server) -> Iterator[Peak]:
    if sys.platform != "linux":
        return
    stores = {"local": CheckpointStore(folder / "memory"), "S3": store_at(server, "memory")}
    for place, store in stores.items():
        run = resumed(store)
        for action in _ACTIONS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                beyond = fresh.submit(_peak, action, run).result()
            yield Peak(f"{place}: {action} 64 MiB", beyond)
