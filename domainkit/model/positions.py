"""Read further than a base was trained to: its rotary positions stretched by YaRN (arXiv 2309.00071).

Fast rotations stay as they are, slow ones become slower, and attention is a little sharper; nothing is trained for it.
Transformers computes all of that: here the factor is chosen, and a base refused whose positions cannot be stretched.
"""

from __future__ import annotations

from typing import Any

from domainkit.types import UserError

YARN = "yarn"  # Transformers' name for it


def stretch(config: Any, context: int, *, where: object) -> str:
    """Let a decoder's configuration reach `context` tokens; returns what was done to it, "" for nothing.

    The factor is the least whole number that suffices, so that contexts of similar length share their activations.
    Nothing is done up to the positions that the decoder was trained to, nor where it knows no last one. Raises
    UserError where positions are not rotary, are scaled already, or differ from layer to layer.
    """
    trained = getattr(config, "max_position_embeddings", None)
    if trained is None or context <= trained:
        return ""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        found = f"scaled already ({rope['rope_type']})" if "rope_type" in rope else (
            "rotary, but not alike in all layers" if rope else "not rotary")  # fmt: skip
        raise _refusal(trained, context, found, where)
    factor = -(-context // trained)
    own = {"rope_type": YARN, "factor": float(factor), "original_max_position_embeddings": trained}
    config.rope_parameters = {**rope, **own}
    config.max_position_embeddings = factor * trained
    return f"{trained} x {factor} by YaRN"


def check(model: Any, context: int, *, where: object) -> None:
    """Raise UserError unless a model that was built from a stretched configuration makes use of it."""
    if not any(getattr(module, "rope_type", None) == YARN for module in model.modules()):
        trained = model.config.rope_parameters["original_max_position_embeddings"]
        raise _refusal(trained, context, "of a kind that takes no scaling", where)


def _refusal(trained: int, context: int, found: str, where: object) -> UserError:
    what = f"was trained to {trained} positions, context is {context}, and its positions are {found}: YaRN cannot help"
    instead = f"--set context={trained} (longer documents become several sequences), or a base with longer positions"
    return UserError(what, where=where, instead=instead)
