"""An exhaustive search of the record and collect protocol, as it is shipped.

    python -m tests.harness.protocol_model           what CI searches, and traces of wrong variants
    python -m tests.harness.protocol_model --large   18.4 million states, in 10 minutes and 0.6 GB

The steps of the package are driven over a storage that is a model. The search takes every
interleaving of the requests of several processes, and everywhere:

- A process crashes and starts again, as often as its `lives` allow. A process that crashes for
  good, or gives up, needs no step of its own: it is never scheduled again.
- A request that changes something times out, `timeouts` times in all, and takes effect at any later
  moment or never. If it takes effect at once, that is a lost reply; if it never does, that is a
  plain failure. Requests that only read have no effect, so that their failure is like a crash.
- A listing gives any files there are, up to `page` of them, in any order, again and again, and may
  end at any time. That includes every order that random tokens bring about, every failure of
  collecting, which does not keep `resume` from returning, and files that could not be deleted.

Records and files are told apart by their content alone, as ETags do. A new token or nonce is a
number that nothing refers to when it is sent. `broken` and `wrongly_resumed` check the promises.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from functools import cache
from typing import Any

from checkpoint_store import CheckpointNotFoundError, StorageError
from checkpoint_store._progress import Progress
from checkpoint_store._steps import Steps
from checkpoint_store._tasks import Declared, Task, declared

from .mutations import DETACH
from .protocol_search import Rules, Search, System, Variant
from .protocol_steps import COMMON, WORKFLOW, Change, Code, Worker, digests_of, number, origin_of

# The programs, which use the library as an application does


def declarer(code: Code, inputs: str, policy: str, version: str = "") -> Steps[Any]:
    """Does what a worker does, and declares that `x` uses the input `a`, and `y` uses `b` and `x`.

    `inputs` are two letters, one for each of `a` and `b`.
    """
    given, digests = _given(inputs, version), digests_of(inputs)
    run = yield from code.resume.resuming(code.store, WORKFLOW, inputs, digests, policy, given)
    run = Worker(run, given.keys)
    for task in given.tasks:
        if not (yield from has(code, run.run, task)):
            yield from write(code, run.run, task, given.keys[task])
    return run


@cache
def _given(inputs: str, version: str) -> Declared:
    tasks = {"x": Task(uses=["a"], version=version), "y": Task(uses=["b"], after=["x"])}
    return declared(tasks, digests_of(inputs) or {})


def worker(code: Code, inputs: str, policy: str, tasks: str) -> Steps[Any]:
    """Does what the quick start does: computes and writes the tasks that are not there."""
    run = yield from code.resume.resuming(code.store, WORKFLOW, inputs, None, policy)
    for task in tasks:
        if not (yield from has(code, run, task)):
            yield from write(code, run, task)
    return run


def changer(code: Code, inputs: str, then: str, tasks: str) -> Steps[Any]:
    """Works on some inputs and then on others, where only its own late requests can interfere."""
    yield from worker(code, inputs, "reset", tasks)
    return (yield from worker(code, then, "reset", tasks))


def labeller(code: Code, inputs: str, tasks: str) -> Steps[Any]:
    """Does what `store.run` does, and then `write_fingerprint` for what it has written."""
    _, record, _ = yield from code.protocol.change_record(
        code.filesystem, WORKFLOW, lambda found: code.policy.opened(found, WORKFLOW, None)
    )
    if record.fingerprint not in (None, inputs) or record.base is not None:
        return None
    run = code.store._bind(record, inputs, None)
    for task in tasks:
        yield from write(code, run, task)
    yield from code.protocol.change_record(
        code.filesystem, WORKFLOW, lambda found: code.policy.labelled(found, WORKFLOW, inputs)
    )
    return run


def collector(code: Code) -> Steps[Any]:
    yield from code.protocol.collect(WORKFLOW, Progress(None))


def clearer(code: Code) -> Steps[Any]:
    yield from code.protocol.clear(WORKFLOW, Progress(None))


def has(code: Code, run: Any, task: str) -> Steps[bool]:
    try:
        header, file = yield from code.checkpoints.read(run._generations(task))
    except CheckpointNotFoundError:
        return False
    # The header of a file names its generation, too. That matters where the key does not name it.
    return bool(file.token == number(header.token))


def write(code: Code, run: Any, task: str, key: str | None = None) -> Steps[None]:
    """Writes a checkpoint, and goes on if that fails."""
    header = run._header(task)
    with suppress(StorageError):
        yield from code.checkpoints.write(header, (header, origin_of(run, key, task)))


# The variants, in which a few lines of the source of the package are changed

READ = "        record = yield from read_record(workflow_id)\n"
LIVE = "        live = frozenset[str]() if record is None else record.live\n"
IF_NONE = """\
        if record is None and not cleared:
            return None
