"""A concept graph in the making: entries that compilers fill, settled and written at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from domainkit.ontology.names import distinct, normal
from domainkit.ontology.order import acyclic
from domainkit.ontology.rows import CONCEPT_COLUMNS, CONCEPTS, LINK_COLUMNS, LINKS, PACKED, SEVERAL, write_rows

Triple = tuple[str, str, str]  # head, relation, tail


@dataclass
class Entry:
    """One concept; order and repetition do not matter but for synonyms, of which the first ones win."""

    id: str
    name: str
    synonyms: list[str] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)
    xrefs: set[str] = field(default_factory=set)

    @property
    def forms(self) -> Iterator[str]:
        """Every name."""
        yield self.name
        yield from self.synonyms


@dataclass
class Draft:
    """The concepts and relations found so far."""

    entries: dict[str, Entry] = field(default_factory=dict)  # in the order of the file to be
    links: dict[Triple, str] = field(default_factory=dict)  # → source
    dropped: list[tuple[str, str]] = field(default_factory=list)  # is-a edges, child and parent, that closed a cycle

    def add(self, entry: Entry) -> None:
        """Enter a concept; one with a known id is a mistake of the compiler."""
        assert entry.id not in self.entries, entry.id
        self.entries[entry.id] = entry

    def link(self, head: str, relation: str, tail: str, source: str) -> None:
        """Enter a relation, unless its ends are not there or are the same concept."""
        if head in self.entries and tail in self.entries and head != tail:
            self.links.setdefault((head, relation, tail), source)

    def named(self, entries: Iterable[Entry]) -> dict[str, str]:
        """Normal form → id, for the names that exactly one of these concepts has."""
        owners: dict[str, set[str]] = {}
        for entry in entries:
            for form in entry.forms:
                owners.setdefault(normal(form), set()).add(entry.id)
        return {form: min(ids) for form, ids in owners.items() if form and len(ids) == 1}

    def write(self, folder: Path) -> None:
        """Write concepts.tsv.gz and links.tsv.gz.

        Parents that are no concepts are left out, and so are the is-a edges that close a cycle; of concepts with the
        same name all but the first get their id behind it.
        """
        known = self.entries.keys()
        above, self.dropped = acyclic({id_: sorted(one.parents & known) for id_, one in self.entries.items()})
        write_rows(folder / (CONCEPTS + PACKED), CONCEPT_COLUMNS, self._rows(above))
        links = ((*triple, source) for triple, source in sorted(self.links.items()))
        write_rows(folder / (LINKS + PACKED), LINK_COLUMNS, links)

    def _rows(self, above: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        taken: set[str] = set()
        for id_, one in self.entries.items():
            name = one.name if one.name.casefold() not in taken else f"{one.name} ({id_})"
            taken.add(name.casefold())
            synonyms = distinct(name, one.forms)
            yield id_, name, *map(SEVERAL.join, (synonyms, sorted(one.types), above[id_], sorted(one.xrefs)))
