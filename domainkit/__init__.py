"""domainkit turns a general language model into a finance or medical one, on the machine you have."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # lazy, so that `import domainkit` and `domainkit --help` never import torch
        from domainkit.run import load

        return load
    raise AttributeError(f"module 'domainkit' has no attribute {name!r}")