"""
COLLECT_ALL = "    return (yield from collect(workflow_id, progress, cleared=True))\n"

IS_MINE = """\
        try:
            file = yield from call(about, Filesystem.read, f"{folder}/{names[0]}")
        except FileNotFoundError:
            return [], {}
        live = [token for _, token in files] if f"{file.token:016x}" == mine else ()
"""
DELETE_IF_SAME = """\
        if not live:
            from checkpoint_store._steps import Call

            yield Call(about, "delete_if_same", (file,))
        return [], {}
"""
DETACH_LAST = f"""\
    from checkpoint_store._steps import Call

    yield Call(about, "begin", ())
    removed = yield from collect(workflow_id, progress, cleared=True)
{DETACH}    return removed
"""


def deletes_but(live: str) -> Change:
    """Replaces the lines in which collecting reads the record and decides which files are live."""
    return Change("_protocol", READ + IF_NONE + LIVE, live)


KNOWS_MINE = [
    Change("_protocol", "cleared: bool = False)", "cleared: bool = False, mine: Any = None)"),
    Change("_resume", "Progress(None))", "Progress(None), mine=record.token)"),
]
NO_TOKEN = Change("_checkpoints", "'task name'), header.token)", f"'task name'), '{COMMON}')")

SAME_KEY = Rules(token_in_key=False)
ONE_KEY = Variant(SAME_KEY, [NO_TOKEN, deletes_but("        live = ()\n")])
FOREIGN = Variant(SAME_KEY, [NO_TOKEN, *KNOWS_MINE, deletes_but(IS_MINE)])
FOREIGN_IF_MATCH = Variant(SAME_KEY, [NO_TOKEN, *KNOWS_MINE, deletes_but(IS_MINE + DELETE_IF_SAME)])
NOT_MINE = Variant(changes=[*KNOWS_MINE, deletes_but("        live = (mine,)\n")])
RECORD_FIRST = Variant(
    changes=[
        Change("_protocol", READ, ""),
        Change("_protocol", "    removed = 0\n", f"    removed = 0\n{READ[4:]}"),
    ]
)
# The comparison is fair: this clear may delete what was promised before it began, and collecting
# does not stop because the record is still there.
RECORD_LAST = Variant(
    changes=[
        Change("_protocol", DETACH + COLLECT_ALL, DETACH_LAST),
        Change("_protocol", READ, f"        record = None\n        if not cleared:\n    {READ}"),
    ]
)
NO_NONCE = Variant(
    Rules(versions_return=True),
    [
        Change(
            "_record",
            "token=secrets.token_hex(8),\n        base=None,\n",
            "token=(name := f'{int.from_bytes(fingerprint.encode()):f>16x}'),\n"
            "        base=None,\n",
        ),
        Change("_record", "nonce=secrets.token_hex(16),\n        inputs", "nonce=name, inputs"),
    ],
)
IN_PLACE = Variant(changes=[Change("_policy", "with_keys if found.base else overlay", "with_keys")])
BASE_EQUALS = Variant(
    changes=[
        Change(
            "_policy", "if record.base is not None:\n        reason", "if False:\n        reason"
        )
    ]
)
BASE_GOES = Variant(
    changes=[Change("_record", "tokens if self.base is None else {*tokens, self.base}", "tokens")]
)
OVERLAYS_AGAIN = Variant(
    changes=[Change("_policy", "with_keys if found.base else overlay", "overlay")]
)

# Those of declared tasks.
OTHER_KEYS = "dict(zip(dict.fromkeys(keys), {}.values()))"
KEYS_GO = Variant(changes=[Change("_record", "*self.tasks.values(), *self.base", "*self.base")])
BASE_KEYS_GO = Variant(
    changes=[Change("_record", "*self.tasks.values(), *self.base_tasks", "*self.tasks")]
)
KEEPS_MIXED = Variant(
    changes=[
        Change(
            "_record",
            "return self.tasks if self.base is None else self.base_tasks",
            "return {**self.base_tasks, **self.tasks}",
        )
    ]
)
KEYS_AS_TOKENS = Variant(
    changes=[
        Change("_record", "(kept or {}).get(key) or secrets.token_hex(8) for", "f'f{key[:15]}' for")
    ]
)
# A version of the record to which keys were added has the token of the version before.
KNOWN_BY_TOKEN = Variant(
    changes=[
        Change("_protocol", "sent.get(found.nonce)", "sent.get(found.token)"),
        Change("_protocol", "sent[record.nonce] = found", "sent[record.token] = found"),
        Change("_protocol", "sent[again.nonce] = found", "sent[again.token] = found"),
        Change("_protocol", "return sent[record.nonce]", "return sent[record.token]"),
    ]
)
FORGETS_KEYS = Variant(changes=[Change("_record", "tasks={**record.tasks, **new}", "tasks=new")])
COMPARES_NO_KEYS = Variant(
    changes=[
        Change(
            "_record",
            "tasks={key: (kept",
            f"tasks={OTHER_KEYS.format('(kept or {})')} or {{key: (kept",
        )
    ]
)
OVERLAYS_IN_PLACE = Variant(
    changes=[
        Change(
            "_record",
            "tasks={key: secrets.token_hex(8) for key in dict.fromkeys(keys) if key not in record",
            f"tasks={OTHER_KEYS.format('record.tasks')} or "
            "{key: secrets.token_hex(8) for key in dict.fromkeys(keys) if key not in record",
        )
    ]
)

# Storage that does more than a request asks for, and stores that do not know yet whether their
# storage honours conditions.
LOCAL = Variant(Rules(detaches_files=True))
RESENDING = Variant(Rules(resends_swap=True, versions_return=True))
ASKING = Variant(Rules(asks_conditions=True))
ASKING_THE_SAME = Variant(
    Rules(asks_conditions=True, versions_return=True),
    [Change("_protocol", "again, decision = transition(found)", "again = record")],
)
KEEPS_THE_FIRST = Variant(
    Rules(asks_conditions=True),
    [Change("_protocol", "                    record = again\n", "                    pass\n")],
)

# The systems that are searched

A, B = (worker, "A", "reset", "x"), (worker, "B", "reset", "x")
A_RAISE, B_REUSE = (worker, "A", "raise", "x"), (worker, "B", "reuse", "x")
A_BEGINS, B_BEGINS = (worker, "A", "reset", ""), (worker, "B", "reset", "")
A_TWO, B_TWO = (worker, "A", "reset", "xy"), (worker, "B", "reset", "xy")
LABEL, CHANGE = (labeller, "A", "x"), (changer, "A", "B", "x")
CLEAR, COLLECT = (clearer,), (collector,)

AX, AY = (declarer, "AX", "reset"), (declarer, "AY", "reset")
BX, BX_REUSE = (declarer, "BX", "reset"), (declarer, "BX", "reuse")
AX_NEWER, BX_REUSE_NEWER = (declarer, "AX", "reset", "2"), (declarer, "BX", "reuse", "2")
AX_RAISE = (declarer, "AX", "raise")
AX_BEGINS, AX_NONE = (worker, "AX", "reset", ""), (worker, "AX", "reset", "xy")

DESIGN = {
    "reset, two processes": System([A, B], lives=(3, 3)),
    "reset and raise": System([A, B, A_RAISE], lives=(2, 2)),
    "reset, four processes": System([A, A, B, B]),
    "reset, two late requests": System([A, B, B, COLLECT], timeouts=2),
    "two tasks, pages of two": System([A_TWO, B_TWO, COLLECT], lives=(2,), page=2),
    "two pages at once": System([A, B, B], lives=(2,), pages_at_once=2),
    "reuse, reset, clear": System([A, B_REUSE, B, CLEAR]),
    "reuse, raise, collect": System([A, B_REUSE, A_RAISE, COLLECT], lives=(2,)),
    "clear": System([A, CLEAR, A], lives=(2, 2)),
    "clear on a local disk": System([A, B, CLEAR], LOCAL, lives=(2, 2), timeouts=0),
    "label": System([LABEL, LABEL, B, A_RAISE]),
    "label, reset, clear": System([LABEL, B, CLEAR], lives=(2,)),
    "one process, three late requests": System([CHANGE], lives=(2,), timeouts=3),
    "swaps sent again, no clear": System([A, B, B], RESENDING, lives=(2,)),
    "conditions asked for": System([A, B, B], ASKING, lives=(2,)),
    "conditions asked for, and a clear": System([A, B, CLEAR], ASKING, lives=(2,)),
    "tasks, one input of two": System([AX, AY], lives=(2, 2)),
    "tasks, versions": System([AX, AX_NEWER], lives=(2, 2)),
    "tasks, there and back": System([AX, AY, AX]),
    "tasks, reuse and reset": System([AX, BX_REUSE, AY]),
    "tasks, reuse, raise, collect": System([AX, BX_REUSE, AX_RAISE, COLLECT]),
    "tasks, reuse of two versions": System([AX, BX_REUSE, BX_REUSE_NEWER]),
    "tasks, clear": System([AX, AY, CLEAR]),
    "tasks, and none": System([AX, AX_NONE], lives=(2, 2)),
    "tasks, pages of two": System([AX, AY, COLLECT], lives=(2,), page=2),
    "tasks, two late requests": System([AX, AY, AX], timeouts=2),
}

LARGE = {
    "reset, three processes": System([A, B, B], lives=(2, 2, 2)),
    "reset, four processes": System([A, B, A, B], lives=(2,)),
    "reset, four processes, two late requests": System([A, A, B, B], timeouts=2, lives=(2,)),
    "two tasks, pages of two": System([A_TWO, B_TWO], lives=(2, 2), page=2),
    "two tasks, two pages at once": System([A_TWO, B, COLLECT], lives=(2,), pages_at_once=2),
    "reuse and reset": System([A, B_REUSE, B, B_REUSE], lives=(2,)),
    "reuse, reset, clear": System([A, B_REUSE, B, CLEAR], lives=(2,)),
    "label": System([LABEL, LABEL, B, A_RAISE], lives=(2,)),
    "label, reset, clear": System([LABEL, LABEL, B, CLEAR], lives=(2,)),
    "conditions asked for, and a clear": System([A, B, CLEAR, A], ASKING, lives=(2,)),
    "conditions asked for, reuse": System([A, B_REUSE, B, A_RAISE], ASKING),
    "tasks, one input of two": System([AX, AY, AX], lives=(2, 2)),
    "tasks, four processes": System([AX, AY, AX, AY]),
    "tasks, versions": System([AX, AX_NEWER, AY], lives=(2,)),
    "tasks, two pages at once": System([AX, AY, COLLECT], lives=(2,), pages_at_once=2),
    "tasks, reuse and reset": System([AX, BX_REUSE, AY, BX], timeouts=0),
    "tasks, reuse of two versions": System([AX, BX_REUSE, BX_REUSE_NEWER, AX_NEWER], timeouts=0),
    "tasks, reuse, raise, collect": System([AX, BX_REUSE, AX_RAISE, COLLECT], lives=(2,)),
    "tasks, clear": System([AX, AY, CLEAR], lives=(2, 2)),
}

# Where a late writer alone would break the promises, only the last process writes.
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

# Variants of the overlay, and those that only a request can break which takes effect late or twice.
ALSO_WRONG = {
    "a record with a base equals inputs": System([A, B_REUSE, A_RAISE], BASE_EQUALS, timeouts=0),
    "collecting the base": System([A, B_REUSE, COLLECT], BASE_GOES, timeouts=0),
    "reuse that lays one over another": System([A, B_REUSE, B_REUSE], OVERLAYS_AGAIN, timeouts=0),
    "one key per task, and a late write": System([CHANGE], ONE_KEY),
    "a create sent again and arriving after a clear": System([A, A, CLEAR], RESENDING),
    "a create repeated after a clear": System([A_BEGINS, A, A, CLEAR], ASKING_THE_SAME, timeouts=0),
    "the first of two creates in force": System([A, CLEAR], KEEPS_THE_FIRST, timeouts=0),
}


# Those of declared tasks.
TASKS_WRONG = {
    "tasks, reading the record before listing": System([AX, AY, AX], RECORD_FIRST, timeouts=0),
    "collecting the keys of tasks": System([AX, COLLECT], KEYS_GO, timeouts=0),
    "collecting the keys of the base": System([AX, BX_REUSE, COLLECT], BASE_KEYS_GO, timeouts=0),
    "keeping the keys of a mixture": System([AX, BX_REUSE, BX], KEEPS_MIXED, timeouts=0),
    "keeping tokens without comparing keys": System([AX, BX], COMPARES_NO_KEYS, timeouts=0),
    "an overlay of keys in place": System([AX, BX_REUSE, AX], OVERLAYS_IN_PLACE, timeouts=0),
    "forgetting keys where others are added": System([AX, AX_NEWER], FORGETS_KEYS, timeouts=0),
    "tokens derived from keys": System([AX, BX, AX, COLLECT], KEYS_AS_TOKENS, timeouts=0),
    "knowing one's own record by its token": System(
        [AX_BEGINS, AX, AX_NEWER], KNOWN_BY_TOKEN, timeouts=0
    ),
}


def main(arguments: list[str]) -> None:
    for name, system in (LARGE if "--large" in arguments else DESIGN).items():
        began = time.process_time()
        search = Search(system)
        found = search.explore()
        verdict = found.wrong or ("mistaken" if any(search.mistaken()) else "right")
        seconds = time.process_time() - began
        print(f"{found.states:9,} states {seconds:6.1f} s  {name}: {verdict}")  # noqa: T201
    for name, system in {**WRONG, **ALSO_WRONG, **TASKS_WRONG}.items():
        found = Search(system).explore(merge=False)
        print(f"\n{name}, {found.depth} steps: {found.wrong}", *found.trace, sep="\n  ")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
