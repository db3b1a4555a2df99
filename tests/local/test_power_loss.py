"""The power fails at any moment of an operation, and takes with it whatever was not yet synced.

A killed process cannot show that a sync is missing: what it wrote stays. So each operation is
performed once while its changes of the disk are recorded. From every prefix of that record all
disks are made that a power failure could leave behind, and the questions of `harness.operations`
are asked of each.

A disk is allowed to be as bad as POSIX permits. Of a file that was not synced there may be nothing,
any part, or zeros. Each name in a folder that was not synced is as it was when it last was, or as
after any change since, independently of all other names: of a rename one half may be there, or
both. All that is known is that what was synced is there.

All disks of a single operation are looked at in every run, and of two operations, the first of
which was killed, a sample. With `CHECKPOINT_STORE_HEAVY=1` in the environment, all of those too.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from checkpoint_store import CheckpointStoreError, Run, resume
from checkpoint_store._protocol import read_record
from checkpoint_store._steps import drive

from ..harness.environment import HEAVY, posix
from ..harness.local_faults import BY_NAME, Ending, Event, Forker, Hurt, Templates
from ..harness.operations import WORKFLOW, Operation, check_after_fault, found_by
from ..harness.worlds import LocalWorld

pytestmark = [posix, pytest.mark.slow]


Tree = frozenset[tuple[str, bytes | None]]
"""Files and folders (None) by their paths."""


# What is on the disk, and what may be


@dataclass(eq=False)
class File:
    """A file, and what it held since it was synced, that included."""

    contents: list[bytes]

    def sync(self) -> None:
        del self.contents[:-1]

    def possible(self) -> set[bytes]:
        if len(self.contents) == 1:
            return set(self.contents)
        last = self.contents[-1]
        half, zeros = len(last) // 2, bytes(len(last))
        cut = {last[:half], last[:-1]}
        holes = {zeros, last[:half] + zeros[half:], zeros[:half] + last[half:]}
        return {*self.contents, *cut, *holes}


@dataclass(eq=False)
class Folder:
    """A folder, and what each name in it stood for since it was synced, that included."""

    names: dict[str, list[File | Folder | None]] = field(default_factory=dict)

    def get(self, name: str) -> File | Folder | None:
        return self.names.get(name, [None])[-1]

    def set(self, name: str, node: File | Folder | None) -> None:
        self.names.setdefault(name, [None]).append(node)

    def sync(self) -> None:
        for history in self.names.values():
            del history[:-1]


class Disk:
    """Everything below a folder, as it is after some events."""

    def __init__(self, path: Path, *, ignoring: Sequence[str] = ()) -> None:
        """What is there now is taken to be synced. The syncs named in `ignoring` will not be."""
        self.top = _read(path)
        self._handles: dict[int, tuple[str, File | Folder]] = {}
        self._ignoring = ignoring

    def apply(self, event: Event) -> None:
        if event.kind == "write":
            file = self._handles[event.handle][1]
            assert isinstance(file, File)
            file.contents.append(file.contents[-1] + event.data)
        elif event.kind == "fsync":
            path, node = self._handles[event.handle]
            kind = "file" if isinstance(node, File) else "folder"
            if not {kind, path}.intersection(self._ignoring):
                node.sync()
        elif event.kind == "open":
            node_there = self._node(event.path)
            assert node_there is not None
            self._handles[event.handle] = event.path, node_there
        elif event.kind == "create":
            made = File([b""])
            self._set(event.path, made)
            self._handles[event.handle] = event.path, made
        elif event.kind == "mkdir":
            self._set(event.path, Folder())
        elif event.kind in ("unlink", "rmdir"):
            self._set(event.path, None)
        else:
            assert event.kind in ("rename", "link")
            moved = self._node(event.path)
            assert moved is not None
            self._set(event.target, moved)
            if event.kind == "rename":
                self._set(event.path, None)

    def now(self) -> Tree:
        """What is there while the power is on."""
        return frozenset(_now(self.top, ""))

    def after_power_loss(self) -> set[Tree]:
        """All that may be there when the power comes back."""
        return _possible(self.top, "")

    def _node(self, path: str) -> File | Folder | None:
        node: File | Folder | None = self.top
        for part in path.split("/") if path != "." else ():
            assert isinstance(node, Folder), path
            node = node.get(part)
        return node

    def _set(self, path: str, node: File | Folder | None) -> None:
        parent, _, name = path.rpartition("/")
        within = self._node(parent or ".")
        assert isinstance(within, Folder), path
        within.set(name, node)


def _read(path: Path) -> Folder:
    folder = Folder()
    for inside in path.iterdir():
        folder.names[inside.name] = [
            _read(inside) if inside.is_dir() else File([inside.read_bytes()])
        ]
    return folder


def _now(folder: Folder, prefix: str) -> Iterator[tuple[str, bytes | None]]:
    for name, history in folder.names.items():
        node = history[-1]
        if isinstance(node, Folder):
            yield prefix + name, None
            yield from _now(node, f"{prefix}{name}/")
        elif node is not None:
            yield prefix + name, node.contents[-1]


def _possible(folder: Folder, prefix: str) -> set[Tree]:
    choices: list[set[Tree]] = []
    for name, history in folder.names.items():
        path = prefix + name
        trees: set[Tree] = set()
        for node in history:
            if node is None:
                trees.add(frozenset())
            elif isinstance(node, Folder):
                trees |= {tree | {(path, None)} for tree in _possible(node, f"{path}/")}
            else:
                trees |= {frozenset({(path, content)}) for content in node.possible()}
        choices.append(trees)
    return {frozenset().union(*trees) for trees in itertools.product(*choices)}


def build(tree: Tree, path: Path) -> None:
    for name, content in sorted(tree, key=lambda item: item[0]):
        if content is None:
            (path / name).mkdir()
        else:
            (path / name).write_bytes(content)


WRITTEN = {"write after a clear": {"t0": b"A t0 late"}, "reset and write": {"t9": b"B t9"}}
"""What an operation that returns its run has written for it."""


# Performing, and looking at all that may be left


@dataclass
class Recorded:
    """An operation that was performed below `parent`, in the folder `root` of it."""

    operation: Operation
    before: Path
    root: str
    events: list[Event]
    others: dict[str, bytes]
    run: Run | None

    def disk(self, ignoring: Sequence[str] = ()) -> Disk:
        return Disk(self.before, ignoring=ignoring)


class Lab:
    def __init__(self, forker: Forker, templates: Templates, parent: Path) -> None:
        self.forker = forker
        self.templates = templates
        self.parent = parent

    def folder(self) -> Path:
        made = LocalWorld(self.parent).root
        made.mkdir()
        return made

    def prepare(self, name: str, root: str) -> tuple[Path, dict[str, bytes]]:
        """A new folder with what the operation is performed on, which may be nothing at all."""
        parent = self.folder()
        if root != "root":
            return parent, {}
        world = self.templates.copy(BY_NAME[name])
        world.root.rename(parent / "root")
        world.root = parent / "root"
        return parent, world.others()

    def perform(self, name: str, parent: Path, root: str, stop: int | None = None) -> Ending:
        hurt = Hurt(record=True, within=str(parent), stop=stop)
        ending = self.forker.perform(name, parent / root, hurt)
        assert ending.outcome.foreign == ""
        assert ending.outcome.returned or ending.signal
        return ending

    def record(self, name: str, root: str = "root") -> Recorded:
        parent, others = self.prepare(name, root)
        before = self.folder()
        shutil.copytree(parent, before, dirs_exist_ok=True)
        ending = self.perform(name, parent, root)
        assert ending.outcome.returned
        outcome = ending.outcome
        run = outcome.result if isinstance(outcome.result, Run) else None
        recorded = Recorded(BY_NAME[name], before, root, outcome.events, others, run)
        check_complete(recorded.disk(), outcome.events, parent)
        return recorded

    def check(self, recorded: Recorded, tree: Tree, *, returned: bool) -> None:
        parent = self.folder()
        build(tree, parent)
        world = LocalWorld(parent)
        world.root = parent / recorded.root
        run, name = recorded.run, recorded.operation.name
        if returned and run is not None:
            run = dataclasses.replace(run, _filesystem=world.filesystem())
            assert run.read_many() == WRITTEN.get(name, run.read_many())
        if name != "reset of a corrupt one":
            drive(world.filesystem(), read_record(WORKFLOW))  # No power loss makes it corrupt.
        # Alone a delete is not synced: it may be undone.
        certain = returned and name != "delete"
        check_after_fault(recorded.operation, world, recorded.others, returned=certain)
        # Nothing is in the way of a clear either.
        world.store().clear(WORKFLOW)
        assert world.folder() == []
        shutil.rmtree(parent)

    def check_all(self, recorded: Recorded, ignoring: Sequence[str] = ()) -> int:
        """Every tree that a power loss at any moment may leave. Returns how many there are."""
        disk = recorded.disk(ignoring)
        seen = disk.after_power_loss()
        assert seen == {disk.now()}
        for event in recorded.events:
            disk.apply(event)
            for tree in disk.after_power_loss() - seen:
                self.check(recorded, tree, returned=False)
                seen.add(tree)
        for tree in disk.after_power_loss():
            self.check(recorded, tree, returned=True)
        return len(seen)


def check_complete(disk: Disk, events: Sequence[Event], parent: Path) -> None:
    """No change escaped the recorder."""
    for event in events:
        disk.apply(event)
    assert disk.now() == Disk(parent).now()


@pytest.fixture
def lab(forker: Forker, templates: Templates, folder: Path) -> Lab:
    return Lab(forker, templates, folder)


OPERATIONS = (
    "start reset", "start and write", "write anew", "write", "stream", "reset",
    "reset beside leftovers", "reset of a corrupt one", "reuse", "delete", "collect", "clear",
    "clear with leftovers", "write after a clear", "reset and write", "say another", "label",
    "reset of a part",
)  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS, ids=lambda name: name.replace(" ", "-"))
def test_a_power_loss_at_any_moment_loses_and_mixes_nothing(name: str, lab: Lab) -> None:
    assert lab.check_all(lab.record(name)) > 1


@pytest.mark.parametrize("name", ["start reset", "start and write"])
def test_a_power_loss_at_any_moment_of_the_first_start_in_a_new_root_loses_nothing(
    name: str, lab: Lab
) -> None:
    assert lab.check_all(lab.record(name, "new/root")) > 20


def some(trees: set[Tree]) -> Sequence[Tree]:
    """Not all in every run: there are many, which differ in what the first process left behind."""
    listed = sorted(
        trees, key=lambda tree: sorted((path, content or b"") for path, content in tree)
    )
    return listed if HEAVY else random.Random(0).sample(listed, min(len(listed), 24))


@pytest.mark.parametrize(
    ("first", "second", "root"),
    [
        ("start and write", "start and write", "new/root"),
        ("start and write", "start and write", "root"),
        ("reset", "reset and write", "root"),
        ("reuse", "reset and write", "root"),
        ("clear", "start and write", "root"),
        ("write after a clear", "start and write", "root"),
        ("write", "write", "root"),
    ],
    ids=lambda name: str(name).replace(" ", "-").replace("/", "-"),
)
def test_what_another_process_left_unsynced_is_not_lost_when_it_was_built_upon(
    first: str, second: str, root: str, lab: Lab
) -> None:
    for stop in itertools.count():
        parent, others = lab.prepare(first, root)
        before = lab.folder()
        shutil.copytree(parent, before, dirs_exist_ok=True)
        killed = lab.perform(first, parent, root, stop)
        if not killed.signal:
            break
        ending = lab.perform(second, parent, root)
        offset = 1_000_000
        later = [event._replace(handle=event.handle + offset) for event in ending.outcome.events]
        events = killed.outcome.events + later
        run = ending.outcome.result if isinstance(ending.outcome.result, Run) else None
        recorded = Recorded(BY_NAME[second], before, root, events, others, run)
        check_complete(recorded.disk(), events, parent)
        # What the second made of it is what there must be, as if the power had not failed.
        world = LocalWorld(lab.parent)
        shutil.copytree(parent / root, world.root)
        found = found_by(resume(world.store(), WORKFLOW, fingerprint="A", on_input_change="reset"))
        recorded.operation = dataclasses.replace(recorded.operation, before=found, after=found)
        disk = recorded.disk()
        for event in events:
            disk.apply(event)
        for tree in some(disk.after_power_loss()):
            lab.check(recorded, tree, returned=True)
    assert stop > 4


# That it would be noticed

MISSING = (
    # The content of what is renamed into place.
    ("write", ["file"]),
    ("write anew", ["file"]),
    ("stream", ["file"]),
    ("reset", ["file"]),
    ("reuse", ["file"]),
    ("start and write", ["file"]),
    # The rename.
    ("write", ["folder"]),
    ("write anew", ["folder"]),
    ("reset", ["folder"]),
    ("clear", ["folder"]),
    ("start and write", ["folder"]),
    ("write", ["root/wf"]),
    ("write anew", ["root/wf"]),
    ("reset", ["root/wf"]),
    # The new folder in its parent.
    ("start and write", ["root"]),
    ("write after a clear", ["root"]),
    ("clear", ["root"]),
)


@pytest.mark.parametrize(
    ("name", "ignoring"),
    MISSING,
    ids=lambda value: (
        value.replace(" ", "-") if isinstance(value, str) else value[0].replace("/", "-")
    ),
)
def test_a_missing_sync_would_be_noticed(name: str, ignoring: list[str], lab: Lab) -> None:
    recorded = lab.record(name)
    with pytest.raises((AssertionError, CheckpointStoreError)):
        lab.check_all(recorded, ignoring)


@pytest.mark.parametrize("ignored", [".", "new"])
def test_a_missing_sync_of_a_new_roots_parents_would_be_noticed(ignored: str, lab: Lab) -> None:
    recorded = lab.record("start and write", "new/root")
    with pytest.raises(AssertionError):
        lab.check_all(recorded, [ignored])
