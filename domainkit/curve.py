"""Lines over a common axis, and where to draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POINTS = 400  # drawn of a curve at most
WIDTH, HEIGHT = 560.0, 180.0  # of a curve's plotting area, SVG units


@dataclass(frozen=True)
class Curve:
    """Lines over a common x axis, e.g. the loss over the steps."""

    title: str
    x: str  # label of the axis
    y: str
    series: Mapping[str, tuple[tuple[float, float], ...]]  # name → points


def plot(curve: Curve) -> dict[str, Any] | None:
    """A curve in SVG units: "series" name → "x,y x,y …", "x" and "y" ticks as (place, label); None without points."""
    series = {name: points[:: max(1, len(points) // POINTS)] for name, points in curve.series.items() if points}
    if not series:
        return None

    every = [point for points in series.values() for point in points]
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*every, strict=True))

    def across(x: float) -> float:
        return round(WIDTH * (x - left) / ((right - left) or 1.0), 1)

    def down(y: float) -> float:
        return round(HEIGHT * (high - y) / ((high - low) or 1.0), 1)

    return {
        "series": {name: " ".join(f"{across(x)},{down(y)}" for x, y in points) for name, points in series.items()},
        "x": [(across(tick), f"{tick:,.10g}") for tick in _ticks(left, right)],
        "y": [(down(tick), f"{tick:,.10g}") for tick in _ticks(low, high)],
    }


def _ticks(low: float, high: float) -> list[float]:
    """At most six round numbers between low and high."""
    span = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 5))
    step = next(unit * times for times in (1, 2, 5, 10) if span / (unit * times) <= 5)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]
