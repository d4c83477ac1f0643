"""Compile ontologies/medical/: the type table from Biolink and UMLS's types, and the core of the concept graph.

    python scripts/medical_graph.py SHARED_DATA_FOLDER [--out ontologies/medical]

Deterministic: the same sources give the same bytes. The graph is compiled by `domainkit.ontology.medical`, which
`domainkit graph build` runs too; here is only what the package need not know.

Tables by hand: medical_graph/entities.tsv (entity types: their Biolink class, their UMLS groups, and types that they
have beside), medical_graph/relations.tsv (relations: their Biolink predicate, and pairs where Biolink is silent; ">"
one way, "<>" both ways) and ontologies/medical/branches.tsv (the semantic type of each branch of MeSH's tree).
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from domainkit.graph import ConceptGraph, check
from domainkit.ontology import medical
from domainkit.ontology.rows import PACKED, split
from domainkit.ontology.table import SemanticType, Signature, TypeTable

TABLES = Path(__file__).resolve().parent / "medical_graph"
ANYTHING = (None, "named thing", "ontology class")  # a domain or range that says nothing


@dataclass(frozen=True)
class Biolink:
    """The Biolink Model's classes and predicates."""

    classes: dict[str, dict[str, Any]]
    slots: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, file: Path) -> Biolink:
        with gzip.open(file, "rt", encoding="utf-8") as text:
            model = yaml.safe_load(text)
        return cls(model["classes"], model["slots"])

    def ends(self, predicate: str) -> tuple[str | None, str | None]:
        """Domain and range of a predicate, each its own or that of the nearest predicate above that has one."""
        return self._inherited(predicate, "domain"), self._inherited(predicate, "range")

    def _inherited(self, predicate: str | None, key: str) -> str | None:
        while predicate and not self.slots[predicate].get(key):
            predicate = self.slots[predicate].get("is_a")
        return self.slots[predicate][key] if predicate else None

    def below(self, name: str, top: str) -> bool:
        """Whether a class is another one, or inherits from it by is_a or as a mixin."""
        if name == top:
            return True
        one = self.classes.get(name) or {}
        above = [*filter(None, [one.get("is_a")]), *(one.get("mixins") or ())]
        return any(self.below(parent, top) for parent in above)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with ontologies/")
    parser.add_argument("--out", type=Path, default=medical.HOME)
    arguments = parser.parse_args()
    sources = medical.find_sources(arguments.shared)
    entities = rows(TABLES / "entities.tsv")
    biolink = Biolink.read(sources / "biolink" / "biolink_model.yaml.gz")
    types = semantic_types(sources / "umls_semantic_types" / "sty.tsv", entities)
    TypeTable(types, tuple(signatures(biolink, entities))).write(arguments.out)
    draft = medical.compile_core(sources, arguments.out)
    for child, parent in draft.dropped:
        print(f"left out, as it closes a cycle: {child} is a kind of {parent}")
    report(ConceptGraph.load(str(arguments.out)))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def semantic_types(file: Path, entities: list[dict[str, str]]) -> dict[str, SemanticType]:
    """UMLS's types, each with the entity types that name its group or itself."""
    types = {}
    for row in rows(file):
        tui, group = row["identifier"], row["semantic_group"]
        own = (one["entity"] for one in entities if group in split(one["groups"]) or tui in split(one["types"]))
        types[tui] = SemanticType(tui, row["name"], group, tuple(own))
    return types


def signatures(biolink: Biolink, entities: list[dict[str, str]]) -> Iterator[Signature]:
    """What each relation may link: what Biolink says, and by hand where it is silent."""
    classes = {one["entity"]: one["class"] for one in entities if one["class"]}
    for row in rows(TABLES / "relations.tsv"):
        relation, predicate = row["relation"], row["predicate"]
        domain, range_ = biolink.ends(predicate) if predicate else (None, None)
        if domain not in ANYTHING and range_ not in ANYTHING:
            basis = f"{predicate}: {domain} → {range_}"
            for head in (entity for entity, name in classes.items() if biolink.below(name, domain)):
                for tail in (entity for entity, name in classes.items() if biolink.below(name, range_)):
                    yield Signature(relation, head, tail, "biolink", basis)
        for pair in split(row["pairs"]):
            both = "<>" in pair
            head, tail = pair.split("<>" if both else ">")
            for ends in dict.fromkeys(((head, tail), (tail, head))) if both else ((head, tail),):
                yield Signature(relation, *ends, "domainkit", row["why"])


def report(graph: ConceptGraph) -> None:
    """Print what was written."""
    size = sum(file.stat().st_size for file in graph.path.iterdir()) / 1e6
    packed = sum(file.stat().st_size for file in graph.path.glob(f"*{PACKED}")) / 1e6
    forms = sum(1 + len(one.synonyms) for one in graph.concepts.values())
    print(f"{graph.path}: {len(graph.concepts):,} concepts, {forms:,} names, {len(graph.links):,} relations")
    print(f"{size:.2f} MB, {packed:.2f} of them gzipped")
    for fault in check(graph):
        print(f"warning: {fault}")


if __name__ == "__main__":
    main()
