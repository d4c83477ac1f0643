"""CoNLL columns: a token and its tag on each line, a blank line after each sentence.

The first column is the token, the last one the tag; columns are parted by tabs, or by spaces in a line without tabs.
Tags are O or B-, I- and a label (IOB1 and IOB2, read as conlleval reads them: an I- that continues nothing begins a
mention), with E- or L- at the end and S- or U- alone (BIOES, BILOU).

A line -DOCSTART- begins a document. A file without any has one document per sentence, for nothing says where documents
end: the 5,424 and 923 sentences of the NCBI disease corpus. Give such examples a `group` before you split them.

The original text is not in the file. It is made of the tokens, a space between them and a line break between sentences,
and the offsets are those in that text. Tags cannot tell nested, overlapping or discontinuous mentions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from domainkit.data.faults import SHOWN_GOLD, Faults
from domainkit.data.lines import read_lines
from domainkit.data.row import Row

DOCUMENT = "-DOCSTART-"
_TAG = re.compile(r"O|[BIELSU]-\S.*")
_BEGINS, _ENDS, _CONTINUES = "BSU", "ELSU", "IEL"
_TAGS = "O, B-LABEL, I-LABEL (also E-, L-, S-, U-)"


@dataclass
class _Draft:
    """A document as far as it has been read."""

    pieces: list[str] = field(default_factory=list)  # tokens, and what parts them
    length: int = 0  # characters of all pieces
    spans: list[dict[str, object]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)  # of the spans' first tokens
    first: int = 0  # line of the first token
    label: str = ""  # of the mention that is open, if one is
    gap: str = ""  # what the next token is parted from the text by

    def add(self, number: int, token: str, tag: str) -> bool:
        """Add a token; False if the tag ends a mention that has not begun."""
        start = self.length + len(self.gap)
        self.pieces += self.gap, token
        self.length = start + len(token)
        self.gap, self.first = " ", self.first or number
        how, _, label = tag.partition("-")
        goes_on = how in _CONTINUES and label == self.label
        if how in "EL" and not goes_on:
            return False
        if goes_on:
            self.spans[-1]["end"] = self.length
        elif label:
            self.spans.append({"start": start, "end": self.length, "label": label})
            self.lines.append(number)
        self.label = "" if how in _ENDS else label
        return True

    def row(self) -> Row:
        return Row(self.first, {"text": "".join(self.pieces), "spans": self.spans}, self.lines)


def begins(line: str) -> bool:
    """Whether a file with this first line looks like CoNLL."""
    cells = line.split("\t") if "\t" in line else line.split()
    return bool(cells) and (cells[0] == DOCUMENT or (len(cells) > 1 and bool(_TAG.fullmatch(cells[-1].strip()))))


def rows(file: Path, faults: Faults) -> Iterator[Row]:
    """One row per document, else per sentence."""
    faults.shown = SHOWN_GOLD
    draft, whole, began = _Draft(), False, 0  # whole: documents are marked
    for number, line in read_lines(file, faults):
        cells = line.split("\t") if "\t" in line else line.split()
        if cells and cells[0] == DOCUMENT:
            if whole and not draft.pieces:
                faults.add("the document is empty", f"{file}:{began}", "a document with tokens")
            if draft.pieces:
                yield draft.row()
            draft, whole, began = _Draft(), True, number
        elif not line.strip():
            if not whole and draft.pieces:
                yield draft.row()
                draft = _Draft()
            draft.label, draft.gap = "", "\n" if draft.pieces else ""
        elif problem := _add(draft, number, cells):
            faults.add(problem, f"{file}:{number}", f"a token and one of {_TAGS}")
    if draft.pieces:
        yield draft.row()
    elif whole:
        faults.add("the document is empty", f"{file}:{began}", "a document with tokens")


def _add(draft: _Draft, number: int, cells: list[str]) -> str:
    """Add a line to the draft; what is wrong with it, if anything."""
    if len(cells) < 2:
        return f"no tag after {cells[0][:40]!r}: the line is cut off"
    token, tag = cells[0], cells[-1].strip()
    if not token:
        return "no token before the tag"
    if not _TAG.fullmatch(tag):
        return f"unknown tag {tag[:40]!r}"
    return "" if draft.add(number, token, tag) else f"{tag} ends a mention that has not begun"
