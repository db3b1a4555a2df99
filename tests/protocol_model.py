"""An exhaustive search of the record and collect protocol.

    python tests/protocol_model.py             what CI searches, and a trace of each wrong variant
    python tests/protocol_model.py --large     9.0 million states, in about 3 minutes and 0.4 GB

Operations are generators that yield requests and are sent the replies. They do what `_protocol`,
`_resume`, `_store` and `_run` do, in the same order; `test_protocol_model.py` compares them. The
search takes every interleaving of the requests of several processes, and everywhere:

- A process crashes and starts again, as often as its `lives` allow. One that crashes for good needs
  no step of its own: it is one that is never scheduled again.
- A request that changes something times out, `timeouts` times in all, and takes effect at any later
  moment or never. A lost reply is one that takes effect at once, a plain failure one that never
  does. Requests that only read have no effect: that they fail is like a crash.
- A listing gives any files there are, up to `page` of them, in any order, again and again, and may
  end at any time. That includes every order that random tokens bring about, and every failure of
  collecting, which does not keep `resume` from returning.

Records and files are told apart by content alone, as ETags do. A token or nonce is a number that
nothing refers to at the time it is drawn. `broken` and `wrongly_resumed` are the promises.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, zip_longest
from typing import Any, Literal, NamedTuple

NEW = "new"  # Stands for the number that is drawn when a swap is sent.
DONE, REFUSED = "done", "refused"
ERROR = "error"  # Timed out: whether the request takes effect is unknown.
MIXED = "mixed"  # The origin of what a run computes from checkpoints of other inputs.


@dataclass(frozen=True)
class Rules:
    """The design. Each departure from it is one of the wrong variants below."""

    token_in_key: bool = True
    collects: Literal["retired", "everything", "not mine", "not mine, unchanged"] = "retired"
    reads_record_first: bool = False
    clears_record_last: bool = False
    fresh_versions: bool = True
    overlays: bool = True
    base_means_changed: bool = True
    base_is_live: bool = True
    # What filesystems do: a local `detach` renames the folder with all that is in it, and a client
    # of S3 sends a request that timed out again, or a second time to see that it is refused.
    detaches_files: bool = False
    resends_swap: bool = False
    repeats_swap: bool = False


class Record(NamedTuple):
    inputs: str | None
    token: int | str | None
    base: int | None
    nonce: int | str | None


class File(NamedTuple):
    """`origin` is what the payload was computed from: some inputs, or MIXED."""

    task: str
    origin: str
    token: int


class Run(NamedTuple):
    token: int
    base: int | None
    origin: str


Request = tuple[Any, ...]
Steps = Generator[Request, Any, Any]
Program = tuple[Any, ...]  # A generator function, and its arguments after the rules.


class StoppedError(Exception):
    """The operation raises: inputs changed under "raise", or the record could not be changed."""


# The operations.


def propose(
    rules: Rules, found: Record | None, inputs: str | None, policy: str
) -> tuple[Record | None, str]:
    """The next version of the record, or None to keep it, and the decision."""
    name = NEW if rules.fresh_versions else inputs
    new = Record(inputs, name, None, name)
    if found is None:
        return new, "start"
    mixed = found.base is not None and rules.base_means_changed
    if policy == "run" or (found.inputs == inputs and not mixed):
        return None, "continue"
    if policy == "label":
        unlabelled = found.inputs is None and found.base is None
        return (found._replace(inputs=inputs, nonce=NEW) if unlabelled else new), policy
    if policy == "raise":
        raise StoppedError
    if policy == "reset":
        return new, policy
    if rules.overlays and found.base is None:
        return found._replace(token=NEW, base=found.token, nonce=NEW), policy
    return None, policy


def change_record(rules: Rules, inputs: str | None, policy: str) -> Steps:
    sent, outcome, action = None, None, ""
    while True:
        found = yield ("read",)
        if found is not None and sent is not None and found.nonce == sent.nonce:
            return found, action
        if outcome is ERROR:
            raise StoppedError
        proposed, action = propose(rules, found, inputs, policy)
        if proposed is None:
            return found, action
        sent, outcome = yield ("swap", found, proposed)
        if outcome is ERROR and rules.resends_swap:
            sent, outcome = yield ("swap", found, sent)
        if outcome is DONE:
            if rules.repeats_swap:
                yield ("swap", found, sent)
            return sent, action
        del found, proposed


def resume(rules: Rules, inputs: str, policy: str) -> Steps:
    record, action = yield from change_record(rules, inputs, policy)
    run = Run(record.token, record.base, MIXED if action == "reuse" else inputs)
    del record
    if action == "reset":
        yield from collect(rules, run.token)
    return run


def read(run: Run, task: str) -> Steps:
    for token in (run.token, run.base):
        if token is not None:
            file = yield ("get", task, token)
            # The header names the generation. It matters where the key does not.
            if file is not None and file.token == token:
                return file
    return None


def collect(rules: Rules, mine: int | None, *, cleared: bool = False) -> Steps:
    while (yield from collect_page(rules, mine, cleared=cleared)):
        pass


def collect_page(rules: Rules, mine: int | None, *, cleared: bool) -> Steps:
    """Deletes what is to go of the next page, and returns whether to go on."""
    if rules.reads_record_first:
        record = yield ("read",)
    page = yield ("list",)
    if not page:
        return False
    if rules.collects == "retired":
        if not rules.reads_record_first:
            record = yield ("read",)
        if record is None and not cleared:
            return False
        live = () if record is None else record[1:3] if rules.base_is_live else record[1:2]
        page = tuple(file for file in page if file.token not in live)
        del record
    elif rules.collects.startswith("not mine"):
        if not rules.token_in_key:  # Then only the header tells. Pages have one file there.
            file = yield ("get", page[0].task, page[0].token)
            page = () if file is None else (file,)
        page = tuple(file for file in page if file.token != mine)
    if not page:
        return True
    verb = "delete if same" if rules.collects.endswith("unchanged") else "delete"
    return (yield (verb, page)) is not ERROR


def worker(rules: Rules, inputs: str, policy: str, tasks: str) -> Steps:
    """The quick start: what is not there is computed and written."""
    run = yield from resume(rules, inputs, policy)
    for task in tasks:
        if (yield from read(run, task)) is None:
            yield ("put", File(task, run.origin, run.token))
    return run


def changer(rules: Rules, inputs: str, then: str, tasks: str) -> Steps:
    """One process that races with nothing but its own late requests."""
    yield from worker(rules, inputs, "reset", tasks)
    return (yield from worker(rules, then, "reset", tasks))


def labeller(rules: Rules, inputs: str, tasks: str) -> Steps:
    """`store.run`, and `write_fingerprint` for what it wrote."""
    record, _ = yield from change_record(rules, None, "run")
    if record.inputs in (None, inputs) and record.base is None:
        run = Run(record.token, None, inputs)
        for task in tasks:
            yield ("put", File(task, run.origin, run.token))
        yield from change_record(rules, inputs, "label")


def collector(rules: Rules) -> Steps:
    yield from collect(rules, None)


def clearer(rules: Rules) -> Steps:
    if rules.clears_record_last:
        # To be fair to it: whatever was promised before it began, it may take.
        yield ("begin",)
        while (page := (yield ("list",))) and (yield ("delete", page)) is not ERROR:
            pass
        yield ("detach",)
    elif (yield ("detach",)) is not ERROR:
        yield from collect(rules, None, cleared=True)


# What the requests do.


class Storage(NamedTuple):
    """`promised` are the task and token of every write that returned, as long as the record refers
    to that generation: what a reset or a clear gives up it may take."""

    record: Record | None = None
    files: frozenset[File] = frozenset()
    late: tuple[Request, ...] = ()
    promised: frozenset[tuple[str, int]] = frozenset()
    timeouts: int = 0

    def live(self, token: int) -> bool:
        return self.record is not None and token in (self.record.token, self.record.base)

    def change(self, rules: Rules, record: Record | None) -> Storage:
        after = self._replace(record=record)
        late = self.late
        if rules.fresh_versions and not rules.resends_swap and not rules.repeats_swap:
            # No version comes back, so that a swap against one that is gone can be forgotten.
            late = tuple(r for r in late if r[0] != "swap" or r[1] in (None, record))
        promised = frozenset(promise for promise in self.promised if after.live(promise[1]))
        return after._replace(late=late, promised=promised)


def apply(rules: Rules, page: int, storage: Storage, request: Request) -> list[tuple[Storage, Any]]:
    """The storage after a request and the reply to it. Of a listing there are several."""

    def key(file: File) -> tuple[Any, ...]:
        return (file.task, file.token) if rules.token_in_key else (file.task,)

    verb, *arguments = request
    if verb == "read":
        return [(storage, storage.record)]
    if verb == "list":
        files, sizes = sorted(storage.files), range(page + 1)
        return [(storage, chosen) for size in sizes for chosen in combinations(files, size)]
    if verb == "get":
        wanted = key(File(arguments[0], "", arguments[1]))
        return [(storage, next((file for file in storage.files if key(file) == wanted), None))]
    if verb == "put":
        others = {file for file in storage.files if key(file) != key(arguments[0])}
        return [(storage._replace(files=frozenset({*others, *arguments})), DONE)]
    if verb in ("delete", "delete if same"):
        identity = key if verb == "delete" else tuple
        doomed = {identity(file) for file in arguments[0]}
        left = frozenset(file for file in storage.files if identity(file) not in doomed)
        return [(storage._replace(files=left), DONE)]
    if verb == "swap":
        old, new = arguments
        if storage.record != old:
            return [(storage, (new, REFUSED))]
        return [(storage.change(rules, new), (new, DONE))]
    if verb == "detach":
        files = frozenset() if rules.detaches_files else storage.files
        return [(storage.change(rules, None)._replace(files=files), DONE)]
    assert verb == "begin"
    return [(storage._replace(promised=frozenset()), DONE)]


def drawn(request: Request, number: int) -> Request:
    if request[0] != "swap":
        return request
    return (*request[:2], Record(*(number if value == NEW else value for value in request[2])))


def broken(storage: Storage, run: Run | None) -> str | None:
    """Which promise does not hold in a state with this run: all that it could read is looked at."""
    for task, token in storage.promised:
        if not any(file.task == task and file.token == token for file in storage.files):
            return f"LOST: {task} was written in generation {token}, which is live"
    for file in storage.files if run and run.origin != MIXED else ():
        if file.token == run.token and file.origin != run.origin:
            return f"STALE: a run with inputs {run.origin} finds {file.task} from {file.origin}"
    return None


def wrongly_resumed(rules: Rules, record: Record | None, run: Run) -> str | None:
    if record is None or record.token != run.token:
        # Unless it was retired before the second of two swaps, which tells a run nothing.
        return None if rules.repeats_swap else f"FORGOTTEN: no record names generation {run.token}"
    if run.origin != MIXED and (record.base is not None or record.inputs not in (None, run.origin)):
        return f"STALE: a run with inputs {run.origin} continues a generation of others"
    return None


# The search.


class Process(NamedTuple):
    """A process between two requests. `replies` led there from the start of its program."""

    program: Program
    lives: int
    replies: tuple[Any, ...]
    request: Request | None
    run: Run | None
    numbers: int  # Those that its variables hold, as bits.
    wrong: str | None = None

    def __str__(self) -> str:
        return f"{self.program[0].__name__}({', '.join(self.program[1:])})"


@dataclass
class System:
    """One process for each program. `lives` of the first ones; the others have one."""

    programs: Sequence[Program]
    rules: Rules = field(default_factory=Rules)
    lives: Sequence[int] = ()
    timeouts: int = 1
    page: int = 1


class Found(NamedTuple):
    states: int
    depth: int
    wrong: str | None
    trace: list[str]


State = tuple[int, ...]  # The index of a storage, and those of the processes.
Move = tuple[str, int, int]  # What happens, and the storage and the process after it.


class Search:
    def __init__(self, system: System) -> None:
        self.system = system
        self._storages: list[tuple[Storage, int]] = []  # Each with the numbers in it, as bits.
        self._processes: list[Process] = []
        self._indices: dict[Any, int] = {}
        # All that was worked out once.
        self._moves: dict[tuple[int, ...], list[Move]] = {}
        self._wrong: dict[tuple[int, int], str | None] = {}
        self._names: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
        self._renamed: dict[tuple[int, tuple[int, ...]], int] = {}

    def explore(self, *, merge: bool = True) -> Found:
        """All states, breadth first, until one is wrong: no trace to a wrong one is shorter.

        `merge` takes states for one that differ only in names and in which process is which. There
        are fewer, by a factor of ten, but the trace is lost.
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
        rules, storage = self.system.rules, self._storages[storage_index][0]
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
        if storage.timeouts and verb in ("swap", "put", "delete", "delete if same", "detach"):
            # Keys are deleted one by one.
            keys = request[1] if verb.startswith("delete") else ()
            late = tuple((verb, (key,)) for key in keys) or (request,)
            then = storage._replace(late=storage.late + late, timeouts=storage.timeouts - 1)
            reply = (request[2], ERROR) if verb == "swap" else ERROR
            yield (
                f"{process} {_words(request)} times out",
                self._storage(then.change(rules, then.record)),
                self._next(process, reply, then),
            )

    def _arrivals(self, storage_index: int) -> Iterator[Move]:
        storage = self._storages[storage_index][0]
        for index, request in enumerate(storage.late):
            rest = storage._replace(late=storage.late[:index] + storage.late[index + 1 :])
            for then, _ in apply(self.system.rules, self.system.page, rest, request):
                yield f"- late: {_words(request)} takes effect", self._storage(then), -1

    def _broken(self, state: State) -> str | None:
        for process in state[1:]:
            at = (state[0], process)
            if at not in self._wrong:
                _, _, _, _, run, _, wrong = self._processes[process]
                self._wrong[at] = wrong or broken(self._storages[state[0]][0], run)
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
            wrong = wrongly_resumed(self.system.rules, storage.record, moved.run)
            return self._intern((index, wrong), moved._replace(wrong=wrong)) if wrong else index
        return index

    def _process(self, program: Program, lives: int, replies: tuple[Any, ...]) -> int:
        """A process is known by where its generators stand and by their variables.

        That is all there is to a suspended generator as long as no expression contains a `yield`
        beside others, and the variable of a `for` loop tells how far it is.
        """
        steps = inner = program[0](self.system.rules, *program[1:])
        run, frames, request = None, [], None
        try:
            request = next(steps)
            for reply in replies:
                request = steps.send(reply)
            while inner is not None:
                variables = inner.gi_frame.f_locals
                run = run or variables.get("run")
                frames.append((inner.gi_frame.f_lasti, tuple(variables.items())))
                inner = inner.gi_yieldfrom
        except StopIteration as stop:
            run, request = stop.value, None
        except StoppedError:
            request = None
        held = _bits((run, *(variables for _, variables in frames)))
        place = (program, lives, run, *frames)
        return self._intern(place, Process(program, lives, replies, request, run, held))

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
        """One of the states that are the same but for names and for the order of processes."""
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
        """Names numbers in the order in which they stand in the storage, then the others."""
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
    """The tokens and nonces in a value, in the order in which they stand there."""
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
    """Records as inputs@token+base, files as task@token=origin."""
    if isinstance(value, Record):
        return f"{value.inputs}@{value.token}" + ("" if value.base is None else f"+{value.base}")
    if isinstance(value, File):
        return f"{value.task}@{value.token}={value.origin}"
    if isinstance(value, tuple):
        return " ".join(map(_words, value)) or "nothing"
    return "nothing" if value is None else str(value)


