"""A small workflow over a CSV file, interrupted in the middle and resumed under each policy."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .._policy import Policy, explanations
from .._resume import resume
from .._store import CheckpointStore
from .._tasks import Task
from ..errors import CheckpointNotFoundError, InputChangedError

_ROW = "  {:6}  {:6}  {:7}  {:7}  {:7}  {:7}  {:>11} {:5}  {}"


class _InterruptionError(Exception):
    """Stands for a crash in the middle of a step."""


def demonstrate(store: CheckpointStore) -> Iterator[str]:
    """Runs the workflow again and again, and yields line by line what happened."""
    first, later = orders(5_000), orders(5_250)
    yield "A workflow of four steps over orders.csv, with damaged rows in it. First it is"
    yield "interrupted and resumed, then it is resumed with 250 late orders in the file, and then"
    yield "with another currency, which only the last step uses:"
    yield ""
    yield _ROW.format("orders", "policy", *_TASKS, "revenue", "", "decision")
    yield from _run(store, first, "EUR", "raise", interrupt=True)
    yield from _run(store, first, "EUR", "raise")
    yield from _run(store, later, "EUR", "raise")
    yield from _run(store, later, "EUR", "reuse")
    yield from _run(store, later, "EUR", "reset")
    yield from _run(store, later, "USD", "reset", explain=True)
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


def total(sales: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The revenue of each city."""
    totals: Counter[str] = Counter()
    for city, amount in sales:
        totals[city] += round(100 * amount)
    return {city: cents / 100 for city, cents in sorted(totals.items())}


def report(totals: Mapping[str, float], currency: str) -> str:
    return f"{sum(totals.values()):,.0f} {currency}"


_TASKS = {
    "extract": Task(uses=["orders"]),
    "clean": Task(uses=[], after=["extract"]),
    "total": Task(uses=[], after=["clean"]),
    "report": Task(uses=["currency"], after=["total"]),
}


def _steps(currency: str) -> dict[str, Callable[[Any], Any]]:
    return {
        "extract": extract,
        "clean": clean,
        "total": total,
        "report": lambda totals: report(totals, currency),
    }


def _run(
    store: CheckpointStore,
    data: bytes,
    currency: str,
    policy: Policy,
    *,
    interrupt: bool = False,
    explain: bool = False,
) -> Iterator[str]:
    count = format(data.count(b"\n"), ",")
    outcomes = dict.fromkeys(_TASKS, "-")

    def line(revenue: str, remark: str, decision: str) -> str:
        return _ROW.format(count, policy, *outcomes.values(), revenue, remark, decision).rstrip()

    inputs = {"orders": data, "currency": currency}
    try:
        run = resume(store, "revenue", inputs, on_input_change=policy, tasks=_TASKS)
    except InputChangedError as error:
        yield line("-", "", f"refused, {error.change.reason}")
        return
    assert run.decision is not None
    change = run.decision.change
    decision = f"{run.decision.action}, {change.reason}" if change else run.decision.action

    result: Any = data
    for task, step in _steps(currency).items():
        try:
            result = run.load(task)
            outcomes[task] = "skipped"
        except CheckpointNotFoundError:
            if interrupt and step is clean:
                result = _interrupted(result)
            try:
                result = run.dump(task, step(result))
            except _InterruptionError:
                outcomes[task] = "CRASHED"
                yield line("-", "", decision)
                return
            outcomes[task] = "ran"
    fresh = report(total(clean(extract(data))), currency)
    yield line(result, "fresh" if result == fresh else "STALE", decision)
    if explain:
        yield from (f"    {text}" for text in explanations(run.decision))


def _interrupted(rows: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    yield from rows[: len(rows) // 2]
    raise _InterruptionError
