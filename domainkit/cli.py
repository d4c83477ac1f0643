"""The command line: parse, call a recipe, print where the output went. No heavy import at the top."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from domainkit import ranks
from domainkit.base_cli import Hub, base_app
from domainkit.glossary_cli import glossary_app
from domainkit.graph_cli import graph_app
from domainkit.types import UserError
from domainkit.usage import examples

FORMATS = "jsonl, text, parquet, pubtator, brat, conll, csv, spacy"
INTERRUPTED = 130  # 128 + SIGINT, what shells and typer use

app = typer.Typer(
    help="Turn a general language model into a finance model or a medical extractor, on the machine you have.",
    epilog=examples(
        "domainkit base pull smollm2-135m",
        "domainkit finetune finance",
        "domainkit eval finance",
        "domainkit finetune medical",
        "domainkit extract runs/medical notes/*.txt --out found.jsonl",
    ),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(base_app, name="base")
app.add_typer(glossary_app, name="glossary")
app.add_typer(graph_app, name="graph")

DomainName = Annotated[str, typer.Argument(metavar="DOMAIN", help="A shipped domain, or a folder with task files.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", metavar="T", help="Only this task (repeatable).")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Your own files or folder: PATH for the first task, T=PATH for task T (repeatable).",
    ),
]
Format = Annotated[
    str, typer.Option(metavar="F", help=f"What the files of --data are: {FORMATS}.  [dim]default: as named[/]")
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N documents of each source.")]
Bits = Annotated[int | None, typer.Option(metavar="4|8|16|32", help="Bits per base weight; 4 is NF4, or as packed.")]
Batch = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Rows of `context` tokens per learning step, however few fit at once."),
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file with settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting (repeatable).")
]
MovedBase = Annotated[
    str | None, typer.Option("--base", metavar="B", help="Where the run's base lies now, if it has moved.")
]
Processes = Annotated[
    int, typer.Option("--workers", min=1, metavar="N", help="Worker processes that share the reading.")
]
Engine = Annotated[
    str, typer.Option(metavar="E", help="What workers run on: datatrove, ray, or a JSON file for Slurm.")
]


@app.command(
    epilog=examples(
        "domainkit finetune finance",
        "domainkit finetune finance --limit 200 --dry-run",
        "domainkit finetune finance --task lm --data lm=news.jsonl",
        "domainkit finetune finance --bits 32 --set epochs=2 --out runs/try",
        "domainkit finetune finance --batch 32",
        "domainkit finetune finance --set precision=float32",
        "domainkit finetune medical --data ner=corpus --format brat",
        "domainkit finetune finance --no-glossary --out runs/without",
        "domainkit finetune ./law --base ./my-base-model",
        "domainkit finetune finance --resume",
        "domainkit finetune finance --workers 2",
    )
)
def finetune(
    domain: DomainName,
    base: Annotated[str, typer.Option(metavar="B", help="Base name, local folder or hub id.")] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder.  [dim]default: runs/DOMAIN[/]")] = None,
    task: Tasks = None,
    data: Data = None,
    format: Format = "",
    bits: Bits = None,
    layers: Annotated[int | None, typer.Option(metavar="N", help="Train the last N layers.")] = None,
    batch: Batch = None,
    no_glossary: Annotated[bool, typer.Option("--no-glossary", help="Leave the domain's glossary out.")] = False,
    limit: Limit = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, settings, data and machine: same weights.")] = 0,
    config: Config = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what `domainkit plan` tells of this very run; write nothing."),
    ] = False,
    hub: Hub = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    workers: Processes = 1,
    engine: Engine = "",
) -> None:
    """Adapt a base model to a domain and write its adapter and reports."""
    from domainkit import recipes
    from domainkit.workers import Workers

    given = {"bits": bits, "layers": layers, "batch": batch}
    shorthand = [f"{key}={value}" for key, value in given.items() if value is not None]
    shorthand += ['glossary=""'] if no_glossary else []
    request = recipes.Request(
        domain=domain, base=base, out=out, tasks=tuple(task or ()), data=tuple(data or ()), format=format, limit=limit,
        resume=resume, seed=seed, config=config, overrides=(*shorthand, *(settings or ())), hub=hub,
        overwrite=overwrite, workers=Workers(workers, engine),
    )  # fmt: skip
    if dry_run:
        show(recipes.plan(request))
        return
    run = recipes.finetune(request)
    if ranks.leads():
        typer.echo(f"adapter: {run}")
        typer.echo(f"report:  {run / 'reports' / 'index.html'}")


@app.command(
    epilog=examples(
        "domainkit plan finance",
        "domainkit plan medical --base ./my-base-model --bits 8",
        "domainkit plan finance --base ./qwen/config.json --tokens 1000000",
        "domainkit plan finance --task lm --data lm=news.jsonl --batch 32",
    )
)
def plan(
    domain: DomainName,
    base: Annotated[
        str, typer.Option(metavar="B", help="Base name, local folder, or a config.json: weights are not needed.")
    ] = "smollm2-135m",
    tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Plan for N tokens of text; the base then needs no tokenizer."),
    ] = None,
    task: Tasks = None,
    data: Data = None,
    format: Format = "",
    bits: Bits = None,
    batch: Batch = None,
    limit: Limit = None,
    config: Config = None,
    settings: Settings = None,
) -> None:
    """Tell what `finetune` would take: parameters, memory by phase, disk, time; and what suits this machine."""
    from domainkit import recipes

    shorthand = [f"{key}={value}" for key, value in {"bits": bits, "batch": batch}.items() if value is not None]
    request = recipes.Request(
        domain=domain, base=base, tasks=tuple(task or ()), data=tuple(data or ()), format=format, limit=limit,
        config=config, overrides=(*shorthand, *(settings or ())),
    )  # fmt: skip
    show(recipes.plan(request, tokens))


def show(estimate: Any) -> None:
    """Print an estimate, and what follows from it here."""
    from rich.console import Console

    from domainkit.advice import Machine, shown

    Console(soft_wrap=True).print(shown(estimate, Machine.here()))


@app.command(
    name="eval",
    epilog=examples(
        "domainkit eval finance",
        "domainkit eval finance --run runs/try --task regulation",
        "domainkit eval finance --data lm=news.jsonl --out reports/news",
        "domainkit eval medical --data ner=archive.jsonl --out reports/archive --workers 8",
    ),
)
def evaluate(
    domain: DomainName,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder.  [dim]default: runs/DOMAIN[/]")] = None,
    base: MovedBase = None,
    task: Tasks = None,
    data: Data = None,
    format: Format = "",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the reports.  [dim]default: RUN/reports[/]")
    ] = None,
    limit: Limit = None,
    hub: Hub = False,
    workers: Processes = 1,
    engine: Engine = "",
) -> None:
    """Score a finished run beside its untouched base, one report per task."""
    from domainkit import recipes
    from domainkit.workers import Workers

    folder = recipes.evaluate(
        domain, run=run, base=base, tasks=tuple(task or ()), data=tuple(data or ()), out=out,
        format=format, limit=limit, hub=hub, workers=Workers(workers, engine),
    )  # fmt: skip
    if ranks.leads():
        typer.echo(f"report: {folder / 'index.html'}")


@app.command(
    epilog=examples(
        "domainkit extract runs/medical notes/*.txt --out found.jsonl",
        "domainkit extract runs/medical abstracts.pubtator --out found.jsonl --summary summary",
        "domainkit extract runs/medical notes --format text --out found.jsonl",
        "domainkit extract runs/medical archive.jsonl --out found.jsonl --workers 8",
    )
)
def extract(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES", help="Text, JSONL, PubTator, BRAT, CoNLL, spaCy, parquet; folders as well."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="One line of JSON for each document, in order.")],
    format: Annotated[
        str, typer.Option(metavar="F", help=f"What the files are: {FORMATS}.  [dim]default: as named[/]")
    ] = "",
    summary: Annotated[
        str, typer.Option("--summary", metavar="T", help="Write a summary of each too, as task T does; it takes long.")
    ] = "",
    base: MovedBase = None,
    workers: Processes = 1,
    engine: Engine = "",
    hub: Hub = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if there is one.")] = False,
) -> None:
    """Read documents with a run: entities with their concepts, and relations. Asked again, it goes on."""
    from domainkit import extract
    from domainkit.workers import Workers

    asked = extract.Request(run, tuple(files), out, format, summary, base, hub, overwrite, Workers(workers, engine))
    done = extract.extract(asked)
    typer.echo(f"documents: {done.out}, {done.documents:,} of them")
    done.stop()


@app.command(
    epilog=examples(
        "domainkit export runs/finance --merged finance-model",
        "domainkit export runs/finance --merged finance-model --bits 16",
    ),
)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    merged: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the whole model.")],
    base: MovedBase = None,
    bits: Annotated[int, typer.Option(metavar="16|32", help="Bits per weight of the written model.")] = 32,
    hub: Hub = False,
) -> None:
    """Write a run and its base as one plain Hugging Face folder that any server loads."""
    from domainkit import recipes

    if bits not in (16, 32):
        raise UserError("a merged model has 16 or 32 bits", where=f"--bits {bits}")
    typer.echo(f"model: {recipes.export(run, merged, base=base, bits=bits, hub=hub)}")


def main() -> None:
    """Console entry: a UserError is one line and exit 1, Ctrl-C exit 130, anything else a traceback."""
    try:
        if ranks.count() > 1 and (sys.argv[1:2] not in (["finetune"], ["eval"]) or "--dry-run" in sys.argv):
            raise UserError("only `finetune` and `eval` are for several processes", where="torchrun",
                            instead=shlex.join(["domainkit", *sys.argv[1:]]))  # fmt: skip
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED and ranks.leads():
            typer.echo(stopped(sys.argv[1:]), err=True)
        raise


def stopped(arguments: list[str]) -> str:
    """What to say after Ctrl-C: how an interrupted `finetune` or `extract` goes on with the same settings."""
    if arguments[:1] == ["extract"]:
        return f"stopped; continue with: {shlex.join(['domainkit', *arguments])}"
    if arguments[:1] != ["finetune"] or "--dry-run" in arguments:
        return "stopped"
    kept = [argument for argument in arguments if argument not in ("--resume", "--overwrite")]
    started = ["torchrun", "--nproc_per_node", str(ranks.count()), "-m"] if ranks.launched() else []
    return f"stopped; continue with: {shlex.join([*started, 'domainkit', *kept, '--resume'])}"
