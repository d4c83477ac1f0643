"""JSONL, the format every other one is read into: one document per line, with or without gold annotation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from domainkit.data.faults import Faults
from domainkit.data.lines import read_lines
from domainkit.data.row import Row, example, type_name
from domainkit.files import write_atomic
from domainkit.types import Example


def rows(file: Path, faults: Faults) -> Iterator[Row]:
    """One JSON object per line; blank lines are skipped."""
    for number, line in read_lines(file, faults):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"not valid JSON: {error}".replace(" at: ", ": ").replace(": line 1 column", " at column")
            faults.add(reason.split(" (char")[0], f"{file}:{number}", "one JSON object per line")
            continue
        if isinstance(fields, dict):
            yield Row(number, fields)
        else:
            faults.add(f"{type_name(fields)}, not an object", f"{file}:{number}", 'lines such as {"text": "…"}')


def write_jsonl(path: Path, examples: Iterable[Example]) -> int:
    """Write one line per example, gzip if `path` ends in .gz; returns how many.

    Read again, every example that has an id is equal to what it was. The same examples give the same bytes.
    Raises UserError when the file cannot be written; it is then as it was before.
    """
    count = 0

    def write(draft: Path) -> None:
        nonlocal count
        with draft.open("wb") as plain:
            packed = path.name.lower().endswith(".gz")
            out = gzip.GzipFile("", "wb", 9, plain, mtime=0) if packed else plain  # neither name nor time inside
            for one in examples:
                out.write((line(one) + "\n").encode())
                count += 1
            if out is not plain:
                out.close()

    write_atomic(path, write)
    return count


def line(example: Example) -> str:
    """An example as one line of JSON, without the line's end; what is empty is left out."""
    texts = {key: getattr(example, key) for key in ("id", "group", "language", "source", "label", "summary")}
    fields: dict[str, Any] = {key: text for key, text in texts.items() if text} | {"text": example.text}
    if example.spans:
        fields["spans"] = [
            {"start": s.start, "end": s.end, "label": s.label}
            | ({"concept": s.concept} if s.concept is not None else {})
            | ({"parts": s.parts} if s.parts else {})
            for s in example.spans
        ]
    if example.relations:
        fields["relations"] = [
            {"head": r.head, "label": r.label, "tail": r.tail} | ({"score": r.score} if r.score != 1 else {})
            for r in example.relations
        ]
    return json.dumps(fields, ensure_ascii=False)


def parse(line: str) -> Example:
    """The example of which `line` has made this, equal to what it was."""
    return example(Row(0, json.loads(line)))
