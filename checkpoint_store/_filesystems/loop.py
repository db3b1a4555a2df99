"""Waiting for coroutines on fsspec's event loop, which runs in a thread of its own."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import fsspec.asyn

from .base import Data, Entry, Filesystem, Page, Source, Stored, Upload, anything

_T = TypeVar("_T")
Awaited = Coroutine[Any, Any, _T]

if hasattr(os, "register_at_fork"):
    # A lock that another thread holds at the time of a fork would stay locked in the child.
    os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)


def wait_for(request: Coroutine[Any, Any, _T]) -> _T:
    """Runs a coroutine on fsspec's loop, and waits for what it returns."""
    loop = _loop_of(request)
    future = asyncio.run_coroutine_threadsafe(request, loop)
    try:
        return future.result()
    finally:
        future.cancel()  # The request must not go on after a KeyboardInterrupt.


def emitted(work: Callable[[Callable[[_T], None]], Coroutine[Any, Any, None]]) -> Iterator[_T]:
    """Runs `work` on fsspec's loop, and yields what it hands to the function that it is given.

    If the iteration is left early, the work is cancelled, and waited for until it has ended.
    """
    outcomes: SimpleQueue[tuple[_T] | None] = SimpleQueue()

    async def run() -> None:
        try:
            await work(lambda outcome: outcomes.put((outcome,)))
        finally:
            outcomes.put(None)

    running = run()
    future = asyncio.run_coroutine_threadsafe(running, _loop_of(running))
    ended = False
    try:
        while (outcome := outcomes.get()) is not None:
            yield outcome[0]
        ended = True
        future.result()
    finally:
        future.cancel()
        while not ended:
            ended = outcomes.get() is None


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _loop_of(request: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = fsspec.asyn.get_loop()
    if running_loop() is loop:
        request.close()
        raise RuntimeError(
            "a call in fsspec's own event loop would block it: use asyncio.to_thread"
        )
    return loop


class LoopFilesystem(Filesystem):
    """A filesystem whose requests are coroutines on fsspec's loop.

    Each verb has a twin with the prefix `a`, whose result is awaited on that loop. The blocking
    verb waits for it.
    """

    blocks = False

    async def perform(self, verb: str, arguments: Sequence[Any]) -> Any:
        """What a verb returns, awaited from any event loop."""
        request: Coroutine[Any, Any, Any] = getattr(self, f"a{verb}")(*arguments)
        loop = fsspec.asyn.get_loop()
        if running_loop() is loop:
            return await request
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(request, loop))

    def read(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> bytes:
        return wait_for(self.aread(key, is_wanted))

    def read_small(self, key: str) -> Stored:
        return wait_for(self.aread_small(key))

    def contains(self, key: str) -> bool:
        return wait_for(self.acontains(key))

    def write(self, key: str, parts: Sequence[Data]) -> None:
        wait_for(self.awrite(key, parts))

    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        return wait_for(self.aswap(key, old, data))

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        return wait_for(self.adelete(keys))

    def list_files(self, folder: str, more: Any = None, sizes: bool = False) -> Page[Entry]:  # noqa: FBT001, FBT002
        return wait_for(self.alist_files(folder, more, sizes))

    def list_folders(self, has: Callable[[str], bool], more: Any = None) -> Page[str]:
        return wait_for(self.alist_folders(has, more))

    def open_read(self, key: str) -> Source:
        return wait_for(self.aopen_read(key))

    async def aopen_write(self, key: str) -> Upload:
        return self.open_write(key)

    async def alist_leftovers(self, folder: str, more: Any = None) -> Page[str]:
        return self.list_leftovers(folder, more)

    async def adetach(self, folder: str, name: str, is_ours: Callable[[str], bool]) -> None:  # noqa: ARG002
        for reason in (await self.adelete([f"{folder}/{name}"])).values():
            raise OSError(f"the record could not be deleted: {reason}")

    @abstractmethod
    def aread(self, key: str, is_wanted: Callable[[bytes], bool]) -> Awaited[bytes]: ...

    @abstractmethod
    def aread_small(self, key: str) -> Awaited[Stored]: ...

    @abstractmethod
    def acontains(self, key: str) -> Awaited[bool]: ...

    @abstractmethod
    def awrite(self, key: str, parts: Sequence[Data]) -> Awaited[None]: ...

    @abstractmethod
    def aswap(self, key: str, old: Stored | None, data: bytes) -> Awaited[bool]: ...

    @abstractmethod
    def adelete(self, keys: Sequence[str]) -> Awaited[dict[str, str]]: ...

    @abstractmethod
    def alist_files(self, folder: str, more: Any, sizes: bool) -> Awaited[Page[Entry]]: ...  # noqa: FBT001

    @abstractmethod
    def alist_folders(self, has: Callable[[str], bool], more: Any) -> Awaited[Page[str]]: ...

    @abstractmethod
    def aopen_read(self, key: str) -> Awaited[Source]: ...
