"""The pictures of docs/attention.md, from what the LSH benchmarks wrote to benchmarks/results.

python benchmarks/lsh_plots.py    # writes docs/attention-*.svg
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log2, log10
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from lsh_tables import label
from machine import read_results

from domainkit.curve import HEIGHT, WIDTH, Curve, plot
from domainkit.files import write_text

DOCS = Path(__file__).parents[1] / "docs"
Row = Mapping[str, Any]
Tick = Callable[[float], str]  # a place on an axis → what stands there

PAGE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="-64 -30 {{ width + 250 }} {{ height + 74 }}" role="img" \
aria-label="{{ curve.title }}">
<style>
 svg { background: #fff; font: 13px system-ui, sans-serif; } text { fill: #5b6470; } .title { fill: #1b1f24; }
 .grid { stroke: #d8dde3; } polyline, .key { fill: none; stroke-width: 2; }
</style>
<text class="title" x="0" y="-14">{{ curve.title }}</text>
{% for place, name in y %}
<line class="grid" x1="0" x2="{{ width }}" y1="{{ place }}" y2="{{ place }}"/>\
<text x="-8" y="{{ place + 4 }}" text-anchor="end">{{ name }}</text>
{% endfor %}
{% for place, name in x %}
<line class="grid" x1="{{ place }}" x2="{{ place }}" y1="{{ height }}" y2="{{ height + 4 }}"/>\
<text x="{{ place }}" y="{{ height + 18 }}" text-anchor="middle">{{ name }}</text>
{% endfor %}
{% for name, points in series.items() %}
<g stroke="{{ colours[name] }}"{% if name.startswith("window") %} stroke-dasharray="7 3"{% endif %}>
<polyline points="{{ points }}"/>\
<line class="key" x1="{{ width + 14 }}" x2="{{ width + 44 }}" y1="{{ loop.index * 19 - 9 }}" \
y2="{{ loop.index * 19 - 9 }}"/></g>
<text x="{{ width + 50 }}" y="{{ loop.index * 19 - 5 }}">{{ name }}</text>
{% endfor %}
<text x="{{ width }}" y="{{ height + 38 }}" text-anchor="end">{{ curve.x }}</text>
</svg>
"""
COLOURS = ("#1f5fbf", "#b4530a", "#11713c", "#7a3fa8", "#a8174b", "#00707a", "#5b6470", "#9a7b00")


def main() -> None:
    for name, curve, x, y in pictures():
        if page := drawn(curve, x, y):
            write_text(DOCS / f"attention-{name}.svg", page)
            print(DOCS / f"attention-{name}.svg")


def pictures() -> Iterator[tuple[str, Curve, Tick, Tick]]:
    """Of what has been measured: file name, curve, and what its ticks are called."""
    if file := read_results("lsh_time-group"):
        for name, key in (("time", "forward"), ("time-backward", "forward and backward")):
            title = f"Seconds, {key}: three query heads on one key head of 64"
            lines = _lines(file["results"], _log(log2, "tokens"), _log(log10, key))
            yield name, Curve(title, "tokens", "seconds", lines), _doubled, _tenfold
        title = "MiB over the inputs, forward and backward: three query heads on one key head of 64"
        told = [row for row in file["results"] if row["forward and backward, MiB"]]
        lines = _lines(told, _log(log2, "tokens"), _log(log10, "forward and backward, MiB"))
        yield "memory", Curve(title, "tokens", "MiB", lines), _doubled, _tenfold
    if file := read_results("lsh_attention-perplexity-8192"):
        title = f"Perplexity over dense attention, %, mean of {file['means'][0]['texts']} texts of 8,192 tokens"
        kept = [row for row in file["means"] if row["keys"]]
        lines = _lines(kept, _log(log2, "keys"), lambda row: 100 * row["over dense"], by=_name)
        yield "perplexity", Curve(title, "keys beside sinks and blocks", "%", lines), _doubled, _plain
    if file := read_results("lsh_recall"):
        title = f"Recall of the {file['top']} remote keys of most weight, by layer"
        lines = _lines(file["results"], lambda row: row["layer"], lambda row: row["recall"],
                       by=lambda row: f"{row['keys']} keys")  # fmt: skip
        yield "recall", Curve(title, "layer", "recall", lines), _plain, _plain


def drawn(curve: Curve, x: Tick, y: Tick) -> str | None:
    """As SVG; None without points."""
    if not (p := plot(curve)):
        return None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    axes = {
        axis: [(place, of(float(name.replace(",", "")))) for place, name in p[axis]]
        for axis, of in (("x", x), ("y", y))
    }
    kinds = list(dict.fromkeys(name.split(", ")[-1] for name in p["series"]))  # as many keys, the same colour
    colours = {name: COLOURS[kinds.index(name.split(", ")[-1]) % len(COLOURS)] for name in p["series"]}
    return environment.from_string(PAGE).render(
        curve=curve, series=p["series"], **axes, colours=colours, width=WIDTH, height=HEIGHT
    )


def _lines(rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float],
           by: Callable[[Row], str] = label) -> dict[str, tuple[tuple[float, float], ...]]:  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(by(row), []).append((x(row), y(row)))
    return {name: tuple(points) for name, points in found.items()}


def _log(log: Callable[[float], float], key: str) -> Callable[[Row], float]:
    return lambda row: log(row[key])


def _name(row: Row) -> str:
    return label({**row, "keys": None})


def _doubled(power: float) -> str:
    if power % 1:
        return ""
    return f"{2**power / 1024:.3g}k" if power >= 10 else f"{2**power:.3g}"


def _tenfold(power: float) -> str:
    return f"{10**power:.2g}" if power < 2 else f"{10**power:,.0f}"


def _plain(value: float) -> str:
    return f"{value:.4g}"


if __name__ == "__main__":
    main()
