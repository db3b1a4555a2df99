"""Runs the steps of the package for the search in `protocol_model.py`, one request at a time.

The search does not drive a model of the protocol but the protocol: `resume`, `collect`, `clear`,
`change_record`, reading and writing, with the transitions of a record, all as they are shipped.
They are loaded a second time, as a `Code` of their own, in which three things are replaced:

- A record is stored as it is, an abstract `Record`, and not as JSON.
- The search chooses what `secrets` draws, and no clock is read.
- A page of retired files is dealt with before the next is listed, and no operation gives up.

A wrong variant is the same code with a few lines of its source changed.

Operations that run side by side (`Each`) are run one after another here. The only such operations
are the pages of one collect. Pages that overlap are searched all the same, because several
processes collect, interleaved in every way.
"""

from __future__ import annotations

import dis
import importlib
import logging
import re
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from copy import copy
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import checkpoint_store
from checkpoint_store._filesystems.base import Entry, Page, Stored
from checkpoint_store._frame import Header
from checkpoint_store._policy import UNCHANGED
from checkpoint_store._progress import Progress
from checkpoint_store._steps import Call, Each, Pause, Steps
from checkpoint_store._tasks import Declared
from checkpoint_store.errors import StorageError

WORKFLOW = "wf"
MIXED = "mixed"
"""The origin of what a run computes from checkpoints of other inputs."""

DONE, REFUSED = "done", "refused"
ERROR = "error"  # The request timed out, and nobody knows whether it takes effect.
AGAIN = "again"  # The request timed out, and the client of the storage sends it once more.

# Tokens and nonces are numbers to the search and 16 digits to the code. These are no numbers but
# names, and are never renamed.
NEW = "f" * 16  # One that is drawn but not sent yet. Its number is chosen when it is sent.
GONE = "f" * 15 + "0"  # That of a swap that was refused, which never comes into a record.
COMMON = "f" * 15 + "1"  # It stands in the keys of a variant whose keys have no token.
NEXT = tuple("f" * 15 + digit for digit in "2345")  # As NEW, for more tokens of the same swap.


class Record(NamedTuple):
    inputs: str | None
    token: int | str
    base: int | str | None
    nonce: int | str
    tasks: tuple[tuple[str, int | str], ...] = ()
    base_tasks: tuple[tuple[str, int | str], ...] = ()

    @property
    def live(self) -> set[int | str | None]:
        keys = {token for _, token in (*self.tasks, *self.base_tasks)}
        return {self.token, self.base, *keys}


class File(NamedTuple):
    """A checkpoint.

    Its `origin` is what it was computed from: some inputs, or MIXED, or of a declared task its key.
    """

    task: str
    origin: str
    token: int | str


class Run(NamedTuple):
    """A run. `declared` has the declared tasks: name, origin, and tokens, the newest first."""

    token: int | str
    base: int | str | None
    origin: str
    declared: tuple[tuple[str, str, tuple[int | str, ...]], ...] = ()


class Worker(NamedTuple):
    """A run of the package, and the keys of the tasks that it declares."""

    run: Any
    keys: Mapping[str, str]


class Swapped(NamedTuple):
    """The reply to a swap, with the numbers that were drawn for it, as for NEW and NEXT."""

    nonce: int | str
    outcome: str
    further: tuple[int | str, ...] = ()


Request = tuple[Any, ...]


class Change(NamedTuple):
    """A piece of a module's source, and what takes its place."""

    module: str
    old: str
    new: str


@cache
def number(token: str) -> int | str:
    return token if token.startswith("f") else int(token, 16)


@cache
def text(token: int | str) -> str:
    return token if isinstance(token, str) else f"{token:016x}"


class Supply:
    """Takes the place of `secrets`.

    The first token and the nonce of a record may be the same number, because they are never
    compared.
    """

    def __init__(self) -> None:
        self.numbers: list[Sequence[int | str]] = []
        self._drawn = 0

    def token_hex(self, size: int) -> str:
        numbers = self.numbers[0] if self.numbers else (NEW, *NEXT)
        if size == 16:  # This is the nonce, which is drawn last.
            self._drawn = 0
            del self.numbers[:1]
            return text(numbers[0])
        self._drawn += 1
        return text(numbers[self._drawn - 1] if self._drawn <= len(numbers) else GONE)


