"""Servers without conditional writes: whether they ignore a condition or refuse it, it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from checkpoint_store import StorageError, resume

from ..harness.s3_operations import (
    CHANGED_FINGERPRINT,
    FIRST,
    FULL,
    RESET,
    REUSE,
    A,
    B,
    Operation,
    State,
    World,
    stored,
    value,
)
from ..harness.servers import Request, Response, error

pytestmark = pytest.mark.slow


def without(*conditions: str) -> Callable[[Request], Any]:
    async def strip(request: Request) -> None:
        for name in [name for name in request.headers if name.lower() in conditions]:
            del request.headers[name]

    return strip


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "no conditional writes" in line]


@pytest.mark.parametrize("conditions", [("if-match", "if-none-match"), ("if-none-match",)])
def test_a_server_that_ignores_conditions_is_noticed_at_the_first_resume(
    world: World, caplog: pytest.LogCaptureFixture, conditions: tuple[str, ...]
) -> None:
    world.proxy.on_request = without(*conditions)
    run = resume(world.store, "wf", A, on_input_change="raise")
    assert world.store.conditional_writes is False
    run.dump("one", value(A, "one"))
    run = resume(world.store, "wf", B, on_input_change="reset")
    run.dump("two", value(B, "two"))
    assert len(warnings_of(caplog)) == 1
    # A single process is as safe as ever.
    world.judge(State(B, stored(B, "two")))


def test_a_server_that_ignores_if_match_is_noticed_by_a_store_that_swaps_first(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.prepare(FULL)
    world.proxy.on_request = without("if-match")
    store = world.through()
    resume(store, "wf", B, on_input_change="reset")
    assert store.conditional_writes is False
    assert len(warnings_of(caplog)) == 1
    world.judge(State(B))


@pytest.mark.parametrize("operation", [FIRST, RESET, REUSE, CHANGED_FINGERPRINT], ids=str)
def test_a_server_that_refuses_conditions_is_an_error_with_a_remedy(
    world: World, operation: Operation
) -> None:
    async def refuse(request: Request) -> Response | None:
        conditional = {"if-match", "if-none-match"} & {name.lower() for name in request.headers}
        return error(501, "NotImplemented") if conditional else None

    world.prepare(operation.start)
    world.store = world.through()
    world.proxy.on_request = refuse
    with pytest.raises(StorageError, match=r"S3 answered 501 NotImplemented.*: .*condition"):
        operation.call(world)
    assert world.store.conditional_writes is not True
    world.judge(operation.start)
