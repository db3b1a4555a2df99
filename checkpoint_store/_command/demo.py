"""A small workflow over a CSV file, interrupted in the middle and resumed under each policy."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._policy import Policy
from .._resume import resume
from .._store import CheckpointStore
from ..errors import CheckpointNotFoundError, InputChangedError

_ROW = "  {:6}  {:6}  {:7}  {:7}  {:9}  {:>12} {:5}  {}"


class _InterruptionError(Exception):
    """Stands for a crash in the middle of a step."""


def demonstrate(store: CheckpointStore) -> Iterator[str]:
    """Runs the workflow again and again, and yields line by line what happened."""
    first, later = orders(5_000), orders(5_250)
    yield "A workflow of three steps over orders.csv, with damaged rows in it. First it is"
    yield "interrupted and resumed, then it is resumed with 250 late orders in the file:"
    yield ""
    yield _ROW.format(
        "orders", "policy", "extract", "clean", "aggregate", "revenue", "", "decision"
    )
    yield _run(store, first, "raise", interrupt=True)
    yield _run(store, first, "raise")
    yield _run(store, later, "raise")
    yield _run(store, later, "reuse")
    yield _run(store, later, "reset")
    yield ""
    yield "A skipped step was not computed: its checkpoint was there. STALE is what reuse means."


def orders(count: int) -> bytes:
    """A CSV file of that many orders, about every hundredth of which is damaged.

    A longer file begins with the shorter one.
    """
    chance = random.Random(1)
    lines = ["order,city,quantity,price"]
    for number in range(1, count + 1):
        city = chance.choice(["Berlin", "Lagos", "Lima", "Osaka", "Quito"])
        quantity = chance.choice(["n/a", "-1"] if chance.random() < 0.01 else ["1", "2", "3"])
        lines.append(f"{number},{city},{quantity},{chance.randint(500, 9999) / 100:.2f}")
    return "\n".join(lines).encode()


def extract(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(data.decode().splitlines()))


def clean(rows: Iterable[dict[str, str]]) -> list[tuple[str, float]]:
    """The city and the amount of each order that is not damaged."""
    return [
        (row["city"], int(row["quantity"]) * float(row["price"]))
        for row in rows
        if row["quantity"].isdigit()
    ]


def aggregate(sales: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The revenue of each city."""
    totals: Counter[str] = Counter()
    for city, amount in sales:
        totals[city] += round(100 * amount)
    return {city: cents / 100 for city, cents in sorted(totals.items())}


_STEPS: dict[str, Callable[[Any], Any]] = {
    "extract": extract,
    "clean": clean,
    "aggregate": aggregate,
}


def _run(store: CheckpointStore, data: bytes, policy: Policy, *, interrupt: bool = False) -> str:
    count = format(data.count(b"\n"), ",")
    steps = dict.fromkeys(_STEPS, "-")

    def line(revenue: str, remark: str, decision: str) -> str:
        return _ROW.format(count, policy, *steps.values(), revenue, remark, decision).rstrip()

    inputs = {"orders.csv": data, "currency": "EUR"}
    try:
        run = resume(store, "revenue", inputs, on_input_change=policy)
    except InputChangedError as error:
        return line("-", "", f"refused, {error.change.reason}")
    assert run.decision is not None
    change = run.decision.change
    decision = f"{run.decision.action}, {change.reason}" if change else run.decision.action

    result: Any = data
    for task, step in _STEPS.items():
        try:
            result = run.load(task)
            steps[task] = "skipped"
        except CheckpointNotFoundError:
            if interrupt and step is clean:
                result = _interrupted(result)
            try:
                result = run.dump(task, step(result))
            except _InterruptionError:
                steps[task] = "CRASHED"
                return line("-", "", decision)
            steps[task] = "ran"
    remark = "fresh" if result == aggregate(clean(extract(data))) else "STALE"
    return line(f"{sum(result.values()):,.2f}", remark, decision)


def _interrupted(rows: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    yield from rows[: len(rows) // 2]
    raise _InterruptionError
