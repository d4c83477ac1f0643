"""domainkit beside the tools that people fine-tune with: same base, same sequences, one after another in one run.

    python benchmarks/peers.py --install                  # each peer into an environment of its own
    python benchmarks/peers.py --bits 4                   # a base in 4 bits
    python benchmarks/peers.py --bits 32                  # in float32, which every peer can
    python benchmarks/peers.py --tokens 2500 --epochs 2   # a quick look

All train LoRA of rank 16 on the last two layers of the embedded base, on the token sequences that `domainkit finetune
finance --task lm --no-glossary` trains on, packed into rows of at most 512 tokens, a row a step, with the same
learning rate, schedule and epochs. Every side is a fresh process that runs what its user would
write: the files in benchmarks/peers. Afterwards one judge reads the adapter that each side saved after every epoch
and tells its loss on the same held-out sequences. Seconds are told by when these files were written: from the start of
the process, so imports, loading and, for domainkit, reading the documents and the trunk are in. A peer that cannot be
installed or fails on a CPU stays in the table, with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
from machine import write_results
from memory import alone
from sides import HERE, OURS, SIDES, Side, environment, first_error, install, lines, missing, versions

from domainkit.assets import ROOT, cache_dir
from domainkit.model.store import Store

BASE, LAYERS, RANK, ALPHA = "smollm2-135m", 2, 16, 32
SAME = 2e-3  # relative: no further above another, a held-out loss is the same; every side shuffles in its own way
POLL = 0.1  # seconds


def sequences(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Write what all train on (train.jsonl, and packed into rows: rows.jsonl) and are judged on (held.json); returns
    what there is to say of it."""
    from domainkit.model.batch import rows as pack
    from domainkit.prepare import Request, prepare
    from domainkit.spec import Domain
    from domainkit.steps import plan_steps

    domain = Domain.load("finance", overrides=overrides)
    setting = prepare(Request("finance", BASE, tasks=("lm",)), domain)
    train, test = setting.prepared["lm"].train, setting.prepared["lm"].test
    packed = [packed_row(row) for row in pack(train, domain.training.context)]
    for name, found in (("train.jsonl", [{"input_ids": s.ids} for s in train]), ("rows.jsonl", packed)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "held.json").write_text(json.dumps([s.ids for s in test]))
    steps = len(plan_steps(setting.prepared, domain.training, 0)) / domain.training.epochs
    return {
        "base": str(setting.base.path),
        "dtype": str(setting.base.compute).removeprefix("torch."),
        "sequences": len(train),
        "rows": len(packed),
        "tokens": sum(len(s.ids) for s in train),
        "held-out tokens": sum(len(s.ids) for s in test),
        "domainkit steps per epoch": steps,
        "digests": sorted({s.digest for s in train}),
    }


def packed_row(row: Iterable[Any]) -> dict[str, list[int]]:
    """Sequences that share a row, in the words of the tools that take such: no first token is to be predicted."""
    ids = [s.ids for s in row]
    return {
        "input_ids": [i for one in ids for i in one],
        "labels": [i for one in ids for i in (-100, *one[1:])],
        "position_ids": [place for one in ids for place in range(len(one))],
        "segments": [number for number, one in enumerate(ids, 1) for _ in one],
        "lengths": [len(one) for one in ids],
    }


