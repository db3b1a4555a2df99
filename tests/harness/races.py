"""Processes that race for one workflow, and a judge of what they were told.

    python -m tests.harness.races                         50 seeds of 200 calls, on a disk and S3
    python -m tests.harness.races --url s3 --seeds 5      fewer, on one of them
    python -m tests.harness.races --url s3://bucket/new   where there is nothing yet

Each seed is three races of 8 processes, all released at once:

- Creates: again and again all resume a new workflow, with the same inputs or with inputs of their
  own.
- A counter in the record: all increase it.
- Everything: each process does its operations on one workflow, at random, in a mix that depends on
  the seed. There are two inputs, which change at about the same time, and most resumes declare
  tasks that use one of them. So resets that keep different tasks race with each other, with new
  declarations and with those who collect. The checkpoints tell who wrote them, under which token,
  and for which inputs.

Every process notes when each operation began and ended, and what it was told. `judge_record` then
looks for an order of the operations, one at a time, in which everything is true that the processes
were told of the record. `judge_checkpoints` looks for a write that was lost or overwritten by an
older one.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint_store import (
    CheckpointNotFoundError,
    CheckpointStore,
    ContentionError,
    InputChangedError,
    Run,
    Task,
    fingerprint,
    resume,
)
from checkpoint_store._filesystems import base, s3_engine
from checkpoint_store._protocol import change_record, read_record
from checkpoint_store._record import Record, new_record
from checkpoint_store._steps import drive
from checkpoint_store.errors import CorruptRecordError

from . import servers
from .backends import LocalBackend, MinistackBackend
from .environment import TIMEOUT

PROCESSES = 8
TASKS = [str(process) for process in range(PROCESSES)]
"""Each process writes the task with its own number."""
HESITATION = 0.02
"""One request in ten is late by up to this many seconds."""


class Key(NamedTuple):
    """What some of the declared tasks depend on: the value of an input, and their declaration."""

    value: str
    uses: str
    version: int
    after: bool = False

    def of(self, inputs: str) -> Key:
        """The same declaration with other inputs."""
        return self._replace(value=_inputs(inputs)[self.uses])


def declared(version: int) -> dict[str, Task]:
    """Of four tasks two use one input each, one comes after the first, and one is not declared."""
    first = Task(uses=["first"], version=version)
    some = dict(enumerate((first, Task(uses=["second"]), Task(uses=[], after=["0"]))))
    return {task: some[int(task) % 4] for task in TASKS if int(task) % 4 in some}


def key_of(task: str, inputs: str, version: int) -> Key:
    """The key that a task has to have, if it is declared."""
    first = Key("", "first", version)
    keys = {0: first, 1: Key("", "second", 0), 2: first._replace(after=True)}
    return keys[int(task) % 4].of(inputs)


def _inputs(inputs: str) -> dict[str, str]:
    return dict(zip(("first", "second"), inputs.split(), strict=True))


# The judge


class Call(NamedTuple):
    """An operation and what the process was told.

    `start` and `end` are nanoseconds of the monotonic clock, which all processes share.
    """

    process: int
    start: int
    end: int
    kind: str
    given: str | None = None
    """The inputs that the operation was called with."""
    seen: str | None = None
    """The inputs whose fingerprint it found in the record; the fingerprint until it is judged."""
    token: str | None = None
    base: str | None = None
    keys: tuple[tuple[Key, str], ...] = ()
    """The tokens of the keys of its tasks."""
    older: tuple[tuple[Key, str], ...] = ()
    """Those under which it looks for checkpoints that it reuses."""
    kept: bool = False
    """Whether it kept something of what was declared before."""
    task: str | None = None
    number: int = 0
    """The number of the write, also in a read that found it; 0 if the read found nothing."""
    origin: str | None = None
    """The generation of the write that a read found."""


Tokens = frozenset[tuple[Key, str]]
NONE: Tokens = frozenset()


class Version(NamedTuple):
    """What is known of a record."""

    fingerprint: str | None
    token: str | None
    """None as long as nobody has been told it, as after `write_fingerprint`."""
    base: str | None = None
    inputs: str | None = None
    """None if they are not recorded, because they were given as a fingerprint."""
    tasks: Tokens = NONE
    base_tasks: Tokens = NONE


RECORD_KINDS = {
    "start", "continue", "reset", "raise", "reuse", "run", "read", "write", "clear",
}  # fmt: skip


def follow(record: Version | None, call: Call, past: frozenset[str]) -> list[Version | None]:
    """What the record may be after a call that found it like this.

    The list is empty if such a call would have been told something else. `past` has the tokens of
    all keys that there were: none of them may be that of a new key.
    """
    made = Version(call.given, call.token, inputs=call.given)
    if record is None:
        if call.seen is not None:
            return []
        if call.kind == "start":
            return with_keys(made, NONE, call, past)
        if call.kind in ("run", "write"):
            return [Version(call.given, call.token)]
        return [None] if call.kind in ("read", "clear") else []
    fingerprint, token, base, *_ = record
    changed = base is not None or fingerprint != call.given
    same = token in (None, call.token) and base == call.base
    told = record._replace(token=call.token, base=call.base)
    # A run of a workflow that is mixed has no fingerprint.
    seen = None if call.kind == "run" and base is not None else fingerprint
    if call.seen != seen and call.kind not in ("clear", "write"):
        return []
    match call.kind:
        case "clear":
            return [None]
        case "write" if fingerprint is None and base is None:
            return [record._replace(fingerprint=call.given)]
        case "write":
            return [Version(call.given, None) if changed else record]
        case "read":
            return [record]
        case "run" if same:
            return [told]
        case "continue" if same and not changed:
            return with_keys(told, told.tasks, call, past)
        case "raise" if changed:
            return [record]
        case "reset" if changed:
            pure = record.tasks if base is None else record.base_tasks
            kept = frozenset(each for each in pure if each[0] in dict(call.keys))
            return with_keys(made, kept, call, past)
        case "reuse" if base is None and changed and token in (None, call.base):
            overlay = told._replace(tasks=NONE, base_tasks=record.tasks)
            return with_keys(overlay, NONE, call, past)
        case "reuse" if base is not None and same:
            return with_keys(told, told.tasks, call, past)
    return []


def with_keys(
    record: Version, tasks: Tokens, call: Call, past: frozenset[str]
) -> list[Version | None]:
    """The record with these keys and those that the call adds, unless it was told others."""
    known = dict(tasks | record.base_tasks)
    new = {(key, token) for key, token in call.keys if key not in known}
    older = {}
    if record.base is not None and record.inputs is not None:
        below = dict(record.base_tasks)
        older = {key: below.get(key.of(record.inputs)) for key, _ in call.keys}
    possible = (
        all(known.get(key, token) == token for key, token in call.keys)
        and past.isdisjoint(token for _, token in new)
        and dict(call.older) == {k: t for k, t in older.items() if t and t != known.get(k)}
    )
    return [record._replace(tasks=tasks | new)] if possible else []


Way = tuple[Version | None, frozenset[str], frozenset[int]]
"""The record after some order of calls, the tokens of keys so far, and who has had an effect."""


def judge_record(calls: Sequence[Call]) -> None:
    """Raises `AssertionError` unless the calls are linearizable.

    That means that each has its effect at one moment between its beginning and its end. The calls
    are gone through in the order of their ends. At each end, every order is kept in which the call
    has had its effect by then, after any of the calls that are under way.
    """
    calls = [call for call in calls if call.kind in RECORD_KINDS]
    starts = [(call.start, False, number) for number, call in enumerate(calls)]
    ends = [(call.end, True, number) for number, call in enumerate(calls)]
    under_way: set[int] = set()
    ways: set[Way] = {(None, frozenset(), frozenset())}
    for _, ended, number in sorted(starts + ends):
        if not ended:
            under_way.add(number)
            continue
        tried, untried, before = set(), ways, ways
        ways = set()
        while untried:
            tried |= untried
            ways |= {
                (last, past, done - {number}) for last, past, done in untried if number in done
            }
            untried = {
                (after, remember(past, after), done | {other})
                for record, past, done in untried
                if number not in done
                for other in under_way - done
                for after in follow(record, calls[other], past)
            } - tried
        assert ways, explain(calls, number, before)
        under_way.remove(number)
    made = Counter(call.token for call in calls if call.kind in ("start", "reset"))
    assert len(made) == made.total(), f"two generations have one token: {made.most_common(1)}"


def remember(past: frozenset[str], record: Version | None) -> frozenset[str]:
    now = {token for _, token in record.tasks} if record else set()
    return past if now <= past else past | now


def explain(calls: Sequence[Call], number: int, ways: set[Way]) -> str:
    wrong = calls[number]
    beside = [call for call in calls if call.start <= wrong.end and call.end >= wrong.start]
    records = {record for record, *_ in ways}
    lines = [f"no order explains {wrong}", "the record may have been", *map(repr, records)]
    lines += ["and there was beside it", *map(repr, sorted(beside, key=lambda call: call.start))]
    return "\n  ".join(lines)


def judge_checkpoints(calls: Sequence[Call]) -> None:
    """Raises `AssertionError` if a read missed a write that had returned before the read began, or
    found one that began after the read was over.

    Each task is written by only one process, which numbers its writes.
    """
    writes: dict[tuple[str | None, str | None], list[Call]] = {}
    for call in calls:
        if call.kind == "dump":
            writes.setdefault((call.token, call.task), []).append(call)
    for read in calls:
        if read.kind != "load":
            continue
        for generation in filter(None, (read.token, read.base)):
            there = writes.get((generation, read.task), [])
            returned = max((write.number for write in there if write.end < read.start), default=0)
            begun = max((write.number for write in there if write.start < read.end), default=0)
            if read.origin == generation:
                assert max(returned, 1) <= read.number <= begun, f"{read}: {returned} to {begun}"
                break
            assert not returned, f"{read}: write {returned} of {generation} had returned"
        else:
            assert read.origin is None, f"{read}: that is not its generation"


# The races

_together: Barrier


def _prepare(barrier: Barrier) -> None:
    global _together
    _together = barrier
    logging.getLogger("checkpoint_store").addFilter(_expected)


def _expected(message: logging.LogRecord) -> bool:
    """Silences warnings. The one that a reset could not delete the old files fails the race."""
    assert "was reset, but" not in message.msg, message.getMessage()
    return False


def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    _together.wait()
    return function(*arguments)


Race = Callable[..., list[Any]]


@contextmanager
def racers(store: CheckpointStore) -> Iterator[Race]:
    """Starts the processes, and gives a function that calls another one in all of them at once.

    The other function gets the store and the number of its process.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES, timeout=TIMEOUT)
    with ProcessPoolExecutor(PROCESSES, context, _prepare, (barrier,)) as pool:

        def race(function: Callable[..., Any], *arguments: Any) -> list[Any]:
            futures = [
                pool.submit(_at_once, function, store, process, *arguments)
                for process in range(PROCESSES)
            ]
            return [future.result(TIMEOUT) for future in futures]

        race(warm_up)
        yield race