# What is searched.

ONE_KEY = Rules(token_in_key=False, collects="everything")
FOREIGN = Rules(token_in_key=False, collects="not mine")
FOREIGN_IF_MATCH = Rules(token_in_key=False, collects="not mine, unchanged")
NOT_MINE, RECORD_FIRST = Rules(collects="not mine"), Rules(reads_record_first=True)
RECORD_LAST, NO_NONCE = Rules(clears_record_last=True), Rules(fresh_versions=False)
IN_PLACE, LOCAL = Rules(overlays=False), Rules(detaches_files=True)
BASE_EQUALS, BASE_GOES = Rules(base_means_changed=False), Rules(base_is_live=False)
RESENDING, REPEATING = Rules(resends_swap=True), Rules(repeats_swap=True)

A, B = (worker, "A", "reset", "x"), (worker, "B", "reset", "x")
A_RAISE, B_REUSE = (worker, "A", "raise", "x"), (worker, "B", "reuse", "x")
A_BEGINS, B_BEGINS = (worker, "A", "reset", ""), (worker, "B", "reset", "")
A_TWO, B_TWO = (worker, "A", "reset", "xy"), (worker, "B", "reset", "xy")
LABEL, CHANGE = (labeller, "A", "x"), (changer, "A", "B", "x")
CLEAR, COLLECT = (clearer,), (collector,)