def judge(bits: int, held: Sequence[Sequence[int]], files: Sequence[Path]) -> list[float]:
    """Nats per held-out token of the base and of each adapter on it, by the whole model as PEFT builds it."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    from domainkit.model.base import load_base
    from domainkit.model.top import lora_config

    base = load_base(BASE, bits=bits)
    model = get_peft_model(base.model, lora_config(base, layers=LAYERS, rank=RANK, alpha=ALPHA))

    @torch.no_grad()
    def loss() -> float:
        sums = [float(model(input_ids=row, labels=row).loss) * (row.shape[1] - 1) for row in rows]
        return sum(sums) / sum(row.shape[1] - 1 for row in rows)

    rows = [torch.tensor([ids]) for ids in held]
    found = [loss()]  # LoRA begins as nothing
    for file in files:
        saved = {n.removeprefix("model.").replace(".default.", "."): v for n, v in load_file(file).items()}
        assert saved.keys() == get_peft_model_state_dict(model).keys(), f"{file} is no such adapter"
        set_peft_model_state_dict(model, saved)
        found.append(loss())
    return found


def run(side: Side, folder: Path, command: Sequence[str], **env: str) -> dict[str, Any]:
    """Run a side in `folder`, which becomes its working directory; returns times, memory, and the adapters it saved."""
    for name in side.files:
        (folder / name).write_text((HERE / name).read_text())
    path = f"{environment(side)}:{os.environ['PATH']}"
    quiet = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "PYTHONPATH": ""}
    kept, peak, began = dict[str, Path](), 0, time.time()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   env={**os.environ, "PATH": path, **quiet, **env})  # fmt: skip
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            keep(folder, kept)
            time.sleep(POLL)
    keep(folder, kept)
    told: dict[str, Any] = {"side": side.name, "lines": lines(side), "process": time.time() - began, "peak MiB": peak}
    epochs = {name: file.stat().st_mtime - began for name, file in kept.items()}
    told["adapter"] = max(epochs.values(), default=None)
    told["epochs"] = sorted((seconds, str(kept[name])) for name, seconds in epochs.items() if name[-1].isdigit())
    if process.returncode or not kept:
        told["error"] = first_error((folder / "log").read_text())
    return told


def keep(folder: Path, kept: dict[str, Path]) -> None:
    """Link every adapter that a side saves under another name, for a side may delete it again."""
    for file in [*folder.rglob("adapter_model.safetensors"), *folder.rglob("checkpoint-*/model.safetensors")]:
        if file.parent.name not in kept and "kept" not in file.parts:
            (folder / "kept").mkdir(exist_ok=True)
            kept[file.parent.name] = folder / "kept" / f"{file.parent.name}.safetensors"
            os.link(file, kept[file.parent.name])


def memory(pid: int) -> int:
    """MiB that the largest process of a tree has had resident at most."""
    found = [0]
    try:
        for process in (top := psutil.Process(pid), *top.children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status").read_text()
            found += [int(kib) // 1024 for kib in re.findall(r"VmHWM:\s+(\d+)", status)]
    except (psutil.Error, OSError):
        pass  # it ended meanwhile
    return max(found)


def peers(args: argparse.Namespace, facts: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each peer, in turn."""
    asked = {"bits": args.bits, "epochs": args.epochs, "dtype": facts["dtype"],
             "fast": str(facts["dtype"] == "bfloat16").lower()}  # fmt: skip
    for side in (side for side in SIDES if side.name in args.sides):
        error = missing(side) or ("" if args.bits in side.more else f"cannot hold this base in {args.bits} bits")
        if error:
            yield {"side": side.name, "lines": lines(side), "error": error}
            continue
        own = folder / side.name
        own.mkdir()
        (own / "base").symlink_to(facts["base"])
        for name in ("train.jsonl", "rows.jsonl"):
            (own / name).symlink_to(folder / name)
        yield run(side, own, [part.format(**asked) for part in (*side.command, *side.more[args.bits])])


