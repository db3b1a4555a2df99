"""Every operation fails at every one of its steps, and is overtaken at every one by another.

Each checkpoint says in its bytes which inputs it was computed from. So whatever happened, a new
store can be asked three questions. Is anything returned to a strict run that other inputs made
(never stale)? Is a write missing that returned (nothing lost)? Has a sibling changed by a byte
(nobody else's)?
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    CheckpointStoreError,
    CorruptRecordError,
    InputChangedError,
    Run,
    StorageError,
    resume,
)
from checkpoint_store._filesystems import base, disk, local
from checkpoint_store._filesystems.base import (
    Data,
    Entry,
    Filesystem,
    Page,
    Source,
    Stored,
    Upload,
    anything,
)
from checkpoint_store._filesystems.generic import GenericFilesystem
from checkpoint_store._frame import TRAILER_BYTES
from checkpoint_store._names import RECORD, parse_file_name
from checkpoint_store._policy import POLICIES
from checkpoint_store._protocol import read_record
from checkpoint_store._steps import drive

pytestmark = pytest.mark.slow

WORKFLOW = "wf"
SIBLINGS = ("wf1", "wf-1", "wf/x", "w")
MOST_CALLS = 60
"""More primitive calls than any operation here may take, however it fails."""


class CrashError(BaseException):
    """The process dies here: nothing catches it, and nothing more of the operation takes effect."""


Hook = Callable[[int, str], None]


def _nothing(number: int, name: str) -> None:
    pass


class Tap:
    """Counts calls, and lets a test act before and after each of them takes effect."""

    def __init__(self, before: Hook = _nothing, after: Hook = _nothing) -> None:
        self.before = before
        self.after = after
        self.calls: list[str] = []
        self.dead = False
        self.refuses = False

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        if self.dead:
            raise CrashError
        number = len(self.calls)
        self.calls.append(name)
        if number > MOST_CALLS:
            pytest.fail(f"more than {MOST_CALLS} calls: {self.calls}")
        self.before(number, name)
        result = call()
        try:
            self.after(number, name)
        except BaseException:
            _release(result)
            raise
        return result


def _release(opened: object) -> None:
    """A reply that is lost must not leave an open file in this process, nor one that is removed
    whenever the traceback, which holds it, is collected."""
    if isinstance(opened, Upload):
        opened.discard()
    elif close := getattr(opened, "close", None):
        close()


def fault(kind: str, at: int) -> Tap:
    """A tap at whose call number `at` something fails.

    An error is raised before the call takes effect, or after it with its reply lost. A crash is the
    end of the process before the call, and so after the one that precedes it. In an outage all
    later calls fail as well. A refusal is an error that a delete does not raise but returns, for
    one key.
    """
    tap = Tap()
    tap.refuses = kind == "refusal"

    def fail(number: int, name: str) -> None:
        if number == at and kind == "crash":
            tap.dead = True
            raise CrashError(name)
        if number == at or (number > at and kind == "outage"):
            raise OSError(errno.EIO, f"{name} failed")

    if kind == "error after":
        tap.after = fail
    else:
        tap.before = fail
    return tap


KINDS = ("crash", "error before", "error after", "outage", "refusal")


class Tapped(Filesystem):
    """A filesystem whose every primitive goes through a tap."""

    conditions = None
    durability = ""

    @classmethod
    def at(cls, *_: object) -> Tapped:
        raise NotImplementedError

    def __init__(self, inner: Filesystem, tap: Tap) -> None:
        self.inner = inner
        self.tap = tap
        self.conditional_writes = inner.conditional_writes
        self.max_concurrency = 1
        self.warned = inner.warned

    def read(self, key: str, is_wanted: Callable[[bytes], bool] = anything) -> bytes:
        return bytes(self.tap("read", lambda: self.inner.read(key, is_wanted)))

    def read_small(self, key: str) -> Stored:
        return Stored(*self.tap("read_small", lambda: self.inner.read_small(key)))

    def contains(self, key: str) -> bool:
        return bool(self.tap("contains", lambda: self.inner.contains(key)))

    def write(self, key: str, parts: Sequence[Data]) -> None:
        self.tap("write", lambda: self.inner.write(key, parts))

    def swap(self, key: str, old: Stored | None, data: bytes) -> bool:
        return bool(self.tap("swap", lambda: self.inner.swap(key, old, data)))

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        # A request for several keys may take effect for some of them only.
        failures: dict[str, str] = {}
        for key in keys:
            try:
                failures |= self.tap("delete", lambda key=key: self.inner.delete([key]))
            except OSError as error:
                if not self.tap.refuses:
                    raise
                failures[key] = str(error)
        return failures

    def list_files(self, folder: str, more: Any = None, sizes: bool = False) -> Page[Entry]:  # noqa: FBT001, FBT002
        page: Page[Entry] = self.tap("page", lambda: self.inner.list_files(folder, more, sizes))
        return page

    def list_folders(self, has: Callable[[str], bool], more: Any = None) -> Page[str]:
        return self.inner.list_folders(has, more)

    def list_leftovers(self, folder: str, more: Any = None) -> Page[str]:
        page: Page[str] = self.tap("leftovers", lambda: self.inner.list_leftovers(folder, more))
        return page

    def open_read(self, key: str) -> Source:
        source: Source = self.tap("open_read", lambda: self.inner.open_read(key))
        return source

    def open_write(self, key: str) -> Upload:
        upload: Upload = self.tap("open_write", lambda: self.inner.open_write(key))
        return TappedUpload(upload, self.tap)

    def detach(self, folder: str, name: str, is_ours: Callable[[str], bool]) -> None:
        self.tap("detach", lambda: self.inner.detach(folder, name, is_ours))


class TappedUpload:
    def __init__(self, inner: Upload, tap: Tap) -> None:
        self.inner = inner
        self.tap = tap

    def write(self, data: Data, /) -> None:
        self.tap("upload.write", lambda: self.inner.write(data))

    def commit(self) -> None:
        self.tap("upload.commit", self.inner.commit)

    def discard(self) -> None:
        if not self.tap.dead:
            self.inner.discard()
        else:
            # A dead process has no open files, and leaves its temporary ones: as if they were
            # those of another, they are not discarded when this one drops the upload.
            getattr(self.inner, "_close", self.inner.discard)()
            self.inner._process = 0


# Where it happens


class World(ABC):
    """Some storage, looked at by another way than the library's."""

    kind: str

    @abstractmethod
    def filesystem(self) -> Filesystem: ...

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Every file there is, but for the locks."""

    @abstractmethod
    def copy(self) -> World: ...

    @abstractmethod
    def put(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def remove(self) -> None: ...

    def store(self, tap: Tap | None = None) -> CheckpointStore:
        store = CheckpointStore("memory://replaced-below")
        filesystem = self.filesystem()
        store._filesystem = filesystem if tap is None else Tapped(filesystem, tap)
        return store

    def folder(self) -> list[str]:
        """What there is of the workflow: its record, its checkpoints, what was renamed away."""
        return [key for key in self.files() if key.startswith(("wf/", ".tmp/wf~"))]

    def others(self) -> dict[str, bytes]:
        mine = set(self.folder())
        return {key: data for key, data in self.files().items() if key not in mine}


class MemoryWorld(World):
    kind = "memory"

    def __init__(self) -> None:
        self.name = f"crash-{secrets.token_hex(8)}"

    def filesystem(self) -> Filesystem:
        return CheckpointStore(f"memory://{self.name}")._filesystem

    def files(self) -> dict[str, bytes]:
        prefix = f"/{self.name}/"
        return {
            path.removeprefix(prefix): file.getvalue()
            for path, file in MemoryFileSystem.store.items()
            if path.startswith(prefix)
        }

    def copy(self) -> World:
        world = type(self)()
        for key, data in self.files().items():
            world.put(key, data)
        return world

    def put(self, key: str, data: bytes) -> None:
        MemoryFileSystem().pipe_file(f"/{self.name}/{key}", data)

    def remove(self) -> None:
        for path in [path for path in MemoryFileSystem.store if path.startswith(f"/{self.name}/")]:
            del MemoryFileSystem.store[path]
        folders = MemoryFileSystem.pseudo_dirs
        folders[:] = [path for path in folders if not path.startswith(f"/{self.name}")]


class GenericWorld(MemoryWorld):
    """The same files without conditional writes, for one process at a time."""

    kind = "generic"

    def filesystem(self) -> Filesystem:
        filesystem = GenericFilesystem("memory", f"/{self.name}", {}, max_concurrency=1)
        filesystem.warned = True
        return filesystem


class LocalWorld(World):
    kind = "local"

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.root = parent / secrets.token_hex(8)

    def filesystem(self) -> Filesystem:
        return CheckpointStore(self.root, durable=False)._filesystem

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and ".locks" not in path.parts
        }

    def copy(self) -> World:
        world = LocalWorld(self.parent)
        if self.root.exists():
            shutil.copytree(self.root, world.root, ignore=shutil.ignore_patterns(".locks"))
        return world

    def put(self, key: str, data: bytes) -> None:
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        (self.root / key).write_bytes(data)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture
def make_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], World]]:
    kinds: dict[str, Callable[[], World]] = {
        "memory": MemoryWorld,
        "generic": GenericWorld,
        "local": lambda: LocalWorld(tmp_path),
    }
    yield kinds[request.param]
    for path in [path for path in MemoryFileSystem.store if path.startswith("/crash-")]:
        del MemoryFileSystem.store[path]
    MemoryFileSystem.pseudo_dirs[:] = [
        path for path in MemoryFileSystem.pseudo_dirs if not path.startswith("/crash-")
    ]


@pytest.fixture(autouse=True)
def _short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PAGE", 2)


worlds = pytest.mark.parametrize("make_world", ["memory", "generic", "local"], indirect=True)
shared_worlds = pytest.mark.parametrize("make_world", ["memory", "local"], indirect=True)


# What was there before


TASKS = ("t0", "t1", "t2")
Checkpoints = dict[str, bytes]
OLD: Checkpoints = {task: f"A {task}".encode() for task in TASKS}


def plant_siblings(world: World) -> None:
    for sibling in SIBLINGS:
        run = resume(world.store(), sibling, fingerprint="S", on_input_change="raise")
        run.write("t0", f"S {sibling}".encode())


def nothing(world: World) -> None:
    """No workflow of that name yet."""


def computed(world: World) -> Run:
    """Checkpoints of the inputs A."""
    run = resume(world.store(), WORKFLOW, fingerprint="A", on_input_change="raise")
    run.write_many(OLD)
    return run


def with_leftovers(world: World) -> None:
    """Checkpoints of A, and files of a generation that was reset, written by a late worker."""
    late = resume(world.store(), WORKFLOW, fingerprint="Z", on_input_change="raise")
    late.write("t0", b"Z t0")
    resume(world.store(), WORKFLOW, fingerprint="A", on_input_change="reset").write_many(OLD)
    late.write_many({"t0": b"Z t0 late", "t5": b"Z t5"})


def mixed(world: World) -> Run:
    """Checkpoints of A, reused and partly replaced by a run on B."""
    computed(world)
    run = resume(world.store(), WORKFLOW, fingerprint="B", on_input_change="reuse")
    run.write("t0", b"B t0")
    return run


def unlabelled(world: World) -> None:
    """Checkpoints written without a fingerprint, which turn out to be of A."""
    world.store().run(WORKFLOW).write_many(OLD)


def corrupt(world: World) -> None:
    """Checkpoints whose record is damaged."""
    computed(world)
    world.put(f"{WORKFLOW}/{RECORD}", b'{"checkpoint_store": 1, "work')


# What is done to it


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation and what a strict run on A may find afterwards.

    `after` is what it finds when the operation returned. If it failed, it finds what was there
    before or that: task by task, or for an `atomic` operation one or the other as a whole.
    """

    name: str
    prepare: Callable[[World], object]
    perform: Callable[[CheckpointStore], object]
    before: Checkpoints
    after: Checkpoints
    atomic: bool = True
    raises: type[CheckpointStoreError] | None = None