DESIGN = {
    "reset, two processes": System([A, B], lives=(3, 3)),
    "reset and raise": System([A, B, A_RAISE], lives=(2, 2)),
    "reset, four processes": System([A, A, B, B]),
    "reset, two late requests": System([A, B, B, COLLECT], timeouts=2),
    "two tasks, pages of two": System([A_TWO, B_TWO, COLLECT], lives=(2,), page=2),
    "reuse, reset, clear": System([A, B_REUSE, B, CLEAR]),
    "reuse, raise, collect": System([A, B_REUSE, A_RAISE, COLLECT], lives=(2,)),
    "clear": System([A, CLEAR, A], lives=(2, 2)),
    "clear on a local disk": System([A, B, CLEAR], LOCAL, lives=(2, 2), timeouts=0),
    "label": System([LABEL, LABEL, B, A_RAISE]),
    "one process, three late requests": System([CHANGE], lives=(2,), timeouts=3),
    "swaps sent again, no clear": System([A, B, B], RESENDING, lives=(2,)),
    "swaps repeated, no clear": System([A, B, B], REPEATING, lives=(2,)),
}

LARGE = {
    "reset, three processes": System([A, B, B], lives=(2, 2, 2)),
    "reset, four processes": System([A, B, A, B], lives=(2,)),
    "reset, four processes, two late requests": System([A, A, B, B], timeouts=2),
    "two tasks, pages of two": System([A_TWO, B_TWO], lives=(2, 2), page=2),
    "reuse and reset": System([A, B_REUSE, B, B_REUSE], lives=(2,)),
    "reuse, reset, clear": System([A, B_REUSE, B, CLEAR], lives=(2,)),
    "label": System([LABEL, LABEL, B, A_RAISE], lives=(2,)),
}

