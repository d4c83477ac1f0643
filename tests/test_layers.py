"""The floors of the house: every import inside domainkit points down, or stays in its own package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "domainkit"
FLOORS = (  # from the ground up; a name may import only from lines above its own
    "types assets usage ranks heap memory __version__",
    "files progress fill align versions",
    "ontology",
    "glossary graph spec score curve passages",
    "report spanscore matcher rrf",
    "data",
    "nets link",
    "gazetteer",
    "constrain",
    "model conceptscore",
    "kinds",
    "joint checkpoint learner documents shards",
    "rehearse engines workers steps",
    "fit evaluate estimate claim passes continual",
    "prepare advice run",
    "exam parts fresh",
    "planning",
    "recipes",
    "serve base_cli glossary_cli graph_cli extract spacy_component",
    "cli",
    "__init__ __main__",
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}


def targets(source: str) -> list[str]:
    """What a source imports from domainkit: "data" for domainkit.data.read, "." for a relative import."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [f"{alias.name}.__init__" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level or node.module}.{alias.name}" for alias in node.names]
    return [name.split(".")[1] or "." for name in names if name.startswith(("domainkit.", "."))]


def faults(room: str, source: str) -> list[str]:
    """The imports of a file in `room` (module or package of domainkit) that do not point down."""
    if room not in FLOOR:
        return [f"{room} has no floor: put it into FLOORS (docs: CONTRIBUTING.md)"]
    wrong = [t for t in targets(source) if t != room and FLOOR.get(t, len(FLOORS)) >= FLOOR[room]]
    return [f"{room} must not import {target}" for target in wrong]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    assert not faults(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("data", "from domainkit.model.base import Base", "model"),  # upwards
        ("data", "def f():\n    from domainkit import model", "model"),  # inside a function
        ("nets", "import domainkit.recipes", "recipes"),
        ("fit", "from domainkit.evaluate import judge", "evaluate"),  # sideways
        ("cli", "import domainkit", "__init__"),  # the root knows everything
        ("cli", "from .types import Span", "."),  # relative
        ("cli", "from domainkit.nowhere import x", "nowhere"),
    ],
)
def test_a_wrong_import_is_found(room: str, source: str, wrong: str) -> None:
    assert faults(room, source) == [f"{room} must not import {wrong}"]


def test_a_module_without_a_floor_is_found() -> None:
    assert "has no floor" in faults("misc", "")[0]


def test_a_right_import_is_left_alone() -> None:
    source = "import torch\nfrom domainkit.data.read import read\nfrom domainkit import __version__"
    assert faults("model", source) == faults("data", source) == []
