"""What becomes of a workflow's record when it is resumed, opened or labelled.

Each transition is a pure function. It takes what was found of the record and returns the record
that is to be in force: to change nothing, the same object that was found. The caller calls it again
for each other version of the record that it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ._changes import InputChange, compare
from ._record import Record, label, new_record, overlay
from .errors import CorruptRecordError, InputChangedError, InvalidPolicyError

Policy = Literal["reuse", "reset", "raise"]
Action = Literal["start", "continue", "reuse", "reset", "raise"]
Found = Record | CorruptRecordError | None
"""A workflow's record as it was found: None if there is none, an error if it cannot be read."""

POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy engine has decided, and why.

    `action` is `"start"` (nothing was there), `"continue"` (the inputs are the same), `"reuse"`
    (they changed, and old checkpoints are read where there is no newer one), `"reset"` (they
    changed, and the old checkpoints are out of reach) or, only from `plan`, `"raise"`. `policy` is
    the one that was given, `stored` the recorded fingerprint (None if there was none) and `current`
    that of the given inputs. `change` tells how the two differ, and is None if they do not.
    """

    action: Action
    policy: Policy
    stored: str | None
    current: str
    change: InputChange | None


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
    found: Found, fingerprint: str, inputs: Mapping[str, str] | None, policy: Policy
) -> Decision:
    """The decision for these inputs, given what was found of the record.

    A corrupt record is raised under `reuse` and `raise`; under `reset` it counts as changed.
    """
    if found is None:
        return Decision("start", policy, None, fingerprint, None)
    if isinstance(found, CorruptRecordError):
        if policy != "reset":
            raise found
        corrupt = InputChange((), (), (), "the record is corrupt")
        return Decision("reset", policy, None, fingerprint, corrupt)
    change = change_of(found, fingerprint, inputs)
    action: Action = "continue" if change is None else policy
    return Decision(action, policy, found.fingerprint, fingerprint, change)


def resumed(
    found: Found,
    workflow_id: str,
    fingerprint: str,
    inputs: Mapping[str, str] | None,
    policy: Policy,
) -> tuple[Record, Decision]:
    """The record of a workflow that is resumed with these inputs, and the decision behind it.

    If the decision is to raise, it raises `InputChangedError`.
    """
    decision = decide(found, fingerprint, inputs, policy)
    match found, decision:
        case Record(), Decision(action="continue"):
            return found, decision
        case Record(), Decision(action="reuse"):
            return found if found.base else overlay(found), decision
        case Record(), Decision(action="raise", change=InputChange() as change):
            raise _changed_error(found, fingerprint, change)
        case _, Decision(action="start" | "reset"):
            return new_record(workflow_id, fingerprint, inputs), decision
    raise NotImplementedError(f"nobody says what {decision.action!r} makes of a record")


def opened(found: Found, workflow_id: str, fingerprint: str | None) -> tuple[Record, None]:
    """The record of a workflow that is opened without a policy.

    With a fingerprint, checkpoints of other inputs are `InputChangedError`.
    """
    if isinstance(found, CorruptRecordError):
        raise found
    if found is None:
        return new_record(workflow_id, fingerprint), None
    if fingerprint is not None and (change := change_of(found, fingerprint, None)):
        raise _changed_error(found, fingerprint, change)
    return found, None


def labelled(found: Found, workflow_id: str, fingerprint: str) -> tuple[Record, None]:
    """The record of a workflow whose checkpoints are said to come from these inputs."""
    if isinstance(found, CorruptRecordError):
        raise found
    if found is None or found.base is not None or found.fingerprint not in (None, fingerprint):
        return new_record(workflow_id, fingerprint), None
    return label(found, fingerprint) if found.fingerprint is None else found, None


def _changed_error(record: Record, fingerprint: str, change: InputChange) -> InputChangedError:
    """The error of a strict run on checkpoints that come from other inputs."""
    if record.base is not None:
        fact, remedy = "is a mixture of several inputs", ""
    elif record.fingerprint is None:
        fact, remedy = "has unknown inputs", "tell them with store.write_fingerprint, "
    else:
        fact, remedy = "was started with other inputs", "resume it with those, "
    return InputChangedError(
        f"workflow {record.workflow!r} {fact} ({change.reason}): {remedy}choose another workflow "
        "id, or let resume's on_input_change be 'reset' to start over or 'reuse' to keep what is "
        "there",
        workflow_id=record.workflow,
        stored=record.fingerprint,
        current=fingerprint,
        change=change,
    )
