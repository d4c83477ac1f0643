"""CoNLL columns: all tag schemes, documents and sentences, offsets in the text made of the tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from domainkit.data.overlaps import overlaps
from domainkit.data.read import read
from domainkit.data.row import Allowed
from domainkit.types import Example
from tests.data.annotated import LABELS, fault

CORPORA = Path(__file__).resolve().parents[3] / "shared" / "data" / "medical" / "ncbi_disease"


def conll(folder: Path, text: str, name: str = "a.conll") -> Path:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


def found(example: Example) -> list[tuple[str, str]]:
    return [(example.text[s.start : s.end], s.label) for s in example.spans]


@pytest.mark.parametrize(
    ("tags", "mentions"),
    [
        ("B-X I-X O B-X O", ["a b", "d"]),  # IOB2
        ("I-X I-X B-X I-X O", ["a b", "c d"]),  # IOB1
        ("B-X E-X O S-X O", ["a b", "d"]),  # BIOES
        ("B-X I-X L-X U-X O", ["a b c", "d"]),  # BILOU
        ("B-X I-Y I-Y B-Y O", ["a", "b c", "d"]),
        ("B-X E-X I-X O B-X", ["a b", "c", "e"]),
        ("S-X I-X S-X O O", ["a", "b", "c"]),
    ],
)
@pytest.mark.parametrize("gap", [" ", "\t", " NN B-NP "])
def test_tag_schemes(tmp_path: Path, tags: str, mentions: list[str], gap: str) -> None:
    lines = [f"{token}{gap}{tag}" for token, tag in zip("abcde", tags.split(), strict=True)]
    (one,) = read(conll(tmp_path, "\n".join(lines)))
    assert one.text == "a b c d e"
    assert [mention for mention, _ in found(one)] == mentions


def test_documents_and_sentences(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nA O\nb B-X\n\nc I-X\n. O\n\n\n-DOCSTART- -X- O\nd B-X\n"
    first, second = read(conll(tmp_path, text))
    assert (first.text, found(first), first.id) == ("A b\nc .", [("b", "X"), ("c", "X")], "a.conll:3")
    assert (second.text, found(second), second.id) == ("d", [("d", "X")], "a.conll:11")


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_without_documents_each_sentence_is_one(tmp_path: Path, ends: str) -> None:
    text = "\n\nA\tO\nb\tB-X\n \n\nc\tB-X\n".replace("\n", ends)
    assert [(e.id, e.text) for e in read(conll(tmp_path, text, "a.tsv"))] == [("a.tsv:3", "A b"), ("a.tsv:7", "c")]


def test_conll_in_a_text_file_has_to_be_named(tmp_path: Path) -> None:
    path = conll(tmp_path, "a\tB-X\n", "a.txt")
    assert [e.text for e in read(path)] == ["a\tB-X\n"]
    assert [found(e) for e in read(path, format="conll")] == [[("a", "X")]]


TOKENS = st.sampled_from(["a", "B", "é", "é", "😀", "👩‍⚕️", "שָׁלוֹם", "‏ع", "银", "\u2028", "\xa0", "-", "|"])


@given(st.lists(st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=3), st.sampled_from(["", *LABELS])),
                         min_size=1, max_size=5), min_size=1, max_size=3))  # fmt: skip
def test_offsets_are_right_in_every_script(tmp_path_factory: pytest.TempPathFactory, sentences: Any) -> None:
    """sentences: lists of (tokens of one mention or none, label)."""
    assume(any(token.strip() for sentence in sentences for tokens, _ in sentence for token in tokens))
    lines, mentions = ["-DOCSTART-\tO"], []
    for sentence in sentences:
        lines.append("")
        for tokens, label in sentence:
            tags = [f"{'I' if i else 'B'}-{label}" if label else "O" for i in range(len(tokens))]
            lines += [f"{token}\t{tag}" for token, tag in zip(tokens, tags, strict=True)]
            mentions += [(" ".join(tokens), label)] if label else []
    (one,) = read(conll(tmp_path_factory.getbasetemp(), "\n".join(lines), "every.conll"))
    assert one.text == "\n".join(" ".join(t for tokens, _ in sentence for t in tokens) for sentence in sentences)
    assert found(one) == mentions


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("alone", "no tag after 'alone': the line is cut off"),
        ("\tB-X", "no token before the tag"),
        ("a\tX-Y", "unknown tag 'X-Y'"),
        ("a\tB-", "unknown tag 'B-'"),
        ("a\tB", "unknown tag 'B'"),
        ("a\t", "unknown tag ''"),
        ("a\tE-X", "E-X ends a mention that has not begun"),
        ("-DOCSTART-\tO\n\n-DOCSTART-\tO", "the document is empty"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, what: str) -> None:
    path = conll(tmp_path, f"fine\tO\n{line}\nmore\tO\n")
    message = fault(path)
    assert what in message and f"{path}:2: " in message and "instead: " in message and "faults" not in message


def test_bad_files(tmp_path: Path) -> None:
    assert "the document is empty" in fault(conll(tmp_path, "a O\n-DOCSTART- O\n\n"))
    assert "the file holds no document" in fault(conll(tmp_path, "\n"))
    (tmp_path / "a.conll").write_bytes("fine\tO\nétat\tO\ngénéral\tB-X\n".encode("latin-1"))
    assert f"{tmp_path}/a.conll:2: not UTF-8" in fault(tmp_path / "a.conll")
    path = conll(tmp_path, "a O\nb B-Gene\n")
    assert f"{path}:2: unknown label 'Gene'" in fault(path, allowed=Allowed({"Disease"}))


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the raw sources are not beside this checkout")
@pytest.mark.parametrize(("name", "sentences", "mentions"), [("train", 5424, 5134), ("devel", 923, 787)])
def test_the_ncbi_disease_corpus(name: str, sentences: int, mentions: int) -> None:
    path = CORPORA / f"NCBI-disease-IOB.{name}.tsv"
    examples = list(read(path))
    assert (len(examples), Counter(s.label for e in examples for s in e.spans)) == (sentences, {"Disease": mentions})
    assert overlaps(examples).nested == overlaps(examples).crossing == 0
    columns = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    assert " ".join(e.text for e in examples) == " ".join(token for token, _ in columns)
