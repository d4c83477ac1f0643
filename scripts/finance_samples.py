"""Build the samples in tasks/finance/data/ from a folder of raw sources.

    python scripts/finance_samples.py SHARED_DATA_FOLDER

Deterministic: the same sources give the same bytes. Nothing is cleaned here beyond joining lines that the
sources broke; the noise filter of domainkit meets the samples as they are.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "tasks" / "finance" / "data"

LONGEST = 12_000  # characters of one document, so that many documents fit
PARAGRAPH = 600  # characters after which a re-flowed paragraph ends at the next sentence
SHORTEST_PARAGRAPH = 60  # characters of a regulation paragraph
SMALLEST_CLASS = 80  # paragraphs of a regulation
BLOCK = 10  # consecutive paragraphs of a regulation that stay on one side of the split
SHORTEST_RUN = 100  # characters of consecutive WikiText sentences without an unknown word
SENTENCES = 10  # sentences in a document of the Chinese treebank
KEYS = ("id", "title", "date", "text", "language", "label", "group")  # in the order they are written

Row = dict[str, Any]


def main(shared: Path, out: Path = OUT) -> None:
    """Write every sample and its README into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    facts = {}
    for build in (fed, statutes_finance, cfpb, general_en, general_zh, statutes_general):
        name = build.__name__.replace("_", "-") + ".jsonl"
        facts[name] = _write(out / name, build(shared))
    _replace(out / "README.md", _readme(facts).encode())


def _write(path: Path, rows: list[Row]) -> tuple[int, int, int, str]:
    """Write `rows` and return documents, characters of text, bytes, and SHA-256."""
    data = b"".join(map(_line, rows))
    _replace(path, data)
    characters = sum(len(row["text"]) for row in rows)
    return len(rows), characters, len(data), hashlib.sha256(data).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _line(row: Row) -> bytes:
    kept = {key: row[key] for key in KEYS if row.get(key)}
    return (json.dumps(kept, ensure_ascii=False) + "\n").encode()


