"""A local disk that fails, is full, or was tampered with.

Each operation is performed by a child process, in which one system call after the other fails: the
process is killed before it, or the call returns an error. Afterwards the questions of
`harness.operations` are asked: is anything stale, lost, or changed that belongs to somebody else?

By default a process is killed only before calls that change something, and calls that only look at
something fail with EIO alone. With `CHECKPOINT_STORE_HEAVY=1` in the environment, every fault that
can occur meets every call.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

from checkpoint_store import (
    CheckpointStore,
    CheckpointStoreError,
    CorruptCheckpointError,
    CorruptRecordError,
    IncompleteClearError,
    Run,
    SerializationError,
    StorageError,
    resume,
)
from checkpoint_store._filesystems.locks import lock_name
from checkpoint_store._frame import Header, encode_frame
from checkpoint_store._protocol import read_record
from checkpoint_store._steps import drive

from ..harness.environment import HEAVY, posix
from ..harness.local_faults import BY_NAME, Call, Ending, Forker, Hurt, Templates, why_not_traced
from ..harness.operations import WORKFLOW, Operation, check_after_fault
from ..harness.worlds import LocalWorld

pytestmark = posix


NAMES = (
    "start reset", "continue raise", "reset beside leftovers", "reuse", "write anew", "write",
    "stream", "read", "delete", "collect", "clear", "clear with leftovers", "reset of a part",
    "delete with dependents",
)  # fmt: skip
operations = pytest.mark.parametrize(
    "operation", [BY_NAME[name] for name in NAMES], ids=lambda each: each.name.replace(" ", "-")
)

CHANGING = {
    "write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "rename", "renameat",
    "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "flock",
}  # fmt: skip
LOOKING = {
    "stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "lseek",
    "read", "pread64", "getdents", "getdents64", "close", "readlink", "readlinkat",
}  # fmt: skip


def _changes(call: Call) -> bool:
    return call.name in CHANGING or "O_CREAT" in call.line


def _fills(call: Call) -> bool:
    return _changes(call) and call.name not in ("flock", "unlink", "unlinkat", "rmdir")


def _may_be_denied(call: Call) -> bool:
    by_path = '"/' in call.line
    return by_path and (HEAVY or call.name not in LOOKING)


def _may_be_interrupted(call: Call) -> bool:
    by_opendir = "O_NONBLOCK|O_CLOEXEC|O_DIRECTORY" in call.line  # Which is never.
    return call.name in ("openat", "read", "write", "fsync", "flock") and not by_opendir


FAULTS: dict[str, Callable[[Call], bool]] = {
    "SIGKILL": lambda call: HEAVY or _changes(call),
    "EIO": lambda _: True,
    "ENOSPC": _fills,
    "EACCES": _may_be_denied,
    "EROFS": lambda call: HEAVY and _changes(call),
    "ENOLCK": lambda call: call.name in ("flock", "fcntl"),
    "EINTR": _may_be_interrupted,
    "end of file": lambda call: call.name == "read",
}
"""Which calls each fault meets. An EINTR or an end of file too early is no error of the disk."""


def _injection(fault: str, call: Call) -> str:
    kind = {"SIGKILL": "signal=SIGKILL", "end of file": "retval=0"}.get(fault, f"error={fault}")
    return f"{call.name}:{kind}:when={call.number}"


# System calls


@pytest.fixture(scope="module")
def traced(forker: Forker, templates: Templates) -> Callable[[str], Sequence[Call]]:
    """The system calls of an operation that meets no fault."""
    if why_not := why_not_traced():
        pytest.skip(why_not)

    @cache
    def trace(name: str) -> Sequence[Call]:
        world = templates.copy(BY_NAME[name])
        ending = forker.perform(name, world.root, inject=())
        assert ending.outcome.returned, ending
        assert ending.outcome.left_open == []
        return ending.calls

    return trace


def check(
    operation: Operation, world: LocalWorld, others: dict[str, bytes], ending: Ending
) -> None:
    outcome = ending.outcome
    assert outcome.foreign == ""
    assert outcome.returned or outcome.error or ending.signal == signal.SIGKILL
    drive(world.filesystem(), read_record(WORKFLOW))  # No fault makes it corrupt.
    check_after_fault(operation, world, others, returned=outcome.returned)
    # Whatever was left behind, a clear removes it.
    world.store().clear(WORKFLOW)
    assert list(world.root.glob(f"{WORKFLOW}/*")) == []
    assert list(world.root.glob(f".tmp/{WORKFLOW}~*")) == []
    assert others == world.others()


def check_fault(
    operation: Operation, fault: str, call: Call, forker: Forker, templates: Templates
) -> None:
    world = templates.copy(operation)
    others = world.others()
    ending = forker.perform(operation.name, world.root, inject=[_injection(fault, call)])
    outcome = ending.outcome
    if fault == "SIGKILL":
        assert ending.signal == signal.SIGKILL, call
    else:
        assert ending.signal == 0, call
        assert [(call.name, call.number)] == [
            (each.name, each.number) for each in ending.calls if each.injected
        ]
    check(operation, world, others, ending)
    if fault == "EINTR":
        assert outcome.returned, call
    elif fault == "end of file":
        assert outcome.returned or outcome.error in (CorruptCheckpointError, CorruptRecordError)
    elif outcome.error:
        # Above all not that there were no such checkpoint.
        assert outcome.error in (StorageError, IncompleteClearError), (call, outcome.message)
        assert os.strerror(getattr(errno, fault)) in outcome.message
    if call.name not in ("close", "fchmod") and "LOCK_UN" not in call.line:
        # What cannot be closed stays open, and in filelock what it cannot unlock, or chmod.
        assert outcome.left_open == [], call
    world.remove()


@pytest.mark.slow
@operations
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.replace(" ", "-"))
def test_a_failing_system_call_loses_and_mixes_nothing(
    operation: Operation, fault: str, forker: Forker, templates: Templates,
    traced: Callable[[str], Sequence[Call]],
) -> None:  # fmt: skip
    for call in filter(FAULTS[fault], traced(operation.name)):
        check_fault(operation, fault, call, forker, templates)


@pytest.mark.slow
def test_there_are_more_than_360_cases(traced: Callable[[str], Sequence[Call]]) -> None:
    calls = [call for name in NAMES for call in traced(name)]
    cases = {fault: sum(map(meets, calls)) for fault, meets in FAULTS.items()}
    assert sum(cases.values()) > 360
    assert all(cases[fault] > 20 for fault in ("SIGKILL", "EIO", "ENOSPC", "EACCES"))


# Short writes


@pytest.mark.slow
@pytest.mark.parametrize("then", ["continue", "full", "kill"])
@pytest.mark.parametrize("name", ["start reset", "reset", "reuse", "write anew", "write", "stream"])
def test_a_short_write_loses_and_mixes_nothing(
    name: str, then: str, forker: Forker, templates: Templates
) -> None:
    operation = BY_NAME[name]
    for number in range(3 if name == "stream" else 1):
        world = templates.copy(operation)
        others = world.others()
        ending = forker.perform(name, world.root, Hurt(short=number, then=then))
        check(operation, world, others, ending)
        if then == "continue":
            assert ending.outcome.returned
        elif then == "full":
            assert ending.outcome.error is StorageError
            assert os.strerror(errno.ENOSPC) in ending.outcome.message
        else:
            assert ending.signal == signal.SIGKILL
        world.remove()


# A full disk


@contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root on Linux may mount a small disk")
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(params=["size=1m", "size=16m,nr_inodes=40"], ids=["blocks", "inodes"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A root on a small disk that has not much space, or room for not many files."""
    with mounted(tmp_path / "disk", request.param):
        yield tmp_path / "disk" / "root"


