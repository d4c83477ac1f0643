"""domainkit turns a general language model into a finance or medical one, on the machine you have."""

from __future__ import annotations

import logging
from typing import Any

# It warns of every 8-bit product on a CPU, and, once imported (peft does), of a kernel that domainkit does not want.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # lazy, so that `import domainkit` and `domainkit --help` never import torch
        from domainkit.run import load

        return load
    raise AttributeError(f"module 'domainkit' has no attribute {name!r}")
