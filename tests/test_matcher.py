"""Terms in running text: offsets, boundaries, case, the longest match, beside a slow and obvious matcher."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainkit.glossary import Glossary, Term, is_chinese
from domainkit.matcher import Match, Matcher, inline, measure


def glossary(*terms: Term) -> Glossary:
    return Glossary("desk", terms, Path("desk.tsv"), "")


def term(en: str, zh: str, *variants: str) -> Term:
    return Term(re.sub("[^a-z0-9]+", "-", en.lower()), en, tuple(zh.split("|")), variants, "credit", "hand")


DESK = glossary(
    term("delinquency", "逾期|拖欠", "delinquencies", "逾期率"),
    term("loan", "贷款", "loans"),
    term("non-performing loan", "不良贷款", "NPL"),
    term("net interest", "净利息"),
    term("net interest margin", "净息差"),
    term("adjustable-rate mortgage", "浮动利率按揭", "ARM"),
    term("arm", "分支"),
    term("GDP", "国内生产总值"),
    term("A share", "A股"),
    term("option (call)", "看涨期权", "T+0交易"),
    term("U.S. Treasury", "美国国债", "S&P 500"),
)
MATCHER = Matcher(DESK)


def surfaces(text: str) -> list[str]:
    return [text[match.start : match.end] for match in MATCHER.find(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("no such thing", []),
        ("该客户贷款逾期三十天", ["贷款", "逾期"]),
        ("不良贷款余额", ["不良贷款"]),
        ("a loan, two loans; Loan. LOANS", ["loan", "loans", "Loan", "LOANS"]),
        ("Net Interest Margin fell", ["Net Interest Margin"]),
        ("NET INTEREST MARGIN and DELINQUENCY", ["NET INTEREST MARGIN", "DELINQUENCY"]),
        ("net interest margins", ["net interest"]),  # the longer form is refused and hides nothing
        ("loaner aloan loan_id loan2 2loan loané", []),
        ("loa\u0301n loan\u0301", []),  # letters with marks of their own
        ("pre-loan loan's (loan) “loan” loan/loans", ["loan", "loan", "loan", "loan", "loan", "loans"]),
        ("申请loan时，GDP增长", ["loan", "GDP"]),
        ("ＧＤＰGDP", []),  # a full-width letter is a letter
        ("gdp Gdp GDPs GDP", ["GDP"]),
        ("ARM arm Arm ARMs", ["ARM", "arm", "Arm"]),
        ("买A股和B股，CPA股东，IA股", ["A股"]),
        ("做T+0交易的人，AT+0交易", ["T+0交易"]),
        ("option (call) and option (call)s", ["option (call)"]),
        ("U.S. Treasury. S&P 500, S&P 5000", ["U.S. Treasury", "S&P 500"]),
        ("İİ loan İloan loanİ 逾期İ", ["loan", "逾期"]),  # lower case İ is two characters
        ("net interest\nmargin", ["net interest"]),
        ("逾期率上升", ["逾期率"]),
        ("𠮷贷款😀loan😀", ["贷款", "loan"]),
    ],
)
def test_what_is_found(text: str, found: list[str]) -> None:
    assert surfaces(text) == found


def test_the_exact_form_beats_the_folded_one() -> None:
    assert [match.term.id for match in MATCHER.find("ARM arm")] == ["adjustable-rate-mortgage", "arm"]


def test_form_and_translation() -> None:
    found = MATCHER.find("Delinquencies, 拖欠, NPL, A股")
    assert [(match.form, match.translation) for match in found] == [
        ("delinquencies", "逾期"), ("拖欠", "delinquency"), ("NPL", "不良贷款"), ("A股", "A share"),
    ]  # fmt: skip


def test_inline() -> None:
    text = "贷款逾期，see NPL.\n"
    assert inline(text, MATCHER.find(text)) == "贷款 (loan)逾期 (delinquency)，see NPL (不良贷款).\n"
    assert inline("nothing", []) == "nothing"


def test_coverage() -> None:
    coverage = measure(MATCHER, ["贷款逾期", "no such", "a loan"])
    assert (coverage.documents, coverage.characters, coverage.covered, coverage.found) == (3, 17, 8, 3)
    assert coverage.terms == {"loan": 2, "delinquency": 1}


def test_an_empty_glossary_finds_nothing() -> None:
    assert Matcher(glossary()).find("a loan 贷款") == []


# Any glossary, any text

FORM = st.text(st.sampled_from("abAB期款-_1 é"), min_size=1, max_size=4).filter(
    lambda form: any(char.isalpha() for char in form) and form == form.strip() and "  " not in form
)
TEXT = st.text(st.sampled_from("abAB期款-_1 éİ\u0301😀，"), max_size=40)


@st.composite
def glossaries(draw: st.DrawFn) -> Glossary:
    """Two or more forms a term, no form twice; the scripts of en and zh do not matter to a matcher."""
    forms = draw(st.lists(FORM, min_size=2, max_size=12, unique=True))
    pairs = zip(forms[::2], forms[1::2], strict=False)
    return glossary(*(Term(f"t-{i}", en, (zh,), (), "c", "hand") for i, (en, zh) in enumerate(pairs)))


def slow(known: Glossary, text: str) -> list[tuple[int, int, str]]:
    """What a matcher must find, the obvious way: at each place the longest form that may stand there."""
    found, at = [], 0
    forms = [form for one in known.terms for form in one.forms]
    while at < len(text):
        fits = [form for form in forms if stands(form, text, at)]
        if not fits:
            at += 1
            continue
        longest = max(fits, key=lambda form: (len(form), form == text[at : at + len(form)]))
        found.append((at, at + len(longest), longest))
        at += len(longest)
    return found


def stands(form: str, text: str, at: int) -> bool:
    surface, chinese = text[at : at + len(form)], is_chinese(form)
    folded = form == form.lower() and not chinese
    same = surface == form or (
        folded
        and len(surface) == len(form)
        and all(a == b or a.lower() == b for a, b in zip(surface, form, strict=True))
    )
    before, after = text[:at][-1:], text[at + len(form) :][:1]
    open_start, open_end = (chinese and not re.match(WORD, form[0])), (chinese and not re.match(WORD, form[-1]))
    return same and (open_start or not re.match(WORD, before)) and (open_end or not re.match(WORD, after))


WORD = "[^\\W期款]|\u0301"


@given(glossaries(), TEXT)
def test_like_the_slow_matcher(known: Glossary, text: str) -> None:
    found = Matcher(known).find(text)
    assert [(match.start, match.end, match.form) for match in found] == slow(known, text)


@given(glossaries(), TEXT)
def test_matches_are_sorted_disjoint_and_where_they_say(known: Glossary, text: str) -> None:
    found = Matcher(known).find(text)
    assert all(one.end <= next_.start for one, next_ in pairwise(found))
    for match in found:
        surface = text[match.start : match.end]
        assert match.form in match.term.forms and len(surface) == len(match.form) > 0
        assert surface == match.form or (surface.lower() == match.form and not is_chinese(match.form))


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    for match in MATCHER.find(f"{text} 逾期 {text}"):
        assert isinstance(match, Match) and match.translation
    assert "逾期" in surfaces(f"{text} 逾期 {text}") or "逾期率" in surfaces(f"{text} 逾期 {text}")


@given(glossaries(), TEXT)
def test_inline_only_adds(known: Glossary, text: str) -> None:
    found = Matcher(known).find(text)
    added = sum(len(match.translation) + 3 for match in found)
    assert len(inline(text, found)) == len(text) + added
