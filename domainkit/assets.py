"""Where the packed data and the user's cache live."""

from __future__ import annotations

import os
from pathlib import Path

_PACKED = Path(__file__).parent / "_assets"
ROOT = _PACKED if _PACKED.is_dir() else Path(__file__).parent.parent  # wheel, else checkout


def cache_dir() -> Path:
    """Folder for bases and activations: $DOMAINKIT_CACHE, else $XDG_CACHE_HOME/domainkit, else ~/.cache/domainkit."""
    explicit = os.environ.get("DOMAINKIT_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "domainkit"
