"""What only a local disk has: durability, links, locks, modes, case and crashed processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from filelock import FileLock

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    CheckpointStoreError,
    ContentionError,
    InputChangedError,
    InvalidNameError,
    InvalidURLError,
    Run,
    StorageError,
    plan,
    resume,
)
from checkpoint_store._filesystems import disk, local, locks
from checkpoint_store._filesystems.locks import LOCKS, lock_name
from checkpoint_store._names import encode_name

from .harness.backends import RECORD

INPUTS = {"day": "2026-11-23"}
OTHER_INPUTS = {"day": "2026-11-24"}

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(root) as store:
        yield store


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    return resume(store, "wf", INPUTS, on_input_change="raise")


def temporaries(root: Path) -> list[str]:
    return sorted(os.listdir(root / ".tmp"))


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


# Durability


class Recorder:
    """The calls that make a write durable, with the files' names, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.calls: list[str] = []
        self._root = root
        self._names: dict[int, str] = {}
        originals = {
            name: getattr(os, name) for name in ("open", "fsync", "replace", "link", "mkdir")
        }

        def opened(path: Any, *arguments: Any, **options: Any) -> int:
            descriptor: int = originals["open"](path, *arguments, **options)
            self._names[descriptor] = self._name(path)
            return descriptor

        def fsync(descriptor: int) -> None:
            originals["fsync"](descriptor)
            self.calls.append(f"fsync {self._names[descriptor]}")

        def replace(source: Any, target: Any, **options: Any) -> None:
            originals["replace"](source, target, **options)
            self.calls.append(f"replace {self._name(source)} {self._name(target)}")

        def link(source: Any, target: Any, **options: Any) -> None:
            originals["link"](source, target, **options)
            self.calls.append(f"link {self._name(source)} {self._name(target)}")

        def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
            originals["mkdir"](path, *arguments, **options)
            self.calls.append(f"mkdir {self._name(path)}")

        for name, function in (
            ("open", opened), ("fsync", fsync), ("replace", replace), ("link", link),
            ("mkdir", mkdir),
        ):  # fmt: skip
            monkeypatch.setattr(os, name, function)

    def _name(self, path: Any) -> str:
        relative = os.path.relpath(path, self._root)
        folder, _, name = relative.rpartition("/")
        if folder == ".tmp":
            return "temporary"
        return f"{folder}/{name.partition('@')[0]}" if folder else name

    def take(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


@posix
def test_a_durable_write_syncs_the_file_before_and_the_folder_after_its_rename(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch, root)
    expected = ["fsync temporary", "replace temporary wf/task", "fsync wf"]
    run.write("task", b"data")
    assert expected == recorder.take()
    run.dump("task", 1)
    assert expected == recorder.take()
    with run.open("task", "wb") as stream:
        stream.write(b"data")
    assert expected == recorder.take()


@posix
def test_a_durable_start_syncs_every_folder_it_makes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch, root)
    with CheckpointStore(root / "a" / "b") as store:
        resume(store, "wf", INPUTS, on_input_change="raise")
    calls = recorder.take()
    for folder, parent in ((".", ".."), ("a", "."), ("a/b", "a"), ("a/b/wf", "a/b")):
        made = calls.index(f"mkdir {folder}")
        assert f"fsync {parent}" in calls[made:], (folder, calls)
    published = next(i for i, made in enumerate(calls) if made.endswith(f" a/b/wf/{RECORD}"))
    assert calls[published - 1].startswith("fsync a/b/.tmp/wf~")
    assert calls[published].startswith("link a/b/.tmp/wf~")
    assert calls[published + 1] == "fsync a/b/wf"
    # The entry of the folder is on disk before there is a record in it.
    assert "fsync a/b" in calls[calls.index("mkdir a/b/wf") : published]


@pytest.mark.usefixtures("run")
@posix
def test_a_durable_reset_and_clear_sync_what_they_change(
    root: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch, root)
    resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
    assert recorder.take()[:3] == ["fsync temporary", f"replace temporary wf/{RECORD}", "fsync wf"]
    store.clear("wf")
    assert "fsync ." in recorder.take()


@posix
def test_without_durable_nothing_is_synced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, root)
    with CheckpointStore(root, durable=False) as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        run.write("task", b"data")
        with run.open("stream", "wb") as stream:
            stream.write(b"data")
        resume(store, "wf", OTHER_INPUTS, on_input_change="reset")
        store.clear("wf")
    calls = recorder.take()
    assert sum(call.startswith(("replace", "link")) for call in calls) == 4
    assert not any(call.startswith("fsync") for call in calls)


