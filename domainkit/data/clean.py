"""The noise filter: drops damaged, empty, repeated and foreign documents, and lines that are not prose.

The rules follow MassiveText (Gopher, arXiv 2112.11446), C4 (arXiv 1910.10683) and datatrove, cut down
to what finance and medical text needs.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from domainkit.report import Table
from domainkit.types import Example

# A document leaves by exactly one of these, or is "kept": read = kept + the sum of RULES.
RULES = (
    "encoding",
    "boilerplate",
    "number-table",
    "too-short",
    "wrong-language",
    "exact-duplicate",
    "near-duplicate",
)
# What the rules changed inside documents.
CHANGES = ("encoding-repaired", "boilerplate-lines", "number-table-lines")

MAX_DAMAGE = 1 / 1000  # damaged spots per character; one hit in a long report is no reason to drop it
MAX_CONTROL = 1 / 100  # control characters per character; text has none, binary data has far more
MAX_BOILERPLATE = 100  # characters; a longer line is a sentence that only mentions copyright or printing
MAX_REPEATED = 60  # characters; page headers are shorter, whole sentences mostly longer
REPEATS = 4  # times; a heading may recur in two or three chapters, a page header recurs on each page
MIN_NUMBERS = 3  # numbers; C4 and Gopher judge whole documents, a line needs a few numbers to be a table row
MAX_NUMERIC = 0.5  # of the words; Gopher wants letters in 80 % of a document's words, single lines vary more
MIN_LETTERS = 0.4  # of the characters that are not spaces; prose with many figures still has 0.75
MIN_CELLS = 3  # columns of a table row: a label and two values
MIN_CHARACTERS = 20  # after cleaning; shorter ones are headings and leftovers
MIN_LANGUAGE = 40  # characters; py3langid guesses on less
LANGUAGE_HEAD = 200  # characters that are classified; longer heads gave the same answers on our samples
MIN_CONFIDENCE = 0.5  # formulas and lists of names score below 0.2, a foreign paragraph above 0.9
LANGUAGES = ("en", "zh", "ja", "ko", "de", "fr", "es", "it", "pt", "nl", "ru", "ar")  # the candidates
MIN_HAN = 0.3  # of the letters; above it a text counts as Chinese with foreign words in it
SIMILARITY = 0.8  # Jaccard of shingles, as in MassiveText
SHINGLE = 5  # words or Han characters, as in datatrove's MinHash
PERMUTATIONS = 64  # standard error of the similarity at 0.8: 0.05
SEED = 1  # of the permutations
_CHUNK = 1 << 14  # shingles hashed at once: 64 × 16384 × 4 bytes = 4 MiB

Rule = Callable[[Example, Counter[str]], Example | None]

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile("[\xad\u200b\u200e\u200f\u2060\ufeff]")  # soft hyphen, zero-width space, marks
_HAN = re.compile(r"[\u3400-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]+")
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d[\d.,%]*")
_CELLS = re.compile(r"\s*\|\s*|\t+| {3,}")
_NAVIGATION = re.compile(r"\s*[|»>]\s*")  # not the middle dot, which joins foreign names in Chinese
_EDGES = " \t\u3000\xa0[]()【】|•·*-–—>»«<"
_BOILERPLATE = re.compile(
    "|".join(
        (
            # navigation
            r"(return|back|go|jump) to (the )?(top|text|contents?|main|home|article|previous page)( \d+)?\.?",
            r"home|menu|search|log ?in|sign (in|up)|register|site ?map|contact us|about us|next|previous",
            r"skip to (main )?(content|navigation)|related (links|articles|content|stories)|you are here:.*",
            r"(返回|回到)(顶部|首页|目录|上一页|列表)|(首页|上一页|下一页|尾页)|当前位置[：:].*",
            r"(上一篇|下一篇)[：:].*",
            # print, share, subscribe
            r"(print|share|e-?mail|tweet|download|save)( (this|the) (page|article|story|document))?",
            r"(share|follow us|find us)( (on|via) [\w ,]+)?|subscribe( to .{1,40})?|subscribe (now|here).*",
            r"打印(本页|此页|文章)?|关闭(本页|窗口)|分享(到|至)?[：:]?[微信博朋友圈空间\s、,，/|QqＱ]*|扫一扫.*",
            r"(点击)?(订阅|关注)(我们|本站|(微信)?公众号|官方微[信博])[^。]*|(责任编辑|字号|浏览次数|阅读次数)[：:].*",
            # copyright footers; not "(c)" alone, which opens a paragraph of a law
            r"(copyright )?© ?(copyright )?(19|20)\d\d.*|copyright (\(c\) ?)?(19|20)\d\d.*",
            r".*all rights reserved.*",
            r"版权(所有|声明)([：:©\s].*)?|.*保留(所有|一切|全部)权利.*|.*(ICP备|公网安备) ?\d+.*",
            # page numbers
            r"(page )?\d{1,4}( ?(of|/) ?\d{1,4})?\.?|第 ?\d+ ?页([，,/ ]*共 ?\d+ ?页)?|共 ?\d+ ?页",
            # browsers (C4)
            r".*(we|site) uses? cookies.*|.*(enable|requires?) javascript.*",
        )
    ),
    re.IGNORECASE,
)


def clean(examples: Iterable[Example], counts: Counter[str]) -> Iterator[Example]:
    """Yield the examples that are worth learning from, in order, with noisy lines taken out.

    `counts` gains "read", "kept", one entry per name in RULES (documents dropped by that rule) and one per
    name in CHANGES (documents or lines). Texts with spans are never edited, as that would move the spans.
    Deterministic; remembers 32 bytes plus one sketch of about 1 kB per kept document.
    """
    for name in ("read", "kept", *RULES, *CHANGES):
        counts[name] += 0
    alone = (_encoding, _boilerplate, _number_table, _too_short, _wrong_language)  # without memory
    rules: tuple[Rule, ...] = (*alone, _exact_duplicate(), _near_duplicate())
    for example in examples:
        counts["read"] += 1
        for name, rule in zip(RULES, rules, strict=True):
            result = rule(example, counts)
            if result is None:
                counts[name] += 1
                break
            example = result
        else:
            counts["kept"] += 1
            yield example


def filter_table(counts: Mapping[str, Counter[str]]) -> Table:
    """What `clean` counted, for the report: a column for each source, a row for each rule."""
    rules = ("read", *RULES, *CHANGES, "kept")
    return Table("Noise filter", ("rule", *counts), tuple((r, *(of[r] for of in counts.values())) for r in rules))


def _encoding(example: Example, counts: Counter[str]) -> Example | None:
    """Repair mojibake with ftfy, take out control characters; None when too much damage is left."""
    text = example.text
    if not (_CONTROL.search(text) or _INVISIBLE.search(text) or _damage(text)):
        return example
    repaired = "\n".join(_repair(line) for line in text.split("\n"))
    limit = MAX_CONTROL * len(text)
    if len(_CONTROL.findall(repaired)) > limit:
        return None
    repaired = _INVISIBLE.sub("", _CONTROL.sub("", repaired))
    if _damage(repaired) > MAX_DAMAGE * len(repaired):
        return None
    if repaired == text or example.spans:
        return example
    counts["encoding-repaired"] += 1
    return replace(example, text=repaired)


def _repair(line: str) -> str:
    import ftfy

    fixed = ftfy.fix_encoding(line) if _damage(line) else line
    return fixed if _damage(fixed) < _damage(line) else line


def _damage(text: str) -> int:
    """Spots that are likely mojibake by ftfy's heuristic, and replacement characters (also read as GBK)."""
    from ftfy.badness import badness

    return 0 if text.isascii() else badness(text) + text.count("\ufffd") + text.count("锟斤拷")


