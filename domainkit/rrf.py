"""A licensed UMLS release, compiled into a concept graph on the user's own machine; nothing of it is shipped.

Reads three files of the Rich Release Format by the column order of the UMLS Reference Manual (NLM, chapter 3). All are
streamed, MRCONSO twice: memory holds a few numbers for each CUI and each is-a edge, never a name.

What is taken: concepts with an English name that is not suppressed; PAR and CHD as is-a; every other relationship that
has a RELA, read as the manual says, "of the second concept to the first".
"""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby, product
from pathlib import Path

import numpy as np

from domainkit.ontology.names import distinct
from domainkit.ontology.order import acyclic
from domainkit.ontology.rows import CONCEPT_COLUMNS, CONCEPTS, LINK_COLUMNS, LINKS, PACKED, SEVERAL, write_rows
from domainkit.ontology.table import Signature, TypeTable
from domainkit.progress import QUIET, say
from domainkit.types import UserError

MRCONSO, MRSTY, MRREL = "MRCONSO.RRF", "MRSTY.RRF", "MRREL.RRF"
COLUMNS = {
    MRCONSO: "CUI LAT TS LUI STT SUI ISPREF AUI SAUI SCUI SDUI SAB TTY CODE STR SRL SUPPRESS CVF",
    MRSTY: "CUI TUI STN STY ATUI CVF",
    MRREL: "CUI1 AUI1 STYPE1 REL CUI2 AUI2 STYPE2 RELA RUI SRUI SAB SL RG DIR SUPPRESS CVF",
}

CUIS = 10_000_000  # a CUI is C and seven digits
IS_A = ("", "isa", "inverse_isa")  # RELA of the PAR and CHD that mean "is a kind of"; others mean part_of and the like
XREFS = {"MSH": "MESH", "OMIM": "OMIM"}  # source → prefix of the cross-reference
_CUI = re.compile(r"C\d{7}")


def is_release(folder: Path) -> bool:
    """Whether a folder, or META in it, has an RRF file that is read here."""
    return any((home / name).is_file() for home in (folder, folder / "META") for name in COLUMNS)


def compile_release(folder: Path, table: TypeTable, out: Path) -> list[tuple[str, str]]:
    """Write the graph of a release into `out` and return the is-a edges, child and parent, that would close a cycle.

    table: supplies the semantic types; to its relations those of MRREL are added, with the source "umls", between all
    the types that they link there. Raises UserError for a missing file, and for the first bad row with its line.
    """
    home = folder if (folder / MRCONSO).is_file() else folder / "META"
    missing = [name for name in COLUMNS if not (home / name).is_file()]
    if missing:
        raise UserError(f"no {' and no '.join(missing)}", where=folder, instead="the META folder of a UMLS release")
    release = _Release(home)
    release.read_types(table)
    release.read_kept()
    write_rows(out / (LINKS + PACKED), LINK_COLUMNS, release.links())
    dropped = release.settle()
    write_rows(out / (CONCEPTS + PACKED), CONCEPT_COLUMNS, release.concepts())
    TypeTable(table.types, tuple(release.signatures(table))).write(out)
    return dropped