def own_run(store: CheckpointStore) -> Run:
    return resume(store, WORKFLOW, fingerprint="A", on_input_change="raise")


def stream(store: CheckpointStore) -> None:
    with own_run(store).open("t0", "wb") as file:
        file.write(b"A ")
        file.write(b"t0 new")


def read_all(store: CheckpointStore) -> None:
    run = own_run(store)
    assert run.read_many() == OLD
    assert run.read("t0") == b"A t0"
    assert "t1" in run
    assert "t9" not in run
    with run.open("t2") as file:
        assert file.read() == b"A t2"
    with pytest.raises(CheckpointNotFoundError):
        run.read("t9")
    assert run.is_current()


def resumes(fingerprint: str, policy: str) -> Callable[[CheckpointStore], Run]:
    return lambda store: resume(
        store,
        WORKFLOW,
        fingerprint=fingerprint,
        on_input_change=policy,  # type: ignore[call-overload]
    )


NEW = {"t0": b"A t0 new", "t9": b"A t9"}
OPERATIONS = [
    *(Operation(f"start {p}", nothing, resumes("A", p), {}, {}) for p in POLICIES),
    *(Operation(f"continue {p}", computed, resumes("A", p), OLD, OLD) for p in POLICIES),
    Operation("reset", computed, resumes("B", "reset"), OLD, {}),
    Operation("reset beside leftovers", with_leftovers, resumes("B", "reset"), OLD, {}),
    Operation("reset of a mixed one", mixed, resumes("B", "reset"), {}, {}),
    Operation("reset back to A", mixed, resumes("A", "reset"), {}, {}),
    Operation("reset of an unlabelled one", unlabelled, resumes("B", "reset"), {}, {}),
    Operation("reset of a corrupt one", corrupt, resumes("A", "reset"), {}, {}),
    Operation("reuse", computed, resumes("B", "reuse"), OLD, {}),
    Operation("reuse again", mixed, resumes("C", "reuse"), {}, {}),
    Operation("reuse of an unlabelled one", unlabelled, resumes("B", "reuse"), {}, {}),
    Operation("raise", computed, resumes("B", "raise"), OLD, OLD, raises=InputChangedError),
    Operation(
        "raise on a mixed one", mixed, resumes("A", "raise"), {}, {}, raises=InputChangedError
    ),
    Operation(
        "write", computed, lambda s: own_run(s).write("t0", NEW["t0"]), OLD, OLD | {"t0": NEW["t0"]}
    ),
    Operation(
        "write anew",
        computed,
        lambda s: own_run(s).write("t9", NEW["t9"]),
        OLD,
        OLD | {"t9": NEW["t9"]},
    ),
    Operation(
        "write many", computed, lambda s: own_run(s).write_many(NEW), OLD, OLD | NEW, atomic=False
    ),
    Operation("stream", computed, stream, OLD, OLD | {"t0": NEW["t0"]}),
    Operation("read", computed, read_all, OLD, OLD),
    Operation(
        "delete", computed, lambda s: own_run(s).delete("t0"), OLD, {"t1": b"A t1", "t2": b"A t2"}
    ),
    Operation("delete what is reused", mixed, lambda s: s.run(WORKFLOW).delete("t0"), {}, {}),
    Operation("delete nothing", computed, lambda s: own_run(s).delete("t9"), OLD, OLD),
    Operation("collect", with_leftovers, lambda s: s.collect(WORKFLOW), OLD, OLD),
    Operation("collect a mixed one", mixed, lambda s: s.collect(WORKFLOW), {}, {}),
    Operation("collect nothing", nothing, lambda s: s.collect(WORKFLOW), {}, {}),
    Operation("clear", computed, lambda s: s.clear(WORKFLOW), OLD, {}),
    Operation("clear with leftovers", with_leftovers, lambda s: s.clear(WORKFLOW), OLD, {}),
    Operation("clear a mixed one", mixed, lambda s: s.clear(WORKFLOW), {}, {}),
    Operation("clear a corrupt one", corrupt, lambda s: s.clear(WORKFLOW), {}, {}),
    Operation("clear nothing", nothing, lambda s: s.clear(WORKFLOW), {}, {}),
    Operation("say first", nothing, lambda s: s.write_fingerprint(WORKFLOW, "A"), {}, {}),
    Operation("say the same", computed, lambda s: s.write_fingerprint(WORKFLOW, "A"), OLD, OLD),
    Operation("say another", computed, lambda s: s.write_fingerprint(WORKFLOW, "B"), OLD, {}),
    Operation("label", unlabelled, lambda s: s.write_fingerprint(WORKFLOW, "A"), {}, OLD),
    Operation("run first", nothing, lambda s: s.run(WORKFLOW, fingerprint="A"), {}, {}),
    Operation("run", computed, lambda s: s.run(WORKFLOW), OLD, OLD),
    Operation(
        "run on others",
        computed,
        lambda s: s.run(WORKFLOW, fingerprint="B"),
        OLD,
        OLD,
        raises=InputChangedError,
    ),
]


