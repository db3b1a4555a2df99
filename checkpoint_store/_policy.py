"""What to do when a workflow is resumed: record and inputs and policy to a decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ._record import InputChange, Record, change_of
from .errors import CorruptRecordError, InputChangedError, InvalidPolicyError

Policy = Literal["reuse", "reset", "raise"]
Action = Literal["start", "continue", "reuse", "reset", "raise"]

POLICIES: tuple[Policy, ...] = get_args(Policy)

CORRUPT = InputChange((), (), (), "the record is corrupt")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the engine concluded, and from what.

    `action` is `"start"` (nothing was there), `"continue"` (same inputs), `"reuse"` (changed, the
    old checkpoints are read through to), `"reset"` (changed, the old ones are out of reach) or,
    from `plan` only, `"raise"`. `stored` is the recorded fingerprint (None if there was none),
    `current` that of the inputs given, and `change` tells how they differ (None unless they do).
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


def decide(
    record: Record | CorruptRecordError | None,
    fingerprint: str,
    inputs: Mapping[str, str] | None,
    policy: Policy,
) -> Decision:
    """The decision for these inputs, given what is stored.

    A corrupt record is raised under `reuse` and `raise`; under `reset` it counts as changed.
    """
    if record is None:
        return Decision("start", policy, None, fingerprint, None)
    if isinstance(record, CorruptRecordError):
        if policy != "reset":
            raise record
        return Decision("reset", policy, None, fingerprint, CORRUPT)
    difference = change_of(record, fingerprint, inputs)
    action: Action = "continue" if difference is None else policy
    return Decision(action, policy, record.fingerprint, fingerprint, difference)


def changed_error(record: Record, fingerprint: str, change: InputChange) -> InputChangedError:
    """The error of a strict run on checkpoints that come from other inputs."""
    if record.base is not None:
        fact, remedy = "is a mixture of several inputs", ""
    elif record.fingerprint is None:
        fact, remedy = "has unknown inputs", "tell them with store.write_fingerprint, "
    else:
        fact, remedy = "was started with other inputs", "resume it with those, "
    return InputChangedError(
        f"workflow {record.workflow!r} {fact} ({change.reason}): {remedy}choose another workflow "
        "id, or let on_input_change be 'reset' to start over or 'reuse' to keep what there is",
        workflow_id=record.workflow,
        stored=record.fingerprint,
        current=fingerprint,
        change=change,
    )
