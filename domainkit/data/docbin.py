"""spaCy's DocBin (.spacy): msgpack, no pickle. Needs spaCy, which is imported here and nowhere else below `kinds/`.

- `doc.ents` and all span groups (`doc.spans`) become spans, each stretch and label once; groups are where spaCy keeps
  nested and overlapping ones. `kb_id_` is the concept; spaCy's "NIL" is none.
- The one category of `doc.cats` above 0.5 is the label; several are a fault.
- The extensions `relations` (head, label, tail, and if wanted score), `summary`, `id` and `group` are read when
  the file keeps user data. Other annotation (tags, parses, vectors) is not kept.
- spaCy counts characters as Python does, so offsets need no change. The file does not say its language.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domainkit.data.faults import SHOWN_GOLD, Faults
from domainkit.data.row import Row
from domainkit.types import UserError

_NIL = ("", "NIL")
_RELATION = ("head", "label", "tail", "score")
_EXTENSIONS = ("summary", "id", "group")


def rows(file: Path, faults: Faults) -> Iterator[Row]:
    """One row per Doc. Raises UserError if spaCy is not installed."""
    faults.shown = SHOWN_GOLD
    for number, doc in enumerate(_docs(file, faults), 1):
        where = f"{file}:{number}"
        labels = [label for label, value in doc.cats.items() if value > 0.5]
        if not doc.text.strip():
            faults.add("the document is empty", where, "a text")
        elif len(labels) > 1:
            faults.add(f"{len(labels)} categories hold, {labels[:8]}", where, "one label for each document")
        else:
            yield Row(number, _fields(doc, labels))


def _docs(file: Path, faults: Faults) -> Iterator[Any]:
    try:
        from spacy.tokens import DocBin
        from spacy.vocab import Vocab
    except ImportError:
        raise UserError(
            "DocBin files need spaCy, which is not installed", where=file, instead="pip install 'domainkit[spacy]'"
        ) from None
    if not file.stat().st_size:
        return
    try:
        yield from DocBin().from_disk(file).get_docs(Vocab())
    except Exception as error:  # spaCy does not say what damaged bytes raise: zlib, msgpack, numpy, KeyError …
        reason = str(error).partition("\n")[0] or type(error).__name__
        faults.add(f"not a whole DocBin ({reason})", file, "write it again with DocBin.to_disk")


def _fields(doc: Any, labels: list[str]) -> dict[str, Any]:
    spans: dict[tuple[int, int, str], str | None] = {}
    for span in [*doc.ents, *(span for group in doc.spans.values() for span in group)]:
        key = (span.start_char, span.end_char, span.label_)
        spans[key] = spans.get(key) or (None if span.kb_id_ in _NIL else span.kb_id_)
    extensions = {name: doc.user_data.get(("._.", name, None, None)) for name in (*_EXTENSIONS, "relations")}
    relations = extensions["relations"]
    if isinstance(relations, list | tuple):
        relations = [dict(zip(_RELATION, r, strict=False)) if isinstance(r, list | tuple) else r for r in relations]
    return {name: extensions[name] for name in _EXTENSIONS} | {
        "text": doc.text,
        "label": labels[0] if labels else "",
        "spans": [
            {"start": start, "end": end, "label": label, "concept": concept}
            for (start, end, label), concept in sorted(spans.items(), key=lambda item: (item[0][0], -item[0][1]))
        ],
        "relations": relations,
    }
