"""The report of a task as JSON and Markdown, and of a domain as one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from domainkit.curve import HEIGHT, WIDTH, Curve, plot
from domainkit.files import write_text
from domainkit.passages import STATES, Passage, palette
from domainkit.score import Score
from domainkit.types import UserError

LOWER_IS_BETTER = ("bits_per_byte",)  # of every other score, more is better
PAIRED, UNTOUCHED = "change_percent/", "base"  # score "change_percent/x": how "…/x" changed from baseline "base"


@dataclass(frozen=True)
class Table:
    """Rows for people: filter counts, mixtures, timings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, a row has {len(wrong[0])}")


@dataclass(frozen=True)
class Line:
    """One line of the comparison: a score beside one baseline. Made by `Report.lines`."""

    name: str
    score: Score
    rival: str  # "" when there is none
    beside: Score | None
    change: Score | None  # percent, paired; None when it is not known
    verdict: str  # "better", "worse", "no clear difference" or ""


@dataclass(frozen=True)
class Report:
    """Everything known about one task of one run. The fields up to `versions` are the JSON contract."""

    domain: str
    task: str
    kind: str
    split: str
    examples: int
    scores: Mapping[str, Score]
    per_label: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, Score]]  # name → score → value; the JSON keeps intervals apart
    base: Mapping[str, Any]  # `Base.facts`
    data: Mapping[str, Any]  # path, sha256, format; or source → these
    adapter_sha256: str
    seconds: float
    peak_rss_mb: int  # MiB
    seed: int
    versions: Mapping[str, str]
    summary: str  # one sentence for people
    title: str = ""
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()
    passages: tuple[Passage, ...] = ()  # documents to look at, errors first

    def __post_init__(self) -> None:
        """Raises UserError naming every figure that is not finite: JSON has no word for it."""
        wrong = [f"{at} is {value}" for at, value in _numbers(asdict(self), "") if not math.isfinite(value)]
        if wrong:
            what = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            raise UserError(what, where=f"report of {self.task}", instead="train with a smaller learning_rate")

    def write(self, folder: Path) -> list[Path]:
        """Write <task>.json and <task>.md, each at once; returns both paths."""
        paths = [folder / f"{self.task}.json", folder / f"{self.task}.md"]
        write_text(paths[0], json.dumps(self.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_text(paths[1], self.markdown())
        return paths

    @classmethod
    def read(cls, path: Path) -> Report:
        """The report in a JSON file that `write` wrote. Raises UserError when it is damaged."""
        try:
            return _parse(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"not a report: {type(error).__name__} {error}"
            raise UserError(what, where=path, instead="`domainkit eval` writes it anew") from None

    def as_json(self) -> dict[str, Any]:
        """The contract, then what only people read."""
        values = asdict(self)
        values["baseline"] = {b: {n: s.value for n, s in of.items()} for b, of in self.baseline.items()}
        spread = {b: {n: [s.low, s.high] for n, s in of.items()} for b, of in self.baseline.items()}
        return values | {"baseline_intervals": spread}

    def lines(self) -> list[Line]:
        """Every score beside every baseline that has it; a paired change stands in the line it belongs to."""
        found, placed = [], set()
        for name, score in self.scores.items():
            paired = PAIRED + name.partition("/")[2]
            for rival, of in self.baseline.items():
                if name in of:
                    change = self.scores.get(paired) if rival == UNTOUCHED and paired != name else None
                    placed |= {name, paired} if change else {name}
                    verdict = _verdict(name, score, of[name], change)
                    found.append(Line(name, score, rival, of[name], change, verdict))
        alone = [Line(name, score, "", None, None, "") for name, score in self.scores.items() if name not in placed]
        return found + alone

    def markdown(self) -> str:
        """The report for people who read text."""
        columns = ("score", "baseline", "its value", "adapted", "95 % interval", "change")
        rows = tuple((o.name, o.rival, o.beside.value if o.beside else "", o.score.value, interval(o.score),
                      f"{difference(o)} {o.verdict}") for o in self.lines())  # fmt: skip
        blocks = [
            f"# {_plain(self.title or self.task)}",
            _plain(self.summary),
            f"Domain {_plain(self.domain)}, task {_plain(self.task)} ({_plain(self.kind)}), "
            f"{self.examples:,} examples of the {_plain(self.split)} split.",
            _markdown(Table("Scores", columns, rows)),
            *(
                _markdown(table)
                for table in (*self.tables, *self.label_tables(), *self.passage_tables(), *self.provenance())
            ),
        ]
        return "\n\n".join(blocks) + "\n"

    def label_tables(self) -> list[Table]:
        """The scores of each label as a table, or nothing."""
        names = list(dict.fromkeys(name for values in self.per_label.values() for name in values))
        rows = tuple((label, *(of.get(name, "") for name in names)) for label, of in self.per_label.items())
        return [Table("Scores by label", ("label", *names), rows)] if rows else []

    def passage_tables(self) -> list[Table]:
        """The errors of each passage in words, or nothing; the page shows them in their text."""
        rows = tuple((passage.title, passage.told()) for passage in self.passages)
        return [Table("Examples, errors first", ("document", "errors"), rows)] if rows else []

    def provenance(self) -> list[Table]:
        """Where the figures come from: the run, its data and the versions of what computed it."""
        run = {f"base {name}": value for name, value in self.base.items()} | {
            "adapter sha256": self.adapter_sha256, "seed": self.seed,
            "time": f"{self.seconds:,.0f} s", "peak memory": f"{self.peak_rss_mb:,} MiB",
        }  # fmt: skip
        one = not all(isinstance(value, Mapping) for value in self.data.values())
        sources = {self.task: self.data} if one else self.data
        names = list(dict.fromkeys(key for of in sources.values() for key in of))
        rows = tuple((name, *(str(of.get(key, "")) for key in names)) for name, of in sources.items())
        return [
            Table("Run", ("", "value"), tuple((name, str(value)) for name, value in run.items())),
            Table("Data", ("source", *names), rows),
            Table("Versions", ("package", "version"), tuple(self.versions.items())),
        ]


def write_index(reports: Sequence[Report], folder: Path) -> Path:
    """Write index.html with the reports of one domain; it loads nothing from anywhere. Returns its path."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "interval": interval, "difference": difference}
    environment.globals |= {"plot": plot, "bar": bar, "is_number": _is_number, "width": WIDTH, "height": HEIGHT}
    environment.globals |= {"states": STATES, "palette": palette}
    page = environment.from_string(template).render(domain=reports[0].domain, reports=reports)
    write_text(folder / "index.html", page)
    return folder / "index.html"


def show(value: object) -> str:
    """A number as people read it: thousands apart, four digits that count, no exponents where avoidable."""
    if not _is_number(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if (size := abs(value)) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.3f}" if size >= 0.1 else f"{value:.3g}"


def interval(score: Score) -> str:
    """ "0.612 to 0.688" """
    return f"{show(score.low)} to {show(score.high)}"


def difference(line: Line) -> str:
    """How far the score is from its baseline: in percent with the interval when paired, else plainly."""
    if line.change:
        return f"{line.change.value:+.1f} % ({line.change.low:+.1f} to {line.change.high:+.1f})"
    return f"{line.score.value - line.beside.value:+.3f}" if line.beside else ""


def bar(line: Line, lines: Sequence[Line]) -> dict[str, float]:
    """Where to draw a line's interval, 0 to 100: value, low, high and mark (0 % change, else the baseline).

    Lines of one family ("bits_per_byte/…") share an axis; shares, such as an F1, have all of 0 to 1 for theirs.
    """

    def spread(one: Line) -> list[float]:
        if one.change:
            return [one.change.low, one.change.high, one.change.value, 0.0]
        return [one.score.low, one.score.high, one.score.value, one.beside.value if one.beside else one.score.value]

    family = line.name.partition("/")[0]
    alike = [o for o in lines if o.name.partition("/")[0] == family and bool(o.change) == bool(line.change)]
    every = [value for one in alike for value in spread(one)]
    low, span = min(every), (max(every) - min(every)) or 1.0
    if not line.change and low >= 0 and max(every) <= 1:
        low, span = 0.0, 1.0
    places = [round(4 + 92 * (value - low) / span, 1) for value in spread(line)]
    return dict(zip(("low", "high", "value", "mark"), places, strict=True))


def _verdict(name: str, score: Score, beside: Score, change: Score | None) -> str:
    low, high = (change.low, change.high) if change else (score.low - beside.high, score.high - beside.low)
    if low <= 0 <= high:
        return "no clear difference"
    return "better" if (high < 0) == name.startswith(LOWER_IS_BETTER) else "worse"


def _parse(values: dict[str, Any]) -> Report:
    """A report from what `Report.as_json` made. Raises KeyError, TypeError or ValueError for anything else."""
    intervals = values.pop("baseline_intervals")
    values["scores"] = {name: Score(**score) for name, score in values["scores"].items()}
    values["baseline"] = {
        rival: {name: Score(value, *intervals[rival][name]) for name, value in of.items()}
        for rival, of in values["baseline"].items()
    }
    values["tables"] = tuple(
        Table(t["title"], tuple(t["columns"]), tuple(tuple(row) for row in t["rows"])) for t in values["tables"]
    )
    values["curves"] = tuple(
        Curve(c["title"], c["x"], c["y"], {name: tuple((x, y) for x, y in of) for name, of in c["series"].items()})
        for c in values["curves"]
    )
    values["passages"] = tuple(Passage.parse(p) for p in values.get("passages", ()))  # older reports have none
    return Report(**values)


def _numbers(value: Any, at: str) -> Iterator[tuple[str, float]]:
    """Every float inside nested containers, with the way to it."""
    if isinstance(value, float):
        yield at, value
    elif isinstance(value, Mapping | list | tuple):
        for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(one, f"{at}.{key}" if at else str(key))


def _markdown(table: Table) -> str:
    """A table, numerals to the right."""
    right = [all(_is_number(row[i]) or row[i] == "" for row in table.rows) for i in range(len(table.columns))]
    lines = [table.columns, [("---:" if r else "---") for r in right], *([show(c) for c in row] for row in table.rows)]
    return f"## {_plain(table.title)}\n\n" + "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return re.sub(r"([\\|<`*\[])", r"\\\1", " ".join(text.split()))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
