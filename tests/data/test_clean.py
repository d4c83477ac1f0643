"""The noise filter: each rule drops what it names, spares its neighbour, and is counted."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainkit.data.clean import CHANGES, RULES, clean, is_boilerplate, is_number_row
from domainkit.types import Example, Span

PROSE = "The Committee raised the target range for the federal funds rate and expects inflation to decline."
ZH = "国务院银行业监督管理机构依法对银行业金融机构及其业务活动实施监督管理，维护金融秩序的稳定。"


def _clean(*examples: Example | str) -> tuple[list[Example], Counter[str]]:
    counts: Counter[str] = Counter()
    return list(clean([Example(e) if isinstance(e, str) else e for e in examples], counts)), counts


def _balanced(counts: Counter[str]) -> bool:
    return counts["read"] == counts["kept"] + sum(counts[rule] for rule in RULES)


def test_good_text_passes_untouched_in_order() -> None:
    examples = [Example(PROSE, id="1", language="en"), Example(ZH, id="2", language="zh")]
    kept, counts = _clean(*examples)
    assert kept == examples
    assert counts["read"] == counts["kept"] == 2 and set(counts) == {"read", "kept", *RULES, *CHANGES}


def test_mojibake_is_repaired() -> None:
    kept, counts = _clean(PROSE + " It was â€œappropriateâ€\x9d in the Committeeâ€™s view.\x00 re\xadsearch")
    assert kept[0].text == PROSE + " It was “appropriate” in the Committee’s view. research"
    assert counts["encoding-repaired"] == 1 and counts["encoding"] == 0


@pytest.mark.parametrize(
    "text",
    ["caf\ufffd and \ufffd and more than twenty characters", "锟斤拷锟斤拷" * 8, "\x00\x01\x02\x03" * 30],
)
def test_damage_beyond_repair_is_dropped(text: str) -> None:
    kept, counts = _clean(text)
    assert not kept and counts["encoding"] == 1


def test_one_damaged_spot_does_not_cost_a_long_document() -> None:
    text = " ".join(f"{PROSE} Paragraph {number} follows." for number in range(30))
    assert _clean(text + " \ufffd")[1]["kept"] == 1


@pytest.mark.parametrize(
    "line",
    [
        "[Return to top]", "Return to text 12.", "Page 3 of 20", "- 14 -", "Print this page", "Subscribe to our news",
        "Share on Twitter, Facebook", "© 2019 Example Bank plc", "Copyright 2021 Example. All rights reserved.",
        "Home | About us | Contact", "首页 > 新闻 > 正文", "We use cookies on this site.", "返回顶部",
        "第 3 页 共 10 页", "打印本页",
        "分享到：微信 微博", "版权所有：中国人民银行", "京ICP备 05073439号", "上一篇：规章的通知",
        "责任编辑：王",
    ],
)  # fmt: skip
def test_boilerplate_lines(line: str) -> None:
    assert is_boilerplate(line)
    kept, counts = _clean(f"{PROSE}\n{line}\nSecond line stays.")
    assert kept[0].text == f"{PROSE}\nSecond line stays." and counts["boilerplate-lines"] == 1


@pytest.mark.parametrize(
    "line",
    [
        "(c) 2011 and later statements must be kept.", "Share prices fell by 3 percent.", "Print money", ZH,
        "第三条 银行应当保存记录。", "Home prices rose.", "Next, the Committee turned to the outlook.",
        "他是塔里克·拉马丹的外祖父，也是贾麦勒·班纳的哥哥。",
        "A bank may not return to the market before 2012.", "分享经营利润的股东应当承担风险。",
    ],
)  # fmt: skip
def test_sentences_are_not_boilerplate(line: str) -> None:
    assert not is_boilerplate(line)


def test_repeated_short_lines_keep_the_first() -> None:
    page = "Example Bank Annual Report"
    kept, counts = _clean("\n".join(f"{page}\n{PROSE} {number}" for number in range(5)))
    assert kept[0].text.count(page) == 1 and counts["boilerplate-lines"] == 4
    kept, _ = _clean("\n".join(f"General rules\n{PROSE} {number}" for number in range(3)))
    assert kept[0].text.count("General rules") == 3


def test_a_document_of_boilerplate_goes() -> None:
    kept, counts = _clean("Return to top\nPrint this page")
    assert not kept and counts["boilerplate"] == 1 and counts["boilerplate-lines"] == 2


@pytest.mark.parametrize(
    "line",
    ["1980 .290 .365 1981 .285 .369", "Net income   1,204   1,118", "Assets | 12.5 | 13.1", "2019\t14.2%\t15.0%",
     "资产总额 1,204 1,118 986"],
)  # fmt: skip
def test_table_rows(line: str) -> None:
    assert is_number_row(line)
    kept, counts = _clean(f"{PROSE}\n{line}")
    assert kept[0].text == PROSE and counts["number-table-lines"] == 1


@pytest.mark.parametrize(
    "line",
    ["Growth was 2.1 percent in 2018, 2.9 percent in 2019 and 2.3 percent in 2020.", "第四条 税率为25％。",
     "Under 12 CFR 1002.5(b), 1002.9 and 1002.12 a creditor keeps records for 25 months.", "", "2019"],
)  # fmt: skip
def test_sentences_with_numbers_are_not_tables(line: str) -> None:
    assert not is_number_row(line)


def test_too_short() -> None:
    assert _clean("Thank you.")[1]["too-short"] == 1


def test_wrong_language_only_where_one_is_stated() -> None:
    french = "La banque centrale a relevé son taux directeur afin de contenir la hausse des prix dans la zone euro."
    mixed = ZH + "本规则参照 Basel Committee on Banking Supervision 发布的 Core Principles 和 IFRS 9 制定。"
    for text, language, kept in [
        (french, "en", 0), (french, "fr", 1), (french, "", 1), (ZH, "en", 0), (PROSE, "zh", 0), (ZH, "zh-CN", 1),
        (mixed, "zh", 1), (french[:30], "en", 1), (french, "sw", 1),
        ("日本銀行は金融政策を決定しました。" * 4, "zh", 0),
    ]:  # fmt: skip
        counts = _clean(Example(text, language=language))[1]
        assert (counts["kept"], counts["wrong-language"]) == (kept, 1 - kept), (text, language)


def test_exact_duplicates_ignore_case_width_and_spaces() -> None:
    kept, counts = _clean(Example(PROSE, id="1"), Example(f"  {PROSE.upper()}\n", id="2"), Example(PROSE + "!", id="3"))
    assert counts["exact-duplicate"] == 1 and kept[0].id == "1"


@pytest.mark.parametrize("separator", [" ", ""])
def test_near_duplicates(separator: str) -> None:
    draw = random.Random(0)
    alphabet = [f"word{n}" for n in range(500)] if separator else [chr(0x4E00 + n) for n in range(500)]
    words = draw.choices(alphabet, k=400)
    near, far = list(words), list(words)
    near[200] = alphabet[0]  # 5 of 396 shingles differ
    far[::10] = [alphabet[1]] * 40  # about half of the shingles differ
    kept, counts = _clean(*(separator.join(text) for text in (words, near, far)))
    assert counts["near-duplicate"] == 1
    assert [example.text for example in kept] == [separator.join(words), separator.join(far)]


def test_texts_with_spans_are_never_edited() -> None:
    example = Example(f"Return to top\n{PROSE}", spans=(Span(18, 27, "Body"),))
    kept, counts = _clean(example)
    assert kept == [example] and counts["boilerplate-lines"] == 0


@settings(max_examples=60)
@given(st.lists(st.one_of(st.text(max_size=80), st.sampled_from([PROSE, ZH, "Return to top", "1 2 3 4"])), max_size=8))
def test_every_document_is_counted_once_and_order_is_kept(texts: list[str]) -> None:
    examples = [Example(text, id=str(number), language="en") for number, text in enumerate(texts)]
    kept, counts = _clean(*examples)
    assert _balanced(counts) and len(kept) == counts["kept"]
    order = [int(example.id) for example in kept]
    assert order == sorted(order)
    assert _clean(*examples) == (kept, counts)
    again, second = _clean(*kept)
    assert again == kept, second  # cleaning twice changes nothing


def test_speed_on_paragraphs() -> None:
    draw = random.Random(1)
    words = [f"{a}{b}" for a in ("pre", "con", "sub", "in") for b in ("fer", "sider", "tain", "vest", "scribe")]
    texts = [" ".join(draw.choices(words, k=45)) for _ in range(1500)]
    _clean(PROSE)  # loads the libraries
    start = time.process_time()
    _clean(*texts)
    rate = sum(map(len, texts)) / 1e6 / (time.process_time() - start)
    assert rate > 0.4, f"{rate:.2f} MB/s"  # above 1 on an idle core; half of it leaves room for a busy machine
