"""What only a local disk has: durability, links, locks, modes, case and crashed processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from filelock import FileLock

from checkpoint_store import (
    CheckpointStore,
    CheckpointStoreError,
    ContentionError,
    InvalidURLError,
    Run,
    StorageError,
    plan,
    resume,
)
from checkpoint_store._filesystems import locks
from checkpoint_store._filesystems.locks import LOCKS, lock_name
from checkpoint_store._names import encode_name

from ..harness.backends import RECORD
from ..harness.contract import INPUTS, OTHER_INPUTS
from ..harness.environment import posix
from ..harness.local import temporaries

# Paths


def test_a_path_may_be_given_in_any_form(tmp_path: Path) -> None:
    for url in (
        tmp_path / "root",
        str(tmp_path / "root"),
        f"{tmp_path}/root/",
        f"{tmp_path}/other/../root",
        f"file://{tmp_path}/root",
        f"local://{tmp_path}/root",
    ):
        with CheckpointStore(url) as store:
            store.run("wf").write("task", b"data")
    assert os.listdir(tmp_path) == ["root"]


def test_a_relative_path_and_a_home_survive_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    relative, home = CheckpointStore("a/relative"), CheckpointStore("~/b")
    run = relative.run("wf")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.write("task", b"data")
    assert relative.run("wf").read("task") == b"data"
    home.run("wf")
    assert (tmp_path / "a" / "relative" / "wf" / f"task@{run.token}").exists()
    assert (tmp_path / "home" / "b" / "wf" / RECORD).exists()
    assert os.listdir(tmp_path / "elsewhere") == []


def test_doubtful_local_urls_are_refused() -> None:
    for url in ("", "file://relative/path", "file:relative", "a\0b", "C:relative/../x"[2:][:0]):
        with pytest.raises(InvalidURLError):
            CheckpointStore(url)
    with pytest.raises(InvalidURLError, match="storage_options"):
        CheckpointStore("/path", storage_options={"auto_mkdir": True})
    with pytest.raises((InvalidURLError, TypeError)):
        CheckpointStore(b"/path")  # type: ignore[arg-type]


# Modes


@posix
def test_the_umask_decides_who_may_read(root: Path) -> None:
    previous = os.umask(0o027)
    try:
        with CheckpointStore(root) as store:
            run = store.run("wf")
            run.write("task", b"data")
            with run.open("stream", "wb") as stream:
                stream.write(b"data")
    finally:
        os.umask(previous)
    folder = root / "wf"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert stat.S_IMODE(root.stat().st_mode) == 0o750
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o640}


# Links and other things that are no files


def test_a_workflow_that_is_a_symbolic_link_is_not_followed(
    root: Path, store: CheckpointStore, run: Run, tmp_path: Path
) -> None:
    run.write("task", b"data")
    outside = tmp_path / "outside"
    (root / "wf").rename(outside)
    (root / "wf").symlink_to(outside, target_is_directory=True)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    assert len(before) == 2
    calls: list[Callable[[], object]] = [
        lambda: run.read("task"),
        lambda: run.write("task", b"new"),
        lambda: run.delete("task"),
        lambda: "task" in run,
        run.tasks,
        lambda: store.clear("wf"),
        lambda: store.collect("wf"),
        lambda: resume(store, "wf", OTHER_INPUTS, on_input_change="reset"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="symbolic link"):
            call()
    assert list(store.workflows()) == []
    assert before == {path.name: path.read_bytes() for path in outside.iterdir()}
    assert temporaries(root) == []


def test_a_file_that_is_a_symbolic_link_is_not_followed(
    root: Path, run: Run, tmp_path: Path
) -> None:
    run.write("task", b"data")
    path = root / "wf" / f"task@{run.token}"
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    before = (tmp_path / "outside").read_bytes()
    assert "task" not in run
    assert run.tasks() == set()
    for call in (lambda: run.read("task"), lambda: run.open("task")):
        with pytest.raises(StorageError, match="'task'"):
            call()
    run.write("task", b"new")
    assert not path.is_symlink()
    assert run.read("task") == b"new"
    assert before == (tmp_path / "outside").read_bytes()


@pytest.mark.usefixtures("run")
def test_a_record_that_is_a_symbolic_link_is_not_followed(
    root: Path, store: CheckpointStore, tmp_path: Path
) -> None:
    path = root / "wf" / RECORD
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    before = (tmp_path / "outside").read_bytes()
    for policy in ("reuse", "reset", "raise"):
        with pytest.raises(StorageError, match="'wf'"):
            resume(store, "wf", OTHER_INPUTS, on_input_change=policy)
    assert path.is_symlink()
    assert before == (tmp_path / "outside").read_bytes()


@posix
def test_what_is_no_regular_file_is_an_error_and_never_waited_for(root: Path, run: Run) -> None:
    os.mkfifo(root / "wf" / f"fifo@{run.token}")
    (root / "wf" / f"folder@{run.token}").mkdir()
    descriptors = len(os.listdir("/dev/fd"))
    for task in ("fifo", "folder"):
        with pytest.raises(StorageError, match=f"'{task}'"):
            run.read(task)
        assert task not in run
    assert run.tasks() == set()
    assert descriptors == len(os.listdir("/dev/fd"))


def test_clear_keeps_a_folder_that_imitates_a_checkpoint(
    root: Path, store: CheckpointStore, run: Run
) -> None:
    foreign = root / "wf" / f"folder@{run.token}"
    foreign.mkdir()
    (foreign / "file").write_bytes(b"not ours")
    run.write("task", b"data")
    assert store.clear("wf") == 1
    assert (foreign / "file").read_bytes() == b"not ours"


def test_a_file_in_place_of_a_workflow_is_an_error(root: Path, store: CheckpointStore) -> None:
    store.run("other")
    (root / "wf").write_bytes(b"not ours")
    calls: list[Callable[[], object]] = [
        lambda: store.run("wf"),
        lambda: store.clear("wf"),
        lambda: plan(store, "wf", INPUTS, on_input_change="reset"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="'wf'"):
            call()
    assert (root / "wf").read_bytes() == b"not ours"
    assert list(store.workflows()) == ["other"]


def test_a_file_in_place_of_the_root_is_an_error(root: Path, store: CheckpointStore) -> None:
    root.write_bytes(b"not ours")
    for call in (lambda: store.run("wf"), lambda: list(store.workflows())):
        with pytest.raises(StorageError):
            call()
    assert root.read_bytes() == b"not ours"


# Temporary files


def test_nothing_temporary_remains(root: Path, store: CheckpointStore, run: Run) -> None:
    def fail() -> None:
        with run.open("stream", "wb") as stream:
            stream.write(b"data")
            assert len(temporaries(root)) == 1
            raise ZeroDivisionError

    run.write("task", b"data")
    with run.open("stream", "wb") as stream:
        stream.write(b"data")
    with pytest.raises(ZeroDivisionError):
        fail()
    resume(store, "wf", OTHER_INPUTS, on_input_change="reset").write("task", b"data")
    store.clear("wf")
    assert temporaries(root) == []
    assert sorted(os.listdir(root)) == [".locks", ".tmp"]


_WRITER = """
import os, sys
from checkpoint_store import CheckpointStore
stream = CheckpointStore(sys.argv[1]).run("wf").open("task", "wb")
stream.write(b"half")
print("begun", flush=True)
sys.stdin.read()
os._exit(9)
"""


@posix
@pytest.mark.parametrize("sweep", ["collect", "clear", "reset"])
def test_temporary_files_are_swept_once_their_writer_is_dead(root: Path, sweep: str) -> None:
    with CheckpointStore(root) as store:
        # By another process of ours, in another workflow too, which is not to be swept.
        resume(store, "wf", INPUTS, on_input_change="raise")
        beside = store.run("wf2").open("task", "wb")
        beside.write(b"half")
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdin is not None
            assert writer.stdout.readline() == b"begun\n"
            assert len(temporaries(root)) == 2
            store.collect("wf")
            assert len(temporaries(root)) == 2
            writer.stdin.close()
            assert writer.wait() == 9
        assert len(temporaries(root)) == 2
        if sweep == "reset":
            resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
        else:
            assert getattr(store, sweep)("wf") == 0
        [remaining] = temporaries(root)
        assert remaining.startswith("wf2~")
        beside.write(b" and whole")
        beside.close()
        assert store.run("wf2").read("task") == b"half and whole"
        assert temporaries(root) == []


@posix
def test_a_sweep_never_takes_the_file_of_a_writer_that_has_just_begun(
    root: Path, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock = fcntl.flock
    found: list[str] = []

    def sweep_before_it_is_locked(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        assert len(temporaries(root)) == 1
        # As far as the moment in which the sweeper has found the file to be nobody's.
        found.extend(store._filesystem.list_leftovers("wf").items)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_before_it_is_locked)
    stream = run.open("task", "wb")
    store._filesystem.delete(found)
    stream.write(b"data")
    stream.close()
    assert run.read("task") == b"data"


# Clear


def test_clear_takes_the_folder_away_in_one_step(
    root: Path, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    unlink = os.unlink

    def watch(path: str, **options: Any) -> None:
        assert not (root / "wf").exists()
        removed.append(os.fspath(path))
        unlink(path, **options)

    run.write_many({"a": b"1", "b": b"2"})
    monkeypatch.setattr(os, "unlink", watch)
    assert store.clear("wf") == 2
    assert len(removed) >= 2
    assert all(Path(path).is_relative_to(root / ".tmp") for path in removed)


def test_a_crashed_clear_is_finished_by_the_next(
    root: Path, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    run.write_many({"a": b"1", "b": b"2"})
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(store._filesystem, "list_files", crash)
            with pytest.raises(KeyboardInterrupt):
                store.clear("wf")
        new = resume(store, "wf", OTHER_INPUTS, on_input_change="raise")
        assert new.tasks() == set()
        new.write("c", b"3")
    assert len(temporaries(root)) == 2
    assert list(store.workflows()) == ["wf"]
    assert store.clear("wf") == 4
    assert temporaries(root) == []
    assert list(store.workflows()) == []


def test_a_crashed_clear_leaves_one_workflow_to_list(
    root: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for _ in range(2):
        store.run("wf").write("task", b"data")
        with monkeypatch.context() as patch:
            patch.setattr(store._filesystem, "list_files", crash)
            with pytest.raises(KeyboardInterrupt):
                store.clear("wf")
    assert len(temporaries(root)) == 2
    assert list(store.workflows()) == ["wf"]
    assert store.clear("wf") == 2
    assert list(store.workflows()) == []


def test_what_a_crashed_clear_left_is_listed_beside_a_foreign_folder(
    root: Path, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    run.write("task", b"data")
    with monkeypatch.context() as patch:
        patch.setattr(store._filesystem, "list_files", crash)
        with pytest.raises(KeyboardInterrupt):
            store.clear("wf")
    (root / "wf").mkdir()
    (root / "wf" / "notes.txt").write_bytes(b"not ours")
    assert list(store.workflows()) == ["wf"]
    assert store.clear("wf") == 1
    assert (root / "wf" / "notes.txt").read_bytes() == b"not ours"


def test_lock_files_are_kept_and_of_a_bounded_number(root: Path, store: CheckpointStore) -> None:
    names = ["wf", "a/b", "a" * 200]
    for name in names:
        store.run(name)
        store.clear(name)
    expected = {lock_name(encode_name(name, "workflow id")) for name in names}
    assert expected == set(os.listdir(root / ".locks"))
    assert len({lock_name(f"workflow-{number}") for number in range(100_000)}) == LOCKS == 256


def test_the_lock_of_a_workflow_has_the_same_name_in_every_process_and_version() -> None:
    # Otherwise two of them would change one record at once.
    expected = {"wf": "a3.lock", "WF": "a3.lock", "a%2Fb": "47.lock", "2026-11-23": "07.lock"}
    assert expected == {name: lock_name(name) for name in expected}


# Locks


def test_a_lock_that_is_held_too_long_is_contention(
    root: Path, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.1)
    run.write("task", b"data")
    calls: list[Callable[[], object]] = [
        lambda: resume(store, "wf", OTHER_INPUTS, on_input_change="reset"),
        lambda: store.write_fingerprint("wf", "v1"),
        lambda: store.clear("wf"),
    ]
    with FileLock(root / ".locks" / lock_name("wf")):
        for call in calls:
            with pytest.raises(ContentionError, match=lock_name("wf")):
                call()
        # Neither readers nor writers of checkpoints nor other workflows wait for it.
        assert run.read("task") == b"data"
        run.write("task", b"new")
        assert resume(store, "wf", INPUTS, on_input_change="raise").tasks() == {"task"}
        store.run("wf2")
    assert run.is_current()


def _exit_holding(path: str, ready: Any) -> None:
    FileLock(path).acquire()
    ready.set()
    os._exit(9)


@pytest.mark.usefixtures("run")
def test_the_lock_of_a_dead_process_is_free(
    root: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 10.0)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    path = root / ".locks" / lock_name("wf")
    process = context.Process(target=_exit_holding, args=(str(path), ready))
    process.start()
    process.join(300)
    assert ready.is_set()
    assert process.exitcode == 9
    assert resume(store, "wf", OTHER_INPUTS, on_input_change="reset").is_current()


def test_every_error_of_this_disk_is_ours(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    calls: list[Callable[[Run], object]] = [
        lambda run: run.read("task"),
        lambda run: run.write("task", b"new"),
        lambda run: run.delete("task"),
        lambda run: "task" in run,
        lambda run: run.open("task").close(),
        lambda run: run.tasks(),
        lambda run: run.is_current(),
        lambda _: list(store.workflows()),
        lambda run: store.collect(run.workflow_id),
        lambda run: store.clear(run.workflow_id),
    ]
    errors: list[CheckpointStoreError] = []
    for name in (
        "open",
        "lstat",
        "scandir",
        "listdir",
        "unlink",
        "rename",
        "replace",
        "link",
        "fsync",
    ):
        for number, call in enumerate(calls):
            run = store.run(f"{name}-{number}")
            run.write("task", b"data")
            with monkeypatch.context() as patch:
                patch.setattr(os, name, fail)
                try:
                    call(run)
                except CheckpointStoreError as error:
                    errors.append(error)
    assert len(errors) > 20
    assert all("nput/output" in str(error) for error in errors)
