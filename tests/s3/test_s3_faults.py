"""Every fault of S3 on every kind of request, in front of a server that works.

Each case runs one operation while a proxy breaks one kind of its requests: before the server has
seen it or after, once or for ever. Then the faults stop, and a fresh store judges: the workflow has
exactly the checkpoints it should have, under no other inputs is there one, the siblings are
untouched, nothing is left of an upload, and what could not be collected can be collected now.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from checkpoint_store import (
    CorruptCheckpointError,
    CorruptRecordError,
    IncompleteClearError,
    InputChangedError,
    Run,
    StorageError,
    resume,
)
from checkpoint_store._protocol import TRIES

from ..harness.faults import READS, RECORD_WRITES, Injection, Kind, kind_of
from ..harness.s3_operations import (
    ABANDONED,
    ATTEMPTS,
    CHANGED_FINGERPRINT,
    CLEAR,
    COLLECT,
    CONTAINS,
    DECLARED_LATE,
    DELETE,
    DELETE_,
    DELETE_DEPENDENTS,
    FIRST,
    IMPATIENT,
    IS_CURRENT,
    LARGE_STREAM,
    LIST,
    LOAD,
    MISSING,
    OPERATIONS,
    OVERWRITE,
    PATIENT,
    PLAN,
    READ,
    READ_FINGERPRINT,
    READ_MANY,
    READ_OF_ITS_OWN,
    READ_OF_OLDER_INPUTS,
    READ_RECORD,
    RESET,
    RESET_OF_A_PART,
    REUSE,
    REUSE_OF_A_PART,
    SMALL_STREAM,
    STORE_RUN,
    STREAM_READ,
    TASKS,
    TASKS_,
    THROUGH_BASE,
    UNCHANGED,
    UNCHANGED_RESET,
    WORKFLOWS,
    WRITE,
    WRITE_MANY,
    A,
    B,
    Operation,
    State,
    World,
    fill,
    retire,
    stored,
)
from ..harness.servers import Request, Response

pytestmark = pytest.mark.slow


RETRIED = ("500", "503", "timeout", "reset")
REFUSED = ("403", "404-bucket", "404-bare", "409", "412")
XML_REPLIES = (LIST, DELETE, Kind.BEGIN, Kind.COMPLETE)


@dataclass(frozen=True, repr=False)
class Case:
    operation: Operation
    kind: Kind
    fault: str
    applied: bool = False
    always: bool = False
    skip: int = 0

    def __repr__(self) -> str:
        number = f"-{self.skip + 1}" if self.skip else ""
        when = "applied" if self.applied else "before"
        times = "always" if self.always else "once"
        return f"{self.operation}-{self.kind}{number}-{self.fault}-{when}-{times}"

    @property
    def is_record(self) -> bool:
        return self.kind in RECORD_WRITES

    @property
    def while_cleaning(self) -> bool:
        """It breaks what comes after the swap of a reset."""
        first = self.operation.requests.index(self.kind)
        return self.operation.cleanup and (first >= 2 or self.skip > 0)

    @property
    def is_proposal_refused(self) -> bool:
        """A proposal of the record is answered that somebody else was faster, though nobody was."""
        refused = ("409", "412") if self.kind is Kind.CREATE_RECORD else ("404-key", "409", "412")
        return self.is_record and self.fault in refused

    @property
    def bound(self) -> int:
        """The most requests that it may take.

        Each is sent `ATTEMPTS` times, a reply that breaks off is read three times, and a record is
        proposed `TRIES` times: read and written, and where a swap is refused with 412 looked at
        and written again with the bare ETag. In addition there may be one look at the record,
        or an abort.
        """
        if self.is_record and self.always and self.fault in ("404-key", "409", "412"):
            bare = self.kind is Kind.SWAP_RECORD and self.fault == "412"
            return (4 if bare else 2) * TRIES + 2
        each = 3 if self.fault in ("truncated", "stalled") else ATTEMPTS
        return each * len(self.operation.requests) + 2

    def outcomes(self) -> set[type[Exception] | None]:
        """What the operation may raise; None if it returns."""
        if self.kind is Kind.ABORT or self.while_cleaning:
            return {None}
        if self.is_record and (self.applied or self.skip):
            # The nonce tells whose record it is; the second create only tries the conditions.
            return {None}
        if self.fault in ("malformed", "error-in-200", "empty"):
            return self._of_nonsense()
        if self.fault in ("truncated", "stalled"):
            if self.operation is STREAM_READ:
                return {StorageError}
            if self.operation is FIRST and self.kind is READ_RECORD:
                return {StorageError} if self.always else {None, StorageError}
            return {StorageError if self.always else None}
        if self.fault == "delete-errors":
            several = self.operation is COLLECT or self.skip
            return {IncompleteClearError if several else StorageError}
        if self.fault in RETRIED:
            return {StorageError if self.always else None}
        if self.is_proposal_refused:
            return {StorageError if self.always else None}
        return {StorageError}

    def _of_nonsense(self) -> set[type[Exception] | None]:
        if self.kind is READ_RECORD:
            # Under "reset" a record that is corrupt would be replaced: but this is no record.
            strict = self.operation in (RESET, UNCHANGED_RESET)
            return {StorageError} if strict else {StorageError, CorruptRecordError}
        if self.kind is READ:
            return {CorruptCheckpointError}
        if self.fault == "empty":
            return {StorageError}
        # Whether it is asked again depends on the version of botocore.
        again = self.kind in XML_REPLIES and self.always
        return {StorageError} if again else {None, StorageError}


def variants(operation: Operation, kind: Kind, skip: int = 0) -> Iterator[Case]:
    """All faults on that kind of request, as far as they make a difference.

    What is not tried again is broken once: for ever would be the same. A read has no effect, so it
    is all the same whether the server has seen it.
    """

    def cases(*faults: str, applied: Any = (False,), always: Any = (False, True)) -> Iterator[Case]:
        for fault, late, ever in itertools.product(faults, applied, always):
            yield Case(operation, kind, fault, late, ever, skip)

    both = (False, True)
    if kind in READS or kind is LIST:
        yield from cases(*RETRIED, "malformed")
        yield from cases(*REFUSED, always=(False,))
        yield from cases("truncated", "stalled", applied=(True,))
    else:
        yield from cases(*RETRIED, applied=both)
        if kind in RECORD_WRITES:
            yield from cases(*REFUSED, "404-key", applied=both)
        else:
            yield from cases(*REFUSED, "404-key", always=(False,))
            yield from cases("403", "404-bucket", applied=(True,), always=(False,))
        yield from cases("truncated", applied=(True,))
        yield from cases("malformed", applied=both if kind in XML_REPLIES else (True,))
    if kind in XML_REPLIES:
        yield from cases("error-in-200")
    if kind in (LIST, Kind.COMPLETE):
        yield from cases("empty", always=(False,))
    if kind is DELETE:
        yield from cases("delete-errors", applied=both, always=(False,))


def few(operation: Operation, kind: Kind) -> Iterator[Case]:
    """For operations that go the same way as another."""
    yield Case(operation, kind, "403")
    yield Case(operation, kind, "503", always=True)


def some(operation: Operation, kind: Kind, skip: int = 0) -> Iterator[Case]:
    """A selection, for operations whose requests others make, too."""
    late = kind not in READS and kind is not LIST
    yield Case(operation, kind, "403", skip=skip)
    yield Case(operation, kind, "503", always=True, skip=skip)
    yield Case(operation, kind, "reset", applied=late, skip=skip)
    if late:
        yield Case(operation, kind, "404-bucket", applied=True, skip=skip)
        yield Case(operation, kind, "500", applied=True, always=True, skip=skip)
    else:
        yield Case(operation, kind, "404-bare", skip=skip)
        yield Case(operation, kind, "malformed", skip=skip)
    if kind is DELETE:
        yield Case(operation, kind, "delete-errors", skip=skip)
        yield Case(operation, kind, "delete-errors", applied=True, skip=skip)


CASES = [
    *variants(FIRST, READ_RECORD),
    *variants(FIRST, Kind.CREATE_RECORD),
    *some(FIRST, Kind.CREATE_RECORD, skip=1),
    *variants(UNCHANGED, READ_RECORD),
    *some(UNCHANGED_RESET, READ_RECORD),
    *some(RESET, READ_RECORD),
    *variants(RESET, Kind.SWAP_RECORD),
    *some(RESET, LIST),
    *some(RESET, READ_RECORD, skip=1),
    *some(RESET, DELETE),
    *some(REUSE, READ_RECORD),
    *some(REUSE, Kind.SWAP_RECORD),
    *some(COLLECT, LIST),
    *some(COLLECT, READ_RECORD),
    *variants(COLLECT, DELETE),
    *some(CLEAR, DELETE),
    *some(CLEAR, LIST),
    *some(CLEAR, READ_RECORD),
    *some(CLEAR, DELETE, skip=1),
    *few(PLAN, READ_RECORD),
    *few(READ_FINGERPRINT, READ_RECORD),
    *few(STORE_RUN, READ_RECORD),
    *some(CHANGED_FINGERPRINT, Kind.SWAP_RECORD),
    *few(WORKFLOWS, LIST),
    *few(IS_CURRENT, READ_RECORD),
    *few(WRITE, Kind.WRITE),
    *variants(OVERWRITE, Kind.WRITE),
    *some(WRITE_MANY, Kind.WRITE),
    *variants(LOAD, READ),
    *[case for case in some(CONTAINS, READ) if case.fault != "malformed"],
    *some(MISSING, READ),
    *some(THROUGH_BASE, READ),
    *some(THROUGH_BASE, READ, skip=1),
    *variants(TASKS_, LIST),
    *some(READ_MANY, LIST),
    *some(READ_MANY, READ),
    *some(DELETE_, DELETE),
    *few(SMALL_STREAM, Kind.WRITE),
    *variants(LARGE_STREAM, Kind.BEGIN),
    *variants(LARGE_STREAM, Kind.PART),
    *some(LARGE_STREAM, Kind.PART, skip=2),
    *variants(LARGE_STREAM, Kind.COMPLETE),
    *variants(ABANDONED, Kind.ABORT),
    *variants(STREAM_READ, READ),
    *some(RESET_OF_A_PART, Kind.SWAP_RECORD),
    *few(RESET_OF_A_PART, LIST),
    *some(RESET_OF_A_PART, DELETE),
    *some(REUSE_OF_A_PART, Kind.SWAP_RECORD),
    *some(DECLARED_LATE, Kind.SWAP_RECORD),
    *few(READ_OF_ITS_OWN, READ),
    *some(READ_OF_OLDER_INPUTS, READ, skip=1),
    *few(DELETE_DEPENDENTS, DELETE),
    Case(DELETE_DEPENDENTS, DELETE, "500", applied=True, always=True),
    Case(DELETE_DEPENDENTS, DELETE, "403", skip=1),
]


def prepare(world: World, operation: Operation, timeout: float = PATIENT) -> None:
    world.prepare(operation.start, timeout)
    if operation is COLLECT:
        retire(world)


def check_result(world: World, operation: Operation, result: object) -> None:
    if isinstance(result, Run):
        assert result.token == world.fresh().run("wf").token
        result = result.decision and result.decision.action
    assert operation.result == result


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_without_faults_each_operation_makes_the_requests_that_are_broken_below(
    world: World, operation: Operation
) -> None:
    prepare(world, operation)
    world.proxy.on_request = injection = Injection(world.proxy, Kind.ABORT, "none", times=0)
    result = operation.call(world)
    assert list(operation.requests) == injection.seen
    check_result(world, operation, result)
    assert world.uploads() == []
    world.judge(operation.end)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_fault_loses_nothing_and_lets_nothing_stale_through(
    world: World, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    operation = case.operation
    prepare(world, operation, IMPATIENT if case.fault in ("timeout", "stalled") else PATIENT)
    injection = Injection(
        world.proxy,
        case.kind,
        case.fault,
        applied=case.applied,
        times=None if case.always else 1,
        skip=case.skip,
    )
    world.proxy.on_request = injection
    failure: Exception | None = None
    result: object = None
    try:
        result = operation.call(world)
    except Exception as raised:  # noqa: BLE001
        failure = raised
    world.proxy.on_request = None
    injection.release()

    assert injection.hits
    check_failure(case, failure)
    assert len(injection.seen) <= case.bound
    if failure is None:
        check_result(world, operation, result)
    warned = "old files are still there" in caplog.text
    if not (case.while_cleaning and case.fault == "malformed"):  # That depends on botocore.
        assert warned == (case.while_cleaning and is_broken_for_good(case))
    assert world.store.conditional_writes is not False
    check_uploads(world, case)
    world.judge(state_after(case, failure))


def is_broken_for_good(case: Case) -> bool:
    return case.always or case.fault not in RETRIED


def check_failure(case: Case, failure: Exception | None) -> None:
    if failure is None:
        assert None in case.outcomes()
        return
    assert type(failure) in case.outcomes(), repr(failure)
    status = re.match(r"\d+", case.fault)
    if case.is_proposal_refused and failure is not None:
        assert f"refused {TRIES} conditional writes" in str(failure)
    elif status and isinstance(failure, StorageError):
        assert f"S3 answered {status[0]}" in str(failure)
    if isinstance(failure, IncompleteClearError):
        assert len(failure.failures) == (1 if case.applied else 2)
        assert set(failure.failures.values()) == {"AccessDenied: No"}


def check_uploads(world: World, case: Case) -> None:
    if case.kind is Kind.BEGIN and case.applied:
        return  # Nobody knows the id of what was begun.
    stays = case.kind is Kind.ABORT and not case.applied and is_broken_for_good(case)
    assert stays == bool(world.uploads())


def state_after(case: Case, failure: Exception | None) -> State:
    start, end = case.operation.start, case.operation.end
    if case.operation is COLLECT:
        return end
    if case.operation is CLEAR and (case.skip or case.kind is not DELETE):
        return end
    if case.operation is WRITE_MANY and failure and not case.always and not case.applied:
        (failed,) = failure.failures  # type: ignore[attr-defined]
        return State(A, {**end.tasks, failed: start.tasks[failed]})
    if failure is None:
        return end
    if case.operation is DELETE_DEPENDENTS and (case.applied or case.skip):
        return replace(start, tasks={"one": start.tasks["one"]})
    final = (*RECORD_WRITES, Kind.WRITE, Kind.COMPLETE, DELETE)
    applied = case.applied and case.kind in final and case.fault != "delete-errors"
    return end if applied else start


@pytest.mark.parametrize("policy", ["raise", "reset"])
def test_a_lost_reply_after_which_another_resets_is_no_success(world: World, policy: Any) -> None:
    async def lose(request: Request) -> Response | None:
        if kind_of(request) is not Kind.CREATE_RECORD or lost:
            return None
        lost.append(await world.proxy.forward(request))
        await asyncio.to_thread(fill, world, B)
        return Response(cut=0)

    lost: list[Response] = []
    world.proxy.on_request = lose
    if policy == "raise":
        with pytest.raises(InputChangedError):
            resume(world.store, "wf", A, on_input_change=policy)
        world.judge(State(B, stored(B, *TASKS)))
    else:
        resume(world.store, "wf", A, on_input_change=policy)
        world.judge(State(A))
