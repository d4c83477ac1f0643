"""The compilers on sources of a few lines each, in the formats of the real ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from domainkit.graph import ConceptGraph, Link
from domainkit.ontology import medical
from domainkit.types import UserError
from tests.test_graph import write_graph

BRANCHES = """tree\tname\ttype
C\tDiseases\tT047
C23.888\tSigns\tT184
D\tChemicals\tT103
D02\tOrganic\tT109
D12.776\tProteins\tT116
D27\tActions\tT120
E02\tTherapeutics\tT061
G\tPhenomena\tT067
"""
DESCRIPTORS = (
    ("D01", "Heart Diseases", "cardiac disease", "C14.280", ""),
    ("D02", "Myocardial Infarction", "Infarct of Heart", "C14.280.647|C14.280.647.1.2", ""),
    ("D03", "Pain", "", "C23.888.592|G11.5", ""),
    ("D04", "Signs", "", "C23.888", ""),
    ("D05", "Organic", "", "D02", ""),
    ("D06", "Aspirin", "ASA", "D02.455", ""),
    ("D07", "Proteins", "", "D12.776", ""),
    ("D08", "Actions", "", "D27", ""),
    ("D09", "Analgesics", "Analgesic", "D27.505", ""),
    ("D10", "Therapeutics", "", "E02", ""),
    ("D11", "Mouse", "", "G01", "10090"),
    ("D12", "Deep", "", "C14.280.647.1", ""),
    ("D13", "Stroke", "", "C10.5", ""),
    ("D14", "Cold", "", "C08.5", ""),
    ("D15", "Flu", "", "C02.5", ""),
)
RECORDS = (
    ("C01", "rare heart syndrome", "RHS", "D01,*D03"),
    ("C02", "shortamol", "", "D06"),
    ("C03", "a-very-long-systematic-name-of-a-substance", "", "*D05"),
    ("C04", "another-long-systematic-name-of-a-substance", "", "D05"),
    ("C05", "someprotein", "", "D07,D06"),
    ("C06", "ASA protocol", "", "D10,D06"),
)


def disease(id_: str, name: str, *synonyms: str, above: tuple[str, ...] = (), **xrefs: str) -> dict[str, Any]:
    """One disease; xrefs: namespace=ids, separated by spaces."""
    pairs = [{"namespace": space, "id": one} for space, ids in xrefs.items() for one in ids.split()]
    return {"id": id_, "name": name, "synonyms": list(synonyms), "xrefs": pairs, "relations": {"is_a": list(above)}}


MONDO = [
    disease("0000001", "heart disorder", "cardiac disease", MESH="D01", UMLS="C0000001", DOID="DOID:1"),  # a name
    disease("0000002", "heart attack", MESH="D02"),  # refers to each other alone
    disease("0000003", "broad stroke", MESH="D13"),  # two refer to D13: the nearest broader one
    disease("0000004", "other stroke", MESH="D13", above=("0000003",)),
    disease("0000005", "COLD"),  # no reference, the name
    disease("0000006", "new disease", "flu", above=("0000001",), DOID="6"),
]
MONDO[1]["relations"]["disease_has_feature"] = ["0000005"]
DOID = [
    disease("DOID:1", "disease of the heart", UMLS_CUI="C0000009", OMIM="123"),  # by MONDO's reference to it
    disease("DOID:6", "the new disease", above=("DOID:1",)),  # the same, to one that MeSH lacks
    disease("DOID:7", "newest disease", above=("DOID:6",)),
]
CHEBI = (
    "chebi_id\tname\tis_a\thas_role\tmesh_ids",
    "CHEBI:1\taspirin\t\tCHEBI:3|CHEBI:4\tD06",
    "CHEBI:2\trole\t\t\t",
    "CHEBI:3\tanalgesic\tCHEBI:2\t\t",  # a descriptor has the name
    "CHEBI:4\tenzyme inhibitor\tCHEBI:2\t\t",
    "CHEBI:5\tlong one\t\tCHEBI:3\tC04",
)
INDICATIONS = (
    "drugbank_id\tdrug\tdrug_mesh\tdoid\tdisease\tdisease_mesh\tcategory",
    "DB1\ta\tD06\tDOID:1\tb\tD02\tDM",
    "DB1\ta\tD06\tDOID:1\tb\tD03\tSYM",
    "DB1\ta\tD06\tDOID:1\tb\tD14\tNOT",
    "DB1\ta\t\tDOID:1\tb\tD14\tDM",
)


def packed(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def lines(rows: Any) -> str:
    return "".join(("\t".join(row) if isinstance(row, tuple) else row) + "\n" for row in rows)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources, and a home with the tables by hand."""
    home, folder = tmp_path / "home", tmp_path / "data" / "ontologies"
    shipped = medical.type_table()
    home.mkdir()
    shipped.write(home)
    (home / "branches.tsv").write_text(BRANCHES, encoding="utf-8")
    (home / "ATTRIBUTION.md").write_text("thanks", encoding="utf-8")
    monkeypatch.setattr(medical, "HOME", home)
    packed(folder / "mesh" / "mesh_id_label_mappings.tsv.gz", lines(DESCRIPTORS))
    packed(folder / "mesh" / "mesh_supp_id_label_mappings.tsv.gz", lines(RECORDS))
    packed(folder / "mesh" / "mesh_mappings.tsv.gz", "MESH\tC03\tx\tGO\tGO:1\tx\nMESH\tD05\tx\tCHEBI\tCHEBI:9\tx\n")
    packed(folder / "mondo" / "mondo.json.gz", json.dumps(MONDO))
    packed(folder / "doid" / "doid.json.gz", json.dumps(DOID))
    packed(folder / "chebi_drugs" / "chebi_subset.tsv.gz", lines(CHEBI))
    packed(folder / "pharmacotherapydb" / medical.INDICATIONS, lines(INDICATIONS))
    return tmp_path / "data"