# What must hold afterwards


def found_by(run: Run) -> Checkpoints:
    found = run.read_many()
    assert set(found) == run.tasks()
    for task in (*TASKS, "t5", "t9"):
        assert (task in found) == (task in run)
        if task in found:
            assert found[task] == run.read(task)
        else:
            with pytest.raises(CheckpointNotFoundError):
                run.read(task)
    return found


def resumed(world: World, fingerprint: str, policy: str) -> Run | None:
    """A run of a new process, or None if the policy refuses."""
    try:
        return resumes(fingerprint, policy)(world.store())
    except InputChangedError:
        assert policy == "raise"
    except CorruptRecordError:
        assert policy != "reset"
    return None


def content(world: World) -> frozenset[tuple[str, ...]]:
    """All there is of the workflow, but for what chance and the clock put there."""
    files = world.files()
    found: list[tuple[str, ...]] = []
    roles: dict[str, str] = {}
    with suppress(CheckpointStoreError):
        if record := drive(world.filesystem(), read_record(WORKFLOW)):
            roles = {record.token: "current", record.base or "": "base"}
            found.append(("record", str(record.fingerprint), str(record.base is not None)))
    for key in world.folder():
        name = key.rpartition("/")[2]
        folder = "gone" if key.startswith(".tmp/") else "here"
        if name == RECORD:
            found.append((folder, name, "" if roles else str(files[key])))
        elif parsed := parse_file_name(name):
            payload = files[key].partition(b"\n")[2][:-TRAILER_BYTES]
            found.append((folder, parsed[0], roles.get(parsed[1], "retired"), str(payload)))
        else:
            found.append((folder, "temporary"))
    return frozenset(found)


