"""Modules that do not learn: a list by block, and the most likely cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from loramerge.errors import listed

__all__ = ["block_of", "likely_cause", "listed_by_block"]

_BLOCK = re.compile(r"(?:.*?\.)?mid_block(?=\.)|.*?\.\d+(?=\.)|[^.]+")
_MOST_BLOCKS, _MOST_NAMES = 24, 3

_REENTRANT = (
    "reentrant checkpointing cuts a block whose inputs need no gradient: checkpoint with "
    "use_reentrant=False (diffusers' enable_gradient_checkpointing does), or call "
    "requires_grad_(True) on the latents and text states"
)
_EVERYTHING = (
    "the loss does not reach the LoRA: look for torch.no_grad, detach or .item() between the model "
    "and the loss, or check whether another copy of the model is trained"
)
_UP_MOVES_NOT = (
    "down learns after up has changed, and up stays zero: the optimizer does not change it (the "
    "learning rate is 0, or the optimizer holds other parameters)"
)
_TEXT = "the text states are wrong: all zero, or cached of an empty text; or cross-attention is off"
_UNUSED = (
    "the forward pass does not use these layers, or uses their weights without calling them (fused "
    "projections, layers after a CLIP skip): leave them out with exclude="
)


def block_of(name: str) -> str:
    """Return the block of a module by its name: `unet.down_blocks.0`, `unet.mid_block`, …."""
    found = _BLOCK.match(name)
    return found[0] if found else name


def _by_block(names: Iterable[str]) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(block_of(name), []).append(name)
    return blocks


def listed_by_block(names: Sequence[str], everything: Iterable[str]) -> str:
    """Return the modules as text, one line for each block: all of its modules, or some of them."""
    whole = _by_block(everything)
    lines = []
    for block, found in _by_block(names).items():
        total = len(whole[block])
        if len(found) == total > 1:
            lines.append(f"{block}: all {total} modules")
        else:
            inner = [name.removeprefix(f"{block}.") for name in found]
            lines.append(f"{block}: {len(found)} of {total} modules: {listed(inner, _MOST_NAMES)}")
    shown = lines[:_MOST_BLOCKS]
    more = len(lines) - len(shown)
    return "\n    ".join(["", *shown, *([f"… and {more} more blocks"] if more else [])])


def likely_cause(
    names: Sequence[str], everything: Iterable[str], which: str = "both halves", kinds: str = ""
) -> str:
    """Return the most likely reason why these modules do not learn.

    Args:
        everything: all injected modules.
        which: the halves without a gradient, in words.
        kinds: what they had instead, such as a gradient of zero.
    """
    every = list(everything)
    if which.endswith("down"):
        return _UP_MOVES_NOT
    if len(names) == len(every):
        return _EVERYTHING
    if all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in names):
        return _TEXT
    whole = _by_block(every)
    complete = all(len(found) == len(whole[block]) for block, found in _by_block(names).items())
    if complete and "zero" not in kinds and any(len(whole[block_of(name)]) > 1 for name in names):
        return _REENTRANT
    return _UNUSED
