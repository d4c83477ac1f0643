"""A base as another process loads it: the same weights, positions and rows of a glossary's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from domainkit.files import write_atomic
from domainkit.model.base import Base, load_base
from domainkit.model.rows import Rows, extend


@dataclass(frozen=True)
class Twin:
    """What it takes to load one; `rows` lies on a disk that both see."""

    path: Path
    bits: int
    attention: str
    precision: str  # see `load_base`
    context: int  # tokens, likewise
    kept: int  # last layers that are in memory while the others stay on disk; 0: all are in memory
    rows: Path | None = None  # of the glossary's tokens
    first: int = 0  # id of the first of these

    @classmethod
    def of(cls, base: Base, precision: str, context: int, rows: Path) -> Twin:
        """The base's own. precision, context: what it was loaded with. rows: the file to write those of its tokens
        to."""
        kept = base.depth - base.streamed if base.streamed else 0
        if not base.added:
            return cls(base.path.absolute(), base.bits, base.attention, precision, context, kept)
        weights = {"input": base.input_rows} | ({} if base.tied else {"output": base.output_rows})
        tensors = {name: weight.detach()[list(base.added)].cpu().contiguous() for name, weight in weights.items()}
        write_atomic(rows, lambda draft: draft.write_bytes(safetensors.torch.save(tensors)))
        return cls(base.path.absolute(), base.bits, base.attention, precision, context, kept, rows, base.added[0])

    def load(self) -> Base:
        """The base, but for the glossary's tokenizer: it reads token ids."""
        base = load_base(self.path, bits=self.bits, precision=self.precision, attention=self.attention,
                         context=self.context, stream="always" if self.kept else "never", keep=self.kept)  # fmt: skip
        if not self.rows:
            return base
        saved = safetensors.torch.load_file(self.rows)
        return extend(base, base.tokenizer, self.first, Rows(saved["input"], saved.get("output")))