_checked: dict[tuple[str, object], Checkpoints] = {}


def check_every_way_on(world: World, others: dict[str, bytes]) -> Checkpoints:
    """Resumes copies of the world under every policy. Returns what a strict run on A finds.

    Most faults leave the same few things behind, which need to be looked at once.
    """
    assert others == world.others()
    key = world.kind, content(world)
    if key not in _checked:
        _checked[key] = _check_every_way_on(world, others)
    return _checked[key]


def _check_every_way_on(world: World, others: dict[str, bytes]) -> Checkpoints:
    on_a: Checkpoints = {}
    for fingerprint, policy in itertools.product("ABC", POLICIES):
        copy = world.copy()
        run = resumed(copy, fingerprint, policy)
        found = {} if run is None else found_by(run)
        if policy != "reuse":
            # Never stale.
            stale = {k: v for k, v in found.items() if not v.startswith(f"{fingerprint} ".encode())}
            assert stale == {}, (fingerprint, policy)
        if (fingerprint, policy) == ("A", "raise"):
            on_a = found
        if run is not None:
            # It goes on as if nothing had been, and nothing it writes is lost.
            run.write("more", f"{fingerprint} more".encode())
            assert run.is_current()
            copy.store().collect(WORKFLOW)
            assert found_by(run) == found | {"more": f"{fingerprint} more".encode()}
            again = resumed(copy, fingerprint, policy)
            assert again is not None
            assert again.token == run.token
            assert found_by(again) == found_by(run)
            assert garbage(copy) == []
        assert others == copy.others()
        copy.remove()
    return on_a


