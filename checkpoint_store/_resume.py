"""Starting and resuming a workflow under a policy."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final, overload

from . import _protocol
from ._fingerprint import combine, input_digests
from ._policy import Decision, Found, Policy, check_policy, decide, explanations, resumed
from ._progress import Progress
from ._record import check_fingerprint, encode_record, new_record
from ._run import Run
from ._steps import Steps, drive
from ._store import CheckpointStore
from ._tasks import NOTHING, Declared, Task, declared
from .errors import CheckpointStoreError, CorruptRecordError, InvalidTaskError

logger = logging.getLogger("checkpoint_store")


class _Missing:
    def __repr__(self) -> str:
        return "…"


_MISSING: Final = _Missing()


@overload
def resume(
    store: CheckpointStore,
    workflow_id: str,
    inputs: object,
    *,
    on_input_change: Policy,
    ignore: Collection[str] = (),
    tasks: Mapping[str, Task] | None = None,
) -> Run: ...
@overload
def resume(
    store: CheckpointStore, workflow_id: str, *, fingerprint: str, on_input_change: Policy
) -> Run: ...
def resume(
    store: CheckpointStore,
    workflow_id: str,
    inputs: object = _MISSING,
    *,
    fingerprint: str | None = None,
    on_input_change: Policy | None = None,
    ignore: Collection[str] = (),
    tasks: Mapping[str, Task] | None = None,
) -> Run:
    """Starts or resumes a workflow, and never returns checkpoints of other inputs as its own.

    `inputs` is whatever determines the results; names in `ignore` are left out of it. A
    `fingerprint` may be given in its place, and is compared as it is. What happens to a workflow
    whose checkpoints come from other inputs has no default:

    - `"reuse"`: they are read where there is no newer one. A warning names what changed, and
      everything is marked so that a strict run never takes it for its own.
    - `"reset"`: the workflow starts over. The old checkpoints are out of reach from one moment to
      the next, whatever crashes, and are then deleted.
    - `"raise"`: `InputChangedError`, and nothing is changed.

    A workflow without a record starts, one with the same inputs continues. The decision is in the
    `decision` of the run that is returned.

    `tasks` says of some tasks which inputs they use, and which other tasks' results:

        tasks={"load": Task(uses=["day"]), "plot": Task(uses=["colour"], after=["load"])}

    When an input changes, a task that depends on other inputs alone keeps its checkpoint under
    `"reset"`, and is its own under `"reuse"`. A task that is not declared depends on all inputs,
    and so do those that read its result: leave these undeclared, too. Declaring less than the code
    reads makes stale results, which nobody can notice. A bad declaration is `InvalidTaskError`,
    before anything is read.
    """
    _check_store(store)
    policy = check_policy(on_input_change)
    current, digests = _fingerprint(inputs, fingerprint, ignore)
    given = _declared(workflow_id, current, digests, ignore, tasks)
    steps = resuming(store, workflow_id, current, digests, policy, given)
    return drive(store._filesystem, steps)


def resuming(
    store: CheckpointStore,
    workflow_id: str,
    current: str,
    digests: Mapping[str, str] | None,
    policy: Policy,
    given: Declared = NOTHING,
) -> Steps[Run]:
    """Resumes a workflow with inputs whose fingerprint is `current`, made of these digests."""
    found, record, decision = yield from _protocol.change_record(
        store._filesystem,
        workflow_id,
        lambda found: resumed(found, workflow_id, current, digests, policy, given),
    )
    _log(workflow_id, found, decision)
    run = store._bind(record, current, decision, given)
    if decision.action == "reset":
        try:
            yield from _protocol.collect(workflow_id, Progress(None))
        except CheckpointStoreError as error:
            logger.warning(
                "workflow %r was reset, but its old files are still there, out of reach; "
                "store.collect(%r) deletes them: %s",
                workflow_id,
                workflow_id,
                error,
            )
    return run


@overload
def plan(
    store: CheckpointStore,
    workflow_id: str,
    inputs: object,
    *,
    on_input_change: Policy,
    ignore: Collection[str] = (),
    tasks: Mapping[str, Task] | None = None,
) -> Decision: ...
@overload
def plan(
    store: CheckpointStore, workflow_id: str, *, fingerprint: str, on_input_change: Policy
) -> Decision: ...
def plan(
    store: CheckpointStore,
    workflow_id: str,
    inputs: object = _MISSING,
    *,
    fingerprint: str | None = None,
    on_input_change: Policy | None = None,
    ignore: Collection[str] = (),
    tasks: Mapping[str, Task] | None = None,
) -> Decision:
    """What `resume` would decide with the same arguments now. It writes nothing.

    Its action is `"raise"` where `resume` would raise `InputChangedError`.
    """
    _check_store(store)
    policy = check_policy(on_input_change)
    current, digests = _fingerprint(inputs, fingerprint, ignore)
    given = _declared(workflow_id, current, digests, ignore, tasks)
    _, found = drive(store._filesystem, _protocol.read_version(workflow_id))
    decision = decide(found, current, digests, policy, given)
    if given.keys and decision.action != "raise":
        # A record that could not hold all the keys is an error here, too.
        record, _ = resumed(found, workflow_id, current, digests, policy, given)
        encode_record(record)
    return decision


def _check_store(store: object) -> None:
    if not isinstance(store, CheckpointStore):
        raise TypeError(
            f"the first argument is a CheckpointStore, not a {type(store).__name__}: make one with "
            "CheckpointStore(url)"
        )


def _fingerprint(
    inputs: object, fingerprint: str | None, ignore: Collection[str]
) -> tuple[str, Mapping[str, str] | None]:
    if (inputs is _MISSING) == (fingerprint is None):
        raise TypeError("give either the inputs of the workflow or their fingerprint=")
    if fingerprint is not None:
        if ignore:
            raise TypeError("ignore leaves out inputs, and a fingerprint= has none")
        return check_fingerprint(fingerprint), None
    digests = input_digests(inputs, ignore=ignore)
    return combine(digests), digests


def _declared(
    workflow_id: str,
    current: str,
    digests: Mapping[str, str] | None,
    ignore: Collection[str],
    tasks: Mapping[str, Task] | None,
) -> Declared:
    """The tasks with their keys. A record that could not hold them is refused."""
    if tasks is None:
        return NOTHING
    if digests is None:
        raise InvalidTaskError(
            "tasks use some of the inputs, and a fingerprint= has none: pass the inputs themselves"
        )
    given = declared(tasks, digests, ignore)
    encode_record(new_record(workflow_id, current, digests, given.keys.values()))
    return given


def _log(workflow_id: str, found: Found, decision: Decision) -> None:
    is_loud = decision.action == "reuse" or isinstance(found, CorruptRecordError)
    why = "" if decision.change is None else f" ({decision.change.reason})"
    level = logging.WARNING if is_loud else logging.INFO
    logger.log(level, "workflow %r: %s%s", workflow_id, decision.action, why)
    for line in explanations(decision):
        logger.info("workflow %r: %s", workflow_id, line)
