"""The command line: light to start, examples everywhere, faults in one line, Ctrl-C says how to go on."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path

import pytest
from typer.testing import CliRunner

from domainkit import cli
from domainkit.types import UserError
from domainkit.workers import ALONE, Workers

COMMANDS = (
    [], ["finetune"], ["plan"], ["eval"], ["extract"], ["export"],
    ["base"], ["base", "pull"], ["base", "list"], ["base", "check"],
    ["base", "quantize"],
    ["glossary"], ["glossary", "check"], ["glossary", "map"], ["glossary", "stats"], ["glossary", "tokens"],
)  # fmt: skip
HEAVY = ("torch", "transformers", "peft", "sklearn", "numpy", "datasketch")


@dataclass(frozen=True)
class Request:
    """Stands in for recipes.Request, in the order of its fields."""

    domain: str
    base: str
    out: Path | None = None
    tasks: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    format: str = ""
    limit: int | None = None
    resume: bool = False
    seed: int = 0
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    hub: bool = False
    overwrite: bool = False
    workers: Workers = ALONE


@dataclass
class Recipes:
    """Stands in for domainkit.recipes: notes what it was asked and raises `fault` if there is one."""

    fault: BaseException | None = None
    asked: list[object] = field(default_factory=list)
    Request = Request

    def finetune(self, request: Request) -> Path:
        self.asked.append(request)
        if self.fault:
            raise self.fault
        return request.out or Path("runs") / request.domain

    def plan(self, request: Request, tokens: int | None = None) -> str:
        self.asked.append((request, tokens))
        return "an estimate"

    def evaluate(self, domain: str, **options: object) -> Path:
        self.asked.append((domain, options))
        return Path("runs") / domain / "reports"

    def export(self, run: Path, target: Path, **options: object) -> Path:
        self.asked.append((run, target, options))
        return target


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Recipes:
    import domainkit

    fake = Recipes()
    monkeypatch.setitem(sys.modules, "domainkit.recipes", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(domainkit, "recipes", fake, raising=False)
    return fake


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is shown of estimates."""
    found: list[object] = []
    monkeypatch.setattr(cli, "show", found.append)
    return found


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `domainkit ARGUMENTS`, run through the console entry."""
    monkeypatch.setattr(sys, "argv", ["domainkit", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_shows_examples(command: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0
    assert f"$ {' '.join(['domainkit', *command])}" in result.output


def test_nothing_heavy_is_imported() -> None:
    code = f"import sys, domainkit.cli; print([m for m in {HEAVY} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_loading_the_library_says_nothing() -> None:
    """Bitsandbytes warns of a kernel where it is imported, on CPUs with AVX512-BF16."""
    code = "import domainkit; domainkit.load; import bitsandbytes"
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_help_takes_less_than_half_a_second() -> None:
    took = []
    for _ in range(5):  # the best of five: other work on the machine only ever adds time
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "domainkit", "--help"], stdout=subprocess.DEVNULL, check=True)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5


@pytest.mark.parametrize("arguments", [["nonsense"], ["finetune"], ["finetune", "finance", "--limit", "0"]])
def test_wrong_usage_fails(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    assert run(monkeypatch, *arguments) == 2


def test_finetune_passes_everything_on(monkeypatch: pytest.MonkeyPatch, recipes: Recipes) -> None:
    line = (
        "finetune ./law --base b --out r --task lm --task triage --data a.txt --data triage=b.jsonl --format brat"
        " --bits 8 --layers 3 --limit 9 --seed 5 --config c.toml --set epochs=2 --set rank=4"
        " --hub --overwrite --resume --workers 4 --engine ray"
    )
    assert run(monkeypatch, *line.split()) == 0
    wanted = Request(
        "./law", "b", Path("r"), ("lm", "triage"), ("a.txt", "triage=b.jsonl"), "brat", 9, True, 5,
        Path("c.toml"), ("bits=8", "layers=3", "epochs=2", "rank=4"), True, True,
        Workers(4, "ray"),
    )  # fmt: skip
    assert recipes.asked == [wanted]


def test_finetune_says_where_things_are(
    monkeypatch: pytest.MonkeyPatch, recipes: Recipes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "finetune", "finance") == 0
    assert "runs/finance\n" in (printed := capsys.readouterr().out)
    assert "runs/finance/reports/index.html\n" in printed
    assert recipes.asked == [
        Request("finance", "smollm2-135m", None, (), (), "", None, False, 0, None, (), False, False)
    ]


def test_dry_run_only_plans(monkeypatch: pytest.MonkeyPatch, recipes: Recipes, shown: list[object]) -> None:
    recipes.fault = AssertionError("finetune was called")
    assert run(monkeypatch, "finetune", "finance", "--dry-run") == 0
    wanted = Request("finance", "smollm2-135m", None, (), (), "", None, False, 0, None, (), False, False)
    assert (recipes.asked, shown) == ([(wanted, None)], ["an estimate"])


def test_plan_passes_everything_on(monkeypatch: pytest.MonkeyPatch, recipes: Recipes, shown: list[object]) -> None:
    line = (
        "plan ./law --base c.json --tokens 1000 --task lm --data a.txt --format brat --bits 8 --batch 32"
        " --limit 9 --config c.toml --set epochs=2"
    )
    assert run(monkeypatch, *line.split()) == 0
    wanted = Request(
        "./law", "c.json", None, ("lm",), ("a.txt",), "brat", 9, False, 0, Path("c.toml"),
        ("bits=8", "batch=32", "epochs=2"), False, False,
    )  # fmt: skip
    assert (recipes.asked, shown) == ([(wanted, 1000)], ["an estimate"])
    assert run(monkeypatch, "plan", "finance", "--tokens", "0") == 2


def test_eval_passes_everything_on(
    monkeypatch: pytest.MonkeyPatch, recipes: Recipes, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "eval finance --run r --base b --task lm --data x.txt --format text --out o --limit 3 --hub --workers 2"
    assert run(monkeypatch, *line.split()) == 0
    wanted = {
        "run": Path("r"), "base": "b", "tasks": ("lm",), "data": ("x.txt",), "format": "text",
        "out": Path("o"), "limit": 3, "hub": True, "workers": Workers(2),
    }  # fmt: skip
    assert recipes.asked == [("finance", wanted)]
    assert capsys.readouterr().out == "report: runs/finance/reports/index.html\n"


def test_finetune_without_the_glossary(monkeypatch: pytest.MonkeyPatch, recipes: Recipes) -> None:
    line = "finetune finance --no-glossary --bits 8 --batch 32 --set epochs=2"
    assert run(monkeypatch, *line.split()) == 0
    (asked,) = recipes.asked
    assert isinstance(asked, Request) and asked.overrides == ("bits=8", "batch=32", 'glossary=""', "epochs=2")


@pytest.mark.parametrize(("more", "bits"), [([], 32), (["--bits", "16"], 16)])
def test_export_passes_everything_on(
    monkeypatch: pytest.MonkeyPatch,
    recipes: Recipes,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    bits: int,
) -> None:
    assert run(monkeypatch, *["export", "r", "--merged", "m", "--base", "b", "--hub"], *more) == 0
    assert recipes.asked == [(Path("r"), Path("m"), {"base": "b", "bits": bits, "hub": True})]
    assert capsys.readouterr().out == "model: m\n"


@pytest.mark.parametrize("bits", ["4", "8", "0"])
def test_a_merged_model_is_never_quantized(
    monkeypatch: pytest.MonkeyPatch, recipes: Recipes, capsys: pytest.CaptureFixture[str], bits: str
) -> None:
    assert run(monkeypatch, "export", "r", "--merged", "m", "--bits", bits) == 1
    assert capsys.readouterr() == ("", f"error: --bits {bits}: a merged model has 16 or 32 bits\n")
    assert not recipes.asked


def test_a_fault_of_the_user_is_one_line(
    monkeypatch: pytest.MonkeyPatch, recipes: Recipes, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes.fault = UserError("not valid JSON", where="news.jsonl:7", instead="one JSON object per line")
    assert run(monkeypatch, "finetune", "finance") == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: news.jsonl:7: not valid JSON; instead: one JSON object per line\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, recipes: Recipes) -> None:
    recipes.fault = ZeroDivisionError()
    monkeypatch.setattr(sys, "argv", ["domainkit", "finetune", "finance"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, recipes: Recipes, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes.fault = KeyboardInterrupt()
    line = ["finetune", "finance", "--overwrite", "--seed", "3", "--out", "my runs"]
    assert run(monkeypatch, *line) == 130
    wanted = "stopped; continue with: domainkit finetune finance --seed 3 --out 'my runs' --resume"
    assert capsys.readouterr().err.splitlines()[-1] == wanted


def test_ctrl_c_says_how_an_extraction_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import domainkit

    class Story:
        Request = staticmethod(lambda *fields: fields)

        def extract(self, request: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "domainkit.extract", Story())  # type: ignore[arg-type]
    monkeypatch.setattr(domainkit, "extract", Story(), raising=False)
    line = ["extract", "runs/medical", "my notes.txt", "--out", "a.jsonl", "--overwrite"]
    assert run(monkeypatch, *line) == 130
    wanted = "stopped; continue with: domainkit extract runs/medical 'my notes.txt' --out a.jsonl --overwrite"
    assert capsys.readouterr().err.splitlines()[-1] == wanted


@dataclass(frozen=True)
class Entry:
    """Stands in for domainkit.model.bases.Entry."""

    name: str = "smollm2-135m"
    path: Path = Path("cache/smollm2-135m")
    installed: bool = True
    size: int = 269_000_000
    sha256: str = "ab12"


@dataclass
class Bases:
    """Stands in for domainkit.model.bases."""

    fault: BaseException | None = None
    wheel: Path | None = None

    def pull(self, name: str, *, wheel: Path | None) -> Path:
        if self.fault:
            raise self.fault
        self.wheel = wheel
        return Path("cache") / name

    def available(self) -> list[Entry]:
        return [Entry(), Entry("other", installed=False)]

    def check(self, name: str) -> Entry:
        return Entry(name)


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> Bases:
    import domainkit.model

    fake = Bases()
    monkeypatch.setitem(sys.modules, "domainkit.model.bases", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(domainkit.model, "bases", fake, raising=False)
    return fake


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("pull smollm2-135m --wheel w.whl", ["base: cache/smollm2-135m"]),
        (
            "list",
            [
                "smollm2-135m  269 MB  cache/smollm2-135m",
                "other  269 MB  not here yet: domainkit base pull other",
            ],
        ),
        ("check b", ["b is intact: cache/smollm2-135m, 269 MB, SHA-256 ab12"]),
    ],
)
def test_base_commands(
    monkeypatch: pytest.MonkeyPatch,
    bases: Bases,
    capsys: pytest.CaptureFixture[str],
    line: str,
    printed: list[str],
) -> None:
    assert run(monkeypatch, "base", *line.split()) == 0
    assert capsys.readouterr().out.splitlines() == printed
    assert bases.wheel == (Path("w.whl") if "--wheel" in line else None)


def test_ctrl_c_elsewhere_just_stops(
    monkeypatch: pytest.MonkeyPatch, bases: Bases, capsys: pytest.CaptureFixture[str]
) -> None:
    bases.fault = KeyboardInterrupt()
    assert run(monkeypatch, "base", "pull", "smollm2-135m") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"


def test_the_stand_ins_are_like_the_real_things() -> None:
    from domainkit import recipes
    from domainkit.model import bases

    assert {f.name for f in fields(recipes.Request)} == {f.name for f in fields(Request)}
    assert {f.name for f in fields(bases.Entry)} == {f.name for f in fields(Entry)}
    assert callable(recipes.plan) and callable(recipes.finetune)
    assert {"domain", "run", "base", "tasks", "data", "format", "out", "limit", "hub", "workers"} == set(
        signature(recipes.evaluate).parameters
    )
    assert {"run", "target", "base", "bits", "hub"} == set(signature(recipes.export).parameters)
    assert {"name", "wheel"} <= set(signature(bases.pull).parameters)