def garbage(world: World) -> list[str]:
    """Files of the workflow that no run will ever read."""
    record = drive(world.filesystem(), read_record(WORKFLOW))
    live = () if record is None else (record.token, record.base)
    return [
        key
        for key in world.folder()
        if not key.endswith(f"/{RECORD}")
        and ((parsed := parse_file_name(key.rpartition("/")[2])) is None or parsed[1] not in live)
    ]


def check_settled(operation: Operation, world: World) -> None:
    """What is left once the operation, repeated, has returned."""
    if operation.name.startswith("clear"):
        assert world.folder() == []
        assert WORKFLOW not in set(world.store().workflows())
    elif operation.name.startswith(("reset", "collect")):
        assert garbage(world) == []


def perform(operation: Operation, store: CheckpointStore) -> bool:
    """Whether it returned, or raised what it is documented to raise."""
    if operation.raises is None:
        operation.perform(store)
    else:
        with pytest.raises(operation.raises):
            operation.perform(store)
    return True


by_name = pytest.mark.parametrize(
    "operation", OPERATIONS, ids=lambda operation: operation.name.replace(" ", "-")
)


def prepared(operation: Operation, make_world: Callable[[], World]) -> World:
    world = make_world()
    plant_siblings(world)
    operation.prepare(world)
    return world


