"""CSV of dialogues and the notes written from them: MTS-Dialog and ACI-Bench.

`dialogue` is the text; `section_text` (MTS-Dialog) or `note` (ACI-Bench) the summary; `section_header`, where there is
one, the label; `ID` or `encounter_id` the id. Ids number the rows of one file, so "<file name>:" goes before them:
MTS-Dialog's training and validation files both begin at 0. Line ends become "\\n": MTS-Dialog's training file has
"\\r\\n" within its dialogues, its validation file does not. Other columns are not kept.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from domainkit.data.faults import SHOWN_GOLD, Faults
from domainkit.data.lines import read_text
from domainkit.data.row import Row

_LONGEST = 1 << 28  # characters of one cell; the csv module's own limit is less than a hundred pages
_NOTES, _IDS = ("section_text", "note"), ("ID", "encounter_id")


def rows(file: Path, faults: Faults) -> Iterator[Row]:
    """One row per dialogue, numbered by the line it begins on."""
    faults.shown = SHOWN_GOLD
    text = read_text(file, faults)
    if not text:
        return
    csv.field_size_limit(_LONGEST)
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        header = next(table)
        note = next((name for name in _NOTES if name in header), "")
        if "dialogue" not in header or not note:
            like = "a column 'dialogue' and one of " + ", ".join(map(repr, _NOTES))
            faults.add(f"no dialogues with notes, found the columns {header[:8]}", f"{file}:1", like)
            return
        number = table.line_num + 1
        for cells in table:
            if len(cells) == len(header):
                values = {name: cell.replace("\r\n", "\n") for name, cell in zip(header, cells, strict=True)}
                empty = [name for name in ("dialogue", note) if not values[name].strip()]
                for name in empty:
                    faults.add(f"{name!r} is empty", f"{file}:{number}", "a dialogue and its note")
                if not empty:
                    yield Row(number, _fields(values, note, file))
            elif cells:
                faults.add(f"{len(cells)} cells, the header has {len(header)}", f"{file}:{number}", "a cell per column")
            number = table.line_num + 1
    except csv.Error as error:
        faults.add(f"not valid CSV: {error}", f"{file}:{number}", 'close every quotation mark; write one within as ""')


def _fields(values: dict[str, str], note: str, file: Path) -> dict[str, str]:
    name = next((values[key] for key in _IDS if values.get(key)), "")
    return {
        "text": values["dialogue"],
        "summary": values[note],
        "label": values.get("section_header", ""),
        "id": f"{file.stem}:{name}" if name else "",
    }
