"""The type table: UMLS semantic types, the entity types they belong to, and which entity types a relation may link."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from domainkit.ontology.rows import SEVERAL, Fault, locate, read_rows, split, write_rows
from domainkit.types import UserError

TYPES, TYPE_COLUMNS = "types.tsv", ("tui", "name", "group", "entities")
RELATIONS, RELATION_COLUMNS = "relations.tsv", ("relation", "head", "tail", "source", "basis")

_TUI = re.compile(r"T\d{3}")


@dataclass(frozen=True)
class SemanticType:
    """A UMLS semantic type."""

    tui: str  # its code, T047
    name: str  # Disease or Syndrome
    group: str  # its UMLS semantic group, DISO
    entities: tuple[str, ...]  # what a corpus would call it: Disease; a protein is Chemical and Gene


@dataclass(frozen=True)
class Signature:
    """A pair of entity types that a relation may link, in the direction head → tail."""

    relation: str
    head: str
    tail: str
    source: str  # who says so: biolink, domainkit where Biolink is silent, umls for a compiled release
    basis: str  # the predicate with its domain and range, or the reason


@dataclass(frozen=True)
class TypeTable:
    """What types there are and which of them each relation may link.

    Relations link entity types (Chemical, Disease, Gene, …), each of which stands for a set of semantic types.
    """

    types: Mapping[str, SemanticType]  # by code
    signatures: tuple[Signature, ...]

    @classmethod
    def read(cls, folder: Path, faults: list[Fault]) -> TypeTable:
        """Read `types.tsv` and `relations.tsv` of a folder; what is wrong with them goes to `faults`."""
        types: dict[str, SemanticType] = {}
        file = locate(folder, TYPES)
        for line, (tui, name, group, entities) in read_rows(file, TYPE_COLUMNS, faults):
            one = SemanticType(tui, name, group, split(entities))
            if not _TUI.fullmatch(tui):
                faults.append(Fault(f"{file}:{line}", f"bad semantic type {tui!r}", "a UMLS code: T047"))
            elif tui in types:
                faults.append(Fault(f"{file}:{line}", f"{tui} stands in this file twice", "one row for each type"))
            elif not (name and group and all(one.entities) and one.entities):
                faults.append(Fault(f"{file}:{line}", "an empty value", "a name, a group and its entity types"))
            types.setdefault(tui, one)
        table = cls(types, ())
        return cls(types, tuple(_signatures(locate(folder, RELATIONS), set(table.entities), faults)))

    def write(self, folder: Path) -> None:
        """Write both files into a folder."""
        rows = ((t.tui, t.name, t.group, SEVERAL.join(t.entities)) for t in self.types.values())
        write_rows(folder / TYPES, TYPE_COLUMNS, rows)
        pairs = ((s.relation, s.head, s.tail, s.source, s.basis) for s in self.signatures)
        write_rows(folder / RELATIONS, RELATION_COLUMNS, pairs)

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """The names of all entity types."""
        return tuple(dict.fromkeys(entity for one in self.types.values() for entity in one.entities))

    @cached_property
    def relations(self) -> tuple[str, ...]:
        """The names of all relations."""
        return tuple(dict.fromkeys(one.relation for one in self.signatures))

    @cached_property
    def _triples(self) -> frozenset[tuple[str, str, str]]:
        return frozenset((one.head, one.relation, one.tail) for one in self.signatures)

    def entities_of(self, type_: str) -> tuple[str, ...]:
        """The entity types of a semantic type; an entity type is its own. Raises UserError for a name that is neither.

        >>> table.entities_of("T116"), table.entities_of("Gene")
        (('Chemical', 'Gene'), ('Gene',))
        """
        if type_ in self.types:
            return self.types[type_].entities
        if type_ in self.entities:
            return (type_,)
        raise UserError(f"unknown type {type_!r}", instead=f"a UMLS code such as T047, or one of {list(self.entities)}")

    def allows(self, head: str, relation: str, tail: str) -> bool:
        """Whether the relation may link these two types, each an entity type or the code of a semantic type.

        A semantic type that belongs to several entity types may do what any of them may. Raises UserError for an
        unknown relation or type.
        """
        if relation not in self.relations:
            raise UserError(f"unknown relation {relation!r}", instead=f"one of {list(self.relations)}")
        heads, tails = self.entities_of(head), self.entities_of(tail)
        return any((one, relation, other) in self._triples for one in heads for other in tails)


def _signatures(file: Path, entities: set[str], faults: list[Fault]) -> list[Signature]:
    found: dict[tuple[str, str, str], Signature] = {}
    for line, (relation, head, tail, source, basis) in read_rows(file, RELATION_COLUMNS, faults):
        for entity in dict.fromkeys((head, tail)):
            if entity not in entities:
                what = f"unknown entity type {entity!r}"
                faults.append(Fault(f"{file}:{line}", what, f"one of those in {TYPES}: {sorted(entities)}"))
        if not (relation and source):
            faults.append(Fault(f"{file}:{line}", "an empty value", "a relation and its source"))
        if (relation, head, tail) in found:
            what = f"{relation} from {head} to {tail} stands in this file twice"
            faults.append(Fault(f"{file}:{line}", what, "one row for each pair"))
        found.setdefault((relation, head, tail), Signature(relation, head, tail, source, basis))
    return list(found.values())
