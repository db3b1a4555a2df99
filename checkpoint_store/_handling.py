"""Whether an exception that is being handled was raised since a certain moment.

A stream is closed by the same call whether its block has ended or is being left by an exception:
`io.TextIOWrapper`, `contextlib.closing` and `finally` call `close()` and do not say which it is.
`sys.exception()` names the exception that is being handled, but not since when. The same exception
may have been handled at that moment already, as in a stream that is opened within an `except`
block, and may have been raised again since. A bare `raise` leaves no trace of that in the
exception: its `__traceback__` stays the same. So the clauses are counted that are handling an
exception, up the stack. The exception tables of CPython's code objects tell which instructions
belong to one.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

_CLAUSE_BEGINS = dis.opmap["PUSH_EXC_INFO"]
_CLAUSE_ENDS = dis.opmap["COPY"]


class Moment:
    """The moment at which it is made, with the exceptions that this thread is handling then."""

    __slots__ = ("_handled",)

    def __init__(self) -> None:
        self._handled: list[tuple[BaseException, TracebackType | None, int]] = []
        error = sys.exception()
        clauses = 0 if error is None else _clauses(sys._getframe())
        # For each exception, the number of clauses that may be handling it or an earlier one.
        while error is not None and clauses > 0:
            self._handled.append((error, error.__traceback__, clauses))
            error, clauses = error.__context__, clauses - 1

    def arisen(self) -> BaseException | None:
        """The exception that is being handled in this thread, if it was raised since the moment."""
        error = sys.exception()
        if error is None:
            return None
        for known, traceback, clauses in self._handled:
            if error is known and error.__traceback__ is traceback:
                return error if _clauses(sys._getframe()) > clauses else None
        return error


def _clauses(frame: FrameType | None) -> int:
    """How many `except`, `finally` and `with` on the stack are handling an exception.

    The code of such a clause, from its PUSH_EXC_INFO on, is covered by an entry of the exception
    table whose target begins with COPY; that of the block before it by one whose target is the
    PUSH_EXC_INFO (CPython's Objects/exception_handling_notes.txt, and Python/codegen.c).
    """
    count = 0
    while frame is not None:
        code, position, is_within = frame.f_code.co_code, frame.f_lasti, True
        targets = list(_targets(frame.f_code.co_exceptiontable))
        while (position := _target_of(position, targets)) >= 0:
            if code[position] == _CLAUSE_ENDS:
                count += is_within
                is_within = True
            elif code[position] == _CLAUSE_BEGINS:
                is_within = False  # The clause that is found next has not begun.
        frame = frame.f_back
    return count


def _target_of(position: int, targets: list[tuple[range, int]]) -> int:
    return next((target for covered, target in targets if position in covered), -1)


def _targets(table: bytes) -> Iterator[tuple[range, int]]:
    """For each entry of an exception table, the instructions that it covers, and its target."""
    numbers = _numbers(table)
    # The fourth number of an entry, the depth of the stack, is not needed.
    for start, length, target, _ in zip(numbers, numbers, numbers, numbers, strict=True):
        yield range(2 * start, 2 * (start + length)), 2 * target


def _numbers(table: bytes) -> Iterator[int]:
    number = 0
    for byte in table:
        number = number << 6 | byte & 63
        if not byte & 64:
            yield number
            number = 0
