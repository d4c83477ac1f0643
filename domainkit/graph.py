"""The concept graph of a domain: concepts with their names, types and places in a hierarchy, and typed relations."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from domainkit import assets
from domainkit.fill import SHOWN
from domainkit.ontology.names import normal
from domainkit.ontology.order import cycles
from domainkit.ontology.rows import (
    CONCEPT_COLUMNS,
    CONCEPTS,
    LINK_COLUMNS,
    LINKS,
    Fault,
    locate,
    read_rows,
    split,
    stop,
)
from domainkit.ontology.table import RELATIONS, TYPES, TypeTable
from domainkit.types import UserError

FIRST_ROW = 2  # line 1 is the header
MESH = "MESH:"  # MeSH concepts have bare ids; with this prefix they are found as well


@dataclass(frozen=True, slots=True)
class Concept:
    """One meaning, with every name it goes by."""

    id: str  # D003643, C018370 (MeSH); MONDO:0005148, CHEBI:33282, UMLS:C0004057 (others, with prefix)
    name: str  # the preferred one
    synonyms: tuple[str, ...]
    types: tuple[str, ...]  # UMLS semantic types, as codes: T047
    xrefs: tuple[str, ...]  # the same concept elsewhere: UMLS:C0011065, DOID:1234


@dataclass(frozen=True, slots=True)
class Link:
    """A typed relation between two concepts, in the direction head → tail."""

    head: str
    relation: str
    tail: str
    source: str  # who says so


@dataclass(frozen=True, eq=False)
class ConceptGraph:
    """The concepts of a folder, in the order of its file.

    Files: concepts.tsv, links.tsv (either may be gzipped: concepts.tsv.gz), types.tsv, relations.tsv. Cells that hold
    several values separate them by "|".
    """

    path: Path  # the folder
    concepts: Mapping[str, Concept] = field(repr=False)
    above: Mapping[str, tuple[str, ...]] = field(repr=False)  # id → what it is a kind of
    links: tuple[Link, ...] = field(repr=False)
    table: TypeTable = field(repr=False)

    @classmethod
    def read(cls, folder: Path, *, shown: int | None = SHOWN) -> ConceptGraph:
        """Read a folder. Raises UserError with all faults of form; `check` finds those of meaning."""
        folder, faults = Path(folder), list[Fault]()
        if not folder.is_dir():
            instead = f"a folder with {CONCEPTS}, {LINKS}, {TYPES} and {RELATIONS}"
            raise UserError("no such folder", where=folder, instead=instead)
        table = TypeTable.read(folder, faults)
        file = locate(folder, CONCEPTS)
        concepts: dict[str, Concept] = {}
        above: dict[str, tuple[str, ...]] = {}
        for line, (id_, name, *cells) in read_rows(file, CONCEPT_COLUMNS, faults):
            synonyms, types, parents, xrefs = map(split, cells)
            if not id_ or id_ in concepts:
                what = f"{id_} stands in this file twice" if id_ else "no id"
                faults.append(Fault(f"{file}:{line}", what, "an id of its own"))
            elif not (name and types):
                faults.append(Fault(f"{file}:{line}", f"{id_} has no {'type' if name else 'name'}", "one at least"))
            elif "" in synonyms or "" in types or "" in parents or "" in xrefs:
                faults.append(Fault(f"{file}:{line}", "an empty value", "one | between two, none at either end"))
            concepts[id_] = Concept(id_, name, synonyms, types, xrefs)
            above[id_] = parents
        links = tuple(Link(*cells) for _, cells in read_rows(locate(folder, LINKS), LINK_COLUMNS, faults))
        stop(faults, folder, shown=shown)
        return cls(folder, concepts, above, links, table)

    @classmethod
    def load(cls, name_or_path: str) -> ConceptGraph:
        """`read` a shipped graph by name, one that `domainkit graph build` made, or your own by its folder.

        Raises UserError for none of these, and with all its faults for a graph that `check` finds unsound.
        """
        graph = cls.read(find_folder(name_or_path))
        stop(_errors(graph), graph.path)
        return graph

    def concept(self, id_: str) -> Concept:
        """The concept of an id. Raises UserError for an unknown one."""
        bare = id_ if id_ in self.concepts else id_.removeprefix(MESH)
        if bare not in self.concepts:
            raise UserError(f"unknown concept {id_!r}", where=self.path, instead=f"an id of {CONCEPTS}")
        return self.concepts[bare]

    def find(self, alias: str) -> tuple[str, ...]:
        """The ids of the concepts with this alias, compared by `normal`; those whose preferred name it is come first.

        >>> graph.find("acetylsalicylic acid")
        ('D001241',)
        """
        return self._aliases.get(normal(alias), ())

    def find_xref(self, xref: str) -> tuple[str, ...]:
        """The ids of the concepts that name `xref` as the same concept elsewhere: UMLS:C0004057, MESH:D001241."""
        bare = xref.removeprefix(MESH)
        return self._xrefs.get(xref) or ((bare,) if bare != xref and bare in self.concepts else ())

    def aliases(self) -> Iterator[tuple[str, str]]:
        """Every name as it is written, with its concept's id: for a gazetteer. All preferred names come first."""
        yield from ((one.name, one.id) for one in self.concepts.values())
        yield from ((form, one.id) for one in self.concepts.values() for form in one.synonyms)

    def parents(self, id_: str) -> tuple[str, ...]:
        """What a concept is directly a kind of. Raises UserError for an unknown id."""
        return self.above[self.concept(id_).id]

    def children(self, id_: str) -> tuple[str, ...]:
        """The concepts that are directly kinds of it. Raises UserError for an unknown id."""
        return self._below.get(self.concept(id_).id, ())

    def ancestors(self, id_: str) -> tuple[str, ...]:
        """All that a concept is a kind of, the nearest first, without itself. Raises UserError for an unknown id."""
        start = self.concept(id_).id
        seen, queue = {start: None}, deque((start,))
        while queue:
            for parent in self.above.get(queue.popleft(), ()):
                if parent not in seen:
                    seen[parent] = None
                    queue.append(parent)
        return tuple(seen)[1:]

    def kinds_of(self, id_: str) -> tuple[str, ...]:
        """An id without MESH: and all that it is a kind of, the nearest first; of an unknown one itself alone."""
        bare = id_.removeprefix(MESH)
        return (bare, *(self.ancestors(bare) if bare in self.concepts else ()))

    def is_a(self, child: str, ancestor: str) -> bool:
        """Whether `child` is a kind of `ancestor`, or the same concept."""
        wanted = self.concept(ancestor).id
        return self.concept(child).id == wanted or wanted in self.ancestors(child)

    def types(self, id_: str) -> tuple[str, ...]:
        """The semantic types of a concept, as codes. Raises UserError for an unknown id."""
        return self.concept(id_).types

    def entities(self, id_: str) -> tuple[str, ...]:
        """The entity types of a concept: what a corpus would label it. Raises UserError for an unknown id."""
        return tuple(dict.fromkeys(entity for tui in self.types(id_) for entity in self.table.entities_of(tui)))

    def links_of(self, id_: str) -> tuple[Link, ...]:
        """The relations from and to a concept. Raises UserError for an unknown id."""
        return self._links.get(self.concept(id_).id, ())

    @property
    def relations(self) -> tuple[str, ...]:
        """The names of all relations of the type table."""
        return self.table.relations

    def allows(self, head_type: str, relation: str, tail_type: str) -> bool:
        """Whether the relation may link these types; see `TypeTable.allows`."""
        return self.table.allows(head_type, relation, tail_type)

    @cached_property
    def _aliases(self) -> Mapping[str, tuple[str, ...]]:
        return _grouped((normal(alias), id_) for alias, id_ in self.aliases())

    @cached_property
    def _xrefs(self) -> Mapping[str, tuple[str, ...]]:
        return _grouped((xref, one.id) for one in self.concepts.values() for xref in one.xrefs)

    @cached_property
    def _below(self) -> Mapping[str, tuple[str, ...]]:
        return _grouped((parent, id_) for id_, parents in self.above.items() for parent in parents)

    @cached_property
    def _links(self) -> Mapping[str, tuple[Link, ...]]:
        both = ((end, link) for link in self.links for end in dict.fromkeys((link.head, link.tail)))
        grouped: dict[str, list[Link]] = {}
        for end, link in both:
            grouped.setdefault(end, []).append(link)
        return {end: tuple(links) for end, links in grouped.items()}


