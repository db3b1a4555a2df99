"""The policy table of the README, exhaustively."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from itertools import product
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_store._changes import InputChange
from checkpoint_store._policy import (
    POLICIES,
    Decision,
    Policy,
    change_of,
    check_policy,
    decide,
    labelled,
    opened,
    resumed,
)
from checkpoint_store._record import Record, new_record, overlay
from checkpoint_store._tasks import NOTHING
from checkpoint_store.errors import CorruptRecordError, InputChangedError, InvalidPolicyError

ONE, TWO = "1" * 64, "2" * 64
OLD, NEW = "fp1:sha256:" + ONE, "fp1:sha256:" + TWO
OLD_INPUTS = {"day": ONE, "model": ONE}
NEW_INPUTS = {"day": TWO, "model": ONE}

SAME = new_record("orders", OLD, OLD_INPUTS)
RECORDS: dict[str, Record | None] = {
    "none": None,
    "plain": SAME,
    "plain, explicit": SAME._replace(inputs=None),
    "mixed": overlay(SAME),
    "mixed, explicit": overlay(SAME)._replace(inputs=None),
    "unknown": SAME._replace(fingerprint=None, inputs=None),
    "unknown, mixed": overlay(SAME)._replace(fingerprint=None, inputs=None),
}
Expected = Literal["start", "continue", "changed", "corrupt"]
TABLE: dict[tuple[str, str], Expected] = {
    ("none", "same"): "start",
    ("none", "changed"): "start",
    ("plain", "same"): "continue",
    ("plain", "changed"): "changed",
    ("plain, explicit", "same"): "continue",
    ("plain, explicit", "changed"): "changed",
    ("mixed", "same"): "changed",
    ("mixed", "changed"): "changed",
    ("mixed, explicit", "same"): "changed",
    ("mixed, explicit", "changed"): "changed",
    ("unknown", "same"): "changed",
    ("unknown", "changed"): "changed",
    ("unknown, mixed", "same"): "changed",
    ("unknown, mixed", "changed"): "changed",
    ("corrupt", "same"): "corrupt",
    ("corrupt", "changed"): "corrupt",
}
CASES = [
    (kind, inputs, policy, given_as)
    for (kind, inputs), policy, given_as in product(TABLE, POLICIES, ("inputs", "fingerprint"))
]


def test_the_table_has_a_row_for_every_record_and_both_kinds_of_inputs() -> None:
    assert set(TABLE) == set(product((*RECORDS, "corrupt"), ("same", "changed")))
    assert POLICIES == ("reuse", "reset", "raise")
    assert len(CASES) == 8 * 2 * 3 * 2


@pytest.mark.parametrize(("kind", "inputs", "policy", "given_as"), CASES)
def test_the_decision_is_the_one_in_the_table(
    kind: str, inputs: str, policy: Policy, given_as: str
) -> None:
    # Made anew: raising an error changes it.
    corrupt = CorruptRecordError("the record is corrupt")
    found, expected = RECORDS.get(kind, corrupt), TABLE[kind, inputs]
    current, digests = (OLD, OLD_INPUTS) if inputs == "same" else (NEW, NEW_INPUTS)
    shown: Mapping[str, str] | None = digests if given_as == "inputs" else None
    if expected == "corrupt" and policy != "reset":
        with pytest.raises(CorruptRecordError) as caught:
            decide(found, current, shown, policy)
        assert caught.value is found
        return
    decision = decide(found, current, shown, policy)
    assert (policy, current) == (decision.policy, decision.current)
    if expected == "start":
        assert decision == Decision("start", policy, None, current, None)
    elif expected == "continue":
        assert decision == Decision("continue", policy, OLD, OLD, None)
    else:
        assert decision.action == policy
        assert decision.change is not None
        assert decision.change.reason
        stored = found.fingerprint if isinstance(found, Record) else None
        assert stored == decision.stored


@pytest.mark.parametrize("policy", POLICIES)
def test_deciding_asks_nothing_of_the_record_but_to_be_read(policy: Policy) -> None:
    before = deepcopy(SAME)
    first = decide(SAME, NEW, NEW_INPUTS, policy)
    assert first == decide(SAME, NEW, NEW_INPUTS, policy)
    assert before == SAME


@pytest.mark.parametrize("policy", POLICIES)
def test_the_times_and_the_nonce_of_a_record_decide_nothing(policy: Policy) -> None:
    other = SAME._replace(created="9999", updated="0000", nonce="f" * 32, token="f" * 16)
    for current, digests in ((OLD, OLD_INPUTS), (NEW, NEW_INPUTS)):
        assert decide(SAME, current, digests, policy) == decide(other, current, digests, policy)


# What changed


def test_the_change_names_inputs_added_removed_and_changed_in_order() -> None:
    old = {"z": ONE, "kept": ONE, "b": ONE, "a": ONE, "gone": ONE, "also gone": ONE}
    new = {"kept": ONE, "a": TWO, "z": TWO, "b": TWO, "new": ONE, "also new": ONE}
    change = change_of(SAME._replace(inputs=old), NEW, new)
    assert change is not None
    assert change.added == ("also new", "new")
    assert change.removed == ("also gone", "gone")
    assert change.changed == ("a", "b", "z")
    assert change.reason == (
        "added: 'also new', 'new'; removed: 'also gone', 'gone'; changed: 'a', 'b', 'z'"
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ({"day": ONE}, {"day": TWO}, "changed: 'day'"),
        ({}, {"day": ONE}, "added: 'day'"),
        ({"day": ONE}, {}, "removed: 'day'"),
        ({"a": ONE}, {"b": ONE}, "added: 'b'; removed: 'a'"),
        (None, {"day": ONE}, "the fingerprint differs"),
        ({"day": ONE}, None, "the fingerprint differs"),
        (None, None, "the fingerprint differs"),
        ({"day": ONE}, {"day": ONE}, "the fingerprint differs"),
    ],
)
def test_the_reason_names_what_is_known(
    old: dict[str, str] | None, new: dict[str, str] | None, reason: str
) -> None:
    change = change_of(SAME._replace(inputs=old), NEW, new)
    assert change is not None
    assert reason == change.reason


def test_a_mixed_record_tells_how_the_inputs_differ_or_that_it_is_mixed() -> None:
    mixed = overlay(SAME)
    differing = change_of(mixed, NEW, NEW_INPUTS)
    assert differing is not None
    assert (differing.changed, differing.reason) == (("day",), "changed: 'day'")
    equal = change_of(mixed, OLD, OLD_INPUTS)
    assert equal is not None
    assert (equal.added, equal.removed, equal.changed) == ((), (), ())
    assert "reused" in equal.reason


def test_a_record_without_a_fingerprint_says_so() -> None:
    change = change_of(SAME._replace(fingerprint=None, inputs=None), OLD, OLD_INPUTS)
    assert change == InputChange((), (), (), "the checkpoints were written without a fingerprint")


digests = st.dictionaries(st.text(max_size=3), st.sampled_from([ONE, TWO]), max_size=6)


@settings(max_examples=500, deadline=None)
@given(digests, digests)
def test_every_input_is_told_once_and_sorted(old: dict[str, str], new: dict[str, str]) -> None:
    change = change_of(SAME._replace(inputs=old), NEW, new)
    assert change is not None
    for names in (change.added, change.removed, change.changed):
        assert list(names) == sorted(names)
    assert set(change.added) == new.keys() - old.keys()
    assert set(change.removed) == old.keys() - new.keys()
    same = {name for name in old.keys() & new.keys() if old[name] == new[name]}
    assert set(change.changed) == (old.keys() & new.keys()) - same


def test_a_change_tells_no_value() -> None:
    change = change_of(SAME, NEW, NEW_INPUTS)
    assert ONE not in repr(change)
    assert TWO not in repr(change)


def test_the_error_tells_what_changed_and_the_remedies() -> None:
    with pytest.raises(InputChangedError) as caught:
        resumed(SAME, "orders", NEW, NEW_INPUTS, "raise")
    error = caught.value
    assert (error.workflow_id, error.stored, error.current) == ("orders", OLD, NEW)
    assert error.change == InputChange((), (), ("day",), "changed: 'day'")
    for part in ("'orders'", "changed: 'day'", "'reset'", "'reuse'", "another workflow id"):
        assert part in str(error)


# What becomes of the record


@pytest.mark.parametrize(("kind", "inputs", "policy", "given_as"), CASES)
def test_a_workflow_is_resumed_with_the_record_that_the_decision_says(
    kind: str, inputs: str, policy: Policy, given_as: str
) -> None:
    found = RECORDS.get(kind, CorruptRecordError("the record is corrupt"))
    current, digests = (OLD, OLD_INPUTS) if inputs == "same" else (NEW, NEW_INPUTS)
    shown = digests if given_as == "inputs" else None
    expected = TABLE[kind, inputs]
    if policy != "reset" and expected == "corrupt":
        with pytest.raises(CorruptRecordError):
            resumed(found, "orders", current, shown, policy)
        return
    if policy == "raise" and expected == "changed":
        with pytest.raises(InputChangedError):
            resumed(found, "orders", current, shown, policy)
        return
    record, decision = resumed(found, "orders", current, shown, policy)
    assert decision == decide(found, current, shown, policy)
    if expected == "continue":
        assert record is found
    elif decision.action == "reuse":
        assert isinstance(found, Record)
        assert record.base == (found.base or found.token)
        assert record.fingerprint == found.fingerprint
        assert (record is found) == (found.base is not None)
    else:
        assert (record.workflow, record.fingerprint, record.inputs) == ("orders", current, shown)
        assert record.base is None
        assert not isinstance(found, Record) or record.token != found.token


@pytest.mark.parametrize("kind", [*RECORDS, "corrupt"])
@pytest.mark.parametrize("fingerprint", [None, OLD, NEW])
def test_a_workflow_is_opened_with_the_record_there_is_or_a_new_one(
    kind: str, fingerprint: str | None
) -> None:
    found = RECORDS.get(kind, CorruptRecordError("the record is corrupt"))
    if kind == "corrupt":
        with pytest.raises(CorruptRecordError):
            opened(found, "orders", fingerprint)
    elif found is None:
        record, _ = opened(found, "orders", fingerprint)
        assert (record.fingerprint, record.base) == (fingerprint, None)
    elif fingerprint is None or (kind.startswith("plain") and fingerprint == OLD):
        assert opened(found, "orders", fingerprint) == (found, NOTHING)
    else:
        with pytest.raises(InputChangedError):
            opened(found, "orders", fingerprint)


@pytest.mark.parametrize("kind", [*RECORDS, "corrupt"])
@pytest.mark.parametrize("fingerprint", [OLD, NEW])
def test_a_label_is_for_what_is_there_only_if_it_had_none(kind: str, fingerprint: str) -> None:
    found = RECORDS.get(kind, CorruptRecordError("the record is corrupt"))
    if kind == "corrupt":
        with pytest.raises(CorruptRecordError):
            labelled(found, "orders", fingerprint)
        return
    record, _ = labelled(found, "orders", fingerprint)
    assert (record.workflow, record.fingerprint, record.base) == ("orders", fingerprint, None)
    if kind.startswith("plain") and fingerprint == OLD:
        assert record is found
    elif kind == "unknown":
        assert found is not None
        assert (record.token, record.nonce == found.nonce) == (found.token, False)
    else:
        assert found is None or record.token != found.token


# The policy itself


@pytest.mark.parametrize("policy", POLICIES)
def test_the_three_policies_are_accepted(policy: Policy) -> None:
    assert policy == check_policy(policy)


class _Contrary:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "policy",
    [
        None,
        "",
        "Reset",
        "RESET",
        " reset",
        "reset\n",
        "keep",
        "start",
        "continue",
        b"reset",
        0,
        True,
        math.nan,
        ["reset"],
        ("reset",),
        {"reset"},
        object(),
        _Contrary(),
        "reset\x00",
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_any_other_policy_is_an_error_that_lists_the_three(policy: Any) -> None:
    with pytest.raises(InvalidPolicyError) as caught:
        check_policy(policy)
    for known in POLICIES:
        assert repr(known) in str(caught.value)


def test_a_missing_policy_is_called_missing() -> None:
    with pytest.raises(InvalidPolicyError, match="on_input_change is missing"):
        check_policy(None)
