"""Local disks that may only be read, or that fold the case of names."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    InvalidNameError,
    Run,
    StorageError,
    plan,
    resume,
)
from checkpoint_store._filesystems import disk, local, locks

from ..harness.contract import INPUTS, OTHER_INPUTS

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