@worlds
@by_name
def test_an_operation_that_meets_no_fault_does_what_it_says(
    operation: Operation, make_world: Callable[[], World]
) -> None:
    world = prepared(operation, make_world)
    others = world.others()
    assert set(others) >= {"wf1/.fingerprint", "wf-1/.fingerprint", "w/.fingerprint"}
    assert check_every_way_on(world, others) == operation.before
    tap = Tap()
    assert perform(operation, world.store(tap))
    assert 0 < len(tap.calls) < MOST_CALLS
    check_settled(operation, world)
    assert check_every_way_on(world, others) == operation.after


def check_after_fault(
    operation: Operation, world: World, others: dict[str, bytes], *, returned: bool
) -> None:
    on_a = check_every_way_on(world, others)
    if returned:
        assert on_a == operation.after
    elif operation.atomic:
        assert on_a in (operation.before, operation.after)
    for task in {*operation.before, *operation.after, *on_a}:
        assert on_a.get(task) in (operation.before.get(task), operation.after.get(task))
    # Whoever repeats it has it done.
    if operation.raises is None and on_a == operation.before:
        with suppress(InputChangedError):
            perform(operation, world.store())
            if operation.name.startswith("reset"):
                world.store().collect(WORKFLOW)
            check_settled(operation, world)
            assert check_every_way_on(world, others) == operation.after


Attempt = Callable[[World, Tap], object]


def check_every_fault(operation: Operation, kind: str, template: World, attempt: Attempt) -> int:
    """Lets `attempt` fail at each of its calls in turn, and returns how many there were."""
    others = template.others()
    world = template.copy()
    attempt(world, whole := Tap())
    world.remove()
    places = [at for at, name in enumerate(whole.calls) if kind != "refusal" or name == "delete"]
    for at in places:
        world = template.copy()
        tap = fault(kind, at)
        returned = False
        try:
            attempt(world, tap)
            returned = True
        except CrashError:
            assert kind == "crash"
        except CheckpointStoreError as error:
            assert kind != "crash", error  # noqa: PT017
            assert str(error)  # noqa: PT017
        assert tap.calls[: at + 1] == whole.calls[: at + 1]
        check_after_fault(operation, world, others, returned=returned)
        world.remove()
    return len(whole.calls)


@worlds
@by_name
@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_that_fails_at_any_step_loses_and_mixes_nothing(
    operation: Operation, kind: str, make_world: Callable[[], World]
) -> None:
    def attempt(world: World, tap: Tap) -> None:
        perform(operation, world.store(tap))

    assert check_every_fault(operation, kind, prepared(operation, make_world), attempt) > 0


@worlds
@pytest.mark.parametrize(
    "operation",
    [each for each in OPERATIONS if each.name in ("start raise", "reset", "reuse", "run first")]
    + [each for each in OPERATIONS if each.name in ("say first", "say another", "label")],
    ids=lambda operation: operation.name.replace(" ", "-"),
)
def test_a_record_that_was_written_although_its_reply_was_lost_is_recognised(
    operation: Operation, make_world: Callable[[], World]
) -> None:
    template = prepared(operation, make_world)
    attempt = Tap()
    operation.perform(template.copy().store(attempt))
    world = template.copy()
    tap = fault("error after", attempt.calls.index("swap"))
    result = operation.perform(world.store(tap))
    assert tap.calls.count("swap") == 1
    record = drive(world.filesystem(), read_record(WORKFLOW))
    assert record is not None
    if isinstance(result, Run):
        assert record.token == result.token


@worlds
@pytest.mark.parametrize("kind", KINDS)
def test_a_delete_that_fails_at_any_step_never_brings_an_older_value_back(
    kind: str, make_world: Callable[[], World]
) -> None:
    template = make_world()
    mixed(template)
    whole = Tap()
    template.copy().store(whole).run(WORKFLOW).delete("t0")
    assert whole.calls.count("delete") == 2
    for at in range(len(whole.calls)):
        world = template.copy()
        with suppress(CrashError, StorageError):
            world.store(fault(kind, at)).run(WORKFLOW).delete("t0")
        found = found_by(world.store().run(WORKFLOW))
        assert found.get("t0") in (b"B t0", None)
        assert found["t1"] == b"A t1"
        world.store().run(WORKFLOW).delete("t0")
        assert found_by(world.store().run(WORKFLOW)).keys() == {"t1", "t2"}


