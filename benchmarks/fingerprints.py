"""Fingerprints beside plain hashing of the same data, of which `json.dumps` is dotflow's way."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import joblib
import numpy as np
import pandas as pd
from dask.base import tokenize

from checkpoint_store import FingerprintError, fingerprint

from .timing import LIBRARY, Contender, Result, compare

Digest = Callable[[Any], object]

_JSON = "JSON only; {1: x} = {'1': x}"
_SHA256 = "the bytes alone: no dtype, shape or names"
_PEERS = {
    "joblib.hash": (joblib.hash, "[x, x] ≠ equal copies; any object passes"),
    "dask tokenize": (tokenize, "array = its transpose; any object passes"),
}


def _json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _array(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(array.data).hexdigest()


def _frame(frame: pd.DataFrame) -> str:
    digest = hashlib.sha256()
    for name in frame:
        digest.update(frame[name].to_numpy())
    return digest.hexdigest()


def _nested(leaves: int) -> dict[str, Any]:
    """Records of ten leaves: text, whole and broken numbers, flags and a short list."""
    pick = random.Random(1)
    return {
        f"record-{number}": {
            "name": f"customer {pick.randrange(10**9)}",
            "note": "é" * (number % 7),
            "count": pick.randrange(10**6),
            "price": pick.random(),
            "paid": number % 3 == 0,
            "left": None,
            "amounts": [pick.random() for _ in range(4)],
        }
        for number in range(leaves // 10)
    }


def _inputs() -> Iterator[tuple[str, Any, str, Digest, str, float | None, int]]:
    """Name, value, the floor with what it lacks, target, and how often in one call.

    Each key of the value has a digest of its own, which tells what changed.
    """
    small = {"day": "2026-11-23", "limit": 100, "rate": 0.5, "dry": False, "region": None}
    floor = "json.dumps, SHA-256"
    yield "5 keys", small, floor, _json, _JSON, 3.0, 2000
    yield "1,000 keys of 10 leaves", _nested(10_000), floor, _json, _JSON, None, 5
    yield "10,000 leaves", {"records": _nested(10_000)}, floor, _json, _JSON, 1.6, 5
    yield "20 MB of nested JSON", {"records": _nested(900_000)}, floor, _json, _JSON, 1.6, 1
    rng = np.random.default_rng(1)
    yield "256 MiB array", rng.random(2**25), "SHA-256", _array, _SHA256, 1.05, 1
    rows = 10**6
    frame = pd.DataFrame(
        {
            "id": np.arange(rows),
            "count": rng.integers(0, 100, rows),
            "price": rng.random(rows),
            "rate": rng.random(rows),
            "at": pd.date_range("2026-01-01", periods=rows, freq="s"),
        }
    )
    yield "DataFrame, 10⁶ rows", frame, "SHA-256 of its columns", _frame, _SHA256, 1.3, 1


def _knows(value: object) -> bool:
    try:
        fingerprint(value)
    except FingerprintError:
        return False
    return True


def _repeated(value: object, times: int, digest: Digest) -> Callable[[], None]:
    def call() -> None:
        for _ in range(times):
            digest(value)

    return call


def rows(rounds: int, *, quick: bool) -> Iterator[Result]:
    inputs = islice(_inputs(), 3 if quick else None)
    for name, value, floor, plain, lacks, target, operations in inputs:
        each = partial(_repeated, value, operations)
        ours = [Contender(LIBRARY, each(fingerprint))] if _knows(value) else []
        peers = [Contender(peer, each(digest), flaw) for peer, (digest, flaw) in _PEERS.items()]
        yield compare(
            f"fingerprint: {name}",
            [Contender(floor, each(plain), lacks), *ours, *peers],
            rounds=rounds,
            clock="processor",
            operations=operations,
            target=target,
        )
