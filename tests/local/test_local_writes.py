"""Writes to a local disk: what is synced, what a failing disk leaves, how a record is created."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from checkpoint_store import (
    CheckpointStore,
    ContentionError,
    InputChangedError,
    Run,
    StorageError,
    resume,
)

from ..harness.backends import RECORD
from ..harness.contract import INPUTS, OTHER_INPUTS
from ..harness.environment import posix
from ..harness.local import temporaries

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
