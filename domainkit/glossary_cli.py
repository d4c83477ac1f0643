"""`domainkit glossary`: check, map, count and tokenize the terms of a domain. No heavy import at the top."""

from __future__ import annotations

import json
import sys
import time
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domainkit.types import Example, UserError
from domainkit.usage import examples

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from domainkit.glossary import Glossary
    from domainkit.matcher import Coverage, Match, Matcher

Token = tuple[int, int, bool]  # characters it stands for, half-open, and whether it is a glossary's
STDIN = "-"
TOP = 20  # terms that `stats` lists
CHINESE = 0.3  # of its characters: a document that names no language counts as Chinese above that

glossary_app = typer.Typer(
    help="Check a glossary, find its terms in text, count them, see what they save.",
    epilog=examples("domainkit glossary check finance", "domainkit glossary map finance news.jsonl"),
    no_args_is_help=True,
)

GlossaryName = Annotated[
    str, typer.Argument(metavar="NAME|PATH", help="A shipped glossary, or the path of a TSV file of your own.")
]
FILES = "JSONL, text or parquet, or a folder of them; - reads one text from standard input."


@glossary_app.command(
    epilog=examples("domainkit glossary check finance", "domainkit glossary check ./law.tsv"),
)
def check(name: GlossaryName) -> None:
    """Verify a glossary; lists every fault with its line."""
    from domainkit.glossary import Glossary

    glossary = Glossary.load(name, shown=None)
    typer.echo(f"{glossary.name} is sound: {glossary.path}, {len(glossary.terms):,} terms, SHA-256 {glossary.sha256}")


@glossary_app.command(
    name="map",
    epilog=examples(
        "domainkit glossary map finance news.jsonl",
        "domainkit glossary map finance news.jsonl laws.parquet --out terms.jsonl",
        "echo 贷款逾期 | domainkit glossary map finance - --inline",
    ),
)
def map_terms(
    name: GlossaryName,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help=FILES)],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write here.  [dim]default: standard output[/]")
    ] = None,
    as_text: Annotated[
        bool, typer.Option("--inline", help="Plain text with each translation behind its term.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Find the terms in text and give each its standard translation: one JSON line a document."""
    from domainkit.files import write_atomic
    from domainkit.glossary import Glossary
    from domainkit.matcher import Matcher

    if out is not None and out.exists() and not overwrite:
        raise UserError("the file exists already", where=out, instead="another --out, or --overwrite to replace it")
    matcher = Matcher(Glossary.load(name))
    lines = mapped(matcher, watched(read_all(files), "map"), as_text=as_text)
    if out is None:
        sys.stdout.writelines(lines)
        return

    def write(draft: Path) -> None:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)

    write_atomic(out, write)
    typer.echo(f"terms: {out}")


@glossary_app.command(
    epilog=examples("domainkit glossary stats finance", "domainkit glossary stats finance news.jsonl laws.parquet"),
)
def stats(
    name: GlossaryName,
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE...]", help=FILES)] = None,
) -> None:
    """Count a glossary's terms and forms and, given text, what of it they cover."""
    from domainkit.glossary import Glossary
    from domainkit.matcher import Matcher, measure

    glossary = Glossary.load(name)
    documents = read_all(files) if files else None
    for line in size_lines(glossary):
        typer.echo(line)
    if documents:
        texts = (document.text for document in watched(documents, "stats"))
        for line in coverage_lines(glossary, measure(Matcher(glossary), texts)):
            typer.echo(line)


