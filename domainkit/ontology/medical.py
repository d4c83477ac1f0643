"""The concept graph of medicine: MeSH as the backbone, other ontologies joined to it. Deterministic."""

from __future__ import annotations

import csv
from pathlib import Path

from domainkit import assets
from domainkit.files import write_text
from domainkit.ontology import chebi, diseases, mesh
from domainkit.ontology.draft import Draft
from domainkit.ontology.rows import Fault, stop
from domainkit.ontology.table import TypeTable
from domainkit.types import UserError

HOME = assets.ROOT / "ontologies" / "medical"  # where the tables lie that are written by hand
INDICATIONS = "indications_with_mesh_ids_DERIVED.tsv"
ATTRIBUTION = "ATTRIBUTION.md"
FILES = {
    "mesh": (mesh.DESCRIPTORS, mesh.RECORDS, chebi.MAPPINGS),
    "mondo": ("mondo.json.gz",),
    "doid": ("doid.json.gz",),
    "chebi_drugs": (chebi.SUBSET,),
    "pharmacotherapydb": (INDICATIONS,),
}
VERDICTS = {"DM": "treats", "SYM": "palliates"}  # NOT, no indication, is no relation
DRUG = "T121"  # Pharmacologic Substance
TOPS = ("MESH:C", "MESH:D", "MESH:F")  # the categories of the core's descriptors
SHORT = 30  # characters of the name of a supplementary chemical in the core; most longer ones are formulas


def compile_full(folder: Path, out: Path) -> Draft:
    """Write the graph of everything that the sources in `folder` have into `out`, with the type table.

    Raises UserError when a source is missing. The Draft is what was written.
    """
    draft, _, _ = _draft(folder, new=True)
    draft.write(out)
    type_table().write(out)
    write_text(out / ATTRIBUTION, (HOME / ATTRIBUTION).read_text(encoding="utf-8"))
    return draft


def compile_core(folder: Path, out: Path) -> Draft:
    """Write the core of that graph into `out`, which has the type table already.

    In it are MeSH's diseases and chemicals, the roles of chemicals, and of the supplementary records the diseases,
    those that another source knows too, and the chemicals (no proteins) with a short name.
    """
    draft, trees, records = _draft(folder, new=False)
    linked = {end for head, _, tail in draft.links for end in (head, tail)}

    def central(id_: str) -> bool:
        if id_ in records:
            one = records[id_]
            return one.disease or bool(draft.entries[id_].xrefs) or (one.small and len(one.name) <= SHORT)
        return any(tree.startswith((*mesh.DISEASES, *mesh.CHEMICALS)) for tree in trees.get(id_, ())) or id_ in TOPS

    kept = {id_: one for id_, one in draft.entries.items() if central(id_) or id_ in linked or id_[:5] == "CHEBI"}
    core = Draft(kept, draft.links)
    core.write(out)
    return core


def type_table() -> TypeTable:
    """The shipped type table. Raises UserError when it is damaged."""
    faults: list[Fault] = []
    table = TypeTable.read(HOME, faults)
    stop(faults, HOME)
    return table


def find_sources(folder: Path) -> Path:
    """The folder that holds the sources: it, or `ontologies` in it. Raises UserError with what is missing."""
    folder = folder / "ontologies" if (folder / "ontologies").is_dir() else folder
    needed = [f"{name}/{file}" for name, files in FILES.items() for file in files]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UserError(f"no {' and no '.join(missing)}", where=folder, instead="a folder with mesh/, mondo/, doid/, …")
    return folder


def _draft(folder: Path, *, new: bool) -> tuple[Draft, dict[str, list[str]], dict[str, mesh.Record]]:
    """Everything joined, the tree numbers of MeSH's descriptors, and its supplementary records.

    new: whether diseases that MeSH lacks become concepts.
    """
    folder, faults = find_sources(folder), list[Fault]()
    branches = mesh.Branches.read(HOME, faults)
    stop(faults, HOME)
    draft = Draft()
    entries, trees = mesh.descriptors(folder / "mesh", branches)
    records = {one.id: one for one in mesh.records(folder / "mesh", trees)}
    for entry in (*mesh.categories(branches), *entries, *(one.entry(branches) for one in records.values())):
        draft.add(entry)
    diseases.join(draft, diseases.read(folder / "mondo" / "mondo.json.gz", "MONDO"), new=new)
    diseases.join(draft, diseases.read(folder / "doid" / "doid.json.gz", "DOID"), new=new)
    chebi.join(draft, folder / "chebi_drugs" / chebi.SUBSET, folder / "mesh" / chebi.MAPPINGS)
    _indications(draft, folder / "pharmacotherapydb" / INDICATIONS)
    return draft, trees, records


def _indications(draft: Draft, file: Path) -> None:
    """Enter which drug treats or palliates which disease, and that the drug is a pharmacologic substance."""
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            drug, relation = row["drug_mesh"], VERDICTS.get(row["category"])
            if relation and drug in draft.entries:
                draft.entries[drug].types.add(DRUG)
                draft.link(drug, relation, row["disease_mesh"], "pharmacotherapydb")
