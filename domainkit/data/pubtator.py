"""PubTator: BC5CDR, BioRED, the NCBI disease corpus and whatever PubTator itself exports.

    354896|t|Lidocaine-induced cardiac asystole.
    354896|a|Intravenous administration of a single 50-mg bolus of lidocaine …
    354896  0   9   Lidocaine   Chemical    D008012
    354896  CID D008012 D006323

Tabs part the columns; a blank line, or the next title, ends a document. What the real corpora do, and what is made
of it (counts of BC5CDR train and development together, 1,000 abstracts, unless another one is named):

- Offsets count the characters of title + one separator + abstract. All 18,976 mentions agree, and all 14,347 of
  BioRED. The separator becomes a space. Nothing is stripped: some abstracts end in a space.
- The title is also the example's `summary`: a task that writes titles cuts it off the text with `untitled`.
- A concept id of "-1" or "-" (or none) is no id: 135 mentions. Ids joined by "|", "," or "+" belong to one composite
  mention: 198 mentions. Each id is kept once, and no "-1" beside an id, which leaves one id to two of them. The "|"
  and "+" inside a sequence variant ("c|SUB|G|2380+1|A") join nothing.
- The seventh column spells out the parts of composite mentions ("renal failure|hepatic failure"), in words, without
  offsets, and not for all of them: it is not kept. The mention is the whole stretch, as the offsets say. In 99 of the
  178 that have it some part is discontinuous, that is, its words do not stand together in the text.
- No mention overlaps another one in BC5CDR or BioRED. The 50 abstracts of BC5CDR's sample file, an older annotation,
  hold 8 nested ones.
- Relations link concept ids of one document. Four relations of BioRED's training set name a composite mention
  ("D015458|D016399"): such a relation holds for each of its ids, so 3,682 lines give 3,686 relations.
- BioRED's fifth column says whether a relation is the document's own finding ("Novel") or known before ("No"): it is
  checked and not kept, for no task predicts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from domainkit.data.faults import SHOWN_GOLD, Faults
from domainkit.data.lines import read_lines
from domainkit.data.row import Row
from domainkit.types import Example

_TITLE = re.compile(r"([^\s|]+)\|t\|(.*)", re.DOTALL)
_ABSTRACT = re.compile(r"([^\s|]+)\|a\|(.*)", re.DOTALL)
_VARIANT = re.compile(r"[a-z]?\|")  # tmVar's notation: kind of sequence, then what happens to it
_NO_ID = ("", "-", "-1")
_NOVELTY = ("Novel", "No")
_LIKE_MENTION = "PMID, start, end, mention, type, concept id (-1 for none), parted by tabs"
_LIKE_RELATION = "PMID, relation, concept id, concept id and in BioRED Novel or No, parted by tabs"

Line = tuple[int, str]


def begins(line: str) -> bool:
    """Whether a file with this first line looks like PubTator."""
    return bool(_TITLE.fullmatch(line))


def rows(file: Path, faults: Faults) -> Iterator[Row]:
    """One row per document, its id the PMID. A document that stands in the file twice is a fault."""
    faults.shown = SHOWN_GOLD
    first: dict[str, int] = {}
    for block in _blocks(file, faults):
        row = _document(block, file, faults)
        if row is None:
            continue
        pmid = row.fields["id"]
        if pmid in first:
            faults.add(f"document {pmid} stands twice, first at line {first[pmid]}", f"{file}:{row.number}", "keep one")
            continue
        first[pmid] = row.number
        yield row


def untitled(example: Example) -> Example:
    """The abstract alone: without its title, and without the title's mentions; all other offsets move along.

    Only for texts that begin with their summary, as PubTator's do; others are returned as they are.
    """
    cut = len(example.summary) + 1
    if not (example.summary and example.text.startswith(example.summary + " ")):
        return example
    spans = tuple(
        replace(s, start=s.start - cut, end=s.end - cut, parts=tuple((a - cut, b - cut) for a, b in s.parts))
        for s in example.spans
        if s.start >= cut
    )
    return replace(example, text=example.text[cut:], spans=spans)


def _blocks(file: Path, faults: Faults) -> Iterator[list[Line]]:
    """The lines of one document after another."""
    block: list[Line] = []
    for number, line in read_lines(file, faults):
        if block and (not line.strip() or _TITLE.fullmatch(line)):
            yield block
            block = []
        if line.strip():
            block.append((number, line))
    if block:
        yield block


@dataclass
class _Marks:
    """The annotation of one document, and the lines it stands on."""

    spans: list[dict[str, Any]] = field(default_factory=list)
    span_lines: list[int] = field(default_factory=list)
    relations: list[tuple[int, str, str, str]] = field(default_factory=list)  # line, head, label, tail


def _document(block: list[Line], file: Path, faults: Faults) -> Row | None:
    number, line = block[0]
    where, title = f"{file}:{number}", _TITLE.fullmatch(line)
    if not title:
        faults.add("a document does not begin with its title", where, "PMID|t|title")
        return None
    pmid, abstract = title[1], _ABSTRACT.fullmatch(block[1][1]) if len(block) > 1 else None
    if not abstract:
        faults.add(f"document {pmid} has no abstract after its title", where, f"{pmid}|a|abstract on the next line")
        return None
    if not (title[2] + abstract[2]).strip():
        faults.add(f"document {pmid} is empty", where, "a title or an abstract")
        return None
    if abstract[1] != pmid:
        faults.add(f"this abstract belongs to {abstract[1]}, the title to {pmid}", f"{file}:{block[1][0]}", "one PMID")
    marks = _Marks()
    for number, line in block[2:]:
        if problem := _mark(number, line.split("\t"), pmid, marks):
            faults.add(problem[0], f"{file}:{number}", problem[1])
    relations = _each_id(marks.relations)
    fields = {
        "text": f"{title[2]} {abstract[2]}", "summary": title[2], "id": pmid, "spans": marks.spans,
        "relations": [{"head": head, "label": label, "tail": tail} for _, head, label, tail in relations],
    }  # fmt: skip
    return Row(block[0][0], fields, marks.span_lines, [number for number, *_ in relations])


def _mark(number: int, cells: list[str], pmid: str, marks: _Marks) -> tuple[str, str] | None:
    """Add the mention or relation of one line to `marks`, or say what is wrong with the line and what to do."""
    if cells[0] != pmid:
        return f"this line belongs to {cells[0]!r}, the document to {pmid}", "a blank line between documents"
    numbers = [re.fullmatch("-?[0-9]{1,18}", cell) for cell in cells[1:3]]
    if len(cells) > 5 or (numbers and numbers[0]):  # the third column of a relation may be a number as well
        if len(cells) not in (6, 7):
            return f"a mention of {len(cells)} columns, not 6 or 7", _LIKE_MENTION
        if not all(numbers):
            return f"offsets {cells[1]!r} and {cells[2]!r} are not both whole numbers", _LIKE_MENTION
        start, end, mention, label, ids = int(cells[1]), int(cells[2]), *cells[3:6]
        marks.spans.append(
            {"start": start, "end": end, "text": mention, "label": label, "concept": ",".join(_ids(ids)) or None}
        )
        marks.span_lines.append(number)
    elif len(cells) in (4, 5):
        if len(cells) == 5 and cells[4] not in _NOVELTY:
            return f"novelty {cells[4]!r} is unknown", "Novel or No"
        marks.relations.append((number, cells[2], cells[1], cells[3]))
    else:
        return f"a line of {len(cells)} columns", f"a mention: {_LIKE_MENTION}; or a relation: {_LIKE_RELATION}"
    return None


def _each_id(relations: list[tuple[int, str, str, str]]) -> list[tuple[int, str, str, str]]:
    """Relations of composite mentions become one for each id, unless the document states that one by itself."""
    stated, every = {relation[1:] for relation in relations}, []
    for number, head, label, tail in relations:
        heads, tails = _ids(head) or (head,), _ids(tail) or (tail,)
        for one in product(heads, (label,), tails):
            if one == (head, label, tail) or one not in stated:
                every.append((number, *one))
                stated.add(one)
    return every


def _ids(cell: str) -> tuple[str, ...]:
    """The concept ids in a column."""
    if _VARIANT.match(cell):
        return (cell,)
    parts = [part.strip() for part in re.split(r"[|,+]", cell)]
    return tuple(dict.fromkeys(part for part in parts if part not in _NO_ID))