@glossary_app.command(
    epilog=examples(
        "domainkit glossary tokens finance 该客户贷款逾期",
        "domainkit glossary tokens finance --file news.jsonl --file laws.parquet",
        "domainkit glossary tokens ./law.tsv 'The deed was void.' --base ./my-base-model",
    ),
)
def tokens(
    name: GlossaryName,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="- reads it from standard input.")] = None,
    base: Annotated[str, typer.Option(metavar="B", help="Base name or local folder.")] = "smollm2-135m",
    file: Annotated[list[str] | None, typer.Option(metavar="FILE", help=f"Totals (repeatable). {FILES}")] = None,
) -> None:
    """Compare the tokens of a text, or of files, as a base has them and with the glossary's terms as tokens."""
    from domainkit.glossary import Glossary
    from domainkit.matcher import Matcher

    glossary, documents = Glossary.load(name), list(read_all(file or []))
    text = _stdin().text if text == STDIN else text
    if not ((text or "").strip() or documents):
        raise UserError("nothing to tokenize", where="domainkit glossary tokens", instead="a TEXT, or --file FILE")
    both = Tokenizers.of(glossary, base, [text or "", *(document.text for document in documents)])
    typer.echo(f"{glossary.name}: {both.size:,} new tokens beside those of {base}")
    for line in text_lines(both, Matcher(glossary), text) if text else ():
        typer.echo(line)
    for line in total_lines(both, watched(iter(documents), "tokens")) if documents else ():
        typer.echo(line)


def read_all(files: list[str]) -> Iterator[Example]:
    """The documents of all files, each file checked before this returns. Raises UserError for a fault in one."""
    from itertools import chain

    from domainkit.data.read import read

    return chain.from_iterable([iter([_stdin()]) if name == STDIN else read(Path(name)) for name in files])


def _stdin() -> Example:
    raw = sys.stdin.buffer.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"standard input, line {raw.count(10, 0, error.start) + 1}"
        raise UserError(f"not UTF-8 at byte {error.start}", where=where, instead="text in UTF-8") from None
    if not text.strip():
        raise UserError("no text", where="standard input", instead="a text, or the path of a file")
    return Example(text, id="stdin")


def watched(documents: Iterator[Example], title: str) -> Iterator[Example]:
    """The same documents; says now and then how many have passed (how many will come is not known)."""
    from domainkit.progress import QUIET, say

    began = last = time.perf_counter()
    for count, document in enumerate(documents, 1):
        yield document
        now = time.perf_counter()
        if now - last >= QUIET:
            last = now
            say(f"{title}: {count:,} documents, {count / (now - began):,.0f} documents/s")


def mapped(matcher: Matcher, documents: Iterator[Example], *, as_text: bool) -> Iterator[str]:
    """What `map` writes: one line of JSON a document, or its text with translations."""
    from domainkit.matcher import inline

    for document in documents:
        matches = matcher.find(document.text)
        if as_text:
            yield inline(document.text, matches).removesuffix("\n") + "\n"
        else:
            row = {"id": document.id, "text": document.text, "terms": [_row(match) for match in matches]}
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _row(match: Match) -> dict[str, str | int]:
    return {
        "start": match.start, "end": match.end, "form": match.form,
        "id": match.term.id, "translation": match.translation,
    }  # fmt: skip


def size_lines(glossary: Glossary) -> Iterator[str]:
    """What a glossary holds."""
    from collections import Counter

    from domainkit.glossary import is_chinese

    forms = [form for term in glossary.terms for form in term.forms]
    chinese = sum(map(is_chinese, forms))
    categories = Counter(term.category for term in glossary.terms).most_common()
    yield f"{glossary.name}: {glossary.path}, SHA-256 {glossary.sha256}"
    yield f"terms: {len(glossary.terms):,}"
    yield f"forms: {len(forms):,}, {len(forms) - chinese:,} English and {chinese:,} Chinese"
    yield f"categories: {', '.join(f'{name} {count:,}' for name, count in categories)}"


def coverage_lines(glossary: Glossary, coverage: Coverage) -> Iterator[str]:
    """What a glossary covers of a corpus, and its most frequent terms."""
    total, occur = len(glossary.terms), len(coverage.terms)
    yield f"corpus: {coverage.documents:,} documents, {coverage.characters:,} characters"
    yield (
        f"found: {coverage.found:,} terms, {coverage.found / coverage.documents:,.1f} a document, "
        f"{coverage.covered / max(coverage.characters, 1):.1%} of the characters"
    )
    yield f"occur: {occur:,} of {total:,} terms, {occur / total:.1%}"
    by_id = {term.id: term for term in glossary.terms}
    for id_, count in coverage.terms.most_common(TOP):
        yield f"  {count:>9,}  {by_id[id_].en} / {by_id[id_].zh[0]}"


