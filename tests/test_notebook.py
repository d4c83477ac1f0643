"""The notebook runs top to bottom on the real base, and is kept without outputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "finance.ipynb"


def printed(notebook: nbformat.NotebookNode, cell: str) -> str:
    """Everything a cell shows as text."""
    outputs = next(c.outputs for c in notebook.cells if c.id == cell)
    shown = [o.get("text", "") for o in outputs if o.get("name") != "stderr"]
    rich = [o.data.get("text/markdown", o.data.get("text/plain", "")) for o in outputs if "data" in o]
    return "\n".join(["".join(shown), *rich])


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_notebook_runs_top_to_bottom(real_base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "bases").symlink_to(real_base.parent)  # the base from the user's cache, everything else from scratch
    copy = shutil.copy(NOTEBOOK, tmp_path / NOTEBOOK.name)
    environment = {**os.environ, "DOMAINKIT_CACHE": str(cache), "TMPDIR": str(tmp_path)}
    environment.pop("DOMAINKIT_RUN", None)
    options = ["-p", "no:cacheprovider", "--nbmake", "--overwrite", "--nbmake-timeout=400"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, copy],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    notebook = nbformat.read(copy, as_version=4)
    assert "adapter_model.safetensors" in printed(notebook, "adapt")
    assert "bits_per_byte/finance-en" in printed(notebook, "report")
    assert "macro_f1" in printed(notebook, "report-regulation")
    assert printed(notebook, "measure").count("before") == 2
    assert len(printed(notebook, "sort").splitlines()) == 3
    assert len(printed(notebook, "terms").splitlines()) == 2
    prompt = "The Federal Reserve raised interest rates because"
    assert all(len(printed(notebook, cell).split(prompt)[1].strip()) > 10 for cell in ("write", "plain"))