KIB = 1024


def fill(run: Run) -> list[str]:
    """Writes until there is no more room, and returns the tasks that were written."""
    written: list[str] = []
    for number in range(100):
        try:
            run.write(f"task-{number}", bytes([number]) * 64 * KIB)
            written.append(f"task-{number}")
        except StorageError as error:
            failure = error
            break
    assert failure.errno == errno.ENOSPC
    assert f"'task-{number}'" in str(failure)
    assert "make room there" in str(failure)
    return written


def stuff(disk: Path) -> list[Path]:
    """Takes the last byte and the last inode, so that nothing at all can be written any more."""
    made: list[Path] = []
    with suppress(OSError), (disk / "stuffing").open("wb", buffering=0) as file:
        made.append(disk / "stuffing")
        while True:
            file.write(bytes(KIB))
    with suppress(OSError):
        for number in range(1000):
            (disk / f"stuffing-{number}").touch()
            made.append(disk / f"stuffing-{number}")
    return made


def test_a_full_disk_tears_and_loses_nothing(small: Path) -> None:
    with CheckpointStore(small) as store:
        run = resume(store, "wf", fingerprint="A", on_input_change="raise")
        written = fill(run)
        assert len(written) > 5
        stuff(small.parent)

        def stream(task: str) -> None:
            with run.open(task, "wb") as file:
                file.write(bytes(64 * KIB))

        calls: dict[str, Callable[[], object]] = {
            "task-0": lambda: run.write("task-0", bytes(128 * KIB)),
            "task-1": lambda: stream("task-1"),
            "task-99": lambda: run.write("task-99", bytes(KIB)),
            "task-98": lambda: run.write_many({"task-98": bytes(KIB)}),
            "wf2": lambda: store.run("wf2"),
            "wf": lambda: resume(store, "wf", fingerprint="B", on_input_change="reset"),
        }
        for subject, call in calls.items():
            with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)) as caught:
                call()
            assert f"'{subject}'" in str(caught.value)
        assert os.listdir(small / ".tmp") == []
        run = resume(store, "wf", fingerprint="A", on_input_change="raise")
        assert run.tasks() == set(written)
        for number, task in enumerate(written):
            assert run.read(task) == bytes([number]) * 64 * KIB


