"""The glossary file: read as written, and every fault with its line and its remedy."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit import assets
from domainkit.fill import SHOWN
from domainkit.glossary import COLUMNS, HEADER, Glossary, Term, is_chinese
from domainkit.types import UserError

LOAN = "non-performing-loan\tnon-performing loan\t不良贷款|不良资产贷款\tNPL|NPLs|坏账\tcredit\thand"
DUE = "delinquency\tdelinquency\t逾期\t\tcredit\tecdict+hand"
SHARE = "a-share\tA share\tA股\tA-share\tmarkets\thand"
SHIPPED = sorted((assets.ROOT / "glossaries").glob("*.tsv"))


def write_glossary(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_bytes("".join(f"{line}\n" for line in (header, *rows)).encode())
    return path


def row(**cells: str) -> str:
    """A sound row but for `cells`."""
    sound = {"id": "bond", "en": "bond", "zh": "债券", "variants": "bonds", "category": "markets", "source": "hand"}
    return "\t".join((sound | cells)[column] for column in COLUMNS)


def fault(path: Path, shown: int | None = SHOWN) -> str:
    with pytest.raises(UserError) as caught:
        Glossary.read(path, shown=shown)
    return str(caught.value)


def test_a_file_as_it_is_meant(tmp_path: Path) -> None:
    path = write_glossary(tmp_path / "law.tsv", LOAN, DUE, SHARE)
    glossary = Glossary.read(path)
    assert (glossary.name, glossary.path, glossary.sha256) == ("law", path, sha256(path.read_bytes()).hexdigest())
    loan, due, share = glossary.terms
    assert loan == Term(
        "non-performing-loan", "non-performing loan", ("不良贷款", "不良资产贷款"), ("NPL", "NPLs", "坏账"),
        "credit", "hand",
    )  # fmt: skip
    assert loan.forms == ("non-performing loan", "不良贷款", "不良资产贷款", "NPL", "NPLs", "坏账")
    assert due.forms == ("delinquency", "逾期") and share.forms == ("A share", "A股", "A-share")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False], ids=["last line ended", "last line open"])
def test_windows_files(tmp_path: Path, end: str, mark: bytes, last: bool) -> None:
    text = end.join((HEADER, LOAN, DUE)) + end * last
    (tmp_path / "a.tsv").write_bytes(mark + text.encode())
    assert Glossary.read(tmp_path / "a.tsv").terms == Glossary.read(write_glossary(tmp_path / "b.tsv", LOAN, DUE)).terms


FAULTS = {
    "id empty": (row(id=""), "'id' is empty"),
    "en empty": (row(en=""), "'en' is empty"),
    "zh empty": (row(zh=""), "'zh' is empty"),
    "category empty": (row(category=" "), "'category' is empty"),
    "source empty": (row(source=""), "'source' is empty"),
    "variants of spaces": (row(variants=" "), "'variants' is empty; instead: nothing at all"),
    "too few columns": ("bond\tbond\t债券", "3 columns, not 6"),
    "one column": ("bond,bond,债券,,markets,hand", "1 column, not 6"),
    "a tab in a cell": (row(en="bo\tnd"), "7 columns, not 6; instead: id, en, zh, variants, category, source, one tab"),
    "a line break in a cell": (row(en="bo\nnd"), "2 columns, not 6"),
    "an empty line": ("", "an empty line; instead: delete it"),
    "upper case id": (row(id="Bond"), "bad id 'Bond'"),
    "id with a space": (row(id="a bond"), "bad id 'a bond'"),
    "Chinese id": (row(id="债券"), "bad id '债券'"),
    "control character": (row(en="bo\x07nd"), "'en' 'bo\\x07nd' holds U+0007 (a control character)"),
    "carriage return": (row(en="bo\rnd"), "holds U+000D"),
    "zero width space": (row(zh="债\u200b券"), "holds U+200B (ZERO WIDTH SPACE)"),
    "no-break space": (row(variants="bonds|a\u00a0bond"), "'variants' 'a\\xa0bond' holds U+00A0 (NO-BREAK SPACE)"),
    "line separator": (row(en="bo\u2028nd"), "holds U+2028 (LINE SEPARATOR)"),
    "byte order mark inside": (row(zh="\ufeff债券"), "holds U+FEFF"),
    "damaged character": (row(zh="债\ufffd券"), "holds U+FFFD (REPLACEMENT CHARACTER)"),
    "leading space": (row(en=" bond"), "'en' ' bond' begins or ends with a space"),
    "trailing space": (row(zh="债券 |公债"), "'zh' '债券 ' begins or ends with a space"),
    "double space": (row(variants="a  bond"), "'variants' 'a  bond' holds two spaces in a row; instead: one space"),
    "not NFC": (row(en="cafe\u0301"), "'en' 'cafe\u0301' is not in Unicode normal form C; instead: caf\u00e9"),
    "compatibility character": (row(zh="\uf90a"), "is not in Unicode normal form C; instead: 金"),
    "repeated in the row": (row(variants="bonds|债券"), "'债券' is repeated in its own row"),
    "repeated in a cell": (row(variants="bonds|bonds"), "'bonds' is repeated in its own row"),
    "empty form": (row(zh="债券||公债"), "an empty form in 'zh'"),
    "open end": (row(variants="bonds|"), "an empty form in 'variants'; instead: one | between two forms"),
    "Chinese en": (row(en="债券凭证"), "'en' '债券凭证' is Chinese"),
    "mixed en": (row(en="B股"), "'en' 'B股' is Chinese"),
    "English zh": (row(zh="债券|debenture"), "'zh' 'debenture' is not Chinese"),
    "several en": (row(en="bond|note"), "'en' 'bond|note' holds several terms"),
    "no letter": (row(variants="401"), "'variants' '401' has no letter"),
    "no letter in zh": (row(zh="—"), "'zh' '—' has no letter"),
    "old character": (row(zh="账户|坏帐"), "'zh' '坏帐' has the old character 帐; instead: 坏账"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_names_its_line(tmp_path: Path, name: str) -> None:
    line, wanted = FAULTS[name]
    path = write_glossary(tmp_path / "a.tsv", LOAN, line, DUE)
    message = fault(path)
    assert wanted in message and "instead: " in message
    assert f"{path}:3: " in message or "\n  line 3: " in message


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "a line break in a cell"])
def test_one_mistake_is_one_fault(tmp_path: Path, name: str) -> None:
    path = write_glossary(tmp_path / "a.tsv", LOAN, FAULTS[name][0], DUE)
    assert fault(path).startswith(f"{path}:3: ")


def test_an_old_form_may_be_a_variant_and_a_tent_is_a_tent(tmp_path: Path) -> None:
    bed_net = row(id="bed-net", en="bed net", zh="蚊帐|帐篷", variants="")
    path = write_glossary(tmp_path / "a.tsv", row(en="account", zh="账户", variants="帐户"), bed_net)
    assert len(Glossary.read(path).terms) == 2


def test_duplicate_ids_and_forms_name_both_lines(tmp_path: Path) -> None:
    path = write_glossary(
        tmp_path / "a.tsv", LOAN, DUE, row(id="delinquency"), row(id="note", en="note", zh="坏账", variants="")
    )
    message = fault(path)
    assert message.startswith(f"{path}: 2 faults\n")
    assert "line 4: id 'delinquency' is that of line 3 too; instead: an id of its own" in message
    assert "line 5: '坏账' belongs to line 2 too" in message


def test_case_tells_abbreviations_from_words(tmp_path: Path) -> None:
    rows = (row(id="arm", en="arm", zh="手臂", variants=""), row(id="mortgage", en="ARM", zh="浮息按揭", variants=""))
    assert len(Glossary.read(write_glossary(tmp_path / "a.tsv", *rows)).terms) == 2


@pytest.mark.parametrize(
    ("header", "rest_is_judged"),
    [
        (HEADER.replace("variants", "variant"), True),
        (HEADER.upper(), True),
        (DUE, True),  # forgotten
        (HEADER.replace("\t", ","), False),
        (HEADER.replace("en\tzh", "zh\ten"), False),
        (HEADER + "\tnote", False),
    ],
)
def test_wrong_header(tmp_path: Path, header: str, rest_is_judged: bool) -> None:
    path = write_glossary(tmp_path / "a.tsv", LOAN, row(id="B"), header=header)
    message = fault(path)
    assert "wrong header" in message and "instead: 'id\\ten\\tzh\\tvariants\\tcategory\\tsource'" in message
    assert ("line 3: bad id 'B'" in message) == rest_is_judged
    assert ("line 1: " if rest_is_judged else f"{path}:1: ") in message


@pytest.mark.parametrize("raw", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_an_empty_file(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.tsv").write_bytes(raw)
    assert fault(tmp_path / "a.tsv").startswith(f"{tmp_path}/a.tsv:1: the file is empty; instead: the header")


def test_a_header_only(tmp_path: Path) -> None:
    path = write_glossary(tmp_path / "a.tsv")
    assert fault(path) == f"{path}:1: no line after the header; instead: one term a line"


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("\n".join((HEADER, row(), LOAN, DUE, SHARE)).encode("gb18030"))
    wanted = "not UTF-8 at byte 40 of the line; 2 more lines are not UTF-8 either; instead: save it as UTF-8"
    assert fault(path) == f"{path}:3: {wanted}"  # line 2 is good UTF-8 by chance, and makes no noise
    path.write_bytes("\n".join((HEADER, LOAN)).encode("utf-16"))
    assert fault(path).startswith(f"{path}:1: not UTF-8 at byte 0 of the line")


def test_one_wrong_byte_hides_no_other_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\n".join((HEADER.encode(), LOAN.encode(), b"x\xff\tx", row(id="Bad").encode())))
    message = fault(path)
    assert message.startswith(f"{path}: 2 faults\n  line 3: not UTF-8 at byte 1 of the line;")
    assert "line 4: bad id 'Bad'" in message


def test_all_faults_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    rows = [row(id=f"B{i}", en=f"bond {i}x", zh=f"债券{i}", variants="") for i in range(1200)]
    path = write_glossary(tmp_path / "a.tsv", *rows)
    lines = fault(path).splitlines()
    assert lines[0] == f"{path}: 1,200 faults" and lines[-1] == f"  and {1200 - SHOWN:,} more"
    assert [line.split(": ")[0] for line in lines[1:-1]] == [f"  line {i}" for i in range(2, 2 + SHOWN)]
    assert len(fault(path, shown=None).splitlines()) == 1201


def test_no_file(tmp_path: Path) -> None:
    assert fault(tmp_path / "a.tsv").startswith(f"{tmp_path}/a.tsv: no such file; instead: a TSV file")
    assert fault(tmp_path).startswith(f"{tmp_path}: cannot be read (Is a directory)")


def test_load_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ROOT", tmp_path)
    (tmp_path / "glossaries").mkdir()
    shipped = write_glossary(tmp_path / "glossaries" / "finance.tsv", LOAN)
    own = write_glossary(tmp_path / "finance", DUE)  # a name beats a path
    monkeypatch.chdir(tmp_path)
    assert Glossary.load("finance").path == shipped
    assert Glossary.load("./finance").terms == Glossary.load(str(own)).terms != Glossary.load("finance").terms
    with pytest.raises(UserError) as caught:
        Glossary.load("finanse")
    wanted = "unknown glossary 'finanse'; instead: 'finance' (one of ['finance'], or the path of a TSV file)"
    assert str(caught.value) == wanted
    with pytest.raises(UserError, match=r"law\.tsv: no such file"):
        Glossary.load("law.tsv")


@pytest.mark.parametrize(
    ("form", "chinese"),
    [
        ("逾期", True), ("A股", True), ("T+0交易", True), ("〇", True), ("𠮷", True),
        ("GDP", False), ("café", False), ("—", False), ("，", False), ("", False),
    ],
)  # fmt: skip
def test_script(form: str, chinese: bool) -> None:
    assert is_chinese(form) is chinese


def test_fifty_thousand_terms_are_read_in_seconds(tmp_path: Path) -> None:
    draw = random.Random(3)
    numerals = "零一二三四五六七八九"
    rows = []
    for i in range(50_000):
        zh = "".join(numerals[int(digit)] for digit in str(i))
        rows.append(row(id=f"t-{i}", en=f"term {i}", zh=f"第{zh}号|{zh}条", variants=f"terms {i}|T{i}|{zh}款"))
    draw.shuffle(rows)
    path = write_glossary(tmp_path / "a.tsv", *rows)
    began = time.process_time()  # not the clock on the wall: other work on the machine only ever adds time
    glossary = Glossary.read(path)
    took = time.process_time() - began
    assert len(glossary.terms) == 50_000
    assert took < 2.5  # about 1.0


CELL = st.text(st.sampled_from("ab A1-|\t\n\r逾期帐\u200b\u0301é"), max_size=6)


@given(st.lists(st.lists(CELL, min_size=5, max_size=7), max_size=4))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, cells: Sequence[Sequence[str]]) -> None:
    path = write_glossary(tmp_path_factory.getbasetemp() / "any.tsv", LOAN, *("\t".join(row) for row in cells))
    try:
        glossary = Glossary.read(path)
    except UserError as error:
        assert re.search(r":\d+: |^  line \d+: ", str(error), re.MULTILINE)
        return
    forms = [form for term in glossary.terms for form in term.forms]
    assert len(forms) == len(set(forms)) and all(form == form.strip() and form.isprintable() for form in forms)
    assert not any(is_chinese(term.en) for term in glossary.terms)
    assert all(is_chinese(form) for term in glossary.terms for form in term.zh)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.tsv"
    path.write_bytes(f"{HEADER}\n".encode() + raw)
    with pytest.raises(UserError):  # 60 bytes at random hold no sound row
        Glossary.read(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_glossary_is_sound(path: Path) -> None:
    assert Glossary.load(path.stem) == Glossary.read(path)