# Where a late writer alone would do harm, only the last process writes.
WRONG = {
    "one key per task with list-and-delete": System([A_BEGINS, B_BEGINS, B], ONE_KEY, timeouts=0),
    "deleting only foreign headers": System([A_BEGINS, B_BEGINS, A], FOREIGN, timeouts=0),
    "the same with If-Match": System([A_BEGINS, B_BEGINS, A], FOREIGN_IF_MATCH, timeouts=0),
    "token keys but deleting what is not mine": System([A, B, A], NOT_MINE, timeouts=0),
    "reading the record before listing": System([A, B, A], RECORD_FIRST, timeouts=0),
    "clear that deletes the record last": System([A, A, CLEAR], RECORD_LAST, timeouts=0),
    "reset without nonce": System([A, B, A, COLLECT], NO_NONCE, timeouts=0),
    "reuse that writes into the old generation": System([A, B_REUSE], IN_PLACE, timeouts=0),
}

# The other half of the overlay, and what only a request that takes effect late or twice can do.
ALSO_WRONG = {
    "a record with a base equals inputs": System([A, B_REUSE, A_RAISE], BASE_EQUALS, timeouts=0),
    "collecting the base": System([A, B_REUSE, COLLECT], BASE_GOES, timeouts=0),
    "one key per task, and a late write": System([CHANGE], ONE_KEY),
    "a create sent again and arriving after a clear": System([A, A, CLEAR], RESENDING),
    "a create repeated after a clear": System([A_BEGINS, A, A, CLEAR], REPEATING, timeouts=0),
}


def main(arguments: list[str]) -> None:
    for name, system in (LARGE if "--large" in arguments else DESIGN).items():
        began = time.process_time()
        found = Search(system).explore()
        seconds = time.process_time() - began
        print(f"{found.states:9,} states {seconds:6.1f} s  {name}: {found.wrong or 'right'}")  # noqa: T201
    for name, system in {**WRONG, **ALSO_WRONG}.items():
        found = Search(system).explore(merge=False)
        print(f"\n{name}, {found.depth} steps: {found.wrong}", *found.trace, sep="\n  ")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
