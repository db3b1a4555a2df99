"""Operations as steps: generators that yield requests to the storage and are sent the replies.

Each operation is written once and can be driven in two ways: `drive` blocks until there is a reply,
`adrive` awaits it. Steps call other steps with `yield from`. The error of a request is raised where
it was yielded: a `FileNotFoundError` if there is no such key to read, and otherwise a
`StorageError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from ._filesystems.base import Filesystem, Page
from .errors import storage_error

P = ParamSpec("P")
R = TypeVar("R")

_READS = ("read", "read_small", "open_read")
"""The verbs of a filesystem that raise `FileNotFoundError` if there is no such key."""


@dataclass(slots=True)
class Call:
    """A request to call a verb of the filesystem. The reply is what that returns.

    `verb` is the name of a method of `Filesystem`. `drive` calls this method; `adrive` awaits
    `perform`, for which a filesystem that can be awaited has a method `a` + `verb`. Messages of
    errors begin with `about`.
    """

    about: object
    verb: str
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Pause:
    seconds: float


@dataclass(slots=True)
class Each:
    """A request to drive several operations side by side, as many at once as the storage allows.

    The next operation is taken when one has ended. `done` is called for each with its position and
    with what it returned or raised, in the thread or task that drives these steps. If `done` raises
    an error, the other operations are cancelled.
    """

    operations: Iterable[Steps[Any]]
    done: Callable[[int, Any], object]


Request = Call | Pause | Each
Steps = Generator[Request, Any, R]


def call(
    about: object, verb: Callable[Concatenate[Any, P], R], *arguments: P.args, **_: P.kwargs
) -> Steps[R]:
    """The steps of a single call: `call(about, Filesystem.contains, key)` yields
    `Call(about, "contains", (key,))` and returns the reply.
    """
    reply: R = yield Call(about, verb.__name__, arguments)
    return reply


def gather(operations: Sequence[Steps[R]]) -> Steps[list[R]]:
    """Drives these side by side and returns what each returns. The first error ends them all."""
    results: dict[int, R] = {}

    def keep(index: int, outcome: R | Exception) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        results[index] = outcome

    yield Each(operations, keep)
    return [results[index] for index in range(len(operations))]


def list_all(
    about: object, verb: Callable[Concatenate[Any, str, Any, P], Page[R]], folder: str,
    *arguments: P.args, **_: P.kwargs,
) -> Steps[list[R]]:  # fmt: skip
    """The items on all pages of a list."""
    items: list[R] = []
    more, is_last = None, False
    while not is_last:
        page: Page[R] = yield Call(about, verb.__name__, (folder, more, *arguments))
        items += page.items
        more, is_last = page.more, page.more is None
    return items


def drive(filesystem: Filesystem, steps: Steps[R]) -> R:
    """Drives the steps in this thread, and returns what they return."""
    reply, error = None, None
    while True:
        try:
            request = steps.send(reply) if error is None else steps.throw(error)
        except StopIteration as stop:
            value: R = stop.value
            return value
        finally:
            # An error that passes keeps this frame alive, and must not be kept alive by it.
            reply = error = None
        try:
            if isinstance(request, Call):
                reply = getattr(filesystem, request.verb)(*request.arguments)
            elif isinstance(request, Pause):
                time.sleep(request.seconds)
            else:
                _each(filesystem, request)
        except BaseException as raised:  # noqa: BLE001 - it is the steps' to handle
            error = _explained(request, raised)


async def adrive(filesystem: Filesystem, steps: Steps[R]) -> R:
    """Drives the steps in this task, and returns what they return.

    If the filesystem blocks and does one thing at a time, all the steps together are driven in one
    of its threads, and otherwise each request by itself.
    """
    import asyncio  # It is not imported above, because a blocking store needs none of it.

    if filesystem.blocks and filesystem.max_concurrency == 1:
        return await filesystem.in_thread(drive, filesystem, steps)
    reply, error = None, None
    while True:
        try:
            request = steps.send(reply) if error is None else steps.throw(error)
        except StopIteration as stop:
            value: R = stop.value
            return value
        finally:
            # An error that passes keeps this frame alive, and must not be kept alive by it.
            reply = error = None
        try:
            if isinstance(request, Call):
                reply = await filesystem.perform(request.verb, request.arguments)
            elif isinstance(request, Pause):
                await asyncio.sleep(request.seconds)
            else:
                await _aeach(filesystem, request, request.done)
        except BaseException as raised:  # noqa: BLE001 - it is the steps' to handle
            error = _explained(request, raised)


def _explained(request: Request, error: BaseException) -> BaseException:
    """What is raised where a request was yielded, if the filesystem has raised `error` for it."""
    if not isinstance(request, Call):
        return error
    if isinstance(error, FileNotFoundError) and request.verb in _READS:
        return error
    return storage_error(request.about, error)


def _each(filesystem: Filesystem, each: Each) -> None:
    # Where a filesystem does one thing at a time, the operations follow one another in this thread.
    # Otherwise they are tasks on fsspec's loop, which hand their outcomes back to this thread.
    if filesystem.max_concurrency == 1:
        for index, steps in enumerate(each.operations):
            try:
                outcome = drive(filesystem, steps)
            except Exception as error:  # noqa: BLE001 - an outcome like any other
                outcome = error
            each.done(index, outcome)
        return
    from ._filesystems.loop import emitted

    filesystem = filesystem.connected()

    def work(emit: Callable[[tuple[int, Any]], None]) -> Coroutine[Any, Any, None]:
        return _aeach(filesystem, each, lambda index, outcome: emit((index, outcome)))

    for index, outcome in emitted(work):
        each.done(index, outcome)


async def _aeach(filesystem: Filesystem, each: Each, done: Callable[[int, Any], object]) -> None:
    import asyncio

    numbered = enumerate(each.operations)

    async def work() -> None:
        for index, steps in numbered:
            try:
                outcome = await adrive(filesystem, steps)
            except Exception as error:  # noqa: BLE001 - an outcome like any other
                outcome = error
            done(index, outcome)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(filesystem.max_concurrency):
                group.create_task(work())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
