"""Accuracy over the rounds, as the geometry of a line chart; the template draws it, and the style sheet colours it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coordinator.store.records import EvaluationRecord

SHOWN_WIDTHS = ("full", "half", "quarter")
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 110.0, 12.0, 30.0
_LABEL_HEIGHT = 16.0
_MAX_TICKS = 8
_STEPS = (1, 2, 5, 10, 20, 25, 50)
_Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """The line of one width: its SVG path, its points, its last value in percent, and the height of its label."""

    name: str
    path: str
    points: tuple[_Point, ...]
    last: float
    label_y: float


@dataclass(frozen=True, slots=True)
class Stop:
    """One round: its interval on the x axis, its position in it, and the value of each width, in percent."""

    number: int
    left: float
    width: float
    x: float
    values: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart in a box of ``width`` by ``height``: grid lines by y and ticks by x, each with its label."""

    width: float
    height: float
    right: float
    bottom: float
    grid: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, int], ...]
    lines: tuple[Line, ...]
    stops: tuple[Stop, ...]


def shown_widths(found: Iterable[EvaluationRecord]) -> tuple[str, ...]:
    """Full, half and quarter width, as far as they were evaluated; if none was, the three largest."""
    sizes = {one.width: one.parameters for one in found}
    usual = tuple(width for width in SHOWN_WIDTHS if width in sizes)
    return usual or tuple(sorted(sizes, key=lambda width: -sizes[width])[:3])


def accuracy_chart(found: Sequence[EvaluationRecord], width: float, height: float) -> Chart | None:
    """The accuracy of each shown width, in percent; ``None`` if nothing was evaluated yet."""
    curves = {
        name: {one.round: 100 * one.accuracy for one in found if one.width == name} for name in shown_widths(found)
    }
    rounds = sorted({number for curve in curves.values() for number in curve})
    if not rounds:
        return None
    low, high, step = _range(value for curve in curves.values() for value in curve.values())
    scale = _Scale(rounds[0], max(rounds[-1], rounds[0] + 1), low, high, width - _RIGHT, height - _BOTTOM)
    return Chart(
        width,
        height,
        scale.right,
        scale.bottom,
        tuple((scale.y(value), f"{value} %") for value in range(low, high + 1, step)),
        tuple((scale.x(number), number) for number in scale.ticks),
        _lines(curves, scale),
        _stops(curves, {number: scale.x(number) for number in rounds}, scale.right),
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps rounds and percentages to coordinates."""

    first: int
    last: int
    low: int
    high: int
    right: float
    bottom: float

    def x(self, number: int) -> float:
        return round(_LEFT + (number - self.first) / (self.last - self.first) * (self.right - _LEFT), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - _TOP), 1)

    @property
    def ticks(self) -> range:
        return range(self.first, self.last + 1, math.ceil((self.last - self.first + 1) / _MAX_TICKS))


def _lines(curves: Mapping[str, Mapping[int, float]], scale: _Scale) -> tuple[Line, ...]:
    points = {
        name: tuple((scale.x(number), scale.y(curve[number])) for number in sorted(curve))
        for name, curve in curves.items()
    }
    labels = _apart({name: own[-1][1] for name, own in points.items()})
    return tuple(
        Line(name, "M" + "L".join(f"{a} {b}" for a, b in own), own, curves[name][max(curves[name])], labels[name])
        for name, own in points.items()
    )


def _range(values: Iterable[float]) -> tuple[int, int, int]:
    """Round bounds around the values, in percent, and the step between grid lines, of which there are at most six."""
    known = [*values]
    low, high = min(known), max(known)
    step = next(step for step in _STEPS if (high - low) / step <= 4)
    first, last = math.floor(low / step) * step, math.ceil(high / step) * step
    return max(0, first), max(last, first + step), step


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Heights for the labels, each as near as possible to the end of its line, without overlaps."""
    placed = dict[str, float]()
    for name, y in sorted(ends.items(), key=lambda end: end[1]):
        placed[name] = max(y, max(placed.values(), default=-math.inf) + _LABEL_HEIGHT)
    return placed


def _stops(curves: Mapping[str, Mapping[int, float]], xs: Mapping[int, float], right: float) -> tuple[Stop, ...]:
    edges = [_LEFT, *((a + b) / 2 for a, b in pairwise(xs.values())), right]
    return tuple(
        Stop(
            number,
            round(left, 1),
            round(end - left, 1),
            x,
            tuple((name, curve[number]) for name, curve in curves.items() if number in curve),
        )
        for (number, x), (left, end) in zip(xs.items(), pairwise(edges), strict=True)
    )
