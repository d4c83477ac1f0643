"""Forms as the glossary writes them: modern mainland Chinese, English as in running text."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 12  # Chinese characters; what is longer explains rather than names
MODERN = {  # where the characters are no part of other words, as 定单 is of 固定单价 and 部份 of 全部份额
    "倒帐": "呆账",
    "烂帐": "坏账",
    "帐": "账",
    "其它": "其他",
    "部份": "部分",
    "成份": "成分",
    "信用状": "信用证",
    "连络": "联络",
    "复盖": "覆盖",
    "折衷": "折中",
    "簿计": "簿记",
    "给与": "给予",
    "通货膨涨": "通货膨胀",
    "其馀": "其余",
    "定单": "订单",
    "定货": "订货",
    "定购": "订购",
}
_OLD = re.compile("|".join(f"(?<![规指约固法特限确协假稳一全供])(?:{old})(?![篷幕额况态])" for old in MODERN))
_NOTE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|<[^<>]*>|【[^】]*】|〈[^〉]*〉")
_ZH = re.compile(r"[A-Z0-9]{0,4}[\u4e00-\u9fff]+(?:[A-Z]{1,3}[\u4e00-\u9fff]+)?")
_EN = re.compile(r"[A-Za-z0-9][A-Za-z0-9&'.-]*(?: [A-Za-z0-9&'.-]+)*")
_GLOSS = re.compile(r"^[被使把将让令以为对按由向从与及和的之]|[的之了着和及或与等地]$|或|某|例如|指|一种|等等|者的$")
FULL_WIDTH = {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-"}


def plain(text: str) -> str:
    """NFKC, straight quotes, single spaces."""
    text = unicodedata.normalize("NFKC", text)
    return " ".join("".join(FULL_WIDTH.get(character, character) for character in text).split())


def modern(text: str) -> str:
    """Old spellings replaced by those of today's mainland."""
    return _OLD.sub(lambda match: MODERN[match[0]], text)


def chinese(text: str) -> str:
    """The modern form of a Chinese term; "" when it is an explanation, too long or not a term at all."""
    text = _NOTE.sub("", plain(text)).replace(" ", "").strip(";,.。、·")
    text = modern(text)
    if not _ZH.fullmatch(text) or not 2 <= len(text) <= LONGEST or _GLOSS.search(text):
        return ""
    return text


def english(text: str) -> str:
    """The English term without notes; "" when it is not a term."""
    text = " ".join(_NOTE.sub("", plain(text)).split()).strip(";,:")
    text = re.sub(r"^(?:to|the|a|an) (?=\w)", "", text)
    text = re.sub(r"(?<=\w) '?s\b", "'s", text)
    if not _EN.fullmatch(text) or len(text) < 2 or len(text.split()) > 7:
        return ""
    return text


def slug(en: str) -> str:
    """The id of an English term."""
    spelled = unicodedata.normalize("NFKD", en).encode("ascii", "ignore").decode().replace("&", " and ")
    return re.sub(r"[^a-z0-9]+", "-", spelled.replace("'", "").lower()).strip("-")


def is_chinese(form: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in form)


_KEEP = frozenset(
    ("securities", "futures", "savings", "goods", "proceeds", "earnings", "arrears", "news", "series", "means")
)


def singular(word: str) -> str:
    """The singular of a regular plural, else the word itself."""
    if word.lower() in _KEEP or len(word) < 4 or word.endswith(("ss", "us", "is", "ics")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("'s") else word


def singular_term(en: str) -> str:
    """The term with its last word in the singular."""
    *front, last = en.split()
    return " ".join([*front, singular(last)])


def plural(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh", "z")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