def _boilerplate(example: Example, counts: Counter[str]) -> Example | None:
    """Drop lines of navigation, footers and page numbers, and short lines that keep repeating."""
    stripped = [line.strip() for line in example.text.split("\n")]
    times = Counter(line for line in stripped if 0 < len(line) <= MAX_REPEATED)
    seen: set[str] = set()

    def noise(line: str) -> bool:
        line = line.strip()
        again = line in seen and times[line] >= REPEATS  # the first one may be the title
        seen.add(line)
        return again or is_boilerplate(line)

    return _without(noise, example, "boilerplate-lines", counts)


def is_boilerplate(line: str) -> bool:
    """True for one line that belongs to a page, not to its text."""
    if not line or len(line) > MAX_BOILERPLATE:
        return False
    if _BOILERPLATE.fullmatch(line.strip(_EDGES)):
        return True
    links = [part for part in _NAVIGATION.split(line) if part]
    return len(links) >= MIN_CELLS and all(len(part) <= 25 and not _NUMBER.search(part) for part in links)


def _number_table(example: Example, counts: Counter[str]) -> Example | None:
    """Drop lines that are rows of a table of numbers."""
    return _without(is_number_row, example, "number-table-lines", counts)


def is_number_row(line: str) -> bool:
    """True for a line that is mostly numbers: by words, by characters, or by columns."""
    numbers = len(_NUMBER.findall(line))
    if numbers < MIN_CELLS - 1:  # most lines of prose leave here
        return False
    cells = [cell for cell in _CELLS.split(line.strip()) if cell]
    if len(cells) >= MIN_CELLS and sum(map(_is_numeric, cells)) >= max(2, MAX_NUMERIC * len(cells)):
        return True
    if numbers < MIN_NUMBERS:
        return False
    words = line.split()
    if sum(map(_is_numeric, words)) > MAX_NUMERIC * len(words):
        return True
    return sum(map(str.isalpha, line)) < MIN_LETTERS * sum(map(len, words))


