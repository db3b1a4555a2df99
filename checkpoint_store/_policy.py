"""What becomes of a workflow's record when it is resumed, opened or labelled.

Each transition is a pure function. It takes what was found of the record and returns the record
that is to be in force: to change nothing, the same object that was found. The caller calls it again
for each other version of the record that it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ._changes import InputChange, compare, listed
from ._record import Record, label, new_record, overlay, with_keys
from ._tasks import NOTHING, Declared, Tasks, declared, reasons
from .errors import (
    CorruptRecordError,
    InputChangedError,
    InvalidPolicyError,
    InvalidTaskError,
)

Policy = Literal["reuse", "reset", "raise"]
Action = Literal["start", "continue", "reuse", "reset", "raise"]
Found = Record | CorruptRecordError | None
"""A workflow's record as it was found: None if there is none, an error if it cannot be read."""

POLICIES: tuple[Policy, ...] = get_args(Policy)

UNCHANGED = "everything used is unchanged"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy engine has decided, and why. Its `str` explains it to people.

    `action` is `"start"` (nothing was there), `"continue"` (the inputs are the same), `"reuse"`
    (they changed, and old checkpoints are read where there is no newer one), `"reset"` (they
    changed, and the old checkpoints are out of reach) or, only from `plan`, `"raise"`. `policy` is
    the one that was given, `stored` the recorded fingerprint (None if there was none) and `current`
    that of the given inputs. `change` tells how the two differ, and is None if they do not.

    Of the tasks that were declared, `kept` has those whose checkpoints stay in force, and
    `recomputed` those that are out of reach, each with a sentence that says why. Both are empty for
    a workflow that starts. A task in `kept` may have no checkpoint yet.
    """

    action: Action
    policy: Policy
    stored: str | None
    current: str
    change: InputChange | None
    kept: Mapping[str, str] = field(default_factory=dict, hash=False)
    recomputed: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        why = "" if self.change is None else f" ({self.change.reason})"
        return "\n  ".join([f"{self.action}{why}", *explanations(self)])


def explanations(decision: Decision) -> list[str]:
    """What becomes of the declared tasks: a line for all those of which the same is true."""
    alike: dict[str, list[str]] = {}
    for what, tasks in (("kept", decision.kept), ("computed anew", decision.recomputed)):
        for task, reason in tasks.items():
            alike.setdefault(f"{what}: {reason}", []).append(task)
    return [f"{listed(tasks)} {what}" for what, tasks in alike.items()]


def check_policy(policy: object) -> Policy:
    """`policy` itself, or `InvalidPolicyError`."""
    for known in POLICIES:
        if isinstance(policy, str) and policy == known:
            return known
    shown = repr(policy) if isinstance(policy, str) else f"a {type(policy).__name__}"
    given = "is missing" if policy is None else f"must not be {shown}"
    raise InvalidPolicyError(
        f"on_input_change {given}: choose 'reuse' (keep the old checkpoints), 'reset' (start over) "
        "or 'raise' (refuse) for a workflow that is resumed with other inputs"
    )


def change_of(
    record: Record, fingerprint: str, inputs: Mapping[str, str] | None
) -> InputChange | None:
    """How these inputs differ from those of `record`, or None if they are the same."""
    if record.base is not None:
        reason = "an earlier run reused these checkpoints with other inputs"
        return compare(record.inputs, inputs, reason)
    if record.fingerprint is None:
        return InputChange((), (), (), "the checkpoints were written without a fingerprint")
    if record.fingerprint != fingerprint:
        return compare(record.inputs, inputs, "the fingerprint differs")
    return None


def decide(
    found: Found,
    fingerprint: str,
    inputs: Mapping[str, str] | None,
    policy: Policy,
    given: Declared = NOTHING,
) -> Decision:
    """The decision for these inputs and tasks, given what was found of the record.

    A corrupt record is raised under `reuse` and `raise`; under `reset` it counts as changed.
    """
    if found is None:
        return Decision("start", policy, None, fingerprint, None)
    if isinstance(found, CorruptRecordError):
        if policy != "reset":
            raise found
        corrupt = InputChange((), (), (), "the record is corrupt")
        anew = reasons(given, (), None, corrupt.reason)
        return Decision("reset", policy, None, fingerprint, corrupt, {}, anew)
    change = change_of(found, fingerprint, inputs)
    action: Action = "continue" if change is None else policy
    kept, anew = _kept(found, given, change, action)
    return Decision(action, policy, found.fingerprint, fingerprint, change, kept, anew)


def _kept(
    found: Record, given: Declared, change: InputChange | None, action: Action
) -> tuple[dict[str, str], dict[str, str]]:
    """Which of the tasks are kept, and which are computed anew, each with the reason."""
    tokens = {**found.base_tasks, **found.tasks} if action == "reuse" else found.pure
    is_known = change is None or found.inputs is not None
    otherwise = "the declaration is new" if change is None or is_known else change.reason
    anew = reasons(given, tokens, change, otherwise)
    kept = {name: UNCHANGED for name in given.tasks if name not in anew}
    if action == "reuse":
        for name in kept:
            if given.keys[name] not in found.pure:
                kept[name] = "computed by an earlier run that reused other checkpoints"
        for name, key in given.keys_of(found.inputs).items():
            if name in anew and key in found.pure:
                kept[name] = f"reused, although {anew.pop(name)}"
    return kept, anew


def resumed(
    found: Found,
    workflow_id: str,
    fingerprint: str,
    inputs: Mapping[str, str] | None,
    policy: Policy,
    given: Declared = NOTHING,
) -> tuple[Record, Decision]:
    """The record of a workflow that is resumed with these inputs and tasks, and the decision.

    If the decision is to raise, it raises `InputChangedError`.
    """
    decision = decide(found, fingerprint, inputs, policy, given)
    keys = given.keys.values()
    match found, decision:
        case Record(), Decision(action="continue"):
            return with_keys(found, keys), decision
        case Record(), Decision(action="reuse"):
            read = given.keys_of(found.inputs).values()
            change = with_keys if found.base else overlay
            return change(found, keys, read), decision
        case Record(), Decision(action="raise", change=InputChange() as differs):
            raise _changed_error(found, fingerprint, differs, decision)
        case _, Decision(action="start" | "reset"):
            kept = found.pure if isinstance(found, Record) else {}
            return new_record(workflow_id, fingerprint, inputs, keys, kept), decision
    raise NotImplementedError(f"nobody says what {decision.action!r} makes of a record")


def opened(
    found: Found, workflow_id: str, fingerprint: str | None, tasks: Tasks = NOTHING.tasks
) -> tuple[Record, Declared]:
    """The record of a workflow that is opened without a policy, and its tasks with their keys.

    With a fingerprint, checkpoints of other inputs are `InputChangedError`. Tasks get their keys
    from the recorded inputs, and are `InvalidTaskError` if these are not known.
    """
    if isinstance(found, CorruptRecordError):
        raise found
    if found and fingerprint is not None and (change := change_of(found, fingerprint, None)):
        raise _changed_error(found, fingerprint, change)
    if not tasks:
        return new_record(workflow_id, fingerprint) if found is None else found, NOTHING
    if found is None or found.inputs is None or found.base is not None:
        why = "is a mixture of several inputs" if found and found.base else "has no recorded inputs"
        raise InvalidTaskError(
            f"workflow {workflow_id!r} {why}, of which the tasks could use some: resume it with "
            "its inputs"
        )
    given = declared(tasks, found.inputs)
    return with_keys(found, given.keys.values()), given


def labelled(found: Found, workflow_id: str, fingerprint: str) -> tuple[Record, None]:
    """The record of a workflow whose checkpoints are said to come from these inputs."""
    if isinstance(found, CorruptRecordError):
        raise found
    if found is None or found.base is not None or found.fingerprint not in (None, fingerprint):
        return new_record(workflow_id, fingerprint), None
    return label(found, fingerprint) if found.fingerprint is None else found, None


def tokens_of(given: Declared, record: Record) -> dict[str, tuple[str, ...]]:
    """The tokens of the generations in which each task has its files, the newest first."""
    tokens = {**record.base_tasks, **record.tasks}
    older = {} if record.base is None else given.keys_of(record.inputs)
    shared: dict[tuple[str, str | None], tuple[str, ...]] = {}
    found: dict[str, tuple[str, ...]] = {}
    for name, key in given.keys.items():
        pair = key, older.get(name)
        if pair not in shared:
            all_tokens = tokens[key], record.base_tasks.get(pair[1] or "")
            shared[pair] = tuple(dict.fromkeys(token for token in all_tokens if token))
        found[name] = shared[pair]
    return found


def _changed_error(
    record: Record, fingerprint: str, change: InputChange, decision: Decision | None = None
) -> InputChangedError:
    """The error of a strict run on checkpoints that come from other inputs."""
    if record.base is not None:
        fact, remedy = "is a mixture of several inputs", ""
    elif record.fingerprint is None:
        fact, remedy = "has unknown inputs", "tell them with store.write_fingerprint, "
    else:
        fact, remedy = "was started with other inputs", "resume it with those, "
    return InputChangedError(
        f"workflow {record.workflow!r} {fact} ({change.reason}): {remedy}choose another workflow "
        f"id, or let resume's on_input_change be 'reset' to start over{_partly(decision)} or "
        "'reuse' to keep what is there",
        workflow_id=record.workflow,
        stored=record.fingerprint,
        current=fingerprint,
        change=change,
    )


def _partly(decision: Decision | None) -> str:
    """What a reset would keep and compute anew of the declared tasks, for a message."""
    if decision is None or not (decision.kept or decision.recomputed):
        return ""
    kept, anew = (listed(list(tasks)) for tasks in (decision.kept, decision.recomputed))
    return f" (which keeps {kept or 'no task'} and computes {anew or 'no task'} anew)"
