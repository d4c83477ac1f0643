"""What a result was made with."""

from __future__ import annotations

import sys
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from domainkit import __version__


@cache
def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "scikit-learn", "scipy", "numpy", "numba",
             "ftfy", "py3langid", "datasketch", "ahocorasick-rs")  # fmt: skip
    more = [name for name in ("torchao",) if find_spec(name)]
    return {
        "domainkit": __version__,
        "python": sys.version.split()[0],
        **{name: version(name) for name in (*names, *more)},
    }


@cache
def code() -> str:
    """SHA-256 of domainkit's own sources, which change more often than its version."""
    package = Path(__file__).parent
    total = sha256()
    for file in sorted(package.rglob("*.py")):
        total.update(f"{file.relative_to(package)} {sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
