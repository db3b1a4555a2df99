"""Contenders side by side: in every round each takes its turn, the floor first.

A ratio is taken within a round, so that whatever slows the machine for a while slows both. The
median of the rounds is reported, with the lowest and the highest.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

LIBRARY = "checkpoint_store"

Clock = Literal["processor", "wall"]
"""The time of this process, all threads and the system's part included, or that on the wall."""

Seconds = dict[Clock, float]


@dataclass(frozen=True)
class Contender:
    """`call` does all operations of a row; what `prepare` does before each is not measured."""

    name: str
    call: Callable[[], object]
    lacks: str = ""
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Result:
    """One row: seconds an operation of each contender in each round, the floor first."""

    name: str
    clock: Clock
    """Which one decides: that of the processor unless the operation waits."""

    target: float | None
    """The highest ratio that is meant for the library."""

    limit: float | None
    """The same in seconds, where the floor is no measure."""

    lacks: dict[str, str]
    seconds: dict[str, list[Seconds]]

    @property
    def kept(self) -> bool | None:
        """Whether the library is where it is meant to be, if that is said and it takes part."""
        if LIBRARY not in self.seconds:
            return None
        if self.limit is not None:
            return median(self.times(LIBRARY, self.clock)) <= self.limit
        if self.target is not None:
            return median(self.ratios(LIBRARY, self.clock)) <= self.target
        return None

    def times(self, name: str, clock: Clock) -> list[float]:
        return [seconds[clock] for seconds in self.seconds[name]]

    def ratios(self, name: str, clock: Clock) -> list[float]:
        floor = self.times(next(iter(self.seconds)), clock)
        return [a / b for a, b in zip(self.times(name, clock), floor, strict=True)]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "clock": self.clock,
            "target": self.target,
            "limit": self.limit,
            "contenders": [
                {
                    "name": name,
                    "lacks": self.lacks[name],
                    "ratio": {clock: _spread(self.ratios(name, clock)) for clock in _CLOCKS},
                    "seconds": {clock: _spread(self.times(name, clock)) for clock in _CLOCKS},
                }
                for name in self.seconds
            ],
        }


_CLOCKS: tuple[Clock, Clock] = ("processor", "wall")


def _spread(values: Sequence[float]) -> dict[str, float]:
    digits = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in digits.items()}


def timed(contender: Contender) -> Seconds:
    contender.prepare()
    gc.collect()
    processor, wall = time.process_time(), time.perf_counter()
    contender.call()
    return {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
    }


def compare(
    name: str,
    contenders: Sequence[Contender],
    *,
    rounds: int,
    clock: Clock,
    operations: int = 1,
    target: float | None = None,
    limit: float | None = None,
    measure: Callable[[Contender], Seconds] = timed,
) -> Result:
    """One row. Every contender warms up once; the first is the floor."""
    seconds: dict[str, list[Seconds]] = {each.name: [] for each in contenders}
    for each in contenders:
        measure(each)
    for _ in range(rounds):
        for each in contenders:
            measured = measure(each)
            seconds[each.name].append({key: value / operations for key, value in measured.items()})
    lacks = {each.name: each.lacks for each in contenders}
    return Result(name, clock, target, limit, lacks, seconds)