def test_a_workflow_is_cleared_on_a_full_disk_and_everything_works_again(small: Path) -> None:
    with CheckpointStore(small) as store:
        beside = resume(store, "beside", fingerprint="A", on_input_change="raise")
        beside.write("task", b"beside")
        run = resume(store, "wf", fingerprint="A", on_input_change="raise")
        written = fill(run)
        stuffing = stuff(small.parent)
    with CheckpointStore(small) as store:
        assert store.clear("wf") == len(written)
        assert os.listdir(small / ".tmp") == []
        assert list(store.workflows()) == ["beside"]
        assert beside.read("task") == b"beside"
        for path in stuffing:
            path.unlink()
        run = resume(store, "wf", fingerprint="B", on_input_change="raise")
        assert run.tasks() == set()
        assert fill(run) == written


def test_a_checkpoint_is_deleted_and_garbage_collected_on_a_full_disk(small: Path) -> None:
    with CheckpointStore(small) as store:
        late = resume(store, "wf", fingerprint="Z", on_input_change="raise")
        run = resume(store, "wf", fingerprint="A", on_input_change="reset")
        late.write("late", bytes(64 * KIB))
        written = fill(run)
        stuff(small.parent)
        assert store.collect("wf") == 1
        run.delete("task-0")
        assert run.tasks() == set(written) - {"task-0"}
        run.write("task-0", b"room again")


def test_a_clear_that_has_no_room_for_its_lock_file_says_so(tmp_path: Path) -> None:
    # Only a root that was copied without its dotfolders does not have that file already.
    with (
        mounted(tmp_path / "disk", "size=1m,nr_inodes=40"),
        CheckpointStore(tmp_path / "disk" / "root") as store,
    ):
        run = resume(store, "wf", fingerprint="A", on_input_change="raise")
        shutil.rmtree(tmp_path / "disk" / "root" / ".locks")
        shutil.rmtree(tmp_path / "disk" / "root" / ".tmp")
        stuffing = stuff(tmp_path / "disk")
        with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)) as caught:
            store.clear("wf")
        assert "'wf'" in str(caught.value)
        assert run.is_current()
        for path in stuffing:
            path.unlink()
        store.clear("wf")
        assert list(store.workflows()) == []


# Links


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    run = resume(store, "wf", fingerprint="A", on_input_change="raise")
    run.write("task", b"A")
    return run