def warm_up(store: CheckpointStore, process: int) -> None:
    """Connects, and finds out whether the storage honours conditions.

    From then on pages are small and a request is late now and then, so that other processes often
    come in between two requests.
    """
    store.run(f"warm {process}")
    store.clear(f"warm {process}")
    assert store.conditional_writes, "there is no race to win without conditional writes"
    filesystem = store._filesystem
    for name in ("read_small", "swap", "detach", "list_files", "delete", "read", "write"):
        setattr(filesystem, name, hesitant(getattr(filesystem, name)))
    for module in (base, s3_engine):
        module.PAGE = 3


def hesitant(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if random.random() < 0.1:
            time.sleep(random.uniform(0, HESITATION))
        return function(*arguments)

    return call


class Racer:
    """A process that races for a workflow, and notes what it is told."""

    def __init__(self, store: CheckpointStore, workflow: str, process: int) -> None:
        self.store = store
        self.workflow = workflow
        self.process = process
        self.calls: list[Call] = []
        self._began = 0
        self._run: Run | None = None
        self._version = 0
        self._given = ""
        self._written = 0

    def perform(
        self, kind: str, given: str = "", task: str = "", version: int | None = None
    ) -> None:
        """Does an operation with these inputs. With a version, a resume declares tasks.

        A single word is given as an explicit fingerprint.
        """
        if self._run is None and kind in ("dump", "load", "load many"):
            kind = "run"
        self._began = time.monotonic_ns()
        try:
            self._perform(kind, given, task, version)
        except ContentionError:
            # Writing a checkpoint changes no record, so that there is nothing to contend for.
            if kind == "dump":
                raise
            self._note("contention")

    def _perform(self, kind: str, given: str, task: str, version: int | None) -> None:
        run = self._run
        match kind:
            case "reset" | "raise" | "reuse":
                self._resume(given, kind, version)
            case "run":
                self._run = run = self.store.run(self.workflow)
                self._note("run", seen=run.fingerprint, token=run.token, base=run._base)
            case "read":
                self._note("read", seen=self.store.read_fingerprint(self.workflow))
            case "write":
                self.store.write_fingerprint(self.workflow, fingerprint_of(given))
                self._note("write", given=given)
            case "clear":
                self.store.clear(self.workflow)
                self._note("clear")
            case "collect":
                self.store.collect(self.workflow)
                self._note("collect")
            case "dump" if run:
                self._dump(run)
            case "load" if run:
                try:
                    value = run.load(task)
                except CheckpointNotFoundError:
                    value = None
                self._loaded(run, {task: value})
            case "load many" if run:
                self._loaded(run, {**dict.fromkeys(TASKS), **run.load_many()})

    def _resume(self, given: str, policy: Any, version: int | None) -> None:
        try:
            if " " in given:
                tasks = None if version is None else declared(version)
                run = resume(
                    self.store, self.workflow, _inputs(given), on_input_change=policy, tasks=tasks
                )
            else:
                run = resume(self.store, self.workflow, fingerprint=given, on_input_change=policy)
        except InputChangedError as error:
            self._note("raise", given=given, seen=error.stored)
            return
        assert run.decision
        self._run, self._given, self._version = run, given, version or 0
        keys = {key_of(task, given, version or 0): run._tokens(task) for task in run._after}
        self._note(
            run.decision.action,
            given=given,
            seen=run.decision.stored,
            token=run.token,
            base=run._base,
            keys=tuple((key, tokens[0]) for key, tokens in keys.items()),
            older=tuple((key, tokens[1]) for key, tokens in keys.items() if tokens[1:]),
            kept=bool(run.decision.kept),
        )

    def _origin(self, run: Run, task: str) -> str | None:
        """What a strict run has to find in the checkpoint of a task, and writes into it."""
        if task in run._after:
            return str(key_of(task, self._given, self._version))
        return run.fingerprint if run.decision else None

    def _dump(self, run: Run) -> None:
        self._written += 1
        task = TASKS[self.process]
        token = run._tokens(task)[0]
        run.dump(task, {"number": self._written, "token": token, "inputs": self._origin(run, task)})
        self._note("dump", token=token, task=task, number=self._written)

    def _loaded(self, run: Run, values: dict[str, Any]) -> None:
        """Notes which writes a read has found.

        A read under a token that is out of force may find nothing, and is noted as such. A token
        that is in force after the read has been so all the time, because none comes back.
        """
        live: frozenset[str] | None = None
        for task, value in values.items():
            token, *older = run._tokens(task)
            origin = value and value["token"]
            if origin != token and live is None:
                record = drive(self.store._filesystem, read_record(self.workflow))
                live = frozenset() if record is None else record.live
            if live is not None and origin in (None, *older) and not live >= {token, *older}:
                self._note("retired")
            else:
                told = {"token": token, "base": older[0] if older else None, "origin": origin}
                self._note("load", number=value["number"] if value else 0, task=task, **told)
            # A run without inputs may have written into a generation that got a fingerprint later.
            if value and run._base is None and (expected := self._origin(run, task)):
                assert value["inputs"] in (None, expected), f"{run} was given {value}"

    def _note(self, kind: str, **told: Any) -> None:
        self.calls.append(Call(self.process, self._began, time.monotonic_ns(), kind, **told))


def fingerprint_of(given: str) -> str:
    return fingerprint(_inputs(given)) if " " in given else given


def create(store: CheckpointStore, process: int, workflow: str, inputs: str) -> list[Call]:
    racer = Racer(store, workflow, process)
    racer.perform("reset", inputs.format(process))
    return racer.calls


def count(store: CheckpointStore, _process: int, workflow: str, times: int) -> list[int]:
    def counted(found: Record | CorruptRecordError | None) -> tuple[Record, None]:
        assert not isinstance(found, CorruptRecordError)
        return new_record(workflow, str(1 + int((found and found.fingerprint) or 0))), None

    reached = []
    for _ in range(times):
        with suppress(ContentionError):
            changing = change_record(store._filesystem, workflow, counted)
            _, record, _ = drive(store._filesystem, changing)
            reached.append(int(record.fingerprint or 0))
    return reached


MIX = {
    "reset": 6, "raise": 1, "reuse": 1, "run": 1, "read": 2, "write": 0.5, "clear": 0.5,
    "collect": 2, "dump": 6, "load": 6, "load many": 1,
}  # fmt: skip


def mix(
    store: CheckpointStore, process: int, workflow: str, seed: int, operations: int
) -> list[Call]:
    of_all = random.Random(seed)
    kinds = {kind: weight * of_all.random() for kind, weight in MIX.items()}
    random_ = random.Random(f"{seed} {process}")
    racer = Racer(store, workflow, process)
    for turn in range(operations):
        (kind,) = random_.choices(list(kinds), list(kinds.values()))
        # All processes go on to the next inputs at about the same time, but not at the same turn.
        first, second = ((turn + random_.randrange(4)) // 20 for _ in range(2))
        version = random_.choice((None, 1, 1, 1, 2))
        racer.perform(kind, f"{first} {second}", random_.choice(TASKS), version)
    return racer.calls


def race_once(race: Race, store: CheckpointStore, seed: int, operations: int) -> Counter[str]:
    """Runs the three races of a seed, and counts the outcomes of the operations."""
    workflow = f"seed {seed}"
    counts: Counter[str] = Counter()

    def judge(workflow: str, notes: list[list[Call]]) -> None:
        end = Racer(store, workflow, PROCESSES)
        end.perform("run")
        calls = [call for calls in notes for call in calls]
        # Whatever is in the record, somebody has given it.
        given = {fingerprint_of(call.given): call.given for call in calls if call.given}
        judge_record(
            [
                call._replace(seen=given.get(call.seen or "", call.seen))
                for call in calls + end.calls
            ]
        )
        judge_checkpoints(calls)
        counts.update(call.kind + ", keeping tasks" * call.kept for call in calls)
        store.clear(workflow)

    for number in range(operations // 10):
        name = f"{workflow}, new {number}"
        judge(name, race(create, name, "of-{}" if number % 2 else "of-all"))
    # A try fails only if another process succeeds, and there are fewer other processes than tries.
    assert not counts["contention"], "a race for a new workflow was given up"

    reached = [number for numbers in race(count, workflow, operations // 8) for number in numbers]
    assert sorted(reached) == list(range(1, len(reached) + 1)), "an update was lost"
    assert store.read_fingerprint(workflow) == str(len(reached))
    store.clear(workflow)
    counts["count"] += len(reached)
    counts["contention"] += PROCESSES * (operations // 8) - len(reached)

    judge(workflow, race(mix, workflow, seed, operations))
    left = [name for name in store.workflows() if name.startswith(workflow)]
    assert not left, f"a clear with nobody beside it left something of {left}"
    return counts


@contextmanager
def storage(url: str) -> Iterator[CheckpointStore]:
    """A store at a URL, or in a storage that is made for the races."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if url == "local":
            store = LocalBackend(Path(folder)).store(durable=False)
        elif url == "s3":
            servers.KEPT.mkdir(parents=True, exist_ok=True)
            endpoint = stack.enter_context(servers.ministack_server(servers.KEPT))
            store = MinistackBackend(endpoint).store()
        else:
            store = CheckpointStore(url)
        yield stack.enter_context(store)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.harness.races")
    parser.add_argument("--url", action="append", help="local, s3 (a server of its own), or a URL")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--operations", type=int, default=200)
    options = parser.parse_args(arguments)
    for url in options.url or ("local", "s3"):
        counts: Counter[str] = Counter()
        began = time.monotonic()
        with storage(url) as store, racers(store) as race:
            for seed in range(options.seeds):
                try:
                    counts += race_once(race, store, seed, options.operations)
                except BaseException as error:
                    error.add_note(f"in seed {seed} at {url}")
                    raise
        figures = ", ".join(f"{number:,} {kind}" for kind, number in counts.most_common())
        took = time.monotonic() - began
        print(f"{url}, {took:.0f} s: {counts.total():,} calls: {figures}")  # noqa: T201


if __name__ == "__main__":
    main()
