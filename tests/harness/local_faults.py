"""A process that forks a child for each operation on a local disk, so that the child can be hurt.

The child may be traced, and have its system calls fail, by `strace`; its writes may be cut short;
it may be killed after a number of changes of the disk; and it can tell which changes it made, in
order. Before the first child is forked, everything has been imported and each operation has been
performed once. So a child makes only the system calls of its operation, and always the same ones.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import pytest

from checkpoint_store import CheckpointStore, CheckpointStoreError, Run, resume
from checkpoint_store._filesystems import base, locks

from . import ROOT
from .operations import (
    NEW,
    OLD,
    OPERATIONS,
    WORKFLOW,
    Operation,
    computed,
    nothing,
    own_run,
    perform,
    prepared,
)
from .task_operations import TASK_OPERATIONS
from .worlds import LocalWorld

PATIENCE = 60
"""Seconds after which a child that waits for something is ended, and its test fails."""

BY_NAME = {operation.name: operation for operation in [*OPERATIONS, *TASK_OPERATIONS]}


def _write_after_clear(store: CheckpointStore) -> Run:
    run = own_run(store)
    store.clear(WORKFLOW)
    run.write("t0", b"A t0 late")
    return run


def _start_and_write(store: CheckpointStore) -> None:
    own_run(store).write("t9", NEW["t9"])


def _reset_and_write(store: CheckpointStore) -> Run:
    run = resume(store, WORKFLOW, fingerprint="B", on_input_change="reset")
    run.write("t9", b"B t9")
    return run


_FURTHER = (
    Operation("reset and write", computed, _reset_and_write, OLD, {}),
    Operation("start and write", nothing, _start_and_write, {}, {"t9": NEW["t9"]}),
    Operation("write after a clear", computed, _write_after_clear, OLD, {}),
)
BY_NAME |= {operation.name: operation for operation in _FURTHER}


class Event(NamedTuple):
    """A change of the disk, or a sync of a file or folder. `handle` numbers the open files."""

    kind: str
    path: str = ""
    target: str = ""
    handle: int = 0
    data: bytes = b""


@dataclass
class Outcome:
    """What an operation in the child returned or raised, and which files it left open."""

    returned: bool = False
    result: object = None
    error: type[CheckpointStoreError] | None = None
    message: str = ""
    foreign: str = ""
    left_open: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


@dataclass
class Ending:
    """How the child ended. If it was killed, the outcome has nothing but maybe events."""

    signal: int
    outcome: Outcome
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """A system call of the operation. It is the call number `number` of those with its name."""

    name: str
    number: int
    line: str
    injected: bool

    def __str__(self) -> str:
        return self.line


@dataclass(frozen=True)
class Hurt:
    """What a child does to itself.

    Its write number `short` writes only one half of the data. Then `then` says what happens: the
    next write may write the rest ("continue") or find the disk full ("full"), or the process is
    killed ("kill"). With `record` the child takes down its changes and syncs of the disk below
    `within`, and it is killed before number `stop` of them.
    """

    short: int | None = None
    then: str = "continue"
    record: bool = False
    within: str = ""
    stop: int | None = None


class Forker:
    """Has operations performed by forked children, one at a time."""

    def __init__(self, errors: IO[bytes]) -> None:
        self._errors = errors
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", f"import {__name__} as it; it.main()"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert self._receive() == "ready"

    def perform(
        self, operation: str, root: Path, hurt: Hurt = Hurt(), inject: Sequence[str] | None = None
    ) -> Ending:
        """Performs an operation in a child. With `inject` the child is traced meanwhile."""
        self._send((operation, str(root), hurt, inject is not None))
        child = self._receive()
        calls, refusal = ([], "") if inject is None else _trace(child, inject)
        status, outcome = self._receive()
        if "not permitted" in refusal:
            pytest.skip(f"strace may not attach here: {refusal}")
        assert refusal == ""
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        assert ended_by != signal.SIGALRM, f"{operation} hangs: {calls[-3:]}"
        return Ending(ended_by, outcome, calls)

    def printed(self) -> str:
        """What the children have printed to stderr since the last call, such as warnings."""
        self._errors.seek(0)
        text = self._errors.read().decode()
        self._errors.truncate(0)
        return text

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(base64.b64encode(pickle.dumps(message)) + b"\n")
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.printed()
        return pickle.loads(base64.b64decode(line))


class Templates:
    """The roots that operations are performed on, each made once and copied for every case."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._made: dict[str, LocalWorld] = {}

    def copy(self, operation: Operation) -> LocalWorld:
        if operation.name not in self._made:
            made = prepared(operation, lambda: LocalWorld(self._parent))
            assert isinstance(made, LocalWorld)
            self._made[operation.name] = made
        world = LocalWorld(self._parent)
        shutil.copytree(self._made[operation.name].root, world.root)
        return world