class Code:
    """The modules of the protocol, loaded once more with some changes to their source."""

    MODULES = "_record", "_policy", "_checkpoints", "_protocol", "_run", "_store", "_resume"

    def __init__(
        self,
        changes: Sequence[Change] = (),
        *,
        asks_conditions: bool = False,
        pages_at_once: int = 1,
    ) -> None:
        modules = _loaded(self.MODULES, changes)
        record, self.policy, self.checkpoints, self.protocol, _, stores, self.resume = modules
        self._record, self._supply = record, Supply()
        self._conditional = None if asks_conditions else True
        self._store = object.__new__(stores.CheckpointStore)
        record.secrets, record._now = self._supply, str
        self.protocol.encode_record, self.protocol.decode_record = abstract, cache(self._concrete)
        self.protocol.PAGES_AT_ONCE = pages_at_once
        self.protocol.TRIES = 1_000  # There are fewer other changes of the record than that.
        for module in modules:
            if hasattr(module, "logger"):
                module.logger = logging.Logger("unheard", logging.CRITICAL)

    def begin(self, numbers: Sequence[Sequence[int | str]]) -> None:
        """Makes a new store for another process. It draws these numbers first, those for a swap."""
        self._supply.numbers = list(numbers)
        self.filesystem = SimpleNamespace(
            conditional_writes=self._conditional, caveat=None, warned=True
        )
        self.store = copy(self._store)
        self.store._filesystem, self.store._serializer = self.filesystem, None

    def _concrete(self, record: Record, workflow: str) -> Any:
        base = None if record.base is None else text(record.base)
        return self._record.Record(
            workflow=workflow, fingerprint=record.inputs, token=text(record.token), base=base,
            nonce=text(record.nonce), inputs=digests_of(record.inputs), created="", updated="",
            tasks={key: text(token) for key, token in record.tasks},
            base_tasks={key: text(token) for key, token in record.base_tasks},
        )  # fmt: skip


def digests_of(inputs: str | None) -> dict[str, str] | None:
    """The digests of the inputs `a` and `b`, if these inputs are two letters."""
    if inputs is None or len(inputs) != 2:
        return None
    return {name: f"{ord(letter):064x}" for name, letter in zip("ab", inputs, strict=True)}


def abstract(record: Any) -> Record:
    base = None if record.base is None else number(record.base)
    tasks, base_tasks = (
        tuple((key, number(token)) for key, token in tokens.items())
        for tokens in (record.tasks, record.base_tasks)
    )
    return Record(
        record.fingerprint, number(record.token), base, number(record.nonce), tasks, base_tasks
    )


def _loaded(names: Sequence[str], changes: Sequence[Change]) -> list[Any]:
    """Modules of the package, loaded once more under another name.

    They import each other, and of the other modules the originals.
    """
    package, alias = checkpoint_store.__name__, "searched"
    for name in names:
        importlib.import_module(f"{package}.{name}")
    before = dict(sys.modules)
    others = [name for name in before if name.startswith(f"{package}.")]
    sys.modules[alias] = ModuleType(alias)
    sys.modules[alias].__path__ = []
    sys.modules |= {alias + name.removeprefix(package): before[name] for name in others}
    try:
        for name in names:
            module = ModuleType(f"{alias}.{name}")
            module.__package__ = alias
            path = Path(checkpoint_store.__file__).with_name(f"{name}.py")
            source = path.read_text("utf-8")
            for _, old, new in (change for change in changes if change.module == name):
                assert source.count(old) == 1, f"{name}: {old}"
                source = source.replace(old, new)
            sys.modules[module.__name__] = module
            exec(compile(source, str(path), "exec"), module.__dict__)
        return [sys.modules[f"{alias}.{name}"] for name in names]
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


# Requests of the steps in the words of the search, and its replies in those of the steps