@dataclass(frozen=True)
class Tokenizers:
    """A base's own tokenizer, and it with a token for every term that these texts give one."""

    own: Tokenizer
    extended: Tokenizer
    first: int  # id of the first new token
    size: int  # how many there are

    @classmethod
    def of(cls, glossary: Glossary, base: str, texts: Iterable[str]) -> Tokenizers:
        """Read the base's tokenizer (not its weights) and extend it as `finetune` would, had it learned from texts."""
        from domainkit.model.bases import resolve
        from domainkit.model.folder import read_tokenizer
        from domainkit.model.vocab import choose, inject

        own = read_tokenizer(resolve(base))
        vocabulary = choose(glossary, own, texts, rows=0)  # where the new ids begin shows nowhere
        extended = inject(own, vocabulary)
        return cls(own.backend_tokenizer, extended.backend_tokenizer, vocabulary.first, len(vocabulary.forms))

    def cut(self, text: str) -> tuple[list[Token], list[Token]]:
        """The tokens of a text before and after."""
        before, after = (each.encode(text, add_special_tokens=False) for each in (self.own, self.extended))
        new = range(self.first, self.first + self.size)
        marked = [(*at, id in new) for at, id in zip(after.offsets, after.ids, strict=True)]
        return [(*at, False) for at in before.offsets], marked


def text_lines(both: Tokenizers, matcher: Matcher, text: str) -> Iterator[str]:
    """The tokens of one text side by side, stretch by stretch, new ones in brackets; then the terms in it."""
    before, after = both.cut(text)
    yield f"tokens: {_change(len(before), len(after))}"
    edges = sorted({edge for start, end, new in after if new for edge in (start, end)})
    for place in range(len(edges) + 1):  # a stretch is one new token, or what lies between two
        old, now = ([token for token in side if bisect(edges, token[0]) == place] for side in (before, after))
        if old or now:
            was = f"  was {_pieces(text, old)}" if now and now[0][2] else ""
            yield f"  {len(old):>4} → {len(now):<4} {_pieces(text, now)}{was}"
    matches = matcher.find(text)
    yield "\n  ".join((f"terms: {len(matches)}", *(f"{match.form} → {match.translation}" for match in matches)))


def _pieces(text: str, found: Sequence[Token]) -> str:
    """Tokens for people: "不|良×2|[逾期]"; ×2 are two tokens that make up one character."""
    pieces = []
    for (start, end, new), same in groupby(found):
        piece, count = text[start:end].replace("\n", "⏎"), len(list(same))
        pieces.append((f"[{piece}]" if new else piece) + (f"×{count}" if count > 1 else ""))
    return "|".join(pieces)


def total_lines(both: Tokenizers, documents: Iterable[Example]) -> Iterator[str]:
    """Tokens of a corpus before and after, by language."""
    totals: dict[str, list[tuple[int, int]]] = {}
    for document in documents:
        before, after = both.cut(document.text)
        totals.setdefault(_language(document), []).append((len(before), len(after)))
    every = [pair for pairs in totals.values() for pair in pairs]
    for name, pairs in (*sorted(totals.items()), ("all", every)):
        yield f"{name}: {len(pairs):,} documents, tokens {_change(*map(sum, zip(*pairs, strict=True)))}"


def _language(document: Example) -> str:
    """The language a document names; else "zh" or "other"."""
    from domainkit.glossary import is_chinese

    chinese = sum(map(is_chinese, document.text))
    return document.language or ("zh" if chinese > CHINESE * len(document.text) else "other")


def _change(before: int, after: int) -> str:
    return f"{before:,} → {after:,}, {1 - after / before:.1%} saved"
