"""The limits from which on something is reported, and why they are where they are.

The document docs/health.md shows this table beside the largest values on real adapters.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LIMITS", "Limit"]


class Limit(NamedTuple):
    """One limit.

    Args:
        value: from which on the code is reported.
        below: whether it is reported below the value instead.
        measured: the figure that is compared with it.
        reason: why the limit is there.
    """

    value: float
    below: bool
    measured: str
    reason: str


LIMITS: dict[str, Limit] = {
    "spike": Limit(
        6.0,
        False,
        "the smaller of σ₁/σ₂ and σ₁ beside the median σ₁ of the same layer in other blocks",
        "a few steps at too high a rate leave one direction far above all others",
    ),
    "loud-module": Limit(
        7.0,
        False,
        "norm of ΔW beside the same layer in other blocks and other layers of the same block",
        "a module at 8 times its strength is 8 times as far from its neighbours as before, and above "
        "the limit if it was no fainter than they",
    ),
    "faint-module": Limit(
        64.0,
        False,
        "the same, the other way round",
        "far below what layers that only one adapter of a merge has can explain",
    ),
    "collapsed": Limit(
        1.00001,
        True,
        "median effective rank of modules of several ranks",
        "all ranks but one are below a thousandth of it; in a merge, more is left even beside a loud "
        "adapter of rank 1",
    ),
    "qkv-imbalance": Limit(
        30.0,
        False,
        "largest beside smallest norm of queries, keys and values of one attention",
        "one of the three was hardly trained",
    ),
    "alpha-large": Limit(
        64.0,
        False,
        "alpha / rank (rsLoRA: alpha / √rank)",
        "small factors at a large scale lose digits, and a wrong unit is likely",
    ),
    "layer-lost": Limit(
        0.15,
        True,
        "share of the blocks that lack a layer which all others have",
        "trainers leave out whole kinds of layers or ranges of blocks, not single ones",
    ),
    "float16-overflow": Limit(
        65504.0,
        False,
        "largest value of the factors and of ΔW",
        "the largest number of float16",
    ),
    "stronger-than-usual": Limit(
        2.0,
        False,
        "the change beside the strongest measured of the family (‖ΔW‖/‖W‖, or without a base the "
        "mean norm of a module); ‖ΔW‖/‖W‖ beside 0.5 where none is known",
        "beyond it images break down",
    ),
    "weaker-than-usual": Limit(
        8.0,
        False,
        "the weakest measured of the family beside the change, in the same measures",
        "hardly visible at weight 1",
    ),
    "intruders": Limit(
        0.5,
        False,
        "share of the 10 leading left singular vectors of all W + ΔW whose cosine with each of W's is "
        "below 0.6",
        "most of what the layers do is new to the base; arXiv 2410.21228, definition 1",
    ),
}
