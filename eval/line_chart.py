"""Line charts as inline SVG: small, without a script or a library, coloured by the page that holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 10, 24
_LEAST, _MOST = 1e-290, 1e290  # beyond them floats have no room for ticks
MAX_POINTS = 400  # of a piece of a curve; of more, neighbours are averaged: a screen has no more columns

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points from left to right. `intervals`, if given, holds (low, high) of each point."""

    label: str
    points: Sequence[Point]
    style: str  # class of the page's style sheet
    has_dots: bool = False
    has_line: bool = True
    intervals: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """What is drawn over x from `x_range[0]` to `x_range[1]`."""

    name: str  # for readers who cannot see it
    curves: Sequence[Curve]
    x_range: Point
    x_ticks: Sequence[tuple[float, str]]
    dividers: Sequence[tuple[float, str]] = ()  # vertical lines that no curve crosses, with a word at their right
    shades: Sequence[Point] = ()  # spans of x that are marked
    is_share: bool = False  # y cannot leave [0, 1]
    is_log: bool = False


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points, each the mean of as many neighbours as any other (the last of what is left)."""
    size = -(-len(points) // most)
    parts = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in parts]


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, the first at or below `low` and the last at or above `high`.

    Args:
        low: finite, at most `high`; where they are equal, room is made around them.
    """
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-12):
        room = abs(low) / 10 if abs(low) > _LEAST else 1.0
        low, high = low - room, high + room
    exponent = math.floor(math.log10((high - low) / most))
    steps = [digit * 10.0 ** (exponent + shift) for shift in (0, 1) for digit in (1, 2, 5)]
    step = next(s for s in steps if math.ceil(high / s - 1e-9) - math.floor(low / s + 1e-9) < most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten with 2 and 5 times each in between, around [low, high]; low must be positive."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    first = max(n for n, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    last = min(n for n, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
    marks = marks[first : max(last, first + 1) + 1]
    if len(marks) <= 7:
        return marks
    return [mark for mark in marks if mark in (marks[0], marks[-1]) or f"{mark:e}".startswith("1.0")]


def tick_labels(ticks: Sequence[float], is_share: bool = False) -> list[str]:
    """As many digits as tell neighbours apart."""
    if is_share:
        return [f"{tick:.{0 if all(abs(t * 100 - round(t * 100)) < 1e-6 for t in ticks) else 1}%}" for tick in ticks]
    largest = max(map(abs, ticks))
    if largest >= 1e6 or largest < 1e-3:
        digits = max(3, math.ceil(math.log10(largest / (ticks[1] - ticks[0]))) + 2)
        return [f"{tick:.{digits}g}" if tick else "0" for tick in ticks]
    digits = max(len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return [f"{tick:,.{digits}f}" for tick in ticks]


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` element; "" if no curve has a point that can be drawn."""
    curves = [(curve, _drawable(curve, chart.is_log)) for curve in chart.curves]
    values = [y for curve, points in curves for _, y in points]
    values += [end for curve, _ in curves for interval in curve.intervals for end in interval]
    if not values:
        return ""
    ticks = _ticks(min(values), max(values), chart)
    low, high = ticks[0], ticks[-1]

    def across(x: float) -> str:
        start, end = chart.x_range
        return f"{_LEFT + (x - start) / (end - start) * (WIDTH - _LEFT - _RIGHT):.1f}"

    def down(y: float) -> str:
        share = (y - low) / (high - low)
        if chart.is_log:
            share = math.log(y / low) / math.log(high / low)
        return f"{HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM):.1f}"

    top, bottom, left, right = _TOP, HEIGHT - _BOTTOM, _LEFT, WIDTH - _RIGHT
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_summary(chart, curves))}">']
    for start, end in chart.shades:
        x, width = float(across(start)), max(2.0, float(across(end)) - float(across(start)))
        parts.append(f'<rect class="shade" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{bottom - top}"/>')
    labels = [f"{tick:g}" for tick in ticks] if chart.is_log else tick_labels(ticks, chart.is_share)
    for tick, label in zip(ticks, labels, strict=True):
        y = down(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="y" x="{left - 6}" y="{y}" dy="0.32em">{label}</text>')
    for x, label in chart.x_ticks:
        parts.append(f'<text class="x" x="{across(x)}" y="{HEIGHT - 8}">{escape(label)}</text>')
    for x, word in chart.dividers:
        parts.append(f'<line class="divider" x1="{across(x)}" x2="{across(x)}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="word" x="{across(x)}" y="{top}" dx="4" dy="0.8em">{escape(word)}</text>')
    for curve, points in curves:
        parts += _curve(curve, _split(points, [x for x, _ in chart.dividers]), across, down)
    return "".join([*parts, "</svg>"])


def _curve(
    curve: Curve, pieces: Sequence[list[Point]], across: Callable[[float], str], down: Callable[[float], str]
) -> list[str]:
    parts = []
    for (x, _), (low, high) in zip(curve.points, curve.intervals, strict=False):
        line = f'x1="{across(x)}" x2="{across(x)}" y1="{down(low)}" y2="{down(high)}"'
        parts.append(f'<line class="interval {curve.style}" {line}/>')
    for piece in pieces:
        shown = piece if curve.has_dots else thinned(piece)
        if curve.has_line and len(shown) > 1:
            path = " ".join(f"{across(x)},{down(y)}" for x, y in shown)
            parts.append(f'<polyline class="{curve.style}" points="{path}"/>')
        if curve.has_dots or len(shown) == 1:
            for x, y in shown:
                dot = f'<circle class="{curve.style}" cx="{across(x)}" cy="{down(y)}" r="3">'
                parts.append(f"{dot}<title>{escape(curve.label)}: {y:.4g}</title></circle>")
    return parts


def _split(points: Sequence[Point], at: Sequence[float]) -> list[list[Point]]:
    """The points between each two of the values `at`; one that lies on a value belongs to the left."""
    pieces: dict[int, list[Point]] = {}
    for x, y in points:
        pieces.setdefault(sum(x > value for value in at), []).append((x, y))
    return list(pieces.values())


def _drawable(curve: Curve, is_log: bool) -> list[Point]:
    return [(x, y) for x, y in curve.points if (_LEAST < y < _MOST if is_log else -_MOST < y < _MOST)]


def _ticks(low: float, high: float, chart: Chart) -> list[float]:
    if chart.is_log:
        return log_ticks(low, high)
    ticks = linear_ticks(low, high)
    if chart.is_share and low >= 0 and high <= 1:
        return [tick for tick in ticks if -1e-9 <= tick <= 1 + 1e-9]
    return ticks


def _summary(chart: Chart, curves: Sequence[tuple[Curve, list[Point]]]) -> str:
    ends = [f"{curve.label} from {p[0][1]:.4g} to {p[-1][1]:.4g}" for curve, p in curves if p]
    return f"{chart.name}: {'; '.join(ends)}"