@worlds
def test_a_reset_whose_collecting_fails_has_happened_and_says_so(
    make_world: Callable[[], World], caplog: pytest.LogCaptureFixture
) -> None:
    template = make_world()
    computed(template)
    reset = resumes("B", "reset")
    whole = Tap()
    reset(template.copy().store(whole))
    places = range(whole.calls.index("swap") + 1, len(whole.calls))
    assert len(places) > 3
    for kind, at in itertools.product(("error before", "outage"), places):
        world = template.copy()
        caplog.clear()
        run = reset(world.store(fault(kind, at)))
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert f"store.collect({WORKFLOW!r}) deletes them" in record.getMessage()
        assert run.decision is not None
        assert run.decision.action == "reset"
        late = resumes("B", "raise")(world.store())
        assert late.token == run.token
        assert found_by(late) == {}
        world.store().collect(WORKFLOW)
        assert garbage(world) == []


@worlds
def test_collecting_without_a_record_deletes_nothing(make_world: Callable[[], World]) -> None:
    world = make_world()
    with_leftovers(world)
    files = {key: data for key, data in world.files().items() if not key.endswith(f"/{RECORD}")}
    assert len(files) == len(OLD) + 2
    bare = make_world()
    for key, data in files.items():
        bare.put(key, data)
    assert bare.store().collect(WORKFLOW) == 0
    assert files == bare.files()


@worlds
def test_collecting_beside_a_corrupt_record_deletes_nothing(
    make_world: Callable[[], World],
) -> None:
    world = make_world()
    with_leftovers(world)
    world.put(f"{WORKFLOW}/{RECORD}", b"{")
    files = world.files()
    with pytest.raises(CorruptRecordError):
        world.store().collect(WORKFLOW)
    assert files == world.files()


# The same, one level down: the calls to the operating system


class TappedOs:
    """Stands in for `os` within the local filesystem."""

    TAPPED = frozenset(
        [
            "open",
            "write",
            "fsync",
            "replace",
            "rename",
            "link",
            "unlink",
            "mkdir",
            "rmdir",
            "listdir",
            "scandir",
            "lstat",
            "fstat",
        ]
    )

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.TAPPED:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            opened = self.tap(name, lambda: Descriptor(name, real(*args, **kwargs)))
            return opened.value

        return call


@dataclasses.dataclass
class Descriptor:
    """What a call returned, to be closed if nobody gets it."""

    name: str
    value: Any

    def close(self) -> None:
        if type(self.value) is int and self.name == "open":
            os.close(self.value)
        elif close := getattr(self.value, "close", None):
            close()


SYSTEM_CALLS = [
    operation
    for operation in OPERATIONS
    if operation.name
    in (
        "start reset",
        "continue raise",
        "reset",
        "reset beside leftovers",
        "reset of a corrupt one",
        "reuse",
        "write",
        "write anew",
        "stream",
        "read",
        "delete",
        "collect",
        "clear",
        "clear with leftovers",
        "say another",
        "label",
    )
]


@pytest.mark.parametrize("make_world", ["local"], indirect=True)
@pytest.mark.parametrize("operation", SYSTEM_CALLS, ids=lambda each: each.name.replace(" ", "-"))
@pytest.mark.parametrize("kind", ["crash", "error before", "error after"])
def test_an_operation_whose_system_call_fails_loses_and_mixes_nothing(
    operation: Operation, kind: str, make_world: Callable[[], World]
) -> None:
    def attempt(world: World, tap: Tap) -> None:
        store = world.store()
        with pytest.MonkeyPatch.context() as patch:
            for module in (local, disk):
                patch.setattr(module, "os", TappedOs(tap))
            perform(operation, store)

    assert check_every_fault(operation, kind, prepared(operation, make_world), attempt) > 0


# Two at once


class History:
    """The writes that returned: per generation, task and value."""

    def __init__(self, old_run: Run) -> None:
        self.old_run = old_run
        self.written = {old_run.token: {task: {value} for task, value in OLD.items()}}
        self.numbers = itertools.count()

    def write(self, run: Run, task: str, *, stream: bool = False) -> None:
        value = f"{run.fingerprint} {task} {next(self.numbers)}".encode()
        before = self._possible(run, task)
        if stream:
            with run.open(task, "wb") as file:
                file.write(value)
        else:
            run.write(task, value)
        # Of two writes at the same time either may be the last.
        meanwhile = self._possible(run, task) - before
        self.written.setdefault(run.token, {})[task] = {value, *meanwhile}

    def _possible(self, run: Run, task: str) -> set[bytes]:
        return self.written.get(run.token, {}).get(task, set())

    def work(self, run: Run, *, strict: bool) -> None:
        """What a runner does: reads what is there, and writes what it has computed."""
        for _ in range(2):
            found = run.read_many()
            if strict:
                stale = {
                    k: v
                    for k, v in found.items()
                    if not v.startswith(f"{run.fingerprint} ".encode())
                }
                assert stale == {}
            for task in ("t0", "t5"):
                self.write(run, task)