def everything(path: Path) -> dict[str, bytes | int]:
    """The content of each file and the last change of each folder."""
    return {
        found.relative_to(path).as_posix(): (
            found.read_bytes() if found.is_file() else found.stat().st_mtime_ns
        )
        for found in sorted(path.rglob("*"))
    }


def restore(path: Path, files: dict[str, bytes | int]) -> None:
    shutil.rmtree(path)
    path.mkdir()
    for name, data in files.items():
        if isinstance(data, bytes):
            (path / name).write_bytes(data)
        else:
            (path / name).mkdir()


def stream(run: Run, task: str) -> None:
    with run.open(task, "wb") as file:
        file.write(b"A streamed")


def attempts(store: CheckpointStore, run: Run) -> dict[str, Callable[[], object]]:
    """Every way to touch something, the destructive ones last."""
    return {
        "is_current": run.is_current,
        "tasks": run.tasks,
        "contains": lambda: "task" in run,
        "read": lambda: run.read("task"),
        "read_many": run.read_many,
        "workflows": lambda: list(store.workflows()),
        "write": lambda: run.write("task", b"A new"),
        "stream": lambda: stream(run, "task"),
        "collect": lambda: store.collect("wf"),
        "continue": lambda: resume(store, "wf", fingerprint="A", on_input_change="raise"),
        "reuse": lambda: resume(store, "wf", fingerprint="B", on_input_change="reuse"),
        "reset": lambda: resume(store, "wf", fingerprint="C", on_input_change="reset"),
        "write_fingerprint": lambda: store.write_fingerprint("wf", "D"),
        "delete": lambda: run.delete("task"),
        "clear": lambda: store.clear("wf"),
        "clear again": lambda: store.clear("wf"),
        "start": lambda: resume(store, "wf", fingerprint="A", on_input_change="raise"),
    }


def linked(root: Path, run: Run, what: str) -> Path:
    return {
        "root/wf": root / "wf",
        "checkpoint": root / "wf" / f"task@{run.token}",
        "record": root / "wf" / ".fingerprint",
        ".tmp": root / ".tmp",
        ".locks": root / ".locks",
        "lock file": root / ".locks" / lock_name("wf"),
        "temporary file": root / ".tmp" / "wf~0123456789abcdef",
        "folder on its way out": root / ".tmp" / "wf~fedcba9876543210",
    }[what]


WHAT = (
    "root/wf", "checkpoint", "record", ".tmp", ".locks", "lock file", "temporary file",
    "folder on its way out",
)  # fmt: skip


REFUSED = {
    "root/wf": {"is_current", "tasks", "contains", "read", "write", "stream", "reset", "clear"},
    "checkpoint": {"read"},
    "record": {"is_current", "continue", "reuse", "reset", "write_fingerprint"},
    ".tmp": {"write", "stream"},
}
"""What is an error where this is a link. The rest finds nothing, or replaces the link itself."""


@pytest.mark.parametrize("what", WHAT, ids=lambda what: what.replace(" ", "-"))
def test_a_symbolic_link_is_not_followed(
    root: Path, store: CheckpointStore, run: Run, tmp_path: Path, what: str
) -> None:
    path = linked(root, run, what)
    outside = tmp_path / "outside"
    outside.mkdir()
    target = outside / "target"
    if path.is_dir():
        path.rename(target)
    elif path.exists():
        target.write_bytes(path.read_bytes() or b"not empty")
        path.unlink()
    elif what == "temporary file":
        target.write_bytes(b"not ours")
    if not target.exists() or target.is_dir():
        # What looks like ours in there is not.
        for folder in (target, target / "wf~0123456789abcdef"):
            folder.mkdir(exist_ok=True)
            for name in (f"task@{run.token}", "task@0123456789abcdef", ".fingerprint"):
                if not (folder / name).exists():
                    (folder / name).write_bytes(b"not ours")
    path.symlink_to(target)
    before = everything(outside)
    harmed: list[str] = []
    refused: set[str] = set()
    for name, attempt in attempts(store, run).items():
        try:
            attempt()
        except CheckpointStoreError:
            refused.add(name)
        if before != everything(outside):
            harmed.append(name)
            restore(outside, before)
            before = everything(outside)
    assert harmed == []
    assert refused >= REFUSED.get(what, set())