def find_folder(name_or_path: str) -> Path:
    """Where a graph lies: shipped, built into the cache, or at a path. Raises UserError when it is nowhere."""
    roots = (assets.ROOT / "ontologies", built())
    known = sorted({folder.name for root in roots if root.is_dir() for folder in root.iterdir() if folder.is_dir()})
    if name_or_path in known:
        return next(root / name_or_path for root in roots if (root / name_or_path).is_dir())
    path = Path(name_or_path).expanduser()
    if path.exists() or os.sep in name_or_path:
        return path
    close, every = get_close_matches(name_or_path, known, n=1), f"one of {known}, or the path of a folder"
    instead = f"{close[0]!r} ({every})" if close else every
    raise UserError(f"unknown graph {name_or_path!r}", instead=instead)


def built() -> Path:
    """The folder for graphs that the user built."""
    return assets.cache_dir() / "ontologies"


def check(graph: ConceptGraph) -> list[Fault]:
    """What is wrong with a graph, each with its file and line.

    Faults: is-a cycles, ids that are no concept's, semantic types outside the table, relations outside the table or
    between types that it does not allow, two concepts with the same preferred name but for case. A warning: aliases
    that several concepts share; that is natural in an ontology, and `find` returns all of them.
    """
    return [*_errors(graph), *_ambiguous(graph)]