Step = Callable[[CheckpointStore, History], None]


def a_resume(fingerprint: str, policy: str) -> Step:
    def step(store: CheckpointStore, history: History) -> None:
        with suppress(InputChangedError):
            run = resumes(fingerprint, policy)(store)
            history.work(run, strict=policy != "reuse")

    return step


def an_old_writer(store: CheckpointStore, history: History) -> None:
    run = dataclasses.replace(history.old_run, _filesystem=store._filesystem)
    history.work(run, strict=True)


def an_old_stream(store: CheckpointStore, history: History) -> None:
    run = dataclasses.replace(history.old_run, _filesystem=store._filesystem)
    history.write(run, "t1", stream=True)


def a_plain_run(store: CheckpointStore, history: History) -> None:
    run = store.run(WORKFLOW)
    history.write(run, "t7")


STEPS: dict[str, Step] = {
    "reset to B": a_resume("B", "reset"),
    "reset to C": a_resume("C", "reset"),
    "strict A": a_resume("A", "raise"),
    "strict B": a_resume("B", "raise"),
    "reuse by B": a_resume("B", "reuse"),
    "reuse by C": a_resume("C", "reuse"),
    "clear": lambda store, _: no_result(store.clear(WORKFLOW)),
    "collect": lambda store, _: no_result(store.collect(WORKFLOW)),
    "fingerprint C": lambda store, _: store.write_fingerprint(WORKFLOW, "C"),
    "old writer": an_old_writer,
    "old stream": an_old_stream,
    "plain run": a_plain_run,
}


def no_result(count: int) -> None:
    assert count >= 0


def check_history(world: World, history: History, others: dict[str, bytes]) -> None:
    """Nothing is lost of the generation in force, nor of the one it reads through to."""
    record = drive(world.filesystem(), read_record(WORKFLOW))
    if record is not None:
        expected = {
            **history.written.get(record.base or "", {}),
            **history.written.get(record.token, {}),
        }
        found = found_by(world.store().run(WORKFLOW))
        assert found.keys() == expected.keys()
        for task, possible in expected.items():
            assert found[task] in possible
    check_every_way_on(world, others)


def overtaken(first: Step, second: Step, world: World, history: History, at: int) -> Tap:
    """Runs `first`, and all of `second` before its call number `at`, if there is one."""
    failures: list[Exception] = []

    def overtake(number: int, _: str) -> None:
        if number == at:
            try:
                second(world.store(), history)
            except Exception as error:  # noqa: BLE001
                # The first would take it for a failure of its storage.
                failures.append(error)

    tap = Tap(overtake)
    first(world.store(tap), history)
    if failures:
        raise failures[0]
    return tap


@shared_worlds
@pytest.mark.parametrize("second", STEPS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("first", STEPS, ids=lambda name: name.replace(" ", "-"))
def test_an_operation_overtaken_at_any_step_loses_and_mixes_nothing(
    first: str, second: str, make_world: Callable[[], World]
) -> None:
    template = make_world()
    plant_siblings(template)
    old_run = computed(template)
    others = template.others()
    # Before a call is after the one that precedes it; after the last they follow one another.
    for at in itertools.count():
        world = template.copy()
        history = History(old_run)
        tap = overtaken(STEPS[first], STEPS[second], world, history, at)
        if at >= len(tap.calls):
            break
        check_history(world, history, others)
        world.remove()
    assert at > 0


@shared_worlds
@pytest.mark.parametrize("policy", POLICIES)
def test_a_start_after_the_moment_of_a_clear_keeps_all_it_writes(
    policy: str, make_world: Callable[[], World]
) -> None:
    template = make_world()
    old_run = computed(template)
    points = 0
    for at in itertools.count():
        world = template.copy()
        history = History(old_run)
        tap = overtaken(STEPS["clear"], a_resume("B", policy), world, history, at)
        if at >= len(tap.calls):
            break
        if "detach" in tap.calls[:at]:
            points += 1
            _, written = history.written.values()
            found = found_by(resumes("B", "raise")(world.store()))
            assert {task: {value} for task, value in found.items()} == written
    # It was overtaken while it listed, deleted and looked for what was left over.
    assert points > 1