@pytest.fixture
def full(sources: Path, tmp_path: Path) -> ConceptGraph:
    assert medical.compile_full(sources, tmp_path / "full").dropped == []
    return ConceptGraph.load(str(tmp_path / "full"))


@pytest.fixture
def core(sources: Path, tmp_path: Path) -> ConceptGraph:
    medical.type_table().write(tmp_path / "core")
    medical.compile_core(sources, tmp_path / "core")
    return ConceptGraph.load(str(tmp_path / "core"))


def test_the_tree_is_the_hierarchy(full: ConceptGraph) -> None:
    assert full.parents("D06") == ("D05",) and full.parents("D05") == ("MESH:D",)
    assert full.concept("MESH:D").name == "Chemicals (MeSH category D)"
    assert full.parents("D02") == ("D01",) and full.parents("D12") == ("D02",)  # not below itself
    assert full.concept("D11").xrefs == ("NCBITaxon:10090",)


def test_types_come_from_the_branches(full: ConceptGraph) -> None:
    assert full.types("D01") == ("T047",) and full.types("D05") == ("T109",)
    assert full.types("D03") == ("T184",)  # its place among phenomena does not count
    assert full.types("D11") == ("T067",)
    assert full.types("D06") == ("T109", "T121")  # a drug that treats


def test_supplementary_records(full: ConceptGraph) -> None:
    assert full.parents("C01") == ("D01", "D03") and full.types("C01") == ("T047",)  # a disease, no symptom
    assert full.types("C02") == ("T109",) and full.types("C05") == ("T109", "T116")
    assert full.types("C06") == ("T061",)  # a protocol, though mapped to its drug
    assert full.concept("C01").synonyms == ("RHS",)


def test_what_a_disease_is(full: ConceptGraph) -> None:
    assert full.concept("D01").xrefs == ("DOID:1", "MONDO:0000001", "OMIM:123", "UMLS:C0000001", "UMLS:C0000009")
    assert full.find("disease of the heart") == ("D01",)
    assert full.find("heart attack") == ("D02",) and full.find("cold") == ("D14",)
    assert "MONDO:0000005" in full.concept("D14").xrefs
    assert full.concept("D13").xrefs == ()
    assert full.concept("D15").xrefs == ()  # a synonym alone is not enough