def _errors(graph: ConceptGraph) -> Iterator[Fault]:
    yield from _concept_faults(graph)
    yield from _cycle_faults(graph)
    yield from _link_faults(graph)


def _concept_faults(graph: ConceptGraph) -> Iterator[Fault]:
    file, owners = locate(graph.path, CONCEPTS), dict[str, int]()
    for line, one in enumerate(graph.concepts.values(), FIRST_ROW):
        where = f"{file}:{line}"
        for parent in graph.above[one.id]:
            if parent not in graph.concepts:
                yield Fault(where, f"{one.id} is a kind of {parent!r}, which is no concept", "an id of this file")
        for tui in one.types:
            if tui not in graph.table.types:
                yield Fault(where, f"{one.id} has the type {tui!r}, which is not in {TYPES}", "a type of the table")
        other = owners.setdefault(one.name.casefold(), line)
        if other != line:
            what = f"{one.id} has the same preferred name as line {other}: {one.name!r}"
            yield Fault(where, what, "a name of its own, the shared one as a synonym")


def _cycle_faults(graph: ConceptGraph) -> Iterator[Fault]:
    file, lines = locate(graph.path, CONCEPTS), dict[str, int]()
    for cycle in cycles(graph.above):
        lines = lines or {id_: line for line, id_ in enumerate(graph.concepts, FIRST_ROW)}
        way = " → ".join((*cycle, cycle[0]))
        yield Fault(f"{file}:{lines[cycle[-1]]}", f"is-a goes in a circle: {way}", "take one of these parents out")


def _link_faults(graph: ConceptGraph) -> Iterator[Fault]:
    file = locate(graph.path, LINKS)
    for line, link in enumerate(graph.links, FIRST_ROW):
        where, ends = f"{file}:{line}", (link.head, link.tail)
        unknown = [end for end in dict.fromkeys(ends) if end not in graph.concepts]
        for end in unknown:
            yield Fault(where, f"{end!r} is no concept", f"an id of {CONCEPTS}")
        if link.relation not in graph.relations:
            yield Fault(where, f"unknown relation {link.relation!r}", f"one of those in {RELATIONS}")
        elif not unknown and not _lawful(graph, link):
            types = (" and ".join(graph.types(end)) for end in ends)
            what = f"{link.head} {link.relation} {link.tail}: {RELATIONS} has no row for {' → '.join(types)}"
            yield Fault(where, what, "another relation, or a row for these types")


def _lawful(graph: ConceptGraph, link: Link) -> bool:
    """Whether any types of the ends may be so linked; types outside the table are another fault."""
    heads, tails = ([t for t in graph.types(end) if t in graph.table.types] for end in (link.head, link.tail))
    return not (heads and tails) or any(graph.allows(h, link.relation, t) for h in heads for t in tails)


def _ambiguous(graph: ConceptGraph) -> Iterator[Fault]:
    shared = [(alias, ids) for alias, ids in graph._aliases.items() if len(ids) > 1]
    if shared:
        alias, ids = shared[0]
        what = f"{len(shared):,} aliases belong to several concepts, {alias!r} to {' and '.join(ids[:3])}"
        yield Fault(str(locate(graph.path, CONCEPTS)), what, warning=True)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """All values of each key, each once, in their order; the empty key has none."""
    single: dict[str, tuple[str, ...]] = {}
    for key, value in pairs:
        before = single.get(key, ())
        if key and value not in before:
            single[key] = (*before, value)
    return single