# Errors of the disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
def test_a_failing_disk_is_a_storage_error_that_leaves_nothing(
    root: Path, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch,
    function: str, number: int,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    def stream() -> None:
        with run.open("task", "wb") as stream:
            stream.write(b"new")

    run.write("task", b"old")
    before = sorted(os.listdir(root / "wf"))
    calls: list[Callable[[], object]] = [
        lambda: run.write("task", b"new"),
        lambda: run.dump("task", "new"),
        stream,
        lambda: resume(store, "wf", OTHER_INPUTS, on_input_change="reset"),
        lambda: store.run("wf2"),
        lambda: store.write_fingerprint("wf", "v1"),
    ]
    for call in calls:
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            if function == "replace":
                patch.setattr(os, "link", fail)
            with pytest.raises(StorageError, match=os.strerror(number)) as caught:
                call()
        assert caught.value.errno == number
        assert temporaries(root) == []
    assert before == sorted(os.listdir(root / "wf"))
    assert run.read("task") == b"old"
    assert run.is_current()


def test_a_clear_needs_no_space(
    root: Path, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    run.write("task", b"data")
    monkeypatch.setattr(os, "write", full)
    assert store.clear("wf") == 1
    assert not (root / "wf").exists()


def test_short_writes_are_continued(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    run.write("task", bytes(range(256)))
    monkeypatch.undo()
    assert run.read("task") == bytes(range(256))


def test_a_folder_that_goes_away_during_a_write_is_made_again(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    times = 3

    def clear_first(source: Any, target: Any) -> None:
        nonlocal times
        if times:
            times -= 1
            (root / "wf" / RECORD).unlink(missing_ok=True)
            (root / "wf").rmdir()
        replace(source, target)

    monkeypatch.setattr(os, "replace", clear_first)
    run.write("task", b"data")
    assert run.read("task") == b"data"
    assert times == 0


def test_a_folder_that_keeps_going_away_is_contention(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(os, "replace", gone)
    with pytest.raises(ContentionError, match="somebody removed its folder"):
        run.write("task", b"data")
    assert temporaries(root) == []


# A record is created by link


REFUSALS = (
    "EACCES",
    "EINVAL",
    "EIO",
    "EMLINK",
    "ENOSYS",
    "ENOTSUP",
    "EOPNOTSUPP",
    "EPERM",
    "EXDEV",
)


def refuse_links(number: int, meanwhile: Callable[[], object] = lambda: None) -> Callable[..., Any]:
    def refuse(*_: object) -> NoReturn:
        meanwhile()
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.fixture
def rival(root: Path, tmp_path: Path) -> Callable[[], object]:
    """Somebody on another host, who sees none of our locks, and creates a record."""
    with CheckpointStore(tmp_path / "elsewhere") as store:
        resume(store, "wf", OTHER_INPUTS, on_input_change="raise")
    return lambda: shutil.copy(tmp_path / "elsewhere" / "wf" / RECORD, root / "wf" / RECORD)


def test_a_record_that_somebody_creates_past_the_lock_is_kept(
    root: Path, store: CheckpointStore, rival: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        rival()
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(InputChangedError):
        resume(store, "wf", INPUTS, on_input_change="raise")
    assert resume(store, "wf", OTHER_INPUTS, on_input_change="raise").is_current()
    assert temporaries(root) == []


@pytest.mark.parametrize("name", REFUSALS)
def test_a_record_is_created_where_there_are_no_hard_links(
    name: str, root: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links(getattr(errno, name)))
    run = resume(store, "wf", INPUTS, on_input_change="raise")
    run.write("task", b"data")
    assert resume(store, "wf", INPUTS, on_input_change="raise").read("task") == b"data"
    with pytest.raises(InputChangedError):
        resume(store, "wf", OTHER_INPUTS, on_input_change="raise")
    assert temporaries(root) == []


def test_a_record_that_is_why_a_link_fails_is_kept_whatever_the_error(
    root: Path, store: CheckpointStore, rival: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # sshfs says EPERM of a name that is taken.
    monkeypatch.setattr(os, "link", refuse_links(errno.EPERM, rival))
    with pytest.raises(InputChangedError):
        resume(store, "wf", INPUTS, on_input_change="raise")
    assert resume(store, "wf", OTHER_INPUTS, on_input_change="raise").is_current()
    assert temporaries(root) == []


@pytest.mark.parametrize("name", ["EEXIST", "EIO"])
def test_a_link_whose_reply_was_lost_counts(
    name: str, root: Path, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def lose_reply(source: Any, target: Any) -> None:
        link(source, target)
        refuse_links(getattr(errno, name))()

    monkeypatch.setattr(os, "link", lose_reply)
    assert store._filesystem.swap(f"wf/{RECORD}", None, b"data")
    assert (root / "wf" / RECORD).read_bytes() == b"data"
    assert temporaries(root) == []


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


# A disk that may only be read


@pytest.fixture
def read_only(root: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run in a folder that was copied without `.tmp` and `.locks`, and then made read-only."""
    run.dump("task", 1)
    (root / ".tmp").rmdir()
    for path in (root / ".locks").iterdir():
        path.unlink()
    (root / ".locks").rmdir()
    opened = os.open

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def open_to_read(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            refuse()
        return opened(path, flags, *arguments, **options)

    for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "write"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "open", open_to_read)
    return run


def test_a_read_only_disk_can_be_read_by_a_fresh_store(root: Path, read_only: Run) -> None:
    with CheckpointStore(root) as store:
        assert plan(store, "wf", INPUTS, on_input_change="raise").action == "continue"
        assert plan(store, "wf", OTHER_INPUTS, on_input_change="raise").action == "raise"
        assert plan(store, "none", INPUTS, on_input_change="raise").action == "start"
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        assert read_only.token == run.token
        assert run.load("task") == 1
        with run.open("task") as stream:
            assert stream.read() == b"1"
        assert run.tasks() == {"task"}
        assert run.read_many() == {"task": b"1"}
        assert run.is_current()
        assert store.read_fingerprint("wf") == run.fingerprint
        assert list(store.workflows()) == ["wf"]
        assert store.collect("wf") == 0
        with pytest.raises(CheckpointNotFoundError):
            run.read("none")
        assert "none" not in run
        assert "task" in run


def test_a_read_only_disk_refuses_every_change(root: Path, read_only: Run) -> None:
    with CheckpointStore(root) as store:
        calls: list[Callable[[], object]] = [
            lambda: read_only.write("task", b""),
            lambda: read_only.open("task", "wb"),
            lambda: read_only.delete("task"),
            lambda: store.run("none"),
            lambda: store.clear("wf"),
            lambda: resume(store, "wf", OTHER_INPUTS, on_input_change="reset"),
        ]
        for call in calls:
            with pytest.raises(StorageError, match=os.strerror(errno.EROFS)):
                call()
    assert read_only.load("task") == 1


# A disk that folds case


class FoldingPath:
    """`os.path` on such a disk."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)

    def __getattr__(self, name: str) -> Any:
        function = getattr(os.path, name)
        if name in ("isdir", "islink", "lexists"):
            return lambda path: function(self.folded(path))
        return function

    def folded(self, path: str) -> str:
        """The path by which the first file is found whose name folds to the same."""
        if not path.startswith(self._root):
            return path
        found = self._root
        for part in Path(path).relative_to(found).parts:
            names = os.listdir(found) if os.path.isdir(found) else []
            same = (name for name in names if name.casefold() == part.casefold())
            found = os.path.join(found, next(same, part))
        return found


class FoldingOS:
    """`os` on a disk that takes upper and lower case for the same."""

    def __init__(self, root: Path) -> None:
        self.path = FoldingPath(root)

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name in ("open", "lstat", "mkdir", "unlink", "rmdir", "listdir", "scandir"):
            return lambda path, *rest: function(self.path.folded(path), *rest)
        if name in ("replace", "rename", "link"):
            return lambda old, new: function(self.path.folded(old), self.path.folded(new))
        return function


@pytest.fixture
def folding(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointStore]:
    for module in (local, disk):
        monkeypatch.setattr(module, "os", FoldingOS(root))
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 5.0)
    with CheckpointStore(root) as store:
        yield store


def test_tasks_that_would_share_a_file_are_refused_on_a_disk_that_folds_case(
    folding: CheckpointStore,
) -> None:
    run = resume(folding, "wf", INPUTS, on_input_change="raise")
    run.write("Load", b"upper")
    with pytest.raises(InvalidNameError, match="case"):
        run.write("load", b"lower")
    with pytest.raises(InvalidNameError, match="case"):
        run.read("load")
    assert "load" not in run
    run.delete("load")
    run.write("Load", b"again")
    assert run.read("Load") == b"again"
    assert run.tasks() == {"Load"}


def test_workflows_that_would_share_a_folder_are_refused_on_a_disk_that_folds_case(
    folding: CheckpointStore,
) -> None:
    run = resume(folding, "Wf", INPUTS, on_input_change="raise")
    run.write("task", b"upper")
    calls: list[Callable[[], object]] = [
        lambda: resume(folding, "wf", INPUTS, on_input_change="raise"),
        lambda: resume(folding, "wf", OTHER_INPUTS, on_input_change="reset"),
        lambda: plan(folding, "wf", INPUTS, on_input_change="raise"),
        lambda: folding.run("wf"),
        lambda: folding.read_fingerprint("wf"),
        lambda: folding.write_fingerprint("wf", "v1"),
        lambda: folding.collect("wf"),
        lambda: folding.clear("wf"),
    ]
    for call in calls:
        with pytest.raises(InvalidNameError, match="case"):
            call()
    assert run.read("task") == b"upper"
    assert run.is_current()
    assert list(folding.workflows()) == ["Wf"]
    assert folding.clear("Wf") == 1


def test_whether_a_disk_folds_case_is_found_out_once(
    root: Path, store: CheckpointStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (root / ".TMP").exists()
    run.write("task", b"data")
    assert expected is store._filesystem._folds_case
    probes: list[str] = []
    isdir = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: probes.append(str(path)) or isdir(path))
    run.write("task", b"data")
    assert "task" in run
    assert not [path for path in probes if path.endswith(".TMP")]


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
