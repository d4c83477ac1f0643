"""`domainkit graph`: check, show, link to and build concept graphs. No heavy import at the top."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from domainkit.types import UserError
from domainkit.usage import examples

if TYPE_CHECKING:
    from domainkit.graph import ConceptGraph

FULL, RELEASE = "medical-full", "umls"  # names of the graphs that `build` makes

graph_app = typer.Typer(
    help="Check a concept graph, look concepts up, build a larger one.",
    epilog=examples(
        "domainkit graph check medical", "domainkit graph show aspirin", "domainkit graph link 'heart attacks'"
    ),
    no_args_is_help=True,
)


@graph_app.command(epilog=examples("domainkit graph check", "domainkit graph check ./ontologies/law"))
def check(
    name: Annotated[
        str, typer.Argument(metavar="[NAME|PATH]", help="A shipped or built graph, or a folder of your own.")
    ] = "medical",
) -> None:
    """Verify a graph: cycles, ids and types that are nowhere, relations that the type table does not allow."""
    from domainkit import graph

    read = graph.ConceptGraph.read(graph.find_folder(name), shown=None)
    faults = graph.check(read)
    graph.stop(faults, read.path, shown=None)
    typer.echo(f"{read.path} is sound: {_size(read)}")
    for fault in faults:
        typer.echo(f"to know: {fault}")


@graph_app.command(
    epilog=examples(
        "domainkit graph show D001241",
        "domainkit graph show 'heart attack'",
        "domainkit graph show UMLS:C0011860 --graph medical-full",
    )
)
def show(
    concept: Annotated[str, typer.Argument(metavar="CONCEPT", help="Its id, any of its names, or a cross-reference.")],
    name: Annotated[str, typer.Option("--graph", metavar="NAME|PATH", help="The graph to look into.")] = "medical",
) -> None:
    """Show a concept: its names, types, place in the hierarchy, relations and cross-references."""
    from domainkit.graph import ConceptGraph

    graph = ConceptGraph.load(name)
    ids = (concept,) if concept in graph.concepts else graph.find_xref(concept) or graph.find(concept)
    if not ids:
        instead = "an id (D001241), a whole name (heart attack) or a cross-reference (UMLS:C0011860)"
        raise UserError(f"no concept {concept!r}", where=graph.path, instead=instead)
    for number, id_ in enumerate(ids):
        typer.echo("\n".join((*("",) * (number > 0), *concept_lines(graph, id_))))


@graph_app.command(
    epilog=examples(
        "domainkit graph link 'heart attacks'",
        "domainkit graph link MI --label Disease --text 'Myocardial infarction (MI) was rare.'",
    )
)
def link(
    mention: Annotated[str, typer.Argument(metavar="MENTION", help="As a text writes it.")],
    label: Annotated[str, typer.Option(metavar="TYPE", help="Its entity type.  [dim]default: any[/]")] = "",
    text: Annotated[str, typer.Option(metavar="TEXT", help="What it stands in: abbreviations may be told there.")] = "",
    name: Annotated[str, typer.Option("--graph", metavar="NAME|PATH", help="The graph to look into.")] = "medical",
) -> None:
    """Show the concepts that a mention may mean, the likeliest first: id, probability, how it was found, name."""
    from domainkit.graph import ConceptGraph
    from domainkit.link import Linker

    graph = ConceptGraph.load(name)
    if label and label not in graph.table.entities:
        raise UserError(f"unknown entity type {label!r}", instead=f"one of {list(graph.table.entities)}")
    found = Linker(graph).link(mention, label=label, text=text)
    width = max((len(one.id) for one in found), default=0)
    for one in found:
        typer.echo(f"{one.id:<{width}}  {one.score:.3f}  {one.how:<12}  {graph.concept(one.id).name}")
    if not found:
        typer.echo(f"no concept fits {mention!r}")


@graph_app.command(
    epilog=examples(
        "domainkit graph build ./ontology-sources",
        "domainkit graph build ./2025AA/META --out ./ontologies/umls",
    )
)
def build(
    sources: Annotated[
        Path,
        typer.Argument(metavar="SOURCES", help="A folder with mesh/, mondo/, doid/, …, or the META of a UMLS release."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"Write here.  [dim]default: the cache, as {FULL} or {RELEASE}[/]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the graph in DIR.")] = False,
) -> None:
    """Build the whole medical graph from its sources, or a graph from a licensed UMLS release."""
    from domainkit import graph, rrf
    from domainkit.ontology import medical
    from domainkit.ontology.rows import CONCEPTS, LINKS, locate

    release = rrf.is_release(sources)
    target = out or graph.built() / (RELEASE if release else FULL)
    if locate(target, CONCEPTS).exists() and not overwrite:
        raise UserError("a graph is here already", where=target, instead="another --out, or --overwrite to replace it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        draft = Path(folder)
        if release:
            dropped = rrf.compile_release(sources, medical.type_table(), draft)
        else:
            dropped = medical.compile_full(sources, draft).dropped
        target.mkdir(exist_ok=True)
        for file in draft.iterdir():
            file.replace(target / file.name)
    for name in (CONCEPTS, LINKS):  # what is not gzipped would hide what is written now
        (target / name).unlink(missing_ok=True)
    typer.echo(f"graph: {target}, {len(dropped):,} is-a edges left out, as they close a cycle")
    typer.echo(f"check it: domainkit graph check {out or target.name}")


def concept_lines(graph: ConceptGraph, id_: str) -> Iterator[str]:
    """Everything about one concept."""
    one = graph.concept(id_)
    yield f"{one.id}  {one.name}"
    yield f"  types: {'; '.join(f'{tui} {graph.table.types[tui].name}' for tui in one.types)}"
    yield f"  entity types: {', '.join(graph.entities(id_))}"
    if one.synonyms:
        yield f"  synonyms: {'; '.join(one.synonyms)}"
    yield from (f"  is a: {parent}  {graph.concept(parent).name}" for parent in graph.parents(id_))
    yield f"  children: {len(graph.children(id_)):,}"
    for link in graph.links_of(id_):
        other = graph.concept(link.tail if link.head == one.id else link.head)
        arrow = link.relation if link.head == one.id else f"← {link.relation}"
        yield f"  {arrow}: {other.id}  {other.name}  ({link.source})"
    if one.xrefs:
        yield f"  elsewhere: {', '.join(one.xrefs)}"


def _size(graph: ConceptGraph) -> str:
    names = sum(1 for _ in graph.aliases())
    return f"{len(graph.concepts):,} concepts, {names:,} names, {len(graph.links):,} relations"