def calls(steps: Steps[Any]) -> Generator[Call, Any, Any]:
    """Yields the calls of some steps. Runs what is to run side by side one after another."""
    reply: Any = None
    error: Exception | None = None
    while True:
        try:
            request = steps.send(reply) if error is None else steps.throw(error)
        except StopIteration as stop:
            return stop.value
        reply = error = None
        try:
            match request:
                case Call(verb="list_leftovers"):
                    # The storage of the search has no leftovers of other kinds than files.
                    reply = Page[str]([])
                case Call():
                    reply = yield request
                case Each(operations, done):
                    for index, operation in enumerate(operations):
                        try:
                            outcome = yield from calls(operation)
                        except Exception as failure:  # noqa: BLE001 - an outcome like any other
                            outcome = failure
                        done(index, outcome)
                case Pause():
                    pass
        except Exception as raised:  # noqa: BLE001 - it is the steps' to handle
            error = raised


def requested(call: Call) -> Request:
    arguments = call.arguments
    match call.verb:
        case "read_small":
            return ("read",)
        case "swap":
            _, stored, record = arguments
            return ("swap", stored and stored.data, record)
        case "list_files":
            return ("list",)
        case "read":
            return ("get", *_place(arguments[0]))
        case "write":
            header, origin = arguments[1]
            return ("put", File(header.task, origin, number(header.token)))
        case "delete":
            return ("delete", tuple(map(_place, arguments[0])))
        case _:
            assert call.verb in ("detach", "begin", "delete_if_same")
            return (call.verb, *(arguments if call.verb == "delete_if_same" else ()))


def answer(code: Code, steps: Generator[Call, Any, Any], call: Call, reply: Any) -> Call:
    """Sends the steps a reply of the search, and returns their next call."""
    if reply is ERROR or (isinstance(reply, Swapped) and reply.outcome is ERROR):
        return steps.throw(StorageError("timed out"))
    match call.verb:
        case "read_small" | "read" if reply is None:
            return steps.throw(FileNotFoundError())
        case "read_small":
            return steps.send(Stored(reply))
        case "swap":
            if reply.outcome is REFUSED:
                code.filesystem.conditional_writes = True
            return steps.send(reply.outcome is DONE)
        case "list_files":
            # An empty page is the last.
            names = [Entry(f"{task}@{text(token)}") for task, token in reply]
            return steps.send(Page(names, "more" if names else None))
        case "delete":
            return steps.send({})
        case _:
            return steps.send(reply)


@cache
def _place(key: str) -> tuple[str, int | str]:
    task, _, token = key.rpartition("/")[2].partition("@")
    return task, number(token)


# The place of a process


def place(steps: Any) -> Any:
    """Everything that suspended steps depend on from here: where they stand, and their variables.

    All numbers in the value are tokens or nonces.
    """
    frame = steps.gi_frame
    if frame is None:
        return "over"
    code, at = frame.f_code, frame.f_lasti
    alive = _alive(code).get(at)
    variables = frame.f_locals
    held = tuple(
        (name, _known(code.co_name, name, variables[name]))
        for name in variables
        if (alive is None or name in alive) and (code.co_name, name) not in IDLE
    )
    inner = steps.gi_yieldfrom
    return (code.co_qualname, str(at), held, place(inner) if inner is not None else None)


IDLE = {
    ("change_record", "attempt"),  # It counts up to TRIES, which is never reached.
    ("change_record", "versions"),  # It chooses the message for giving up.
    ("collect", "removed"),  # It is returned, and nothing uses it.
}
"""Variables that cannot change what is requested, which `test_protocol_model.py` shows."""


def _known(function: str, name: str, value: Any) -> Any:
    match function, name:
        case "change_record", "sent":
            # The record that was found is only used in messages, and a swap that was refused is
            # never found in the storage.
            return tuple(
                known((nonce, record, decision))
                for nonce, (_, record, decision) in value.items()
                if nonce != GONE
            )
        case "gather", "results":
            # Only collecting gathers. It counts the files that were deleted, and nothing uses that.
            outcomes = [pair if pair is None else pair[1] for pair in value.values()]
            return (str(len(value)), known(outcomes))
    return known(value)