def _source(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _hash(key: str) -> str:
    """A fixed order; salted, or the documents chosen would be those that the split puts on one side."""
    return hashlib.sha256(f"sample:{key}".encode()).hexdigest()


def _groups(rows: list[Row]) -> list[list[Row]]:
    """The rows by group, in hash order."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    return [groups[name] for name in sorted(groups, key=_hash)]


def _until(groups: Iterable[list[Row]], budget: int) -> list[Row]:
    """Whole groups, in the order given, while they fit into `budget` bytes; then sorted by id."""
    chosen: list[Row] = []
    for group in groups:
        budget -= sum(len(_line(row)) for row in group)
        if budget < 0:
            break
        chosen += group
    return sorted(chosen, key=lambda row: row["id"])


def _cut(text: str, limit: int = LONGEST) -> str:
    """At most `limit` characters, ending with a paragraph, else with a sentence."""
    if len(text) <= limit:
        return text
    head = text[: limit + 1]
    end = max(head.rfind("\n"), 0) or max(head.rfind(". "), head.rfind("。")) + 1
    return text[: end or limit].rstrip()


def fed(shared: Path) -> list[Row]:
    """Federal Reserve speeches and minutes, spread over the years, lines joined into paragraphs."""
    folder = shared / "finance" / "fed_speeches"
    speeches, minutes = _source(folder / "fed_speeches.jsonl.gz"), _source(folder / "fomc_minutes.jsonl.gz")
    mend = _mender(row["text"] for row in speeches + minutes)
    for row in speeches:
        row |= {"id": f"speech:{row['id']}", "date": _date(row["date"]), "language": "en"}
        row["text"] = _cut("\n".join(_paragraphs(map(mend, row["text"].split("\n")))))
    for row in minutes:
        row |= {"date": f"{row['id'][:4]}-{row['id'][4:6]}-{row['id'][6:8]}", "language": "en"}
        row |= {"id": f"minutes:{row['id']}", "title": "Minutes of the Federal Open Market Committee"}
        row["text"] = _cut("\n".join(_paragraphs(map(mend, _minutes_lines(row["text"])))))
    return _until(_by_year(speeches), 1_040_000) + _until(_by_year(minutes), 360_000)


def _date(text: str) -> str:
    return datetime.strptime(text, "%m/%d/%Y" if "/" in text else "%B %d, %Y").strftime("%Y-%m-%d")


def _by_year(rows: list[Row]) -> Iterator[list[Row]]:
    """One row of each year, in hash order, again and again."""
    years: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _hash(row["id"])):
        years[row["date"][:4]].append(row)
    for turn in range(max(map(len, years.values()))):
        yield from ([years[year][turn]] for year in sorted(years) if turn < len(years[year]))


_TITLES = "".join(rf"(?<!\b{title}\.)" for title in ("Mr", "Ms", "Mrs", "Mses", "Messrs", "Dr"))
_BREAK = re.compile(rf"(?<=[.:?!\"\])]){_TITLES}\s*\t\s*")  # a tab opens a paragraph, not within a list
_SENTENCE = re.compile(rf"(?<=[a-z0-9)%][.!?]){_TITLES}\s+(?=[A-Z\"(])")


def _minutes_lines(text: str) -> Iterator[str]:
    """The sentences of minutes, an empty line after each paragraph the source marks."""
    text = re.sub(r"\s*\[Return to top\]\s*", "\t[Return to top]\t", text)
    for paragraph in _BREAK.split(text):
        yield from _SENTENCE.split(" ".join(paragraph.split()))
        yield ""


def _paragraphs(sentences: Iterable[str]) -> Iterator[str]:
    """Join sentences into paragraphs; page furniture stays on lines of its own."""
    paragraph = ""
    for sentence in sentences:
        furniture = re.fullmatch(r"\[?Return to (text|top)[ \d.]*\]?", sentence)
        if paragraph and (furniture or not sentence or len(paragraph) >= PARAGRAPH):
            yield paragraph
            paragraph = ""
        if furniture:
            yield sentence
        elif sentence:
            paragraph = f"{paragraph} {sentence}".lstrip()
    if paragraph:
        yield paragraph


def _mender(texts: Iterable[str]) -> Callable[[str], str]:
    """A function that collapses spaces and joins words broken at a line's end ("invest-  ment").

    Whether the hyphen stays is decided by which spelling the texts use elsewhere.
    """
    known: Counter[str] = Counter()
    for text in texts:
        known.update(re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower()))

    def join(match: re.Match[str]) -> str:
        first, second = match.groups()
        whole, hyphened = (first + second).lower(), f"{first}-{second}".lower()
        if second in ("and", "or", "to", "nor", "as", "versus"):  # "short- and long-term"
            return match.group()
        if known[whole] > known[hyphened]:
            return first + second
        return f"{first}-{second}" if known[hyphened] else match.group()

    return lambda line: re.sub(r"\b([A-Za-z]{2,})- ([a-z]+)\b", join, " ".join(line.split()))


def statutes_finance(shared: Path) -> list[Row]:
    """Chinese statutes on finance."""
    return _statutes(_source(shared / "finance" / "cn_laws" / "finance_laws.jsonl.gz"), 900_000)


def statutes_general(shared: Path) -> list[Row]:
    """Other statutes; none of a law that is among the finance ones, and no text that is not a statute."""
    folder = shared / "finance" / "cn_laws"
    finance = {_law(row) for row in _source(folder / "finance_laws.jsonl.gz")}
    rows = [row for row in _source(folder / "general_laws.jsonl.gz") if row["category"] != "其他"]
    return _statutes([row for row in rows if _law(row) not in finance], 600_000)


def _law(row: Row) -> str:
    return re.sub(r"\(\d{4}-\d{2}-\d{2}\)$", "", row["title"])


def _statutes(rows: list[Row], budget: int) -> list[Row]:
    """Laws in hash order, all versions of a law together."""
    for row in rows:
        law, dated = _law(row), re.search(r"\((\d{4}-\d{2}-\d{2})\)$", row["title"])
        row |= {"title": law, "group": law, "date": dated and dated[1], "language": "zh"}
        row |= {"id": row["id"].removesuffix(".md"), "text": _cut(row["text"])}
    return _until(_groups(rows), budget)


def cfpb(shared: Path) -> list[Row]:
    """Regulation paragraphs labelled with their regulation, in blocks; the largest classes lose blocks."""
    classes: dict[str, list[Row]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for row in _source(shared / "finance" / "cfpb_regs" / "cfpb_regs.jsonl.gz"):
        part, number = row["part"], counts[row["part"]]
        counts[part] += 1
        if len(row["text"]) >= SHORTEST_PARAGRAPH:
            label = re.sub(r"^(Reg [A-Z]+)\b.*", r"\1", row["reg"])
            facts = {"id": f"{part}:{number:04}", "text": row["text"], "language": "en", "label": label}
            classes[label].append(facts | {"group": f"{part}:{number // BLOCK:03}"})
    kept = {label: rows for label, rows in sorted(classes.items()) if len(rows) >= SMALLEST_CLASS}
    blocks = {label: _groups(rows) for label, rows in kept.items()}
    sizes = {label: [sum(map(len, map(_line, block))) for block in blocks[label]] for label in blocks}
    while sum(map(sum, sizes.values())) > 1_500_000:
        largest = max(sizes, key=lambda label: (sum(sizes[label]), label))
        sizes[largest].pop()
        blocks[largest].pop()
    chosen = [row for groups in blocks.values() for group in groups for row in group]
    return sorted(chosen, key=lambda row: row["id"])


def general_en(shared: Path) -> list[Row]:
    """WikiText-2 articles as normal prose: runs of consecutive sentences without an unknown word."""
    rows: list[Row] = []
    for name in ("valid", "test_first60"):
        text = (shared / "general" / "wikitext2" / f"{name}.txt").read_text(encoding="utf-8")
        articles = re.split(r"(?m)^ = (?!= )(.+) = ?$", text)
        for number, (title, body) in enumerate(zip(articles[1::2], articles[2::2], strict=True)):
            lines = [line.strip() for line in body.split("\n") if not line.startswith(" = ")]
            prose = "\n".join(run for line in lines for run in _known_runs(line))
            title = "" if "<unk>" in title else _detokenise(title)
            if prose:
                rows.append({"id": f"{name}:{number:03}", "title": title, "text": prose, "language": "en"})
    return rows


def _known_runs(line: str) -> Iterator[str]:
    run: list[str] = []
    for sentence in [*re.split(r"(?<= [.!?]) (?=[A-Z])", line), "<unk>"]:
        if "<unk>" not in sentence:
            run.append(sentence)
            continue
        text = _detokenise(" ".join(run))
        if len(text) >= SHORTEST_RUN and text.count('"') % 2 == 0:  # half a quotation is left out
            yield text
        run = []


def _detokenise(text: str) -> str:
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
    text = re.sub(r"(?<= )' ([^']+?) '(?=[ ,.;:)\"])", r"'\1'", text)
    text = re.sub(r" ('(?:s|t|re|ve|ll|d|m)|n't)\b", r"\1", text)
    text = re.sub(r"(?<=s) ' ", "' ", re.sub(r" ' (?=\d\ds?\b)", " '", text))
    text = re.sub(r" ([.,;:!?%)\]°])", r"\1", text)
    text = re.sub(r"([(\[$£€#]) ", r"\1", text)
    return re.sub(r"(?<=\d) – (?=\d)", "–", text)


def general_zh(shared: Path) -> list[Row]:
    """Sentences of the Chinese treebank, ten to a document, in the order of the source."""
    rows: list[Row] = []
    for name in ("dev", "test"):
        lines = (shared / "general" / "ud_zh_gsdsimp" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
        sentences = [line.strip() for line in lines if line.strip()]
        for start in range(0, len(sentences), SENTENCES):
            text = "\n".join(sentences[start : start + SENTENCES])
            rows.append({"id": f"{name}:{start // SENTENCES:03}", "text": text, "language": "zh"})
    return rows


def _readme(facts: dict[str, tuple[int, int, int, str]]) -> str:
    """The README of the data folder, from sources.toml and what was written."""
    sources = tomllib.loads((OUT / "sources.toml").read_text(encoding="utf-8"))
    rows = [f"| {name} | {n:,} | {chars:,} | {size:,} |" for name, (n, chars, size, _) in facts.items()]
    totals = (f"{sum(int(fact[column]) for fact in facts.values()):,}" for column in (0, 1, 2))
    head = "| file | documents | characters | bytes |\n|---|---:|---:|---:|"
    parts = [sources["about"], head, *rows, f"| together | {' | '.join(totals)} |"]
    for name, fact in facts.items():
        source = sources[name]
        parts.append(f"\n## {name}\n\n- Origin: {source['origin']}.\n- Licence: {source['licence']}.")
        parts.append(f"- Made: {source['made']}.\n- SHA-256: `{fact[3]}`")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/finance_samples.py SHARED_DATA_FOLDER")
    main(Path(sys.argv[1]))
