"""The picture of a result: an SVG that reads on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from xml.sax.saxutils import escape

from .partial import FLOORS
from .scale import FLOOR
from .timing import LIBRARY

_WIDTH = 860
_LEFT, _RIGHT = 235, 790
_ROW = 21
_PANEL = 210
_DASHES = {"checkpoints": "none", "workflows": "5 4"}
_PEERS = {
    "dotflow": "#e69f00",
    "joblib": "#56b4e9",
    "diskcache": "#009e73",
    "s3fs": "#cc79a7",
    "obstore": "#d55e00",
    "dask": "#8a8a3c",
}
_OPERATIONS = {
    "list": "#56b4e9",
    "resume": "#009e73",
    "collect": "#cc79a7",
    "clear": "#e69f00",
    FLOOR: "#8b949e",
}
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px } .small { font-size: 10.5px; fill: #656d76 }
.end { text-anchor: end } .middle { text-anchor: middle }
.grid { stroke: #d0d7de } .floor { stroke: #656d76; stroke-width: 1.5 }
.ours { fill: #0969da; stroke: #0969da } .target { stroke: #cf222e; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 }
  .grid { stroke: #3d444d } .floor { stroke: #9198a1 }
  .ours { fill: #4493f8; stroke: #4493f8 } .target { stroke: #f85149 }
}
"""

Result = Mapping[str, Any]


def draw(result: Result) -> str:
    # A floor that is no measure has no place in the picture. Nor has the library itself as a floor:
    # a ratio of 150 to its resume without tasks would press all others together.
    rows = [
        row
        for row in result["rows"]
        if not row["limit"] and row["contenders"][0]["name"] not in FLOORS
    ]
    ratios, height = _ratios(rows)
    curves = _curves(result["scale"], height + 34)
    total = height + _PANEL + 108
    size = f'viewBox="0 0 {_WIDTH} {total}" width="{_WIDTH}" height="{total}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>Benchmarks of {LIBRARY}</title>",
            f"<style>{_STYLE}</style>",
            *ratios,
            *curves,
            "</svg>\n",
        ]
    )


def _ratios(rows: Sequence[Result]) -> tuple[list[str], int]:
    """One line a row: how many times as long as the plain calls, on a logarithmic scale."""
    medians = [
        each["ratio"][row["clock"]]["median"] for row in rows for each in row["contenders"][1:]
    ]
    low, high = min(0.5, *medians) / 1.15, max(2.0, *medians) * 1.15

    def x(ratio: float) -> float:
        share = math.log(min(max(ratio, low), high) / low) / math.log(high / low)
        return round(_LEFT + share * (_RIGHT - _LEFT), 1)

    top, bottom = 58, 58 + _ROW * len(rows)
    parts = [_text(8, 18, "Time, as a multiple of the plain calls (the floor)", "title")]
    peers = [(partial(_ring, colour), name) for name, colour in _PEERS.items()]
    parts += _legend(38, [(_disc, f"{LIBRARY}, all rounds"), (_target, "its target"), *peers])
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100):
        if low <= tick <= high:
            kind = "floor" if tick == 1 else "grid"
            parts.append(_line(x(tick), top, x(tick), bottom, kind))
            parts.append(_text(x(tick), bottom + 14, f"{tick:g}x", "small middle"))
    for number, row in enumerate(rows):
        y = top + _ROW * (number + 0.5)
        parts.append(_text(_LEFT - 10, y + 4, row["name"], "end"))
        if row["target"]:
            parts.append(_target(x(row["target"]), y))
        for each in reversed(row["contenders"][1:]):
            ratio = each["ratio"][row["clock"]]
            if each["name"] == LIBRARY:
                parts.append(_line(x(ratio["min"]), y, x(ratio["max"]), y, "ours"))
                parts.append(_disc(x(ratio["median"]), y))
                parts.append(_text(_WIDTH - 8, y + 4, f"{ratio['median']:.2f}x", "end"))
            else:
                parts.append(_ring(_colour(each["name"]), x(ratio["median"]), y))
    return parts, bottom + 20


def _legend(y: float, marks: Iterable[tuple[Callable[[float, float], str], str]]) -> Iterator[str]:
    x = 8.0
    for mark, text in marks:
        yield mark(x + 6, y - 4)
        yield _text(x + 18, y, text)
        x += 34 + 7.2 * len(text)


def _curves(curves: Sequence[Result], top: float) -> Iterator[str]:
    """Seconds over n, both logarithmic, one panel a place."""
    yield _text(8, top, "Seconds over n, the number of checkpoints or of workflows", "title")
    marks = [(partial(_square, colour), name) for name, colour in _OPERATIONS.items()]
    yield from _legend(top + 22, marks)
    yield _line(435, top + 18, 463, top + 18, "floor")
    yield _text(469, top + 22, "in a workflow of n checkpoints")
    yield _line(660, top + 18, 688, top + 18, "floor", f'stroke-dasharray="{_DASHES["workflows"]}"')
    yield _text(694, top + 22, "among n workflows")
    for number, place in enumerate(dict.fromkeys(curve["place"] for curve in curves)):
        mine = [curve for curve in curves if curve["place"] == place]
        yield from _panel(place, mine, 58 + 412 * number, top + 44)


def _panel(place: str, curves: Sequence[Result], left: float, top: float) -> Iterator[str]:
    width = 335
    sizes = [n for curve in curves for n in curve["n"]]
    seconds = [value for curve in curves for value in curve["seconds"]]
    first, last = (math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes))))
    low, high = (math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds))))

    def x(n: float) -> float:
        return round(left + width * (math.log10(n) - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(top + _PANEL * (1 - (math.log10(value) - low) / (high - low)), 1)

    yield _text(left + 6, top + 14, place, "title")
    for power in range(low, high + 1):
        yield _line(left, y(10**power), left + width, y(10**power), "grid")
        yield _text(left - 6, y(10**power) + 4, f"{10.0**power:g} s", "small end")
    for power in range(first, last + 1):
        yield _line(x(10**power), top, x(10**power), top + _PANEL, "grid")
        yield _text(x(10**power), top + _PANEL + 15, f"{10**power:,}", "small middle")
    for curve in curves:
        points = zip(curve["n"], curve["seconds"], strict=True)
        path = " ".join(f"{x(n)},{y(value)}" for n, value in points)
        colour = _OPERATIONS[curve["operation"].removesuffix(" one")]
        yield (
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{_DASHES[curve["of"]]}"/>'
        )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, more: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}" {more}/>'


def _disc(x: float, y: float) -> str:
    return f'<circle cx="{x}" cy="{y}" r="5" class="ours"/>'


def _ring(colour: str, x: float, y: float) -> str:
    return f'<circle cx="{x}" cy="{y}" r="4" fill="none" stroke="{colour}" stroke-width="2"/>'


def _square(colour: str, x: float, y: float) -> str:
    return f'<rect x="{x - 5}" y="{y - 5}" width="10" height="10" fill="{colour}"/>'


def _target(x: float, y: float) -> str:
    return _line(x, y - 8, x, y + 8, "target")


def _colour(name: str) -> str:
    return next((colour for peer, colour in _PEERS.items() if name.startswith(peer)), "#888888")
