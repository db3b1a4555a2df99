"""The library beside plain calls and beside its peers, all in one run: python -m benchmarks.

Every row has a floor, the plain calls with which a careful person would do the same, and says what
the floor and the peers leave out. Ratios are to the floor of the same round. A run of everything
is recorded in results.json and drawn in results.svg, both beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from . import clients, fingerprints, imports, local, memory, partial, picture, s3, scale
from .server import Server, running
from .timing import Clock, Result

_PACKAGES = (
    *("checkpoint-store", "fsspec", "s3fs", "aiobotocore", "boto3", "obstore"),
    *("dotflow", "joblib", "diskcache", "dask", "numpy", "pandas"),
)
_GROUPS = ("local", "s3", "clear", "partial", "fingerprints", "imports", "memory", "scale")
_HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help=f"some of {','.join(_GROUPS)}; records nothing")
    parser.add_argument("--quick", action="store_true", help="small and rough; records nothing")
    parser.add_argument("--rounds", type=int, default=9, help="of every row (%(default)s)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure, if not the usual one")
    options = parser.parse_args()
    groups = options.only.split(",") if options.only else _GROUPS
    if unknown := ", ".join(set(groups) - set(_GROUPS)):
        parser.error(f"there is no group {unknown}: the groups are {', '.join(_GROUPS)}")
    with tempfile.TemporaryDirectory(dir=options.folder) as name, running() as server:
        folder = Path(name)
        kind = _filesystem(folder)
        if kind in ("tmpfs", "ramfs"):
            parser.error(f"{folder} is on {kind}, which is no disk: give another --folder")
        rounds = 3 if options.quick else options.rounds
        result = _environment(kind, server) | {"rounds": rounds}
        _say(json.dumps(result, indent=1))
        result["rows"] = _rows(groups, folder, server, rounds, quick=options.quick)
        if "partial" in groups:
            result["requests_of_a_change"] = partial.requests(server)
            _say(f"\nrequests of a change: {result['requests_of_a_change']}")
        if "memory" in groups:
            result["memory"] = _memory(memory.rows(folder, server))
        if "scale" in groups:
            result["scale"] = _scale(folder, server, rounds, quick=options.quick)
    if not options.only and not options.quick:
        (_HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
        (_HERE / "results.svg").write_text(picture.draw(result))


def _rows(
    groups: Iterable[str], folder: Path, server: Server, rounds: int, *, quick: bool
) -> list[dict[str, Any]]:
    makers: dict[str, Callable[[], Iterable[Result]]] = {
        "local": lambda: local.rows(folder / "local", rounds),
        "s3": lambda: s3.rows(server, rounds),
        "clear": lambda: s3.clear_rows(server, rounds, checkpoints=1_000 if quick else 10_000),
        "partial": lambda: partial.rows(folder / "partial", server, rounds),
        "fingerprints": lambda: fingerprints.rows(rounds, quick=quick),
        "imports": lambda: imports.rows(server, rounds),
    }
    found = []
    for group in groups:
        for row in makers.get(group, tuple)():
            _show(row)
            found.append(row.as_json())
    return found


def _show(row: Result) -> None:
    verdict = {None: "", True: ": kept", False: ": MISSED"}[row.kept]
    wanted = f", ≤ {row.target:g}x" if row.target else f", ≤ {row.limit:g} s" if row.limit else ""
    other: Clock = "wall" if row.clock == "processor" else "processor"
    _say(f"\n{row.name} ({row.clock} time{wanted}{verdict})")
    for name in row.seconds:
        ratios, beside = row.ratios(name, row.clock), median(row.ratios(name, other))
        spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
        each = _seconds(median(row.times(name, row.clock)))
        _say(
            f"  {name:42}{median(ratios):6.2f} {spread:13} {other} {beside:5.2f}  {each:>9}"
            f"  {row.lacks[name]}".rstrip()
        )


def _memory(peaks: Iterable[memory.Peak]) -> list[dict[str, Any]]:
    found = []
    for peak in peaks:
        verdict = "kept" if peak.kept else "MISSED"
        _say(f"{peak.name:35} {peak.beyond / 2**20:6.1f} MiB beyond, ≤ 16: {verdict}")
        found.append(vars(peak))
    return found


def _scale(folder: Path, server: Server, rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    last = 3 if quick else None
    sizes = scale.CHECKPOINTS[:last], scale.WORKFLOWS[:last]
    found = []
    for place in (scale.Local(folder / "scale"), scale.S3(server)):
        for curve in scale.curves(place, max(1, rounds // 4), *sizes):
            _say(f"\n{curve.place}: {curve.operation}, over {curve.of}")
            for n, seconds, peak in zip(curve.n, curve.seconds, curve.peak, strict=True):
                each = _seconds(seconds / n)
                _say(f"  {n:7,}{_seconds(seconds):>10}{each:>10} each{peak / 2**20:8.2f} MiB")
            found.append(vars(curve))
    return found


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def _environment(kind: str, server: Server) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "cores": os.cpu_count(),
        "filesystem": kind,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "s3": {
            "seconds_per_request": s3.LATENCY,
            "in_flight": clients.IN_FLIGHT,
            "server_requests_per_second_without_latency": round(s3.server_rate(server)),
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def _filesystem(folder: Path) -> str:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    return max((len(at), kind) for at, kind in mounts if folder.resolve().is_relative_to(at))[1]


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
