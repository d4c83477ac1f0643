"""A built wheel works outside the checkout, with nothing but its packed data."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
DATA = ("tasks", "glossaries", "ontologies")


@dataclass(frozen=True)
class Installed:
    """A fresh environment that holds the wheel, and a folder elsewhere to run it from."""

    folder: Path  # the environment
    cwd: Path

    def __call__(self, *command: str) -> str:
        """What `command`, a program of the environment, prints. Fails with both outputs if it does."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.cwd,
            env=environment | {"PYTHONNOUSERSITE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(CHECKOUT),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("domainkit-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel alone in a new environment; its dependencies are borrowed from the running one."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A line in a .pth file comes after the environment's own packages, and the .pth files of the borrowed
    # folder are not read: an editable install there cannot shadow the wheel.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return Installed(folder, tmp_path_factory.mktemp("elsewhere"))


def test_all_data_is_packed(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for top in DATA for path in (CHECKOUT / top).rglob("*") if path.is_file()]
    missing = [p for p in files if f"domainkit/_assets/{p.relative_to(CHECKOUT).as_posix()}" not in names]
    assert {path.relative_to(CHECKOUT).parts[0] for path in files} == set(DATA)
    assert not missing


def test_the_licence_and_the_attributions_are_packed(wheel: Path) -> None:
    packed = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/licenses/" in name}
    assert packed == {"LICENSE", "NOTICE"}


def test_nothing_else_is_packed(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"domainkit"}


def test_the_wheel_and_not_the_checkout_runs(installed: Installed) -> None:
    where = Path(installed("python", "-c", "import domainkit; print(domainkit.__file__)").strip())
    assert where.is_relative_to(installed.folder)


def test_the_commands_run(installed: Installed) -> None:
    assert "finetune" in installed("domainkit", "--help")
    assert "smollm2-135m" in installed("domainkit", "base", "list")


def test_the_packed_domain_loads(installed: Installed) -> None:
    code = (
        "from domainkit.spec import Domain; d = Domain.load('finance');"
        "print(*[t.name for t in d.tasks]); print(*[s.path for t in d.tasks for s in t.sources], sep='\\n')"
    )
    names, *paths = installed("python", "-c", code).splitlines()
    assert set(names.split()) >= {"lm", "regulation"}
    assert paths and all(Path(path).is_relative_to(installed.folder) and Path(path).exists() for path in paths)


def tiny_base(folder: Path) -> None:
    """Write a base of random weights: 4 Llama layers of width 32, one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **shape)).save_pretrained(folder)


def test_a_dry_run_reads_the_packed_data(installed: Installed) -> None:
    base = installed.cwd / "tiny"
    tiny_base(base)
    line = f"finetune finance --base {base} --bits 32 --limit 20 --dry-run"
    printed = installed("domainkit", *line.split())
    assert "task lm" in printed and "task regulation" in printed and "disk" in printed
    assert not (installed.cwd / "runs").exists()
