"""Small byte-level BPE tokenizers with each model family's own pipeline, trained on the shipped samples, and terms."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from domainkit import assets
from domainkit.glossary import Glossary, Term, is_chinese
from domainkit.model.vocab import Vocabulary, choose, inject

DATA = assets.ROOT / "tasks" / "finance" / "data"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SPARE = 40  # rows of the embedding beyond the tokenizer, as Qwen has them
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TERMS = """
delinquency:逾期|拖欠:delinquencies|delinquent
net interest margin:净息差|净利息收益率:NIM|net interest margins
non-performing loan:不良贷款:NPL|non-performing loans|nonperforming loan
credit:信贷:credits
credit line:授信|信用额度:line of credit
credit report:征信|信用报告:
loan:贷款:loans
deposit:存款:deposits
reserve requirement ratio:存款准备金率:RRR
capital adequacy ratio:资本充足率:CAR
Federal Reserve:联邦储备系统|美联储:
A share:A股:A-share
T+0 trading:T+0交易:
commercial bank:商业银行:commercial banks
consumer protection:消费者保护:
interest rate:利率:interest rates
Tier 1 capital:一级资本:
tax:税收|税:taxes
people's court:人民法院:
stock market:证券、期货|核心CPI:
U.S.:美国:
""".strip()


def split(pattern: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior)


def byte_level(use_regex: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


PIPELINES: dict[str, Callable[[], list[Any]]] = {
    "smollm2": lambda: [pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)],
    "gpt2": lambda: [byte_level(use_regex=True)],
    "llama3": lambda: [split(LLAMA3), byte_level()],
    "qwen": lambda: [split(LLAMA3.replace("{1,3}", "")), byte_level()],
    "deepseek_coder": lambda: [
        split(r"[\r\n]"),
        split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+"),
        split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        split(r"\s+$"),
        split(r"[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True),
        byte_level(),
    ],
    "deepseek_v3": lambda: [split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK_V3), byte_level()],
}


@dataclass(frozen=True)
class Family:
    name: str
    base: PreTrainedTokenizerFast
    vocabulary: Vocabulary
    new: PreTrainedTokenizerFast

    def ids(self, text: str) -> list[int]:
        return self.base.encode(text, add_special_tokens=False)

    def new_ids(self, text: str) -> list[int]:
        return self.new.encode(text, add_special_tokens=False)

    def normal(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.name == "qwen" else text

    def holds_a_form(self, text: str) -> bool:
        return any(form in text for form in self.vocabulary.forms)


@lru_cache
def corpus() -> tuple[str, ...]:
    """About 900 KB of the shipped samples, half of it Chinese."""
    texts: list[str] = []
    for name in ("cfpb", "fed", "general-en", "general-zh", "statutes-finance", "statutes-general"):
        size = 0
        with (DATA / f"{name}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                texts.append(json.loads(line)["text"])
                size += len(texts[-1].encode())
                if size > 150_000:
                    break
    return tuple(texts)


@lru_cache
def trained(name: str, vocab: int = 2000) -> str:
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PIPELINES[name]())
    tokenizer.decoder = decoders.ByteLevel()
    inside = list(SPECIAL) if name in ("smollm2", "gpt2") else []  # the others keep them outside the model
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=inside, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    if name == "llama3":
        begin = tokenizer.token_to_id(SPECIAL[0])
        template = processors.TemplateProcessing(
            single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A $B", special_tokens=[(SPECIAL[0], begin)]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return str(tokenizer.to_str())


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    new = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[2], pad_token=SPECIAL[2]
    )
    new.chat_template = CHAT
    return new


def glossary(*rows: str) -> Glossary:
    """Rows are "english:chinese|more:variant|more"."""
    terms = []
    for row in rows:
        en, zh, variants = row.split(":")
        slug = re.sub("[^a-z0-9]+", "-", en.lower()).strip("-")
        more = tuple(form for form in variants.split("|") if form)
        terms.append(Term(slug, en, tuple(zh.split("|")), more, "credit", "hand"))
    return Glossary("test", tuple(terms), Path("test.tsv"), "")


def made_up(count: int, seed: int = 0) -> Glossary:
    """Pieces of the corpus as terms: they begin and end anywhere, also inside the base's words."""
    draw = random.Random(seed)
    chinese = [run for text in corpus() for run in re.findall("[一-鿿]{2,}", text)]
    english = [text for text in corpus() if not is_chinese(text)]
    rows: dict[str, str] = {}
    while len(rows) < count:
        run = draw.choice(chinese)
        at, size = draw.randrange(len(run) - 1), draw.randint(2, 6)
        words = re.findall(r"[A-Za-z][A-Za-z-]*", draw.choice(english)[:2000])
        start = draw.randrange(max(1, len(words) - 3))
        zh, en = run[at : at + size], " ".join(words[start : start + draw.randint(1, 3)])
        if len(zh) > 1 and en and zh not in rows:
            rows[zh] = f"{en}:{zh}:"
    return glossary(*rows.values())


@lru_cache
def family(name: str, terms: int = 0) -> Family:
    base = wrapped(Tokenizer.from_str(trained(name)))
    source = made_up(terms) if terms else glossary(*TERMS.splitlines())
    vocabulary = choose(source, base, corpus(), rows=len(base) + SPARE)
    return Family(name, base, vocabulary, inject(base, vocabulary))
