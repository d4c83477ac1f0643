"""Glossary terms in real, trained byte-level BPE tokenizers with each family's own pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from domainkit.glossary import is_chinese
from domainkit.model.pattern import spell
from domainkit.model.vocab import Vocabulary, choose, inject
from tests.pipelines import (
    CHAT,
    PIPELINES,
    SPARE,
    SPECIAL,
    TERMS,
    Family,
    corpus,
    family,
    glossary,
    made_up,
    trained,
    wrapped,
)


@pytest.fixture(params=PIPELINES)
def any_family(request: pytest.FixtureRequest) -> Family:
    return family(request.param)


# Text made to hurt: terms, parts of them, base tokens that cross their edges, spaces, signs, digits, special tokens.

SIGNS = [*" \n\t\r\u3000\xa0.,;:()'\"-_!?$%&/012349，。（）“”、；：《》😀é\u0301ﬁ①", "  ", "\n\n", "'s", "\u3000\u3000"]


@lru_cache
def pools(name: str, terms: int = 0) -> dict[str, list[str]]:
    this = family(name, terms)
    tokens = [this.base.decode([at]) for at in range(len(this.base))]
    tokens = [token for token in tokens if token and "\ufffd" not in token]
    source = made_up(terms) if terms else glossary(*TERMS.splitlines())
    forms = [*this.vocabulary.forms, *(form for term in source.terms for form in term.forms)]
    chinese = [form for form in forms if is_chinese(form)]
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for token in tokens:
        for at in range(1, len(token)):
            before.setdefault(token[at:], []).append(token[:at])
            after.setdefault(token[:at], []).append(token[at:])
    crossed = []
    for form in chinese:  # as 教授 and 信任 cross the edges of 授信
        left = sorted({rest for at in range(1, len(form)) for rest in before.get(form[:at], [])})
        right = sorted({rest for at in range(1, len(form)) for rest in after.get(form[at:], [])})
        crossed += [first + form + last for first in left[:40] or [""] for last in right[:40] or [""]][:200]
    parts = [form[at : at + 3] for form in forms for at in range(len(form))]
    words = [token for token in tokens if is_chinese(token)]
    return {"forms": forms, "crossed": crossed, "parts": parts, "tokens": tokens, "words": words, "signs": SIGNS}


def hard_text(name: str, terms: int = 0) -> st.SearchStrategy[str]:
    kinds = [st.sampled_from(pool) for pool in pools(name, terms).values() if pool]
    loose = st.text(max_size=3)
    return st.lists(st.one_of(*kinds, st.sampled_from(SPECIAL), loose), max_size=8).map("".join)


def check(this: Family, text: str) -> None:
    before, after = this.ids(text), this.new_ids(text)
    assert this.new.decode(after) == this.base.decode(before)
    assert len(after) <= len(before)
    if not this.holds_a_form(this.normal(text)):
        assert after == before
    first, pieces = this.vocabulary.first, this.vocabulary.pieces
    restored = [old for token in after for old in (pieces[token - first] if token >= first else [token])]
    assert this.base.decode(restored) == this.base.decode(before)  # `pieces` spell the same text


@pytest.mark.parametrize("name", PIPELINES)
def test_no_text_is_damaged_or_longer(name: str) -> None:
    this = family(name)

    @settings(max_examples=300, derandomize=True)
    @given(hard_text(name))
    def run(text: str) -> None:
        check(this, text)
        if not any(special in text for special in SPECIAL):
            assert this.new.decode(this.new_ids(text)) == this.normal(text)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_no_text_is_damaged_or_longer_with_terms_that_begin_and_end_anywhere(name: str) -> None:
    this = family(name, 2000)

    @settings(max_examples=10_000)
    @given(hard_text(name, 2000))
    def run(text: str) -> None:
        check(this, text)

    run()


def test_a_form_that_could_lose_gets_no_row() -> None:
    """教授 and 信任 are tokens, so 教授信任 is two; with a token for 授信 it would be three."""
    merges: list[tuple[str, str]] = []
    for word in ("教授", "信任"):
        for char in word:
            first, second, third = spell(char)
            merges += [(first, second), (first + second, third)]
        merges.append((spell(word[0]), spell(word[1])))
    tokens = [*pre_tokenizers.ByteLevel.alphabet(), *dict.fromkeys("".join(pair) for pair in merges)]
    base = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    base.pre_tokenizer, base.decoder = pre_tokenizers.Sequence(PIPELINES["qwen"]()), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base)
    assert base.encode("教授信任").tokens == [spell("教授"), spell("信任")]
    vocabulary = choose(glossary("credit line:授信:", "delinquency:逾期:"), tokenizer, [], rows=0)
    assert "授信" not in vocabulary.forms and "逾期" in vocabulary.forms
    assert vocabulary.left_out["could make some text longer"] == 1
    forced = Vocabulary(("授信",), ("credit-line",), len(tokenizer), ((1,),), {})
    assert len(inject(tokenizer, forced).encode("教授信任")) == 3  # the rule is needed


# Everything below holds for every family.


def test_real_text_shrinks_and_lines_without_terms_keep_their_ids(any_family: Family) -> None:
    same = shorter = 0
    for text in corpus()[::7]:
        for line in text.split("\n"):
            check(any_family, line)
            before, after = any_family.ids(line), any_family.new_ids(line)
            same += before == after
            shorter += len(after) < len(before)
    assert same > 50 and shorter > 20


def test_each_form_is_one_token_with_its_id(any_family: Family) -> None:
    vocabulary = any_family.vocabulary
    assert vocabulary.first == len(any_family.base) + SPARE  # the rows that the embedding has to spare stay free
    assert len(vocabulary.forms) == len(vocabulary.terms) == len(vocabulary.pieces) == len(set(vocabulary.forms)) > 20
    for at, form in enumerate(vocabulary.forms):
        assert any_family.new_ids(form) == [vocabulary.first + at], form
        assert any_family.new.decode([vocabulary.first + at]) == form
        assert list(vocabulary.pieces[at]) == any_family.ids(form) and len(vocabulary.pieces[at]) > 1
    assert len(any_family.new) == vocabulary.first + len(vocabulary.forms)  # what a resize goes by
    assert "逾期" in vocabulary.forms and " net interest margin" in vocabulary.forms


def found(this: Family, text: str) -> list[str]:
    first = this.vocabulary.first
    return [this.vocabulary.forms[token - first] for token in this.new_ids(text) if token >= first]


def test_finds_the_longest_term_in_running_chinese(any_family: Family) -> None:
    assert found(any_family, "该行的逾期率上升") == ["逾期"]
    assert found(any_family, "下调存款准备金率后") == ["存款准备金率"]  # not 存款
    assert found(any_family, "资本充足率、净息差（逾期）") == ["资本充足率", "净息差", "逾期"]


def test_leaves_longer_english_words_alone(any_family: Family) -> None:
    assert found(any_family, "the delinquency rate") == [" delinquency"]
    assert found(any_family, "delinquencyfree predelinquency delinquencyx") == []
    assert found(any_family, "a net interest margin, and net interest margining") == [" net interest margin"]
    assert found(any_family, "of non-performing loan.") == [" non-performing loan"]


def test_a_latin_word_is_not_cut_by_a_mixed_term() -> None:
    for name in PIPELINES:
        base = family(name).base
        source = glossary("A-class arrears:A类逾期:", "core CPI:核心CPI:", "securities and futures:证券、期货:")
        vocabulary = choose(source, base, [], rows=0)
        this = Family(name, base, vocabulary, inject(base, vocabulary))
        assert found(this, "买入A类逾期资产，核心CPI上升") == ["A类逾期", "核心CPI"], name
        assert found(this, "NASA类逾期，核心CPIs") == [], name
        assert found(this, "从事证券、期货业务") == ["证券、期货"], name  # a sign inside, where the base cuts


def test_knows_capitals_where_they_occur() -> None:
    base = family("smollm2").base
    texts = ["Delinquency rose. NET INTEREST MARGIN fell.\nNet Interest Margin", "gdp federal reserve"]
    rows = ("delinquency:逾期:", "net interest margin:净息差:", "Gross Domestic Product:国内生产总值:GDP")
    forms = set(choose(glossary(*rows), base, texts, rows=len(base)).forms)
    assert {"Delinquency", " NET INTEREST MARGIN", "Net Interest Margin", " delinquency"} <= forms
    assert not forms & {" Delinquency", "delinquency", "DELINQUENCY", " GDP", "gdp", " gdp", "gross domestic product"}


def test_special_and_chat_tokens_stay(any_family: Family) -> None:
    chat = [{"role": "user", "content": "逾期"}, {"role": "assistant", "content": "It is paid late."}]
    before = any_family.base.apply_chat_template(chat, tokenize=True)["input_ids"]
    after = any_family.new.apply_chat_template(chat, tokenize=True)["input_ids"]
    special = {any_family.base.convert_tokens_to_ids(token) for token in SPECIAL}
    assert [t for t in before if t in special] == [t for t in after if t in special] and len(special) == 3
    assert any_family.new.apply_chat_template(chat, tokenize=False) == any_family.base.apply_chat_template(
        chat, tokenize=False
    )
    assert any_family.new.all_special_ids == any_family.base.all_special_ids
    assert any_family.new.encode("hello") == any_family.base.encode("hello")  # with the family's own bos
    assert any_family.new.get_added_vocab() == any_family.base.get_added_vocab()


def test_offsets_point_at_the_term(any_family: Family) -> None:
    text = "He said: 逾期贷款增加, net interest margin 😀 存款准备金率。"
    encoded = any_family.new(text, add_special_tokens=False, return_offsets_mapping=True)
    first = any_family.vocabulary.first
    spans = [text[a:b] for t, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if t >= first]
    assert [span.strip() for span in spans] == ["逾期", "贷款", "net interest margin", "存款准备金率"]


def test_saved_and_read_by_any_program(any_family: Family, tmp_path: Path) -> None:
    any_family.new.save_pretrained(tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    twice = Tokenizer.from_str(plain.to_str())
    for text in [*corpus()[::40], *any_family.vocabulary.forms, "".join(SPECIAL)]:
        ids = any_family.new_ids(text)
        for reader in (plain, twice):
            assert reader.encode(text, add_special_tokens=False).ids == ids
        assert again.encode(text, add_special_tokens=False) == ids
    assert again.chat_template == CHAT


def test_the_base_stays_as_it_was(any_family: Family) -> None:
    before = any_family.base.backend_tokenizer.to_str()
    inject(any_family.base, any_family.vocabulary)
    assert any_family.base.backend_tokenizer.to_str() == before


def test_nothing_to_add_changes_nothing(any_family: Family) -> None:
    for rows in ((), ("a:的:",), ("x\x07y:逾\n期:",)):  # none; base tokens already; control characters
        vocabulary = choose(glossary(*rows), any_family.base, corpus(), rows=0)
        assert vocabulary.forms == () and bool(vocabulary.left_out) == bool(rows)
        new = inject(any_family.base, vocabulary)
        assert new.backend_tokenizer.to_str() == any_family.base.backend_tokenizer.to_str()


def test_a_token_no_merges_reach_stays_unwritten() -> None:
    """`ignore_merges` looks whole words up: a dead entry of the vocabulary must not come to life."""
    spec = json.loads(trained("smollm2"))
    dead = len(spec["model"]["vocab"])
    spec["model"]["vocab"]["zqzq"] = dead
    base = wrapped(Tokenizer.from_str(json.dumps(spec)))
    before = base.encode("zqzq")
    vocabulary = choose(glossary("delinquency:逾期:"), base, [], rows=0)
    assert vocabulary.first == dead + 1
    assert inject(base, vocabulary).encode("zqzq") == before != [dead]


def test_refuses_what_the_base_would_cut() -> None:
    base = family("smollm2").base
    vocabulary = choose(glossary("Tier 1 capital:一级资本:", "(net):净额）:"), base, [], rows=len(base))
    assert " Tier 1 capital" not in vocabulary.forms
    assert vocabulary.left_out["holds digits the base splits"] > 0
    assert vocabulary.left_out["does not begin and end with a letter or digit"] > 0


# Bases of another kind get no new tokens.


def sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator(corpus()[:3], trainer)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(corpus()[:3], trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(corpus()[:3], trainer)
    return tokenizer


def spaced_gpt2() -> Tokenizer:
    tokenizer = Tokenizer.from_str(trained("gpt2"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@pytest.mark.parametrize("make", [sentencepiece, unigram, wordpiece, spaced_gpt2])
def test_another_kind_of_tokenizer_is_left_alone(make: Callable[[], Tokenizer], capsys: Any) -> None:
    base = PreTrainedTokenizerFast(tokenizer_object=make())
    source = glossary(*TERMS.splitlines())
    vocabulary = choose(source, base, corpus(), rows=1000)
    assert vocabulary.forms == ()
    assert vocabulary.left_out == {"not a byte-level BPE tokenizer": len(source.terms)}
    assert "not byte-level BPE" in capsys.readouterr().err
    assert inject(base, vocabulary).backend_tokenizer.to_str() == base.backend_tokenizer.to_str()


@pytest.mark.slow
def test_fifty_thousand_terms() -> None:
    base = family("smollm2").base
    vocabulary = choose(made_up(50_000), base, corpus(), rows=len(base))
    assert len(vocabulary.forms) > 20_000
    this = Family("smollm2", base, vocabulary, inject(base, vocabulary))
    for text in corpus()[::20]:
        check(this, text)


def test_the_embedded_base(real_base: Path) -> None:
    base = PreTrainedTokenizerFast.from_pretrained(real_base)
    vocabulary = choose(glossary(*TERMS.splitlines()), base, corpus(), rows=49152)
    this = Family("real", base, vocabulary, inject(base, vocabulary))
    assert vocabulary.first == 49152
    assert found(this, "对逾期贷款 and delinquency") == ["逾期", "贷款", " delinquency"]
    for text in corpus()[::30]:
        check(this, text)