@dataclass
class _Release:
    """What is known of a release between the passes over its files."""

    home: Path
    # For each CUI by its number: the place of its types in `sets`, and whether it becomes a concept.
    typed: np.ndarray = field(default_factory=lambda: np.zeros(CUIS, np.int16))  # (CUIS,)
    kept: np.ndarray = field(default_factory=lambda: np.zeros(CUIS, bool))  # (CUIS,)
    sets: list[tuple[str, ...]] = field(default_factory=lambda: [()])  # sets of semantic types; 0 is none
    edges: array[int] = field(default_factory=lambda: array("q"))  # child × CUIS + parent, as they come
    hierarchy: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # the same settled: (edges,) sorted
    linked: dict[str, set[tuple[int, int]]] = field(default_factory=dict)  # RELA → places in `sets` of head and tail

    def read_types(self, table: TypeTable) -> None:
        """MRSTY, in any order; types that the table does not know are left out."""
        places: dict[tuple[str, ...], int] = {(): 0}
        for cui, tui in _rows(self.home / MRSTY, "CUI TUI"):
            if tui not in table.types:
                continue
            number = int(cui[1:])
            both = tuple(sorted({*self.sets[self.typed[number]], tui}))
            if both not in places:
                places[both] = len(self.sets)
                self.sets.append(both)
            self.typed[number] = places[both]

    def read_kept(self) -> None:
        """Which concepts have a type and an English name."""
        for cui, language, suppressed in _rows(self.home / MRCONSO, "CUI LAT SUPPRESS"):
            if language == "ENG" and suppressed == "N" and self.typed[int(cui[1:])]:
                self.kept[int(cui[1:])] = True

    def links(self) -> Iterator[tuple[str, ...]]:
        """The rows of links.tsv. Collects is-a edges and linked types on the way."""
        rows = _rows(self.home / MRREL, "CUI1 REL CUI2 RELA SAB SUPPRESS")
        for _, group in groupby(rows, key=lambda row: row[0]):
            seen: set[tuple[str, str]] = set()  # atoms repeat what is one relation of their concepts
            for first, rel, second, rela, source, suppressed in group:
                one, other = int(first[1:]), int(second[1:])
                if suppressed != "N" or one == other or not (self.kept[one] and self.kept[other]):
                    continue
                if rel in ("PAR", "CHD") and rela in IS_A:
                    self.edges.append(one * CUIS + other if rel == "PAR" else other * CUIS + one)
                elif rela not in IS_A and (second, rela) not in seen:
                    seen.add((second, rela))
                    ends = int(self.typed[other]), int(self.typed[one])
                    self.linked.setdefault(rela, set()).add(ends)
                    yield f"UMLS:{second}", rela, f"UMLS:{first}", source

    def settle(self) -> list[tuple[str, str]]:
        """Make the hierarchy of the edges, each once, without those that close a cycle; returns these."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        edges = np.unique(np.array(self.edges, np.int64))
        nodes, ends = np.unique(np.concatenate(np.divmod(edges, CUIS)), return_inverse=True)
        children, parents = np.split(ends, 2)  # (edges,) places in `nodes`
        shape = (len(nodes), len(nodes))
        matrix = coo_array((np.ones(len(edges), bool), (children, parents)), shape=shape)
        _, part = connected_components(matrix, connection="strong") if len(nodes) else (0, nodes)
        inside: dict[int, list[int]] = {}  # only among these, which lie on cycles, may an edge have to go
        for edge in edges[part[children] == part[parents]].tolist():
            inside.setdefault(edge // CUIS, []).append(edge % CUIS)
        _, dropped = acyclic(inside)
        gone = np.array([child * CUIS + parent for child, parent in dropped], np.int64)
        self.hierarchy = np.setdiff1d(edges, gone, assume_unique=True)
        return [(_id(child), _id(parent)) for child, parent in dropped]

    def concepts(self) -> Iterator[tuple[str, ...]]:
        """The rows of concepts.tsv."""
        names: set[bytes] = set()
        written = np.zeros(CUIS, bool)
        columns = "CUI LAT TS STT ISPREF SAB CODE STR SUPPRESS"
        for cui, group in groupby(_rows(self.home / MRCONSO, columns), key=lambda row: row[0]):
            number = int(cui[1:])
            if written[number]:
                instead = f"LC_ALL=C sort -t'|' -k1,1 {MRCONSO}"
                raise UserError(f"the rows of {cui} do not stand together", where=self.home / MRCONSO, instead=instead)
            written[number] = True
            if not self.kept[number]:
                continue
            atoms = [row for row in group if row[1] == "ENG" and row[8] == "N"]
            best = next((row[7] for row in atoms if row[2:5] == ["P", "PF", "Y"]), atoms[0][7])
            xrefs = {f"{XREFS[row[5]]}:{row[6]}" for row in atoms if row[5] in XREFS}
            digest = blake2b(best.casefold().encode(), digest_size=8).digest()
            name = f"{best} ({cui})" if digest in names else best
            names.add(digest)
            low, high = np.searchsorted(self.hierarchy, (number * CUIS, (number + 1) * CUIS))
            parents = [_id(edge % CUIS) for edge in self.hierarchy[low:high].tolist()]
            synonyms = distinct(name, (best, *(row[7] for row in atoms)))
            cells = (synonyms, self.sets[self.typed[number]], parents, sorted(xrefs))
            yield f"UMLS:{cui}", name, *map(SEVERAL.join, cells)

    def signatures(self, table: TypeTable) -> Iterator[Signature]:
        """The table's own, and those of MRREL's relations."""
        yield from table.signatures
        known = {(one.relation, one.head, one.tail) for one in table.signatures}
        entities = [{name for tui in tuis for name in table.types[tui].entities} for tuis in self.sets]
        for rela, ends in sorted(self.linked.items()):
            pairs = {pair for heads, tails in ends for pair in product(entities[heads], entities[tails])}
            for head, tail in sorted(pairs):
                if (rela, head, tail) not in known:
                    yield Signature(rela, head, tail, "umls", MRREL)


def _id(number: int) -> str:
    return f"UMLS:C{number:07}"


def _rows(file: Path, wanted: str) -> Iterator[list[str]]:
    """The wanted columns of each row. Raises UserError for a row that is not of this file."""
    columns = COLUMNS[file.name].split()
    width, places = len(columns) + 1, [columns.index(name) for name in wanted.split()]  # a row ends with "|"
    cuis = [place for place, name in enumerate(wanted.split()) if name.startswith("CUI")]
    last = time.perf_counter()
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in _numbered(lines, file):
            cells = line.rstrip("\r\n").split("|")
            if len(cells) != width:
                what = f"{len(cells) - 1} columns, not {width - 1}"
                raise UserError(what, where=f"{file}:{number}", instead=f"{'|'.join(columns)}|")
            row = [cells[place] for place in places]
            for place in cuis:
                if not _CUI.fullmatch(row[place]):
                    raise UserError(f"bad CUI {row[place]!r}", where=f"{file}:{number}", instead="C and seven digits")
            if number % 100_000 == 0 and time.perf_counter() - last >= QUIET:
                last = time.perf_counter()
                say(f"{file.name}: {number:,} rows")
            yield row


def _numbered(lines: Iterable[str], file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers. Raises UserError for one that is not UTF-8."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            yield number, line
    except UnicodeDecodeError:
        where = f"{file}, after line {number}"
        raise UserError("not UTF-8", where=where, instead="the release as NLM distributes it") from None
