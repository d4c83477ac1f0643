"""The notebooks run top to bottom, and are kept without outputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.clinic import make_clinic

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
OPTIONS = ("-p", "no:cacheprovider", "--nbmake", "--overwrite", "--nbmake-timeout=400")


def outputs(notebook: nbformat.NotebookNode, cell: str) -> list[nbformat.NotebookNode]:
    """What a cell shows."""
    return [o for c in notebook.cells if c.id == cell for o in c.outputs if o.get("name") != "stderr"]


def printed(notebook: nbformat.NotebookNode, cell: str) -> str:
    """Everything a cell shows as text."""
    found = outputs(notebook, cell)
    shown = [o.get("text", "") for o in found]
    rich = [o.data.get("text/markdown", o.data.get("text/plain", "")) for o in found if "data" in o]
    return "\n".join(["".join(shown), *rich])


def run(name: str, folder: Path, cache: Path) -> nbformat.NotebookNode:
    """The notebook after it ran in `folder`, from scratch but for what `cache` holds."""
    copy = shutil.copy(FOLDER / f"{name}.ipynb", folder)
    environment = {**os.environ, "DOMAINKIT_CACHE": str(cache), "TMPDIR": str(folder)}
    environment.pop("DOMAINKIT_RUN", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, copy],
        capture_output=True, text=True, env=environment, cwd=folder, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return nbformat.read(copy, as_version=4)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_finance_notebook_runs_top_to_bottom(real_base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "bases").symlink_to(real_base.parent)  # the base from the user's cache, everything else from scratch
    notebook = run("finance", tmp_path, cache)
    assert "adapter_model.safetensors" in printed(notebook, "adapt")
    assert "bits_per_byte/finance-en" in printed(notebook, "report")
    assert "macro_f1" in printed(notebook, "report-regulation")
    assert printed(notebook, "measure").count("before") == 2
    assert len(printed(notebook, "sort").splitlines()) == 3
    assert len(printed(notebook, "terms").splitlines()) == 2
    prompt = "The Federal Reserve raised interest rates because"
    assert all(len(printed(notebook, cell).split(prompt)[1].strip()) > 10 for cell in ("write", "plain"))


def test_the_medical_notebook_reads_with_the_run_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    pytest.importorskip("spacy")
    monkeypatch.setenv("DOMAINKIT_CACHE", str(tmp_path / "cache"))
    clinic = make_clinic(tmp_path / "desk")
    (tmp_path / "runs").mkdir()
    shutil.move(clinic.run, tmp_path / "runs" / "medical")
    notebook = run("medical", tmp_path, tmp_path / "cache")
    assert "'ner': 'ner'" in printed(notebook, "load")
    found = printed(notebook, "read").splitlines()
    assert len({line.split()[0] for line in found}) > 2 and any(" D" in line for line in found)
    (shown,) = (output.data["text/html"] for output in outputs(notebook, "show"))
    assert shown.count("<mark") == len(found)
    assert printed(notebook, "relations").strip()
    assert "ner: Strict F1 of entities" in printed(notebook, "report") and "| f1 |" in printed(notebook, "report")
    assert len(printed(notebook, "spacy").splitlines()) == 3