def test_diseases_that_mesh_lacks(full: ConceptGraph) -> None:
    assert full.find("other stroke") == ("MONDO:0000004",) and full.parents("MONDO:0000004") == ("MONDO:0000003",)
    assert full.parents("MONDO:0000006") == ("D01",) and "DOID:6" in full.concept("MONDO:0000006").xrefs
    assert full.find("the new disease") == ("MONDO:0000006",)
    assert full.ancestors("DOID:7") == ("MONDO:0000006", "D01", "MESH:C")


def test_roles_and_relations(full: ConceptGraph) -> None:
    assert set(full.links) == {
        Link("D06", "has_role", "D09", "chebi"), Link("D06", "has_role", "CHEBI:4", "chebi"),
        Link("C04", "has_role", "D09", "chebi"), Link("D06", "treats", "D02", "pharmacotherapydb"),
        Link("D06", "palliates", "D03", "pharmacotherapydb"), Link("D02", "has_feature", "D14", "mondo"),
    }  # fmt: skip
    assert full.parents("CHEBI:4") == ("CHEBI:2",) and full.types("CHEBI:4") == ("T120",)
    assert full.find_xref("CHEBI:3") == ("D09",) and full.find_xref("CHEBI:9") == ("D05",)


def test_the_core(core: ConceptGraph, full: ConceptGraph) -> None:
    left_out = full.concepts.keys() - core.concepts.keys()
    assert left_out == {
        "D10", "D11", "MESH:G", "C03", "C05", "C06", "DOID:7", "MONDO:0000003", "MONDO:0000004", "MONDO:0000006",
    }  # fmt: skip
    assert {"C01", "C02", "C04", "CHEBI:2"} <= core.concepts.keys()  # C04: ChEBI knows it too
    assert all(core.concepts[id_] == full.concepts[id_] for id_ in core.concepts)
    assert core.links == full.links


def test_the_full_graph_carries_its_attribution(full: ConceptGraph) -> None:
    assert (full.path / "ATTRIBUTION.md").read_text(encoding="utf-8") == "thanks"


def test_the_same_sources_give_the_same_bytes(sources: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        medical.compile_full(sources, tmp_path / out)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_one_name_for_two_concepts(sources: Path, tmp_path: Path) -> None:
    rows = (*RECORDS, ("C07", "ASPIRIN", "", "D05"))
    packed(sources / "ontologies" / "mesh" / "mesh_supp_id_label_mappings.tsv.gz", lines(rows))
    medical.compile_full(sources, tmp_path / "full")
    graph = ConceptGraph.load(str(tmp_path / "full"))
    assert graph.concept("C07").name == "ASPIRIN (C07)" and graph.find("aspirin") == ("D06", "C07")


def test_missing_sources(sources: Path, tmp_path: Path) -> None:
    (sources / "ontologies" / "doid" / "doid.json.gz").unlink()
    with pytest.raises(UserError, match=r"ontologies: no doid/doid.json.gz; instead: a folder with mesh/, mondo/"):
        medical.compile_full(sources, tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_branches_of_another_mesh(sources: Path, tmp_path: Path) -> None:
    rows = [("D04", "Symptoms", "", "C23.888", "") if row[0] == "D04" else row for row in DESCRIPTORS]
    packed(sources / "ontologies" / "mesh" / "mesh_id_label_mappings.tsv.gz", lines(rows))
    with pytest.raises(UserError, match=r"branches.tsv: C23.888 is not 'Signs' in this MeSH"):
        medical.compile_full(sources, tmp_path / "full")


def test_a_damaged_type_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medical, "HOME", write_graph(tmp_path / "g", types=("T47\tx\ty\tz",), relations=()))
    with pytest.raises(UserError, match=r"types.tsv:2: bad semantic type"):
        medical.type_table()
