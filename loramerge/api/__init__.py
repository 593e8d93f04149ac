"""The Python interface: the same verbs on adapters in memory.

    import loramerge as lm

    a, b = lm.load("a.safetensors"), lm.load("b.safetensors")
    small = lm.resize(0.7 * a + 0.3 * b, rank=8)
    lm.save(small, "ab-r8.safetensors")
    lm.bake("sd21-custom", [(small, 1.0)], "out.safetensors")
    lm.run("recipe.yaml", set={"w": 0.5})

Wherever an adapter is taken, a path or a name is too, with a weight behind it: `"zuzu:0.7"`. Errors,
names and defaults are those of the command line; docs/python.md has runnable examples.
"""

from __future__ import annotations

from loramerge.adapter import Adapter
from loramerge.api.adapters import convert, error_curve, heal, mix, resize, resize_each
from loramerge.api.checkpoints import bake, extract, merge, unbake
from loramerge.api.files import card, load, save
from loramerge.api.networks import preview, train
from loramerge.api.seeing import compare, diff, inspect, verify

__all__ = [
    "Adapter",
    "bake",
    "card",
    "compare",
    "convert",
    "diff",
    "error_curve",
    "extract",
    "heal",
    "inspect",
    "load",
    "merge",
    "mix",
    "preview",
    "resize",
    "resize_each",
    "save",
    "train",
    "unbake",
    "verify",
]
