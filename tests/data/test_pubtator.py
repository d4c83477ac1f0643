"""PubTator: the real corpora to the last mention, offsets in every script, and each way a file can be broken."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.data.overlaps import overlaps
from domainkit.data.pubtator import untitled
from domainkit.data.read import read
from domainkit.data.row import Allowed
from domainkit.types import Example, Relation, Span, UserError
from tests.data.annotated import fault, spans_in, texts

CORPORA = Path(__file__).resolve().parents[3] / "shared" / "data" / "medical"
real = pytest.mark.skipif(not CORPORA.is_dir(), reason="the raw sources are not beside this checkout")

HEAD = "12|t|Pain by aspirin.\n12|a|It hurt. \n"
LINES = ("12\t8\t15\taspirin\tChemical\tD001241", "12\t0\t4\tPain\tDisease\tD010146", "12\tCID\tD001241\tD010146")


def pubtator(folder: Path, *lines: str, head: str = HEAD, name: str = "a.pubtator") -> Path:
    path = folder / name
    path.write_text(head + "".join(line + "\n" for line in lines), encoding="utf-8", newline="")
    return path


def written(example: Example) -> str:
    """An example as PubTator, for the round trip."""
    title, abstract = example.summary, example.text[len(example.summary) + 1 :]
    lines = [f"{example.id}|t|{title}", f"{example.id}|a|{abstract}"]
    for s in example.spans:
        mention, concept = example.text[s.start : s.end], (s.concept or "-1").replace(",", "|")
        lines.append(f"{example.id}\t{s.start}\t{s.end}\t{mention}\t{s.label}\t{concept}")
    return "\n".join([*lines, *(f"{example.id}\t{r.label}\t{r.head}\t{r.tail}" for r in example.relations)]) + "\n\n"


def test_a_document(tmp_path: Path) -> None:
    (one,) = read(pubtator(tmp_path, *LINES), language="en", source="cdr")
    assert one == Example(
        "Pain by aspirin. It hurt. ",  # the last space is the abstract's own
        (Span(8, 15, "Chemical", "D001241"), Span(0, 4, "Disease", "D010146")),
        (Relation("D001241", "CID", "D010146"),),
        "Pain by aspirin.", id="12", language="en", source="cdr",
    )  # fmt: skip


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("between", ["", "\n", " \n\n"])
def test_documents_are_parted_by_blank_lines_or_titles(tmp_path: Path, ends: str, between: str) -> None:
    other = "13|t|Other.\n13|a|One."
    path = pubtator(tmp_path, head=("\ufeff" + HEAD + LINES[0] + "\n" + between + other).replace("\n", ends))
    first, second = read(path)
    assert (first.id, first.text, len(first.spans)) == ("12", "Pain by aspirin. It hurt. ", 1)
    assert (second.id, second.text) == ("13", "Other. One.")


@pytest.mark.parametrize(
    ("ids", "concept"),
    [
        ("-1", None), ("-", None), ("", None), (" D1 ", "D1"), ("D1|D2", "D1,D2"), ("D1,D2", "D1,D2"),
        ("D1+D2", "D1,D2"), ("D1|-1", "D1"), ("D1|D1", "D1"), ("OMIM:106210", "OMIM:106210"),
        ("c|SUB|G|2380+1|A", "c|SUB|G|2380+1|A"), ("|Allele|GG|IVS9+459", "|Allele|GG|IVS9+459"),
    ],
)  # fmt: skip
def test_concept_ids(tmp_path: Path, ids: str, concept: str | None) -> None:
    (one,) = read(pubtator(tmp_path, f"12\t0\t4\tPain\tDisease\t{ids}"))
    assert one.spans[0].concept == concept


def test_the_relation_of_a_composite_mention_holds_for_each_id(tmp_path: Path) -> None:
    both = "12\t0\t4\tPain\tDisease\tD1|D2\tone|two"
    path = pubtator(tmp_path, both, LINES[0], "12\tBind\tD001241\tD1|D2\tNovel", "12\tBind\tD001241\tD1\tNo")
    (one,) = read(path)
    assert [(r.head, r.tail) for r in one.relations] == [("D001241", "D2"), ("D001241", "D1")]


def test_numbers_as_concept_ids(tmp_path: Path) -> None:
    """NCBI Gene ids are numbers: the line is a relation all the same."""
    lines = ("12\t0\t4\tPain\tGene\t6528", "12\t8\t15\taspirin\tGene\t7200", "12\tBind\t6528\t7200\tNovel")
    (one,) = read(pubtator(tmp_path, *lines))
    assert one.relations == (Relation("6528", "Bind", "7200"),)


def test_an_abstract_without_its_title(tmp_path: Path) -> None:
    lines = (*LINES, "12\t20\t24\thurt\tDisease\t-1")
    (one,) = read(pubtator(tmp_path, *lines))
    cut = untitled(one)
    assert cut.text == "It hurt. " and cut.summary == one.summary and cut.relations == one.relations
    assert cut.spans == (Span(3, 7, "Disease"),) and cut.text[3:7] == "hurt"
    assert untitled(cut) == cut
    assert untitled(replace(one, summary="")) == replace(one, summary="")


@given(st.data(), texts(), texts())
def test_offsets_are_right_in_every_script(
    tmp_path_factory: pytest.TempPathFactory, data: Any, title: str, abstract: str
) -> None:
    text = f"{title} {abstract}"
    one = Example(text, data.draw(spans_in(text)), summary=title, id="1")
    path = tmp_path_factory.getbasetemp() / "every.pubtator"
    path.write_text(written(one), encoding="utf-8", newline="")
    assert list(read(path)) == [one]


BAD = {
    "outside": ("12\t30\t35\tPains\tDisease\tD1", "span 30-35 lies outside the text of 26 characters"),
    "mismatch": ("12\t1\t5\tPain\tDisease\tD1", "the text at 1-5 is 'ain ', not 'Pain'"),
    "cut mention": ("12\t0\t4\tPain\tDisease", "a mention of 5 columns, not 6 or 7"),
    "cut offsets": ("12\t0", "a mention of 2 columns"),
    "cut relation": ("12\tCID\tD001241", "a line of 3 columns"),
    "spaces": ("12 0 4 Pain Disease D1", "this line belongs to '12 0 4 Pain Disease D1', the document to 12"),
    "words": ("12\tx\t4\tPain\tDisease\tD1", "offsets 'x' and '4' are not both whole numbers"),
    "huge": (f"12\t0\t{'9' * 5000}\tPain\tDisease\tD1", "are not both whole numbers"),
    "stray": ("13\t0\t4\tPain\tDisease\tD1", "this line belongs to '13', the document to 12"),
    "argument": ("12\tCID\tD001241\tD9", "relation argument 'D9' is annotated nowhere"),
    "no argument": ("12\tCID\tD001241\t", "argument '' of a relation is not a name"),
    "novelty": ("12\tCID\tD001241\tD010146\tYes", "novelty 'Yes' is unknown"),
    "twice": (LINES[1], "span 0-4 Disease is annotated twice, first at {path}:4"),
    "said twice": (LINES[2], "relation D001241 CID D010146 is stated twice"),
    "no label": ("12\t5\t7\tby\t\t-1", "label '' is not a name"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines(tmp_path: Path, name: str) -> None:
    line, what = BAD[name]
    path = pubtator(tmp_path, *LINES, line)
    message = fault(path)
    assert what.format(path=path) in message and f"{path}:6: " in message and "(6 lines read); instead: " in message
    assert "faults" not in message


@pytest.mark.parametrize(
    ("head", "what"),
    [
        ("12|t|Only a title.\n", "document 12 has no abstract after its title"),
        ("12|t| \n12|a|\n", "document 12 is empty"),
        ("12|a|Abstract.\n", "a document does not begin with its title"),
        ("12|t|Title.\n13|a|Other.\n", "this abstract belongs to 13, the title to 12"),
        (HEAD + "\n" + HEAD, "document 12 stands twice, first at line 1"),
        ("", "the file is empty"),
        ("\n \n", "the file holds no document"),
    ],
)
def test_bad_documents(tmp_path: Path, head: str, what: str) -> None:
    path = pubtator(tmp_path, head=head)
    assert what in fault(path) and str(path) in fault(path) and "instead: " in fault(path)


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    other = "\n13|t|Fine.\n13|a|Yes.\n13\t0\t4\tfine\tDisease\tD1\n"
    last = HEAD.replace("12|", "14|") + "14\t0\t99\tPain\tDisease\tD1"
    message = fault(pubtator(tmp_path, BAD["outside"][0], BAD["cut mention"][0], other + last))
    assert "4 faults" in message
    assert [number for number in range(1, 13) if f":{number}: " in message] == [3, 4, 8, 11]


def test_unknown_labels(tmp_path: Path) -> None:
    path = pubtator(tmp_path, *LINES)
    assert list(read(path, allowed=Allowed({"Chemical", "Disease"}, {"CID"})))
    message = fault(path, allowed=Allowed({"Chemical"}, {"Bind"}))
    assert f"{path}:4: unknown label 'Disease'" in message and f"{path}:5: unknown relation 'CID'" in message


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.pubtator"
    path.write_bytes(HEAD.encode() + "12\t0\t4\tPain\tMaladie générale\tD1\n".encode("latin-1"))
    assert f"{path}:3: not UTF-8" in fault(path) and "iconv -f latin1" in fault(path)


@given(st.data())
def test_a_damaged_file_never_gives_a_wrong_offset(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    whole = HEAD + "".join(line + "\n" for line in LINES)
    at = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.sampled_from(["", "0", "7", "\t", "\n", "|", "-", "😀", "x"]))
    path = tmp_path_factory.getbasetemp() / "damaged.pubtator"
    path.write_text(whole[:at] + put + whole[at + data.draw(st.integers(0, 1)) :], encoding="utf-8", newline="")
    cells = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")]
    number = re.compile("-?[0-9]+").fullmatch  # "-0" is 0
    stated = {(int(c[1]), int(c[2]), c[3]) for c in cells if len(c) > 5 and number(c[1]) and number(c[2])}
    try:
        for one in read(path):
            assert all((s.start, s.end, one.text[s.start : s.end]) in stated for s in one.spans)
    except UserError as error:
        assert "damaged.pubtator" in str(error)


# The real corpora


def counts(path: Path) -> tuple[int, dict[str, int], dict[str, int]]:
    examples = list(read(path))
    spans = Counter(span.label for example in examples for span in example.spans)
    return len(examples), dict(spans), dict(Counter(r.label for e in examples for r in e.relations))


@real
@pytest.mark.parametrize(
    ("name", "mentions", "relations", "composite", "unlinked"),
    [
        ("CDR_TrainingSet.PubTator.txt", {"Chemical": 5203, "Disease": 4182}, 1038, 97, 76),
        ("CDR_DevelopmentSet.PubTator.txt", {"Chemical": 5347, "Disease": 4244}, 1012, 99, 59),
    ],
)
def test_bc5cdr(name: str, mentions: dict[str, int], relations: int, composite: int, unlinked: int) -> None:
    path = CORPORA / "bc5cdr" / name
    assert counts(path) == (500, mentions, {"CID": relations})
    found = overlaps(read(path))
    assert (found.nested, found.crossing, found.discontinuous) == (0, 0, 0)
    assert (found.composite, found.unlinked, found.spans) == (composite, unlinked, sum(mentions.values()))


@real
def test_biored() -> None:
    documents, mentions, relations = counts(CORPORA / "biored" / "Train.PubTator")
    assert (documents, sum(mentions.values()), len(mentions)) == (347, 11440, 6)
    assert relations == {
        "Association": 2088, "Positive_Correlation": 918, "Negative_Correlation": 584, "Bind": 60, "Cotreatment": 15,
        "Comparison": 10, "Drug_Interaction": 8, "Conversion": 3,
    }  # fmt: skip
    documents, mentions, relations = counts(CORPORA / "biored" / "Dev.PubTator")
    assert (documents, sum(mentions.values()), sum(relations.values())) == (84, 2907, 981)


@real
def test_the_one_fault_of_the_bc5cdr_sample_and_its_nested_mentions(tmp_path: Path) -> None:
    sample = CORPORA / "bc5cdr" / "CDR_sample.txt"
    message = fault(sample)
    assert f"{sample}:143: relation argument 'D008278' is annotated nowhere" in message and "faults" not in message
    lines = sample.read_text(encoding="utf-8").split("\n")
    mended = pubtator(tmp_path, head="\n".join(lines[:142] + lines[143:]))
    assert counts(mended) == (50, {"Chemical": 502, "Disease": 423}, {"CID": 123})
    found = overlaps(read(mended))
    assert (found.nested, found.crossing) == (8, 0)


@real
def test_the_ncbi_disease_corpus() -> None:
    """Its training set misstates one mention and holds one document twice."""
    folder = CORPORA / "ncbi_disease"
    message = fault(folder / "NCBItrainset_corpus.txt")
    assert "2 faults" in message and ":3249: the text at 711-761" in message and ":4557: document 8528200" in message
    documents, mentions, _ = counts(folder / "NCBIdevelopset_corpus.txt")
    assert (documents, sum(mentions.values())) == (100, 787)