# What is no file


class Hanging(BaseException):
    """Not an error that anybody would catch and wrap."""


@contextmanager
def not_waiting() -> Iterator[None]:
    """A watchdog: whoever waits for a FIFO would wait forever."""

    def bark(*_: object) -> NoReturn:
        raise Hanging

    previous = signal.signal(signal.SIGALRM, bark)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
    except (PermissionError, AttributeError):
        pytest.skip("only root may make a device")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"not ours")


@pytest.mark.parametrize("make", [make_fifo, make_device, make_loop, make_folder])
@pytest.mark.parametrize("what", WHAT, ids=lambda what: what.replace(" ", "-"))
def test_what_is_no_file_is_an_error_and_never_waited_for(
    root: Path, store: CheckpointStore, run: Run, what: str, make: Callable[[Path], None]
) -> None:
    path = linked(root, run, what)
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    make(path)
    for name, attempt in attempts(store, run).items():
        try:
            with not_waiting(), suppress(CheckpointStoreError):
                attempt()
        except Hanging:
            pytest.fail(f"{name} waits forever")


def test_a_device_in_place_of_a_checkpoint_is_never_read(root: Path, run: Run) -> None:
    make_device(root / "wf" / f"endless@{run.token}")
    with pytest.raises(StorageError, match="not a regular file"):
        run.read("endless")
    with pytest.raises(StorageError, match="not a regular file"):
        run.open("endless")
    assert "endless" not in run
    assert run.tasks() == {"task"}


# Modes and pickles


def test_every_file_and_folder_honours_the_umask(root: Path) -> None:
    previous = os.umask(0o077)
    try:
        with CheckpointStore(root / "made") as store:
            run = resume(store, "wf", fingerprint="A", on_input_change="raise")
            run.write("task", b"data")
            stream(run, "stream")
            unfinished = run.open("unfinished", "wb")
            resume(store, "wf", fingerprint="B", on_input_change="reset")
            modes = {path: path.stat().st_mode & 0o777 for path in root.rglob("*")}
            unfinished.discard()
            # Lock files are empty, and filelock before its version 4 has its own idea of them.
            del modes[root / "made" / ".locks" / lock_name("wf")]
    finally:
        os.umask(previous)
    assert len(modes) > 5
    assert {path: mode for path, mode in modes.items() if mode & 0o077} == {}


class Canary:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("claimed", ["pickle", "json", None, "cloudpickle", "os"])
@pytest.mark.parametrize("text", [False, True])
def test_a_pickle_runs_only_where_the_caller_chose_pickle(
    root: Path,
    store: CheckpointStore,
    run: Run,
    tmp_path: Path,
    claimed: str | None,
    text: bool,  # noqa: FBT001
) -> None:
    canary = tmp_path / "canary"
    header = Header("wf", "task", run.token, inputs="A", serializer=claimed, text=text)
    payload = pickle.dumps(Canary(canary), protocol=0)
    (root / "wf" / f"task@{run.token}").write_bytes(b"".join(encode_frame(header, payload)))
    again = resume(store, "wf", fingerprint="A", on_input_change="raise")
    for call in (lambda: again.load("task"), lambda: again.load_many(["task"]), again.load_many):
        with pytest.raises(SerializationError):
            call()
    assert again.read("task") == payload
    assert not canary.exists()
    # Nor does a file choose any other serializer.
    readable = encode_frame(Header("wf", "task", run.token, serializer=claimed, text=text), b"1")
    (root / "wf" / f"task@{run.token}").write_bytes(b"".join(readable))
    if claimed != "json":
        with pytest.raises(SerializationError, match="bytes" if claimed is None else claimed):
            again.load("task")
    # It would have run.
    if (claimed, text) == ("pickle", False):
        (root / "wf" / f"task@{run.token}").write_bytes(b"".join(encode_frame(header, payload)))
        with CheckpointStore(root, serializer=pickle) as trusting:
            resume(trusting, "wf", fingerprint="A", on_input_change="raise").load("task")
        assert canary.exists()