def _is_numeric(word: str) -> bool:
    return _NUMBER.search(word) is not None and not any(map(str.isalpha, word))


def _without(noise: Callable[[str], bool], example: Example, name: str, counts: Counter[str]) -> Example | None:
    """The example without its noisy lines; None if no text is left."""
    lines = example.text.split("\n")
    kept = [line for line in lines if not noise(line)]
    if example.spans or len(kept) == len(lines):
        return example
    counts[name] += len(lines) - len(kept)
    text = "\n".join(kept)
    return replace(example, text=text) if text.strip() else None


def _too_short(example: Example, counts: Counter[str]) -> Example | None:
    return example if len(example.text.strip()) >= MIN_CHARACTERS else None


def _wrong_language(example: Example, counts: Counter[str]) -> Example | None:
    """None when the text is clearly in another language than the one it states."""
    stated = example.language.lower()[:2]
    if stated not in LANGUAGES or len(example.text) < MIN_LANGUAGE:
        return example
    text = example.text[:LANGUAGE_HEAD]
    if stated == "zh" and _is_han(text):
        text = _LATIN.sub("", text)  # English names inside a Chinese text say nothing
    language, confidence = _identifier().classify(text)
    return None if language != stated and confidence >= MIN_CONFIDENCE else example


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


def _is_han(text: str) -> bool:
    """True for a text in Han characters, foreign words allowed: each Latin word counts as one letter."""
    han = 0 if text.isascii() else len(_HAN.findall(text))
    return han > 0 and han >= MIN_HAN * (han + len(_LATIN.findall(text)))


def _exact_duplicate() -> Rule:
    seen: set[bytes] = set()

    def rule(example: Example, counts: Counter[str]) -> Example | None:
        text = " ".join(unicodedata.normalize("NFKC", example.text).casefold().split())
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if digest in seen:
            return None
        seen.add(digest)
        return example

    return rule


def _near_duplicate() -> Rule:
    """Candidates come from LSH bands, then the sketches themselves are compared."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS)
    sketches: list[MinHash] = []
    empty = MinHash(num_perm=PERMUTATIONS, seed=SEED, hashfunc=int)

    def rule(example: Example, counts: Counter[str]) -> Example | None:
        sketch = empty.copy()
        hashes = _shingles(example.text)
        for start in range(0, len(hashes), _CHUNK):
            sketch.update_batch(hashes[start : start + _CHUNK].tolist())
        if any(sketches[key].jaccard(sketch) >= SIMILARITY for key in index.query(sketch)):
            return None
        index.insert(len(sketches), sketch, check_duplication=False)
        sketches.append(sketch)
        return example

    return rule


def _shingles(text: str) -> np.ndarray:
    """32-bit hashes of all runs of SHINGLE words (Han characters for Chinese).  # (shingles,) uint32"""
    text = text.casefold()
    if _is_han(text):
        codes = np.frombuffer("".join(_WORD.findall(text)).encode("utf-32-le", "replace"), dtype="<u4")
    else:
        codes = np.fromiter(map(_word_code, _WORD.findall(text)), dtype="<u4")
    size = max(1, min(SHINGLE, len(codes)))
    if not len(codes):
        return np.zeros(1, dtype=np.uint32)
    hashes = np.zeros(len(codes) - size + 1, dtype=np.uint64)
    for shift in range(size):  # wraps around modulo 2^64 on purpose
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[shift : shift + len(hashes)] + np.uint64(1)
    return ((hashes * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)).astype(np.uint32)


@lru_cache(maxsize=1 << 16)
def _word_code(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "replace"))
