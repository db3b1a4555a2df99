"""Operations on a workflow of which some tasks are declared.

What is asked after them is in `operations`. A reset from A to B keeps one task of three there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from checkpoint_store import CheckpointStore, Run, Task

from .operations import OLD, WORKFLOW, Checkpoints, Operation, resumes, values
from .worlds import World

DECLARED = {"t0": Task(uses=["rate"]), "t1": Task(uses=["day"], after=["t0"])}
NEWER = {**DECLARED, "t0": Task(uses=["rate"], version="2")}
OLD_DECLARED = values("A", DECLARED)
KEPT = {"t0": OLD_DECLARED["t0"]}
UNDECLARED = {"t2": OLD["t2"]}


# What the workflow has before the operation


def declared(world: World) -> Run:
    """The workflow has checkpoints of the inputs A, and two of its three tasks are declared."""
    run = resumes("A", "raise", DECLARED)(world.store())
    run.write_many(OLD_DECLARED)
    return run


def declared_late(world: World) -> None:
    """The workflow has checkpoints of the inputs A, and none of its tasks is declared so far."""
    resumes("A", "raise", {})(world.store()).write_many(OLD)


def reset_in_part(world: World) -> None:
    """The workflow was reset to B, which keeps `t0`, and then its run on A wrote once more."""
    late = declared(world)
    resumes("B", "reset", DECLARED)(world.store()).write("t1", b"B+x t1")
    late.write_many({"t1": b"A+x t1 late", "t2": b"A t2 late"})


def reset_back(world: World) -> None:
    """The workflow was reset to B and back to A, and computed what was not kept."""
    reset_in_part(world)
    run = resumes("A", "reset", DECLARED)(world.store())
    run.write_many({"t1": OLD_DECLARED["t1"], "t2": OLD_DECLARED["t2"]})


def mixed_in_part(world: World) -> None:
    """A run on B reuses the workflow of A. It has computed `t0` as if it were alone."""
    declared(world)
    run = resumes("B", "reuse", DECLARED)(world.store())
    run.write_many({"t0": KEPT["t0"], "t1": b"mixed t1", "t2": b"mixed t2"})


# The operations


def again(store: CheckpointStore) -> Run:
    return resumes("A", "raise", DECLARED)(store)


def read_declared(store: CheckpointStore) -> None:
    run = again(store)
    assert run.read_many() == OLD_DECLARED
    assert run.read("t0") == KEPT["t0"]
    assert "t0" in run
    with run.open("t0") as file:
        assert file.read() == KEPT["t0"]


def with_tasks(
    name: str,
    prepare: Callable[[World], object],
    perform: Callable[[CheckpointStore], object],
    before: Checkpoints,
    after: Checkpoints,
    **others: Any,
) -> Operation:
    return Operation(name, prepare, perform, before, after, **{"tasks": DECLARED, **others})


TASK_OPERATIONS = [
    with_tasks(
        "reset of a part",
        declared,
        resumes("B", "reset", DECLARED),
        OLD_DECLARED,
        {},
        kept=KEPT,
    ),
    with_tasks(
        "reset of a part and back",
        reset_in_part,
        resumes("A", "reset", DECLARED),
        {},
        KEPT,
        kept=KEPT,
    ),
    with_tasks(
        "reset of what is mixed in part",
        mixed_in_part,
        resumes("B", "reset", DECLARED),
        {},
        {},
        kept=KEPT,
    ),
    with_tasks(
        "reuse of a part", declared, resumes("B", "reuse", DECLARED), OLD_DECLARED, {}, kept=KEPT
    ),
    with_tasks("declare late", declared_late, again, UNDECLARED, UNDECLARED),
    with_tasks(
        "declare another version",
        declared,
        lambda s: s.run(WORKFLOW, tasks=NEWER),
        UNDECLARED,
        UNDECLARED,
        tasks=NEWER,
    ),
    with_tasks(
        "declare another version for a while",
        declared,
        lambda s: s.run(WORKFLOW, tasks=NEWER),
        OLD_DECLARED,
        OLD_DECLARED,
        kept=KEPT,
    ),
    with_tasks(
        "collect beside what is kept",
        reset_in_part,
        lambda s: s.collect(WORKFLOW),
        {},
        {},
        kept=KEPT | {"t1": b"B+x t1"},
    ),
    with_tasks(
        "collect what is mixed in part",
        mixed_in_part,
        lambda s: s.collect(WORKFLOW),
        {},
        {},
        kept=KEPT,
    ),
    with_tasks(
        "write what was kept",
        reset_back,
        lambda s: again(s).write("t0", b"x t0 new"),
        OLD_DECLARED,
        OLD_DECLARED | {"t0": b"x t0 new"},
    ),
    with_tasks(
        "read what was kept", reset_back, read_declared, OLD_DECLARED, OLD_DECLARED, kept=KEPT
    ),
    with_tasks(
        "delete what is mixed in part",
        mixed_in_part,
        lambda s: resumes("B", "reuse", DECLARED)(s).delete("t0", dependents=True),
        {},
        {},
    ),
    with_tasks(
        "delete with dependents",
        declared,
        lambda s: again(s).delete("t0", dependents=True),
        OLD_DECLARED,
        UNDECLARED,
        atomic=False,
    ),
]
