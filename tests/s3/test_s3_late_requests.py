"""Requests to S3 that take effect after their client has given them up.

A proxy holds a request back until the client has stopped waiting for the reply, other processes
may go on meanwhile, and then the server gets the request after all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest

from checkpoint_store import CheckpointStore, StorageError, resume

from ..harness.faults import Injection, Kind
from ..harness.s3_operations import (
    ABSENT,
    DELETE,
    FULL,
    IMPATIENT,
    TASKS,
    A,
    B,
    C,
    State,
    World,
    fill,
    stored,
    value,
    write_large,
)

pytestmark = pytest.mark.slow


@dataclass
class Late:
    """A request that is held back until the client has given it up."""

    store: CheckpointStore
    injection: Injection

    def let_through(self) -> int:
        assert self.injection.hits == 1
        return self.injection.let_through()


@pytest.fixture
def hold(world: World) -> Callable[..., Late]:
    """Holds the next request of a kind, and gives a store that sends each only once."""

    def hold(kind: Kind, *, attempts: int = 1, skip: int = 0) -> Late:
        injection = Injection(world.proxy, kind, "timeout", times=1, skip=skip, late=True)
        world.proxy.on_request = injection
        return Late(world.through(IMPATIENT, attempts), injection)

    return hold


Hold = Callable[..., Late]


def test_a_late_create_begins_an_empty_generation(world: World, hold: Hold) -> None:
    late = hold(Kind.CREATE_RECORD)
    with pytest.raises(StorageError):
        resume(late.store, "wf", A, on_input_change="raise")
    assert late.let_through() == 200
    world.judge(State(A))


def test_a_late_create_is_refused_where_another_has_created(world: World, hold: Hold) -> None:
    late = hold(Kind.CREATE_RECORD)
    with pytest.raises(StorageError):
        resume(late.store, "wf", A, on_input_change="raise")
    fill(world, B)
    assert late.let_through() == 412
    world.judge(State(B, stored(B, *TASKS)))


def test_a_late_create_is_refused_where_its_own_repetition_came_first(
    world: World, hold: Hold
) -> None:
    late = hold(Kind.CREATE_RECORD, attempts=2)
    run = resume(late.store, "wf", A, on_input_change="raise")
    run.dump("one", value(A, "one"))
    assert late.let_through() == 412
    world.judge(State(A, stored(A, "one")))


def test_a_late_create_after_a_clear_revives_nothing(world: World, hold: Hold) -> None:
    late = hold(Kind.CREATE_RECORD)
    with pytest.raises(StorageError):
        resume(late.store, "wf", A, on_input_change="raise")
    fill(world, A)
    world.fresh().clear("wf")
    assert late.let_through() == 200
    world.judge(State(A))


def test_a_late_trial_of_the_conditions_after_a_clear_revives_nothing(
    world: World, hold: Hold
) -> None:
    late = hold(Kind.CREATE_RECORD, skip=1)
    run = resume(late.store, "wf", A, on_input_change="raise")
    world.fresh().clear("wf")
    run.dump("one", value(A, "one"))  # By a worker that has not heard of it.
    assert late.let_through() == 200
    world.judge(State(A))


def test_a_late_swap_retires_what_was_written_meanwhile(world: World, hold: Hold) -> None:
    world.prepare(FULL)
    late = hold(Kind.SWAP_RECORD)
    with pytest.raises(StorageError):
        resume(late.store, "wf", B, on_input_change="reset")
    old = fill(world, A)
    assert old.is_current()
    assert late.let_through() == 200
    assert not old.is_current()
    world.judge(State(B))


def test_a_late_swap_is_refused_after_another(world: World, hold: Hold) -> None:
    world.prepare(FULL)
    late = hold(Kind.SWAP_RECORD)
    with pytest.raises(StorageError):
        resume(late.store, "wf", C, on_input_change="reset")
    fill(world, B)
    assert late.let_through() == 412
    world.judge(State(B, stored(B, *TASKS)))


def test_a_late_swap_is_refused_although_the_inputs_are_again_the_same(
    world: World, hold: Hold
) -> None:
    world.prepare(FULL)
    late = hold(Kind.SWAP_RECORD)
    with pytest.raises(StorageError):
        resume(late.store, "wf", C, on_input_change="reset")
    fill(world, B)
    fill(world, A)
    assert late.let_through() == 412
    world.judge(FULL)


def test_a_late_swap_after_a_clear_makes_no_record(world: World, hold: Hold) -> None:
    world.prepare(FULL)
    late = hold(Kind.SWAP_RECORD)
    with pytest.raises(StorageError):
        resume(late.store, "wf", B, on_input_change="reset")
    world.fresh().clear("wf")
    assert late.let_through() in (404, 412)
    world.judge(ABSENT)


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_late_write_can_only_bring_back_an_older_one_of_the_same_inputs(
    world: World, hold: Hold, attempts: int
) -> None:
    world.prepare(State(A))
    late = hold(Kind.WRITE, attempts=attempts)
    run = resume(late.store, "wf", A, on_input_change="raise")
    with pytest.raises(StorageError) if attempts == 1 else nullcontext():
        run.write("one", b"older of A")
    run.write("one", b"newer of A")
    assert run.read("one") == b"newer of A"
    assert late.let_through() == 200
    world.judge(State(A, {"one": b"older of A"}))  # The limit that is stated.


def test_a_late_write_never_gets_into_the_generation_of_a_reset(world: World, hold: Hold) -> None:
    world.prepare(State(A))
    late = hold(Kind.WRITE)
    run = resume(late.store, "wf", A, on_input_change="raise")
    with pytest.raises(StorageError):
        run.write("one", b"late of A")
    fill(world, B)
    assert late.let_through() == 200
    world.judge(State(B, stored(B, *TASKS)))


def test_a_late_write_after_a_clear_is_found_by_nobody_and_cleared_again(
    world: World, hold: Hold
) -> None:
    world.prepare(State(A))
    late = hold(Kind.WRITE)
    run = resume(late.store, "wf", A, on_input_change="raise")
    with pytest.raises(StorageError):
        run.write("one", b"late of A")
    world.fresh().clear("wf")
    assert late.let_through() == 200
    assert "wf" in set(world.fresh().workflows())
    assert world.fresh().clear("wf") == 1
    world.judge(ABSENT)


def test_a_late_deletion_of_retired_files_deletes_no_others(world: World, hold: Hold) -> None:
    world.prepare(FULL)
    late = hold(DELETE)
    run = resume(late.store, "wf", B, on_input_change="reset")
    for task in TASKS:
        run.dump(task, value(B, task))
    fill(world, A)
    assert late.let_through() == 200
    world.judge(FULL)


def test_a_late_delete_can_take_a_newer_write_and_brings_back_nothing(
    world: World, hold: Hold
) -> None:
    world.prepare(FULL)
    late = hold(DELETE)
    run = resume(late.store, "wf", A, on_input_change="raise")
    with pytest.raises(StorageError):
        run.delete("one")
    run.write("one", b"newer of A")
    assert late.let_through() == 200
    world.judge(State(A, stored(A, "two")))


def test_a_late_clear_takes_a_newer_generation_and_brings_back_nothing(
    world: World, hold: Hold
) -> None:
    world.prepare(FULL)
    late = hold(DELETE)
    with pytest.raises(StorageError):
        late.store.clear("wf")
    fill(world, B)
    assert late.let_through() == 200
    world.judge(ABSENT)


def test_a_late_completion_of_an_aborted_upload_makes_no_file(world: World, hold: Hold) -> None:
    world.prepare(FULL)
    late = hold(Kind.COMPLETE)
    run = resume(late.store, "wf", A, on_input_change="raise")
    with pytest.raises(StorageError):
        write_large(run)
    assert late.let_through() == 404
    assert world.uploads() == []
    world.judge(FULL)