def known(value: Any) -> Any:
    """Something hashable that is equal for equal values."""
    match value:
        case str():
            return _named(value)
        case None | bool():
            return value
        case int():
            return str(value)
        case Header():
            return value.task, number(value.token)
        case Record() | File():
            return value
        case frozenset():
            return frozenset(map(known, value))
        case Worker(run, keys):
            return known(run)._replace(declared=_declared_by(run, keys))
        case tuple() if hasattr(value, "nonce"):  # Each code has a class of its own for records.
            return abstract(value)
        case Declared(_, keys):
            return tuple(keys.items())
        case tuple() | list():
            return tuple(map(known, value))
        case dict():
            return tuple(known(item) for item in value.items())
        case Exception() | ModuleType() | Progress():
            return type(value).__name__
        case type() | FunctionType() | MethodType():
            return value.__qualname__
        case Generator():
            return place(value)
        case SimpleNamespace():
            return str(value.conditional_writes)
        case Code():
            return known(value.filesystem)
    match type(value).__name__:  # Each code has classes of its own for these.
        case "Run":
            base = None if value._base is None else number(value._base)
            # Only a `Worker` knows the origins of declared tasks.
            declared = tuple(
                (task, MIXED, tuple(map(number, tokens)))
                for task, tokens in value._declared.items()
            )
            return Run(number(value.token), base, origin_of(value), declared)
        case "Decision":
            return value.action  # Only messages use its other attributes.
        case "CheckpointStore":
            return known(value._filesystem)
    raise TypeError(f"the search does not know how to tell {value!r} from others")


def _declared_by(run: Any, keys: Mapping[str, str]) -> Any:
    return tuple(
        (task, origin_of(run, key, task), tuple(map(number, run._declared[task])))
        for task, key in keys.items()
    )


def origin_of(run: Any, key: str | None = None, task: str = "") -> str:
    """The origin of what a run computes for a task, which may be declared and have a key."""
    if key is not None:
        # In a run that reuses, what was reused may be behind a task whose key is another now.
        is_pure = run.decision.action != "reuse" or run.decision.kept.get(task) == UNCHANGED
        return key if is_pure else MIXED
    is_mixed = run.decision is not None and run.decision.action == "reuse"
    return MIXED if is_mixed else str(run.fingerprint)


@cache
def _named(text: str) -> Any:
    if re.fullmatch(r"[0-9a-f]{16}", text):
        return number(text)
    return _place(text) if "@" in text else text


def runs(value: Any) -> Iterator[Run]:
    """Yields the runs that a place has."""
    if isinstance(value, Run):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from runs(item)


@cache
def _alive(code: CodeType) -> dict[int, frozenset[str]]:
    """For each instruction, the variables whose values may be used after it.

    The search forgets the others, as if they were deleted there. It never forgets the variable of a
    `for` loop, which tells how far the loop has come.
    """
    steps = list(dis.get_instructions(code))
    indices = {step.offset: index for index, step in enumerate(steps)}
    handlers = dis.Bytecode(code).exception_entries
    kept = {*code.co_cellvars, *code.co_freevars}
    after: list[set[int]] = []
    for index, step in enumerate(steps):
        ways = {
            indices[entry.target] for entry in handlers if entry.start <= step.offset < entry.end
        }
        if step.opcode in dis.hasjrel:
            ways.add(indices[step.argval])
        if step.opname not in _ENDS:
            ways.add(index + 1)
        after.append(ways)
        if step.opname == "FOR_ITER":
            targets = takewhile(
                lambda step: "STORE" in step.opname or "UNPACK" in step.opname, steps[index + 1 :]
            )
            kept = kept.union(*map(_names, targets))
    alive: list[set[str]] = [set() for _ in steps]  # Those before each instruction.
    changed = True
    while changed:
        changed = False
        for index, step in reversed(list(enumerate(steps))):
            then = set[str]().union(*(alive[way] for way in after[index]))
            now = then - _names(step) if step.opname in _STORES else then | _names(step)
            changed |= now != alive[index]
            alive[index] = now
    return {
        step.offset: frozenset(kept.union(*(alive[way] for way in after[index])))
        for index, step in enumerate(steps)
    }


_STORES = "STORE_FAST", "STORE_FAST_STORE_FAST", "DELETE_FAST"
_ENDS = (
    "RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE",
    "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT",
)  # fmt: skip
"""Instructions after which the next one in the code is not executed."""


def _names(step: dis.Instruction) -> set[str]:
    """The variables that an instruction uses or sets."""
    if "_FAST" not in step.opname:
        return set()
    return set(step.argval) if isinstance(step.argval, tuple) else {step.argval}
