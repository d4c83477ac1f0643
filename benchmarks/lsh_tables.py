"""The tables of docs/attention.md in Markdown, from what the LSH benchmarks wrote to benchmarks/results.

python benchmarks/lsh_tables.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from machine import read_results

from domainkit.report import show

Row = Mapping[str, Any]
HEADS = {"group": "three query heads on one key head of 64", "layer": "nine query heads on three key heads of 64"}


def main() -> None:
    made = [*times(), *base(), *quality("perplexity"), *quality("copy"), *recall(), *four_bit(), *runs()]
    print("\n".join(made) if made else "benchmarks/results has nothing of LSH attention yet")


def label(row: Row) -> str:
    """ "dense", "LSH, 128 keys", "window" """
    name = "LSH" if row["way"] == "lsh" else str(row["way"])
    return name if row["keys"] is None else f"{name}, {row['keys']} keys"


def percent(change: float) -> str:
    return f"{100 * change:+.1f} %" if change < 1 else f"×{1 + change:.1f}"


def times() -> Iterator[str]:
    """Seconds, speed beside dense attention, exponent and memory by length."""
    for profile, heads in HEADS.items():
        if file := read_results(f"lsh_time-{profile}"):
            for name in ("forward", "forward and backward"):
                exponents = {
                    label(row): f"{row[name]:.2f} (to {_thousands(row['up to'])})" for row in file["exponents"]
                }
                last = {"tokens": "exponent of the time", **exponents}
                yield from _by_length(file["results"], f"Seconds, {name}: {heads}", _seconds(name), last)
                title = f"MiB over the inputs, {name}: {heads}"
                yield from _by_length(file["results"], title, _memory(f"{name}, MiB"))


def base() -> Iterator[str]:
    """The whole base, forward."""
    if file := read_results("lsh_time-base"):
        columns = ("bits", "tokens", "attention", "seconds", "in attention", "peak MiB")
        rows = [
            (row["bits"], _thousands(row["tokens"]), row["attention"], _beside(row, "seconds"),
             _beside(row, "seconds in attention"), _mebibytes(row["MiB"]))
            for row in file["results"]
        ]  # fmt: skip
        title = f"The whole base, forward; below {file['crossover']:,} tokens `lsh` takes the dense kernel"
        yield from _table(title, columns, rows)


def quality(profile: str) -> Iterator[str]:
    """Perplexity of each text and length."""
    for tokens, file in _lengths(profile):
        kinds = list(dict.fromkeys(label(row) for row in file["results"]))
        found = {(row["text"], label(row)): _change(row) or show(row["perplexity"]) for row in file["results"]}
        names = dict.fromkeys(row["text"] for row in file["results"])
        rows = [(name, *(found[name, kind] for kind in kinds)) for name in names]
        rows.append(("mean", *map(_change, file["means"])))
        rows.append(("mean loss, nats", *(f"{row['loss']:.3f}" for row in file["means"])))
        what = {"perplexity": "Perplexity", "copy": "Perplexity of a passage said again"}[profile]
        yield from _table(f"{what}, {_thousands(tokens)} tokens", ("text", *kinds), rows)


def recall() -> Iterator[str]:
    """Means over the layers."""
    if file := read_results("lsh_recall"):
        parts = {
            f"recall of the top {file['top']} remote keys": "recall",
            "weight kept": "mass",
            "worst head's": "mass, worst head",
            "weight of remote keys kept": "remote mass",
            "weight kept by the window": "mass, window",
            "keys read": "keys read",
            "by the window": "keys read, window",
        }
        rows = [(row["keys"], *(show(row[key]) for key in parts.values())) for row in file["means"]]
        title = f"What is found, mean of all layers; {file['text']}, {_thousands(file['tokens'])} tokens"
        yield from _table(title, ("keys", *parts), rows)


def four_bit() -> Iterator[str]:
    """Precision and attention together."""
    for tokens, file in _lengths("four-bit"):
        rows = [(row["bits"], label(row), percent(row["over float32 and dense"]), percent(row["over dense"]))
                for row in file["means"]]  # fmt: skip
        columns = ("bits", "attention", "perplexity over float32 and dense", "over dense of the same bits")
        yield from _table(f"Mean of {file['means'][0]['texts']} texts, {_thousands(tokens)} tokens", columns, rows)


def runs() -> Iterator[str]:
    """What finished runs reached and took."""
    if file := read_results("long_documents-scores"):
        keys = [name for name in file["results"][0]["scores"] if name.startswith("bits_per_byte/")]
        rows = [(row["bits"], "LSH" if row["attention"] == "lsh" else "dense",
                 *(f"{row['scores'][key]:.3f} ({row['baseline']['base'][key]:.3f})" for key in keys))
                for row in file["results"]]  # fmt: skip
        title = "Bits per byte of held-out text after `finetune` on sequences of 8k tokens, in brackets of the base"
        yield from _table(title, ("bits", "attention", *(key.split("/")[1] for key in keys)), rows)


def _lengths(profile: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for tokens in (2**n for n in range(10, 20)):
        if file := read_results(f"lsh_attention-{profile}-{tokens}"):
            yield tokens, file


def _change(row: Row) -> str:
    return "" if row["keys"] is None or "over dense" not in row else percent(row["over dense"])


def _seconds(name: str) -> Callable[[Row], str]:
    times = f"{name}, times as fast as dense"
    return lambda row: show(row[name]) + (f" ({row[times]:.1f}×)" if row["keys"] and times in row else "")


def _beside(row: Row, key: str) -> str:
    return show(row[key]) + ("" if row["attention"] == "sdpa" else f" ({row[f'{key}, times as fast as sdpa']:.1f}×)")


def _by_length(
    rows: Sequence[Row], title: str, cell: Callable[[Row], str], last: Mapping[str, str] | None = None
) -> Iterator[str]:
    kinds = list(dict.fromkeys(label(row) for row in rows))
    found = {(row["tokens"], label(row)): cell(row) for row in rows}
    lengths = dict.fromkeys(row["tokens"] for row in rows)
    body = [(_thousands(n), *(found.get((n, kind), "") for kind in kinds)) for n in lengths]
    if last:
        body.append((last["tokens"], *(last.get(kind, "") for kind in kinds)))
    yield from _table(title, ("tokens", *kinds), body)


def _memory(name: str) -> Callable[[Row], str]:
    return lambda row: _mebibytes(row[name])


def _mebibytes(found: float | None) -> str:
    return "not told" if found is None else f"{found:,.0f}"


def _thousands(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"**{title}**\n"
    yield f"| {' | '.join(columns)} |"
    yield "|---" + "|---:" * (len(columns) - 1) + "|"
    yield from (f"| {' | '.join(map(str, row))} |" for row in rows)
    yield ""


if __name__ == "__main__":
    main()
