"""Races: threads of two processes, each with its own connection, change one file at the same
moment.

The second process is a fresh interpreter that runs `serve`. It is not made by `multiprocessing`,
which would run the script of the caller again. It gets its orders, and above all the storage
options, through a pipe, because other users can see a command line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Self

from .._filesystems import Filesystem, connect
from .._filesystems.base import Stored

THREADS = 8
"""How many threads there are in all processes together."""

_AHEAD = 0.002
"""Seconds between the order to race and its start, so that both processes have received it."""
_PATIENCE = 60.0
"""Seconds that the second process may take to connect."""
_FAREWELL = 5.0
"""Seconds that the second process may take to end by itself."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from checkpoint_store._command.races import serve; serve()"
)


def signature(number: int, contestant: int) -> bytes:
    """The data that a contestant writes in round `number`."""
    return b"%d by %d" % (number, contestant)


def mark(contestant: int, number: int) -> bytes:
    """The data that a contestant appends as its update `number`."""
    return b"%d-%d " % (contestant, number)


def _swap(
    filesystem: Filesystem, contestant: int, *, key: str, old: tuple[str, str] | None, number: int
) -> bool:
    """Tries to replace the file. Returns whether this contestant has done so."""
    stored = Stored(old[0].encode("ascii"), old[1]) if old else None
    return filesystem.swap(key, stored, signature(number, contestant))


def _update(
    filesystem: Filesystem, contestant: int, *, key: str, updates: int, seconds: float
) -> int:
    """Appends marks to a file, one after the other, and returns how many of them are in it.

    It begins no further try after so many seconds.
    """
    end = time.monotonic() + seconds
    for number in range(updates):
        while True:
            stored = filesystem.read_small(key)
            if mark(contestant, number) in stored.data:
                break  # The swap had taken effect, and only its reply was lost.
            with suppress(Exception):  # An error leaves open whether the swap has taken effect.
                if filesystem.swap(key, stored, stored.data + mark(contestant, number)):
                    break
            if time.monotonic() >= end:
                return number
        if time.monotonic() >= end:
            return number + 1
    return updates


_JOBS: dict[str, Callable[..., Any]] = {"swap": _swap, "update": _update}


