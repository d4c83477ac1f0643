"""ChEBI: cross-references of MeSH's chemicals, and the roles that chemicals have.

Format of chebi_subset.tsv.gz: chebi_id, name, is_a, has_role, mesh_ids, the last three "|"-joined. Format of
mesh_mappings.tsv.gz: "MESH", id, name, namespace, id there, name there.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from domainkit.ontology.draft import Draft, Entry
from domainkit.ontology.names import normal
from domainkit.ontology.rows import split

SUBSET, MAPPINGS = "chebi_subset.tsv.gz", "mesh_mappings.tsv.gz"
ROLE = "T120"  # Chemical Viewed Functionally
ACTIONS = {"T120", "T121", "T130", "T131"}  # of the descriptors that name a use or an effect


@dataclass(frozen=True)
class Chemical:
    """One entry of ChEBI: a substance or a role."""

    id: str
    name: str
    above: tuple[str, ...]
    roles: tuple[str, ...]
    mesh: tuple[str, ...]


def join(draft: Draft, subset: Path, mappings: Path) -> None:
    """Enter ChEBI's ids as cross-references, its roles as concepts, and which chemical has which role."""
    chemicals = {one.id: one for one in _read(subset)}
    same = {one.id: {id_ for id_ in one.mesh if id_ in draft.entries} for one in chemicals.values()}
    with gzip.open(mappings, "rt", encoding="utf-8") as lines:
        for _, mesh, _, space, other, _ in (line.rstrip("\n").split("\t") for line in lines):
            if space == "CHEBI" and mesh in draft.entries:
                same.setdefault(other, set()).add(mesh)
    for id_, concepts in same.items():
        for concept in concepts:
            draft.entries[concept].xrefs.add(id_)
    placed = _roles(draft, chemicals, same)
    for one in chemicals.values():
        for head in sorted(same[one.id]):
            for role in one.roles:
                draft.link(head, "has_role", placed[role], "chebi")


def _roles(draft: Draft, chemicals: dict[str, Chemical], same: dict[str, set[str]]) -> dict[str, str]:
    """Enter the roles and what is above them; role → its concept.

    A role that MeSH has a descriptor for, by reference or by name alone, is that descriptor.
    """
    named = draft.named(entry for entry in draft.entries.values() if entry.types & ACTIONS)
    queue, roles = [role for one in chemicals.values() for role in one.roles], dict[str, None]()
    while queue:
        role = queue.pop()
        if role in chemicals and role not in roles:
            roles[role] = None
            queue += chemicals[role].above
    placed = {}
    for role in sorted(roles):
        told = sorted(id_ for id_ in same[role] if draft.entries[id_].types & ACTIONS)
        here = told or [named[form] for form in [normal(chemicals[role].name)] if form in named]
        placed[role] = here[0] if here else role
    for role, concept in placed.items():
        if concept == role:
            above = {placed[parent] for parent in chemicals[role].above if parent in placed}
            draft.add(Entry(role, chemicals[role].name, [], {ROLE}, above))
        else:
            draft.entries[concept].xrefs.add(role)
            draft.entries[concept].synonyms.append(chemicals[role].name)
    return placed


def _read(file: Path) -> list[Chemical]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines][1:]
    return [Chemical(id_, name, *map(split, rest)) for id_, name, *rest in sorted(rows)]