# Tracing

CALLS = (
    "open", "openat", "creat", "read", "pread64", "write", "pwrite64", "writev", "close", "lseek",
    "fsync", "fdatasync", "ftruncate", "truncate", "fchmod", "chmod", "rename", "renameat",
    "renameat2", "link", "linkat", "symlink", "symlinkat", "readlink", "readlinkat", "unlink",
    "unlinkat", "rmdir", "mkdir", "mkdirat", "flock", "fcntl", "stat", "lstat", "fstat",
    "newfstatat", "statx", "access", "faccessat", "faccessat2", "getdents", "getdents64",
)  # fmt: skip
_MARK = "getsid"
_TRACE = ",".join(f"?{name}" for name in (*CALLS, _MARK))
_LINE = re.compile(r"(\w+)\(")


def why_not_traced() -> str:
    """The reason why nothing can be traced on this machine, or the empty string."""
    if sys.platform != "linux":
        return "strace is for Linux"
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-o", os.devnull, "-e", "inject=getsid:error=EIO", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"strace does not work here: {tried.stderr.strip()}"


def _trace(child: int, inject: Sequence[str]) -> tuple[list[Call], str]:
    """Attaches to the child, lets it begin, and returns its calls when it has ended.

    The second value is what `strace` said if the child could not be traced, else it is empty.
    """
    with tempfile.NamedTemporaryFile("r", errors="replace") as file:
        options = [option for each in inject for option in ("-e", f"inject={each}")]
        tracer = subprocess.Popen(
            ["strace", "-p", str(child), "-o", file.name, "-e", f"trace={_TRACE}", *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            os.kill(child, signal.SIGUSR1)
            refusal = "" if "attached" in said else said + tracer.stderr.read()
        return ([], refusal) if refusal else (_calls(file.read().splitlines()), "")


def _calls(lines: Sequence[str]) -> list[Call]:
    calls: list[Call] = []
    numbers: dict[str, int] = {}
    marks = 0
    for line in lines:
        if match := _LINE.match(line):
            numbers[match[1]] = numbers.get(match[1], 0) + 1
            if match[1] == _MARK:
                marks += 1
            elif marks == 1:
                call = Call(match[1], numbers[match[1]], line, line.endswith("(INJECTED)"))
                calls.append(call)
    assert marks, lines
    return calls


# In the process that forks


def main() -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(base, "PAGE", 2)
    patch.setattr(locks, "LOCK_TIMEOUT", PATIENCE / 4)
    logging.getLogger("checkpoint_store").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as parent:
        for operation in BY_NAME.values():
            perform(operation, prepared(operation, lambda: LocalWorld(Path(parent))).store())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    _reply("ready")
    for line in sys.stdin.buffer:
        request = pickle.loads(base64.b64decode(line))
        reader, writer = os.pipe()
        waiting, ready = os.pipe()
        child = os.fork()
        if child == 0:
            _child(writer, ready, *request)
        os.close(writer)
        os.close(ready)
        os.read(waiting, 1)
        os.close(waiting)
        _reply(child)
        with os.fdopen(reader, "rb") as report:
            told = report.read()
        _, status = os.waitpid(child, 0)
        _reply((status, pickle.loads(told) if told else Outcome()))


def _reply(message: object) -> None:
    sys.stdout.buffer.write(base64.b64encode(pickle.dumps(message)) + b"\n")
    sys.stdout.buffer.flush()


def _child(
    writer: int,
    ready: int,
    name: str,
    root: str,
    hurt: Hurt,
    traced: bool,  # noqa: FBT001
) -> NoReturn:
    outcome = Outcome()

    def end(by: signal.Signals | None = None) -> NoReturn:
        with os.fdopen(writer, "wb") as report:
            report.write(pickle.dumps(outcome))
        if by is not None:
            os.kill(os.getpid(), by)
        os._exit(0)

    try:
        signal.alarm(PATIENCE)
        operation, store = BY_NAME[name], CheckpointStore(root)
        if traced:
            _let_everybody_trace()
        os.write(ready, b"!")
        if traced:
            # The system calls after this one are counted.
            signal.sigwait({signal.SIGUSR1})
        before = _open_files()
        with _hurting(hurt, outcome.events, end):
            os.getsid(0)
            try:
                outcome.result = _perform(operation, store)
                outcome.returned = True
            except CheckpointStoreError as error:
                outcome.error, outcome.message = type(error), str(error)
            os.getsid(0)
        outcome.left_open = [path for _, path in _open_files().items() - before.items()]
    except BaseException:  # noqa: BLE001
        outcome.foreign = traceback.format_exc()
    end()


def _perform(operation: Operation, store: CheckpointStore) -> object:
    if operation.raises is None:
        result = operation.perform(store)
        return result if isinstance(result, Run) else None
    return perform(operation, store)


def _let_everybody_trace() -> None:
    # Some machines let only ancestors trace a process, and strace is no ancestor of this one.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)


def _open_files() -> dict[int, str]:
    found = {}
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            found[int(name)] = os.readlink(f"/dev/fd/{name}")
    return {number: path for number, path in found.items() if "/fd" not in path}


@contextmanager
def _hurting(hurt: Hurt, events: list[Event], end: Callable[..., NoReturn]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if hurt.short is not None:
            _cut_short(patch, hurt, end)
        if hurt.record:
            recorder = Recorder(hurt.within, events, hurt.stop, end)
            for name in Recorder.RECORDED:
                patch.setattr(os, name, recorder.wrap(name, getattr(os, name)))
        yield


def _cut_short(patch: pytest.MonkeyPatch, hurt: Hurt, end: Callable[..., NoReturn]) -> None:
    write, number = os.write, 0

    def short(descriptor: int, data: memoryview) -> int:
        nonlocal number
        number += 1
        if number - 1 == hurt.short:
            written = write(descriptor, data[: len(data) // 2])
            if hurt.then == "kill":
                end(signal.SIGKILL)
            return written
        if number - 2 == hurt.short and hurt.then == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    patch.setattr(os, "write", short)


class Recorder:
    """Takes down what an operation does to the disk below a folder."""

    RECORDED = ("open", "write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir")

    def __init__(
        self, within: str, events: list[Event], stop: int | None, end: Callable[..., NoReturn]
    ) -> None:
        self._within = within
        self._events = events
        self._stop = stop
        self._end = end
        self._handles: dict[int, int] = {}
        self._opened = 0

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        take_down = getattr(self, f"_{name}")

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            missing = name == "open" and not os.path.lexists(args[0])
            before = len(self._events)
            # An event is taken down before it happens, so that the process can be killed before it.
            take_down(*args, missing=missing)
            changes = sum(event.kind != "open" for event in self._events)
            if self._stop is not None and len(self._events) > before and changes > self._stop:
                del self._events[before:]
                self._end(signal.SIGKILL)
            try:
                result = call(*args, **kwargs)
            except OSError:
                del self._events[before:]
                raise
            if name == "open" and len(self._events) > before:
                self._handles[result] = self._opened
            elif name == "open":
                self._handles.pop(result, None)
            elif name == "write" and len(self._events) > before:
                last = self._events[-1]
                self._events[-1] = last._replace(data=last.data[:result])
            return result

        return wrapped

    def _relative(self, path: str) -> str | None:
        inside = os.path.relpath(path, self._within)
        return None if inside.startswith("..") else inside

    def _open(self, path: str, flags: int, *_: object, missing: bool) -> None:
        inside = self._relative(path)
        if inside is not None and (not missing or flags & os.O_CREAT):
            self._opened += 1
            self._events.append(Event("create" if missing else "open", inside, handle=self._opened))
            assert missing or not flags & os.O_TRUNC

    def _write(self, descriptor: int, data: memoryview, *, missing: bool) -> None:
        assert not missing
        if handle := self._handles.get(descriptor):
            self._events.append(Event("write", handle=handle, data=bytes(data)))

    def _fsync(self, descriptor: int, *, missing: bool) -> None:
        assert not missing
        if handle := self._handles.get(descriptor):
            self._events.append(Event("fsync", handle=handle))

    def _rename(self, source: str, target: str, *, missing: bool) -> None:
        assert not missing
        inside, new = self._relative(source), self._relative(target)
        if inside is not None and new is not None:
            self._events.append(Event("rename", inside, new))

    _replace = _rename

    def _link(self, source: str, target: str, *, missing: bool) -> None:
        assert not missing
        inside, new = self._relative(source), self._relative(target)
        if inside is not None and new is not None:
            self._events.append(Event("link", inside, new))

    def _one(self, kind: str, path: str) -> None:
        inside = self._relative(path)
        if inside is not None:
            self._events.append(Event(kind, inside))

    def _unlink(self, path: str, *, missing: bool) -> None:  # noqa: ARG002
        self._one("unlink", path)

    def _mkdir(self, path: str, *_: object, missing: bool) -> None:  # noqa: ARG002
        self._one("mkdir", path)

    def _rmdir(self, path: str, *, missing: bool) -> None:  # noqa: ARG002
        self._one("rmdir", path)