def ours(settings: Sequence[str], digests: Iterable[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of domainkit from nothing, and of a second run that finds the activations of the first."""
    cache = folder / "cache"
    cache.mkdir()
    (cache / "bases").symlink_to(cache_dir() / "bases")
    for name, more in ((OURS.name, ()), (f"{OURS.name}, then another learning rate", ("learning_rate=2e-3",))):
        own = folder / name
        own.mkdir()
        command = [*OURS.command, *(word for text in (*settings, *more) for word in ("--set", text))]
        yield {**run(OURS, own, command, DOMAINKIT_CACHE=str(cache), PYTHONPATH=str(ROOT)), "side": name}
    manifests = [json.loads(file.read_text()) for file in cache.glob("activations/*/manifest.json")]
    stores = [Store.open(cache / "activations", manifest["of"]) for manifest in manifests]
    stored = {digest for store in stores if store for digest in store.places}
    assert stored.issuperset(digests), "domainkit must train on the sequences that the others train on"


def score(rows: Sequence[dict[str, Any]], losses: Sequence[float], plain: str) -> None:
    """Add to each row its held-out loss after every epoch, when it was lowest, and when as low as that of plain PEFT at
    its end."""
    left = iter(losses)
    for row in rows:
        ends = [seconds for seconds, _ in row.pop("epochs", ())]
        row["losses"] = [(seconds, next(left)) for seconds in ends]
        if ends:
            row["lowest at"], row["lowest"] = min(row["losses"], key=lambda found: found[1])
        if len(ends) > 1:
            row["epoch"] = (ends[-1] - ends[0]) / (len(ends) - 1)
            row["start"] = ends[0] - row["epoch"]
    ends = [row["losses"][-1][1] for row in rows if row["side"] == plain and row["losses"]]
    for row in rows if ends else ():
        row["same loss"] = min((at for at, loss in row["losses"] if loss <= ends[0] * (1 + SAME)), default=None)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, as Markdown."""
    columns = {"start": "s before the first epoch", "epoch": "s per epoch", "adapter": "s to the adapter",
               "same loss": "s to plain PEFT's last loss", "lowest at": "s to its own lowest loss",
               "lowest": "lowest loss", "peak MiB": "peak MiB", "lines": "lines"}  # fmt: skip
    out = [f"| | {' | '.join(columns.values())} |", f"|---|{'---:|' * len(columns)}"]
    for row in rows:
        cells = [_cell(key, row.get(key)) for key in columns]
        out.append(f"| {': '.join(row[key] for key in ('side', 'error') if key in row)} | {' | '.join(cells)} |")
    return "\n".join(out)


def _cell(key: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if key == "lowest" else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    names = [side.name for side in SIDES]
    parser.add_argument("--install", nargs="*", choices=names, help="build environments and end; none named: all")
    parser.add_argument("--sides", nargs="*", choices=names, default=names, help="peers to run")
    parser.add_argument("--bits", type=int, default=4, choices=(4, 32), help="of the base's weights")
    parser.add_argument("--tokens", type=int, default=12_000, help="to train on per epoch")
    parser.add_argument("--held", type=int, default=500, help="held-out tokens of each language and part")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    if args.install is not None:
        for side in SIDES:
            if side.needs and (not args.install or side.name in args.install):
                print(f"{side.name}: {install(side) or 'installed'}", flush=True)
        return
    subprocess.run([str(environment(OURS) / "domainkit"), "--help"], check=True, stdout=subprocess.DEVNULL)  # it starts
    load = [os.getloadavg()[0]]
    settings = [f"bits={args.bits}", f"epochs={args.epochs}", f"lm.tokens={args.tokens}", f"lm.test_tokens={args.held}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = alone(sequences, folder, ['glossary=""', *settings])
        rows, digests = list[dict[str, Any]](), facts.pop("digests")
        settings.append(f"save_steps={round(facts['domainkit steps per epoch'])}")
        for row in chain(peers(args, facts, folder), ours(settings, digests, folder)):
            print(json.dumps(row), flush=True)
            rows.append(row)
        files = [Path(file) for row in rows for _, file in row.get("epochs", ())]
        facts["base's loss"], *losses = alone(judge, args.bits, json.loads((folder / "held.json").read_text()), files)
    score(rows, losses, SIDES[0].name)
    load.append(os.getloadavg()[0])
    of = {side.name: versions(side) for side in SIDES if not missing(side)}
    path = write_results(f"peers-{args.bits}-bit", rows, facts=facts, peers=of, load=load)
    print(table(rows), path, sep="\n\n")


if __name__ == "__main__":
    main()
