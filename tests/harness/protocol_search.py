"""Searches all that can happen to processes that share a storage.

A `Search` drives the steps of the package through `protocol_steps.py`, over a storage that is a
value here. Processes whose steps stand at the same place are taken for one another, and `mistaken`
tells whether that leaves out anything that matters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, count, takewhile, zip_longest
from typing import Any, NamedTuple

from checkpoint_store import CheckpointStoreError

from .protocol_steps import (
    AGAIN,
    COMMON,
    DONE,
    ERROR,
    GONE,
    MIXED,
    NEW,
    NEXT,
    REFUSED,
    Change,
    Code,
    File,
    Record,
    Request,
    Run,
    Swapped,
    answer,
    calls,
    known,
    place,
    requested,
    runs,
)

Program = tuple[Any, ...]
"""A generator function, and the arguments that it gets after the code."""


@dataclass(frozen=True)
class Rules:
    """What the storage and its client do."""

    token_in_key: bool = True
    # `detach` takes away all files of the folder, as on a local disk, where it renames the folder.
    detaches_files: bool = False
    # The client sends a swap that timed out once more, as that of S3 does.
    resends_swap: bool = False
    # Stores do not know yet whether swaps are conditional, and find out with their first one.
    asks_conditions: bool = False
    # The record may come to have a version again that it had before.
    versions_return: bool = False


@dataclass(frozen=True)
class Variant:
    """The code as it is shipped or with changes, and the rules of its storage."""

    rules: Rules = field(default_factory=Rules)
    changes: Sequence[Change] = ()


@dataclass
class System:
    """Programs, each of which is run by a process.

    `lives` says for the first processes how often they start; the others start once.
    """

    programs: Sequence[Program]
    variant: Variant = field(default_factory=Variant)
    lives: Sequence[int] = ()
    timeouts: int = 1
    page: int = 1
    pages_at_once: int = 1


# What the requests do


class Storage(NamedTuple):
    """What is stored, and which requests may still take effect.

    `promised` has the task and token of every write that returned, as long as the record refers to
    its generation. A reset or a clear ends these promises, but neither does a reuse nor a record
    that gets more keys.
    """

    record: Record | None = None
    files: frozenset[File] = frozenset()
    late: tuple[Request, ...] = ()
    promised: frozenset[tuple[str, int]] = frozenset()
    timeouts: int = 0

    def live(self, token: int) -> bool:
        return self.record is not None and token in self.record.live

    def change(self, rules: Rules, record: Record | None) -> Storage:
        after = self._replace(record=record)
        late = self.late
        if not rules.versions_return:
            # A late swap against a version that is gone can never take effect.
            late = tuple(r for r in late if r[0] != "swap" or r[1] in (None, record))
        promised = self.promised
        is_same = (
            self.record is not None and record is not None and record.token == self.record.token
        )
        if record is None or (record.base is None and not is_same):
            promised = frozenset(promise for promise in promised if after.live(promise[1]))
        return after._replace(late=late, promised=promised)


def apply(rules: Rules, page: int, storage: Storage, request: Request) -> list[tuple[Storage, Any]]:
    """The storage after a request, and the reply. A listing may have any of several replies."""

    def key(file: File) -> tuple[str, int | str]:
        return file.task, file.token if rules.token_in_key else COMMON

    verb, *arguments = request
    if verb == "read":
        return [(storage, storage.record)]
    if verb == "list":
        files, sizes = sorted(map(key, storage.files)), range(page + 1)
        return [(storage, chosen) for size in sizes for chosen in combinations(files, size)]
    if verb == "get":
        return [(storage, next((file for file in storage.files if key(file) == request[1:]), None))]
    if verb == "put":
        others = {file for file in storage.files if key(file) != key(arguments[0])}
        return [(storage._replace(files=frozenset({*others, *arguments})), DONE)]
    if verb == "delete":
        left = frozenset(file for file in storage.files if key(file) not in arguments[0])
        return [(storage._replace(files=left), DONE)]
    if verb == "delete_if_same":
        return [(storage._replace(files=storage.files.difference(arguments)), DONE)]
    if verb == "swap":
        old, new = arguments
        if storage.record != old:
            # A swap that was refused never takes effect, unless it was also sent before.
            refused = swapped(new, REFUSED) if rules.resends_swap else Swapped(GONE, REFUSED)
            return [(storage, refused)]
        return [(storage.change(rules, new), swapped(new, DONE))]
    if verb == "detach":
        files = frozenset() if rules.detaches_files else storage.files
        return [(storage.change(rules, None)._replace(files=files), DONE)]
    assert verb == "begin"
    return [(storage._replace(promised=frozenset()), DONE)]


def drawn(request: Request, number: int) -> Request:
    """The request with its numbers, which are chosen when it is sent: this and the next ones."""
    chosen = {name: number + place for place, name in enumerate((NEW, *NEXT))}

    def numbered(value: Any) -> Any:
        if isinstance(value, tuple):
            items = map(numbered, value)
            return type(value)(*items) if isinstance(value, Record) else tuple(items)
        return chosen.get(value, value)

    return (*request[:2], numbered(request[2])) if request[0] == "swap" else request


def swapped(record: Record, outcome: str) -> Swapped:
    """The reply to a swap that has just been sent."""
    if not isinstance(record.nonce, int):
        return Swapped(record.nonce, outcome)
    further = takewhile(record.live.__contains__, count(record.nonce + 1))
    return Swapped(record.nonce, outcome, tuple(further))


def broken(storage: Storage, run: Run | None) -> str | None:
    """The promise that does not hold in a state, if any.

    Everything is looked at that this run could read.
    """
    there = {(file.task, file.token) for file in storage.files}
    for task, token in storage.promised:
        if not storage.live(token):
            return f"LOST: {task} was written in generation {token}, which no reset gave up"
        if (task, token) not in there:
            return f"LOST: {task} was written in generation {token}, which is live"
    if run is None:
        return None
    declared = {task: (origin, tokens) for task, origin, tokens in run.declared}
    for file in storage.files:
        origin, tokens = declared.get(file.task, (run.origin, (run.token,)))
        if origin != MIXED and file.token in tokens and file.origin != origin:
            other = _shown(file.origin)
            return f"STALE: a run with inputs {_shown(origin)} finds {file.task} from {other}"
    return None


def wrongly_resumed(
    rules: Rules, record: Record | None, run: Run, sent: Collection[int | str]
) -> str | None:
    """The promise that the record breaks when a run begins, if any.

    `sent` are the nonces that the process of the run has sent.
    """
    if record is None or record.token != run.token:
        # A store that finds out about conditions swaps twice, and others may swap in between.
        if rules.asks_conditions and (record is None or record.nonce not in sent):
            return None
        return f"FORGOTTEN: no record names generation {run.token}"
    for task, _, tokens in run.declared:
        if not record.live.issuperset(tokens):
            return f"FORGOTTEN: no record names a generation of {task}"
    if run.origin != MIXED and (record.base is not None or record.inputs not in (None, run.origin)):
        return f"STALE: a run with inputs {run.origin} continues a generation of others"
    return None


# The search


class Process(NamedTuple):
    """A process between two requests.

    `replies` are all that it has got since the start of its program.
    """

    program: Program
    lives: int
    replies: tuple[Any, ...]
    request: Request | None
    is_again: bool
    """Whether the client of the storage sends the request a second time."""
    run: Run | None
    numbers: int
    """The numbers that its variables hold, each a bit."""
    wrong: str | None = None

    def __str__(self) -> str:
        return f"{self.program[0].__name__}({', '.join(self.program[1:])})"


class Found(NamedTuple):
    states: int
    depth: int
    wrong: str | None
    trace: list[str]


State = tuple[int, ...]
"""The index of a storage, and the indices of the processes."""

Move = tuple[str, int, int]
"""A description of what happens, and the indices of the storage and of the process after it."""


class Search:
    def __init__(self, system: System) -> None:
        self.system = system
        self.rules = system.variant.rules
        self.code = Code(
            system.variant.changes,
            asks_conditions=self.rules.asks_conditions,
            pages_at_once=system.pages_at_once,
        )
        # With each storage the numbers in it, each a bit.
        self._storages: list[tuple[Storage, int]] = []
        self._processes: list[Process] = []
        self._indices: dict[Any, int] = {}
        # What was worked out once is kept here.
        self._led: dict[tuple[Program, int, tuple[Any, ...]], int] = {}
        self._moves: dict[tuple[int, ...], list[Move]] = {}
        self._wrong: dict[tuple[int, int], str | None] = {}
        self._names: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
        self._renamed: dict[tuple[int, tuple[int, ...]], int] = {}

    def explore(self, *, merge: bool = True) -> Found:
        """Explores all states, breadth first, until one is wrong. So its trace is a shortest one.

        With `merge`, states are taken for one if they differ only in the names of tokens and nonces
        and in which process is which. That leaves a tenth of the states, but no trace.
        """
        given = zip_longest(self.system.programs, self.system.lives, fillvalue=1)
        processes = (self._process(program, lives, ()) for program, lives in given)
        start = (self._storage(Storage(timeouts=self.system.timeouts)), *processes)
        parents: dict[State, State | None] = {start: None}
        frontier, depth = [start], 0
        while frontier:
            reached = []
            for parent in frontier:
                for _, after in self._successors(parent):
                    state = self._canonical(after) if merge else after
                    if state in parents:
                        continue
                    parents[state] = parent
                    reached.append(state)
                    if wrong := self._broken(state):
                        trace = [] if merge else self._trace(parents, state)
                        return Found(len(parents), depth + 1, wrong, trace)
            frontier, depth = reached, depth + bool(reached)
        return Found(len(parents), depth, None, [])

    def mistaken(self) -> Iterator[tuple[Any, ...]]:
        """Processes that were taken for one another, and go on differently after the same reply.

        This is called once all states are explored. Of two processes that the search takes for one,
        it goes on with only one. If this finds nothing, the other would have requested the same. So
        what the search leaves out of a process cannot change what the process does.
        """
        replied: dict[Any, list[Any]] = {}
        for program, lives, replies in self._led:
            replied.setdefault((program, lives, replies[:-1]), []).extend(replies[-1:])
        for (program, lives, replies), index in self._led.items():
            taken_for = self._processes[index].replies
            if taken_for == replies:
                continue
            for reply in replied.get((program, lives, taken_for), ()):
                place, _ = self._replayed(program, lives, (*replies, reply))
                expected, _ = self._replayed(program, lives, (*taken_for, reply))
                if place != expected:
                    yield program, replies, taken_for, reply

    def _successors(self, state: State) -> Iterator[tuple[str, State]]:
        storage, *processes = state
        unused = self._held(state).bit_length()
        for index, process in enumerate(processes):
            request = self._processes[process].request
            at = (storage, process, unused if request and request[0] == "swap" else 0)
            if at not in self._moves:
                self._moves[at] = list(self._steps(*at))
            for what, then, moved in self._moves[at]:
                after = (then, *processes[:index], moved, *processes[index + 1 :])
                yield f"{index + 1} {what}", after
        if (storage,) not in self._moves:
            self._moves[storage,] = list(self._arrivals(storage))
        for what, then, _ in self._moves[storage,]:
            yield what, (then, *processes)

    def _steps(self, storage_index: int, process_index: int, unused: int) -> Iterator[Move]:
        rules, storage = self.rules, self._storages[storage_index][0]
        process = self._processes[process_index]
        if process.lives > 1 and process.replies:
            again = self._process(process.program, process.lives - 1, ())
            yield f"{process} crashes and starts again", storage_index, again
        if process.request is None:
            return
        request = drawn(process.request, unused)
        verb = request[0]
        for after, reply in apply(rules, self.system.page, storage, request):
            promised = after.promised
            if verb == "put" and after.live(request[1].token):
                promised |= {(request[1].task, request[1].token)}
            then = after._replace(promised=promised)
            yield (
                f"{process} {_words(request)} -> {_words(reply)}",
                self._storage(then),
                self._next(process, reply, then),
            )
        if storage.timeouts and verb in ("swap", "put", "delete", "delete_if_same", "detach"):
            # A late deletion of several keys may take effect for each key at another time.
            keys = request[1] if verb == "delete" else ()
            late = tuple((verb, (key,)) for key in keys) or (request,)
            then = storage._replace(late=storage.late + late, timeouts=storage.timeouts - 1)
            reply: Any = ERROR
            if verb == "swap":
                is_sent_again = rules.resends_swap and not process.is_again
                reply = swapped(request[2], AGAIN if is_sent_again else ERROR)
            yield (
                f"{process} {_words(request)} times out",
                self._storage(then.change(rules, then.record)),
                self._next(process, reply, then),
            )

    def _arrivals(self, storage_index: int) -> Iterator[Move]:
        storage = self._storages[storage_index][0]
        for index, request in enumerate(storage.late):
            rest = storage._replace(late=storage.late[:index] + storage.late[index + 1 :])
            for then, _ in apply(self.rules, self.system.page, rest, request):
                yield f"- late: {_words(request)} takes effect", self._storage(then), -1

    def _broken(self, state: State) -> str | None:
        for process in state[1:]:
            at = (state[0], process)
            if at not in self._wrong:
                found = self._processes[process]
                self._wrong[at] = found.wrong or broken(self._storages[state[0]][0], found.run)
            if self._wrong[at]:
                return self._wrong[at]
        return None

    def _storage(self, storage: Storage) -> int:
        if storage not in self._indices:
            self._indices[storage] = len(self._storages)
            self._storages.append((storage, _bits(storage[:4])))
        return self._indices[storage]

    def _next(self, process: Process, reply: Any, storage: Storage) -> int:
        index = self._process(process.program, process.lives, (*process.replies, reply))
        moved = self._processes[index]
        if moved.run is not None and process.run is None:
            sent = [reply.nonce for reply in process.replies if isinstance(reply, Swapped)]
            wrong = wrongly_resumed(self.rules, storage.record, moved.run, sent)
            return self._intern((index, wrong), moved._replace(wrong=wrong)) if wrong else index
        return index

    def _process(self, program: Program, lives: int, replies: tuple[Any, ...]) -> int:
        """The index of the process that these replies lead to.

        Processes whose steps stand at the same place have the same index.
        """
        led = program, lives, replies
        if led not in self._led:
            self._led[led] = self._intern(*self._replayed(*led))
        return self._led[led]

    def _replayed(
        self, program: Program, lives: int, replies: tuple[Any, ...]
    ) -> tuple[Any, Process]:
        """The place to which replies lead from the start of a program, and the process there.

        A suspended generator cannot be copied. So a new one is made and sent all the replies.
        """
        swaps = [reply for reply in replies if isinstance(reply, Swapped)]
        before = [None, *(reply.outcome for reply in swaps)]
        self.code.begin(
            [
                (swap.nonce, *swap.further)
                for swap, last in zip(swaps, before, strict=False)
                if last is not AGAIN
            ]
        )
        steps = calls(program[0](self.code, *program[1:]))
        request, run, at = None, None, None
        try:
            call = next(steps)
            for reply in replies:
                if not isinstance(reply, Swapped) or reply.outcome is not AGAIN:
                    call = answer(self.code, steps, call, reply)
            request, at = requested(call), place(steps)
            run = next(runs(at), None)
        except StopIteration as stop:
            run = stop.value and known(stop.value)
        except CheckpointStoreError:
            pass
        is_again = before[-1] is AGAIN
        held = _bits((request, run, at))
        process = Process(program, lives, replies, request, is_again, run, held)
        return (program, lives, request, is_again, run, at), process

    def _intern(self, place: Any, process: Process) -> int:
        if place not in self._indices:
            self._indices[place] = len(self._processes)
            self._processes.append(process)
        return self._indices[place]

    def _held(self, state: State) -> int:
        held = self._storages[state[0]][1]
        for process in state[1:]:
            held |= self._processes[process].numbers
        return held

    def _canonical(self, state: State) -> State:
        """The state that stands for all that differ only in names and in the order of processes."""
        storage, *processes = state
        at = (storage, self._held(state))
        if at not in self._names:
            self._names[at] = self._renaming(*at)
        storage, names = self._names[at]
        if names:
            for index, process in enumerate(processes):
                if (process, names) not in self._renamed:
                    found = self._processes[process]
                    same = (found.program, found.lives, renamed(found.replies, names))
                    self._renamed[process, names] = process if found.wrong else self._process(*same)
                processes[index] = self._renamed[process, names]
        return (storage, *sorted(processes))

    def _renaming(self, index: int, held: int) -> tuple[int, tuple[int, ...]]:
        """Numbers tokens and nonces anew, beginning with those in the storage, in their order."""
        storage = self._storages[index][0]
        places = (storage.record, storage.late, tuple(sorted(storage.files)))
        order = list(dict.fromkeys((*numbers(places), *range(held.bit_length()))))
        if order == sorted(order):
            return index, ()
        names = tuple(map(order.index, range(len(order))))
        same = Storage(*renamed(tuple(storage[:4]), names), storage.timeouts)
        return self._storage(same), names

    def _trace(self, parents: dict[State, State | None], state: State) -> list[str]:
        trace = []
        while (parent := parents[state]) is not None:
            trace.append(next(what for what, after in self._successors(parent) if after == state))
            state = parent
        return trace[::-1]


def numbers(value: object) -> Iterator[int]:
    """The tokens and nonces in a value, in their order there."""
    if type(value) is int:
        yield value
    elif isinstance(value, tuple | frozenset):
        for item in value:
            yield from numbers(item)


def renamed(value: Any, names: Sequence[int]) -> Any:
    if type(value) is int:
        return names[value] if value < len(names) else value
    if isinstance(value, frozenset):
        return frozenset(renamed(item, names) for item in value)
    if isinstance(value, tuple):
        items = [renamed(item, names) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _bits(value: object) -> int:
    return sum(1 << number for number in set(numbers(value)))


def _words(value: Any) -> str:
    """Describes a value: a record as inputs@token+base, a file as task@token=origin.

    After a record stand the beginnings of its keys, each with the token.
    """
    if isinstance(value, Record):
        base = "" if value.base is None else f"+{value.base}"
        keys = (f" {key[:4]}:{token}" for key, token in (*value.tasks, *value.base_tasks))
        return f"{value.inputs}@{value.token}{base}" + "".join(keys)
    if isinstance(value, File):
        return f"{value.task}@{value.token}={_shown(value.origin)}"
    if isinstance(value, Swapped):
        return value.outcome
    if isinstance(value, tuple):
        return " ".join(map(_words, value)) or "nothing"
    return "nothing" if value is None else str(value)


def _shown(origin: str) -> str:
    """An origin for people: of a key its beginning."""
    return origin if len(origin) < 64 else origin[:4]