class Team:
    """All contestants, whose results are returned in order.

    The result of a contestant that met an error is the text of that, and None if it was lost with
    its process. `second` says whether there is to be a second process. If that cannot be started,
    or ends too early, the threads of this process go on alone, and `note` says why.
    """

    def __init__(self, place: str, options: Mapping[str, Any], *, second: bool) -> None:
        self._place = place
        self._options = options
        self._crew: _Crew | None = None
        self._second: _Second | None = None
        self.note = ""
        if second:
            try:
                self._second = _Second(place, options, range(THREADS // 2, THREADS))
            except OSError as error:
                self.note = f"a second process did not start: {error}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._crew:
                self._crew.close()
        finally:
            if self._second:
                self._second.close()

    def __str__(self) -> str:
        threads = len(self._numbers) + (len(self._second.numbers) if self._second else 0)
        return f"{threads} threads in {'2 processes' if self._second else '1 process'}"

    def gather(self) -> None:
        """Waits until all contestants are connected. Each race does so by itself."""
        if self._second and (failure := self._second.greet()):
            self._dismiss(failure)
        if not self._crew:
            self._crew = _Crew(self._place, self._options, self._numbers)

    def swap(self, key: str, old: Stored | None, number: int) -> list[bool | str | None]:
        """All try to replace the `old` version by their signature. Returns which have done so."""
        version = old and (old.data.decode("ascii"), old.etag)
        return self._race("swap", key=key, old=version, number=number)

    def update(self, key: str, updates: int, seconds: float) -> list[int | str | None]:
        """All append as many marks as the time allows. Returns how many each has appended."""
        return self._race("update", key=key, updates=updates, seconds=seconds)

    @property
    def _numbers(self) -> Sequence[int]:
        if self._crew:
            return self._crew.numbers
        return range(THREADS // 2 if self._second else THREADS)

    def _race(self, job: str, **arguments: Any) -> list[Any]:
        self.gather()
        assert self._crew
        start = time.monotonic() + _AHEAD
        if not self._second:
            return self._crew.race(job, start, arguments)
        self._second.tell(job, start, arguments)
        ours = self._crew.race(job, start, arguments)
        theirs = self._second.results()
        if isinstance(theirs, list):
            return ours + theirs
        ours += [None for _ in self._second.numbers]
        self._dismiss(theirs)
        return ours

    def _dismiss(self, failure: str) -> None:
        assert self._second
        self._second.close()
        self._second = None
        self.note = f"the second process failed: {failure}"


class _Crew:
    """The contestants of one process."""

    def __init__(self, place: str, options: Mapping[str, Any], numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self._connections = [connect(place, options) for _ in numbers]
        self._pool = ThreadPoolExecutor(len(numbers))
        try:
            list(self._pool.map(_warm_up, self._connections))
        except BaseException:
            self.close()
            raise

    def race(self, job: str, start: float, arguments: Mapping[str, Any]) -> list[Any]:
        def run(filesystem: Filesystem, number: int) -> Any:
            # On all systems that were looked at, both processes have the same monotonic clock. If
            # one had another, this would wait for a moment only.
            time.sleep(min(max(0.0, start - time.monotonic()), _AHEAD))
            return _JOBS[job](filesystem, number, **arguments)

        futures = [
            self._pool.submit(run, filesystem, number)
            for filesystem, number in zip(self._connections, self.numbers, strict=True)
        ]
        return [_outcome(future) for future in futures]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for filesystem in self._connections:
            filesystem.close()


class _Second:
    """The second process, seen from the first."""

    def __init__(self, place: str, options: Mapping[str, Any], numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self._greeting: str | None = None
        self._replies: SimpleQueue[Any] = SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._send([str(path) for path in sys.path])
        self._send({"place": place, "options": options, "numbers": list(numbers)})

    def greet(self) -> str:
        """Waits until it is connected. Returns "", or why it is not connected."""
        if self._greeting is None:
            try:
                self._greeting = str(self._replies.get(timeout=_PATIENCE))
            except Empty:
                self._greeting = f"it did not answer within {_PATIENCE:.0f} s"
        return self._greeting

    def tell(self, job: str, start: float, arguments: Mapping[str, Any]) -> None:
        self._send({"job": job, "start": start, "arguments": arguments})

    def results(self) -> list[Any] | str:
        """The results of its contestants, or in a text why there are none."""
        reply: list[Any] | str = self._replies.get()
        return reply

    def close(self) -> None:
        """Ends the process. After that it changes nothing any more."""
        try:
            with suppress(OSError):
                assert self._process.stdin
                self._process.stdin.close()  # The process ends when its orders end.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL)
        finally:
            self._process.kill()
            self._process.wait()
            self._listener.join()

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # If the process is gone, the listener notices.
            assert self._process.stdin
            self._process.stdin.write(f"{json.dumps(message)}\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as replies:
            try:
                for line in replies:
                    self._replies.put(json.loads(line))
            except ValueError:  # The process prints something that is no reply.
                self._process.kill()
        self._replies.put(f"it ended with status {self._process.wait()}")


def serve() -> None:
    """Runs in the second process until its standard input ends."""
    # Ctrl-C is for the first process, which then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w", encoding="ascii") as replies:
        os.dup2(2, 1)  # Replies keep a descriptor of their own, so that a library may print.
        for reply in _replies(sys.stdin):
            replies.write(f"{json.dumps(reply)}\n")
            replies.flush()


def _replies(orders: Iterator[str]) -> Iterator[Any]:
    setup = json.loads(next(orders))
    try:
        crew = _Crew(setup["place"], setup["options"], setup["numbers"])
    except Exception as error:  # noqa: BLE001 - the first process tells it
        yield _text(error)
        return
    try:
        yield ""
        for order in orders:
            yield crew.race(**json.loads(order))
    finally:
        crew.close()


def _warm_up(filesystem: Filesystem) -> None:
    with suppress(FileNotFoundError):
        filesystem.read_small("missing/missing")


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 - told by whoever judges the race
        return _text(error)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
