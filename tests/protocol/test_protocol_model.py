"""The protocol, searched exhaustively: the shipped steps over a storage that is a model."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest

from checkpoint_store import (
    CheckpointStore,
    CheckpointStoreError,
    _checkpoints,
    _policy,
    _protocol,
    _resume,
)
from checkpoint_store._filesystems.base import Entry, Filesystem, Page
from checkpoint_store._frame import Header, decode_frame, encode_frame
from checkpoint_store._steps import Call, call, drive, gather, list_all

from ..harness import protocol_model as model
from ..harness import protocol_steps
from ..harness.protocol_model import (
    A_RAISE,
    A_TWO,
    ALSO_WRONG,
    B_BEGINS,
    B_REUSE,
    CHANGE,
    CLEAR,
    COLLECT,
    DESIGN,
    LABEL,
    ONE_KEY,
    TASKS_WRONG,
    WRONG,
    A,
    B,
)
from ..harness.protocol_search import Program, Rules, Search, Storage, System, Variant, apply
from ..harness.protocol_steps import (
    ERROR,
    GONE,
    REFUSED,
    WORKFLOW,
    Change,
    Code,
    File,
    Swapped,
    Worker,
    calls,
    number,
    origin_of,
    place,
)

SHORTEST = {
    "one key per task with list-and-delete": ("LOST", 9),
    "deleting only foreign headers": ("LOST", 12),
    "the same with If-Match": ("LOST", 12),
    "token keys but deleting what is not mine": ("LOST", 11),
    "reading the record before listing": ("LOST", 13),
    "clear that deletes the record last": ("LOST", 7),
    "reset without nonce": ("LOST", 17),
    "reuse that writes into the old generation": ("STALE", 5),
    "a record with a base equals inputs": ("STALE", 5),
    "collecting the base": ("LOST", 9),
    "one key per task, and a late write": ("LOST", 10),
    "a create sent again and arriving after a clear": ("LOST", 13),
    "a create repeated after a clear": ("LOST", 13),
    "reuse that lays one over another": ("LOST", 8),
    "the first of two creates in force": ("FORGOTTEN", 5),
    "tasks, reading the record before listing": ("LOST", 15),
    "collecting the keys of tasks": ("LOST", 7),
    "collecting the keys of the base": ("LOST", 9),
    "keeping the keys of a mixture": ("STALE", 10),
    "keeping tokens without comparing keys": ("STALE", 7),
    "an overlay of keys in place": ("STALE", 6),
    "forgetting keys where others are added": ("LOST", 6),
    "tokens derived from keys": ("LOST", 17),
    "knowing one's own record by its token": ("FORGOTTEN", 7),
}
ALL_WRONG = {**WRONG, **ALSO_WRONG, **TASKS_WRONG}


# What is wrong in the end, and the last step. Keys are shown by their beginnings.
REASONS = {
    "tasks, reading the record before listing": (
        "LOST: y was written in generation 6, which is live",
        "2 declarer(AY, reset) delete y 6 -> done",
    ),
    "collecting the keys of tasks": (
        "LOST: x was written in generation 1, which is live",
        "2 collector() delete x 1 -> done",
    ),
    "collecting the keys of the base": (
        "LOST: x was written in generation 1, which is live",
        "3 collector() delete x 1 -> done",
    ),
    "keeping the keys of a mixture": (
        "STALE: a run with inputs 7fca finds x from mixed",
        "3 declarer(BX, reset) list -> nothing",
    ),
    "keeping tokens without comparing keys": (
        "STALE: a run with inputs 7fca finds x from 74c5",
        "2 declarer(BX, reset) list -> nothing",
    ),
    "an overlay of keys in place": (
        "STALE: a run with inputs 74c5 finds x from mixed",
        "2 declarer(BX, reuse) put x@1=mixed -> done",
    ),
    "forgetting keys where others are added": (
        "LOST: x was written in generation 1, which no reset gave up",
        "2 declarer(AX, reset, 2) swap AX@0 74c5:1 c87f:2 AX@0 cac3:3 a37a:4 -> done",
    ),
    "tokens derived from keys": (
        "LOST: x was written in generation f74c5c0dfe50f3e6, which is live",
        "4 collector() delete x f74c5c0dfe50f3e6 -> done",
    ),
    "knowing one's own record by its token": (
        "FORGOTTEN: no record names a generation of x",
        "3 declarer(AX, reset, 2) read -> AX@0 74c5:1 c87f:2",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGN)
def test_the_design_is_right_in_every_state(name: str) -> None:
    search = Search(DESIGN[name])
    found = search.explore()
    assert found.wrong is None
    assert found.states > 1000
    assert list(search.mistaken()) == []


@pytest.mark.parametrize("name", ALL_WRONG)
def test_a_wrong_variant_is_found_wrong(name: str) -> None:
    promise, steps = SHORTEST[name]
    found = Search(ALL_WRONG[name]).explore(merge=False)
    assert found.wrong is not None
    assert found.wrong.startswith(promise)
    assert len(found.trace) <= steps


@pytest.mark.parametrize("name", TASKS_WRONG)
def test_a_wrong_variant_of_declared_tasks_is_wrong_for_its_own_reason(name: str) -> None:
    found = Search(TASKS_WRONG[name]).explore(merge=False)
    assert (found.wrong, found.trace[-1]) == REASONS[name]


@pytest.mark.parametrize("name", ALL_WRONG)
def test_what_is_shipped_is_right_where_a_variant_is_wrong(name: str) -> None:
    system = ALL_WRONG[name]
    shipped = Variant(Rules(asks_conditions=system.variant.rules.asks_conditions))
    found = Search(System(system.programs, shipped, timeouts=system.timeouts)).explore()
    assert found.wrong is None


@pytest.mark.parametrize("name", ALL_WRONG)
def test_merging_states_that_are_the_same_hides_nothing(name: str) -> None:
    system = ALL_WRONG[name]
    found = Search(system).explore(merge=False)
    merged = Search(system).explore()
    assert merged.wrong is not None
    assert merged.depth == found.depth


@pytest.mark.parametrize(
    "variable", [("change_record", "sent"), ("gather", "results"), ("resuming", "run")]
)
def test_a_variable_that_matters_is_missed(
    variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System([A_TWO, B_REUSE, CLEAR], model.ASKING)
    search = Search(system)
    search.explore()
    assert list(search.mistaken()) == []
    monkeypatch.setattr(protocol_steps, "IDLE", {*protocol_steps.IDLE, variable})
    search = Search(system)
    search.explore()
    assert any(search.mistaken())


def test_only_the_late_write_makes_one_key_per_task_wrong_for_one_process() -> None:
    assert Search(System([CHANGE], ONE_KEY, timeouts=0)).explore().wrong is None
    assert "late" in Search(System([CHANGE], ONE_KEY)).explore(merge=False).trace[-1]


# The steps, and the storage that they are driven over.


def test_what_is_not_used_any_more_is_forgotten() -> None:
    def steps(one: str, many: list[str]) -> Generator[str, str, str]:
        two = yield f"first {one}"
        for each in many:
            yield f"second {each}"
        try:
            one = yield "third"
        except KeyError:
            one = two
        many = []
        yield "fourth"
        return one + "".join(many)

    def remembered() -> tuple[str, ...]:
        return tuple(value for _, value in place(suspended)[2])

    suspended = steps("one", ["each"])
    assert remembered() == ("one", ("each",))
    assert next(suspended) == "first one"
    assert remembered() == (("each",),)
    assert suspended.send("two") == "second each"
    assert remembered() == ("two", "each")
    assert next(suspended) == "third"
    assert remembered() == ("two", "each")
    assert suspended.throw(KeyError()) == "fourth"
    assert remembered() == ("two", (), "each")


def test_side_by_side_is_one_after_another() -> None:
    def one(name: str) -> protocol_steps.Steps[str]:
        yield from call(name, Filesystem.contains, name)
        try:
            yield from call(name, Filesystem.delete, [name])
        except OSError:
            return f"no {name}"
        return name

    def both() -> protocol_steps.Steps[list[str]]:
        return (yield from gather([one("a"), one("b")]))

    steps = calls(both())
    assert next(steps) == Call("a", "contains", ("a",))
    assert steps.send("yes") == Call("a", "delete", (["a"],))
    assert steps.throw(OSError()) == Call("b", "contains", ("b",))
    assert steps.send("yes") == Call("b", "delete", (["b"],))
    with pytest.raises(StopIteration) as stopped:
        steps.send({})
    assert stopped.value.value == ["no a", "b"]


def test_a_change_of_the_source_that_does_not_apply_is_noticed() -> None:
    with pytest.raises(AssertionError, match="nowhere to be found"):
        Code([Change("_protocol", "nowhere to be found", "")])


def test_the_package_itself_is_not_replaced() -> None:
    assert Code([Change("_protocol", "TRIES = 10", "TRIES = 11")]).protocol is not _protocol
    assert _resume._protocol is _protocol
    assert _protocol.TRIES == 10


class Step(NamedTuple):
    """A program, and what happens to its first request of a kind."""

    program: Program
    verb: str = ""
    fault: str = ""


class Story(NamedTuple):
    """The requests of a program, what became of it, and what there is then."""

    requests: list[str]
    end: str
    record: Any
    files: list[tuple[str, str, int]]


XYZ = "xyz"
A_THREE, B_THREE = (model.worker, "A", "reset", XYZ), (model.worker, "B", "reset", XYZ)
A_LABEL = (model.labeller, "A", XYZ)
AX, AY, BX, BX_REUSE = model.AX, model.AY, model.BX, model.BX_REUSE

OPERATIONS: dict[str, list[Step]] = {
    "start": [Step(A)],
    "continue": [Step(A), Step(A)],
    "continue, with a new task": [Step(A), Step(A_THREE)],
    "raise": [Step(B), Step(A_RAISE)],
    "reuse": [Step(A), Step(B_REUSE)],
    "reuse, with a new task": [Step(A), Step((model.worker, "B", "reuse", XYZ))],
    "reuse what was reused": [Step(A), Step(B_REUSE), Step(B_REUSE)],
    "reset, two pages": [Step(A_THREE), Step(B_THREE)],
    "reset what was reused": [Step(A_THREE), Step(B_REUSE), Step(A_THREE)],
    "collect, nothing there": [Step(COLLECT)],
    "collect, all live": [Step(A_THREE), Step(COLLECT)],
    "collect, a base": [Step(A_THREE), Step(B_REUSE), Step(COLLECT)],
    "collect, two pages": [Step(A_THREE), Step(B_BEGINS, "delete", "failed"), Step(COLLECT)],
    "collect, no record": [Step(A_THREE), Step(CLEAR, "delete", "failed"), Step(COLLECT)],
    "clear, nothing there": [Step(CLEAR)],
    "clear, two pages": [Step(A_THREE), Step(CLEAR)],
    "clear again": [Step(A_THREE), Step(CLEAR, "delete", "failed"), Step(CLEAR)],
    "label what is there": [Step(A_LABEL)],
    "label, the same again": [Step(LABEL), Step(LABEL)],
    "start, with declared tasks": [Step(AX)],
    "continue, with declared tasks": [Step(AX), Step(AX)],
    "continue, with tasks declared late": [Step(model.AX_NONE), Step(AX)],
    "continue, with another version": [Step(AX), Step(model.AX_NEWER)],
    "reset of one task": [Step(AX), Step(AY)],
    "reset of all tasks": [Step(AX), Step(BX)],
    "reuse, with declared tasks": [Step(AX), Step(BX_REUSE)],
    "reuse what was reused, with declared tasks": [Step(AX), Step(BX_REUSE), Step(BX_REUSE)],
    "reset what was reused, with declared tasks": [Step(AX), Step(BX_REUSE), Step(BX)],
    "collect, all live, with declared tasks": [Step(AX), Step(BX_REUSE), Step(COLLECT)],
    **{
        f"{name}, {verb} {fault}": [*earlier, Step(program, verb, fault)]
        for name, earlier, program, verb, faults in [
            ("start", [], A, "swap", ("lost", "failed", "refused")),
            ("reset", [Step(A_THREE)], B, "swap", ("lost", "failed", "refused")),
            ("reuse", [Step(A)], B_REUSE, "swap", ("lost", "failed", "refused")),
            ("reset", [Step(A_THREE)], B_THREE, "delete", ("lost", "failed")),
            ("start", [], A_THREE, "put", ("lost", "failed")),
            ("clear", [Step(A_THREE)], CLEAR, "detach", ("lost", "failed")),
            ("clear", [Step(A_THREE)], CLEAR, "delete", ("lost", "failed")),
            ("reset of one task", [Step(AX)], AY, "swap", ("lost", "failed", "refused")),
            ("another version", [Step(AX)], model.AX_NEWER, "swap", ("lost", "failed", "refused")),
        ]
        for fault in faults
    },
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_model_replies_as_a_filesystem_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint_store._filesystems.base.PAGE", 2)
    monkeypatch.setattr("checkpoint_store._protocol.PAGES_AT_ONCE", 1)
    assert over_the_model(OPERATIONS[name]) == over_memory(OPERATIONS[name])


def test_every_request_is_compared() -> None:
    compared = {verb for steps in OPERATIONS.values() for verb in over_the_model(steps).requests}
    assert compared == {"read", "swap", "detach", "get", "put", "delete", "list"}


def over_the_model(steps: Sequence[Step]) -> Story:
    """The story of the last step, each having the storage to itself."""
    code, storage = Code(), Storage()
    for index, (program, faulty, fault) in enumerate(steps):
        code.begin([range(new, new + 3) for new in range(30 * index, 30 * index + 30, 3)])
        requests: list[str] = []
        driven = calls(program[0](code, *program[1:]))
        listed: set[Any] = set()
        with ended() as end:
            asked = next(driven)
            while True:
                request = protocol_steps.requested(asked)
                verb, is_faulty = request[0], request[0] == faulty
                reply: Any
                if verb == "list":
                    size = 1 if storage.record and not listed else 2  # The record is listed first.
                    reply = tuple(sorted({file[::2] for file in storage.files} - listed)[:size])
                    listed.update(reply)
                else:
                    [(after, reply)] = apply(Rules(), 2, storage, request)
                if is_faulty:
                    faulty = ""
                    outcome = REFUSED if fault == "refused" else ERROR
                    reply = Swapped(GONE, outcome) if verb == "swap" else outcome
                storage = storage if verb == "list" or (is_faulty and fault != "lost") else after
                requests += [verb] if verb != "list" or reply else []
                asked = protocol_steps.answer(code, driven, asked, reply)
    return story(requests, end, storage.record, storage.files)


def over_memory(steps: Sequence[Step]) -> Story:
    filesystem = CheckpointStore(f"memory://protocol-{uuid.uuid4().hex}")._filesystem
    for program, faulty, fault in steps:
        recorder = Recorder(filesystem, faulty, fault)
        store = CheckpointStore("memory://")
        store._filesystem = recorder  # type: ignore[assignment]
        code = SimpleNamespace(
            checkpoints=_checkpoints, protocol=_protocol, policy=_policy, resume=_resume,
            store=store, filesystem=recorder,
        )  # fmt: skip
        with ended() as end:
            end.append(drive(store._filesystem, program[0](code, *program[1:])))
    record = drive(filesystem, _protocol.read_record(WORKFLOW))
    listed = drive(filesystem, list_all("", Filesystem.list_files, WORKFLOW))
    names = [file.name for file in listed if "@" in file.name]
    files = {Recorder(filesystem).read(f"{WORKFLOW}/{name}") for name in names}
    filesystem.remove_all()
    return story(recorder.requests, end, record and protocol_steps.abstract(record), files)


@contextmanager
def ended() -> Iterator[list[Any]]:
    """What was returned or raised within."""
    end: list[Any] = []
    try:
        yield end
    except StopIteration as stop:
        end.append(stop.value)
    except CheckpointStoreError as error:
        end.append(error)


def story(requests: list[str], end: list[Any], record: Any, files: Collection[File]) -> Story:
    """Tokens are told by what they are to the record."""
    keys = record and [dict(record.tasks), dict(record.base_tasks)]
    live = keys and [[record.token], [record.base], *(tokens.values() for tokens in keys)]
    ranks = {token: rank for rank, tokens in enumerate(live or (), 1) for token in tokens}
    [value] = end
    run = value.run if isinstance(value, Worker) else value
    return Story(
        requests,
        origin_of(run) if hasattr(run, "decision") else type(run).__name__,
        record and (record.inputs, record.base is not None, *map(sorted, keys)),
        sorted((file.task, file.origin, ranks.get(file.token, 0)) for file in files),
    )


class Recorder:
    """A filesystem that notes what is requested of it, in the words of the model."""

    VERBS: ClassVar = {"read_small": "read", "read": "get", "write": "put", "list_files": "list"}

    def __init__(self, filesystem: Filesystem, faulty: str = "", fault: str = "") -> None:
        self.requests: list[str] = []
        self._filesystem = filesystem
        self._faulty = faulty
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._filesystem, name)
        return partial(self._noted, name, attribute) if callable(attribute) else attribute

    def list_files(self, folder: str, more: Any = None) -> Page[Entry]:
        page = self._filesystem.list_files(folder, more)
        # A page with nothing else than the record is an empty one to the model.
        self.requests += ["list"] if any("@" in file.name for file in page.items) else []
        return page

    def list_leftovers(self, folder: str, more: Any = None) -> Page[str]:
        return self._filesystem.list_leftovers(folder, more)

    def read(self, key: str, *is_wanted: Any) -> File:
        data = bytes(self._noted("read", self._filesystem.read, key, *is_wanted)[:])
        task, _, token = key.rpartition("/")[2].partition("@")
        _, payload = decode_frame(data, Header(WORKFLOW, task, token))
        return File(task, payload.decode(), number(token))

    def write(self, key: str, parts: tuple[Header, str]) -> None:
        header, origin = parts
        frame = encode_frame(header, memoryview(origin.encode()))
        self._noted("write", self._filesystem.write, key, frame)

    def _noted(self, name: str, primitive: Callable[..., Any], *arguments: Any) -> Any:
        verb = self.VERBS.get(name, name)
        self.requests.append(verb)
        if verb != self._faulty:
            return primitive(*arguments)
        self._faulty = ""
        if self._fault == "refused":
            return False
        if self._fault == "lost":
            primitive(*arguments)
        raise TimeoutError(name)
