"""hypothesis strategies for small adapters; structure is drawn, numbers follow from a seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from loramerge.adapter import Adapter, Delta
from tests.builders.deltas import adapter, full, low_rank, tucker
from tests.tail import SHARE

# module → shape: linear, wide, tall, 1×1 and 3×3 convolutions, a norm and a bias
LAYERS: dict[str, tuple[int, ...]] = {
    "unet.square": (9, 9),
    "unet.wide": (5, 24),
    "unet.tall": (20, 6),
    "text_encoder.one": (8, 7, 1, 1),
    "unet.conv": (6, 4, 3, 3),
    "unet.norm": (7,),
    "unet.wide:bias": (5,),
}
MATRICES = tuple(name for name, shape in LAYERS.items() if len(shape) > 1)

seeds = st.integers(0, 2**31)
weights = st.one_of(
    st.sampled_from([0.5, -0.5, 1.0, 2.0, -1.25, 0.3]),
    st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3),
)
dtypes = st.sampled_from(["float64", "float32", "float16", "bfloat16"])


@st.composite
def deltas(draw: Any, name: str, *, kinds: tuple[str, ...]) -> Delta:
    shape, seed = LAYERS[name], draw(seeds)
    if len(shape) == 1:
        return full(shape, seed, "diff_b" if name.endswith(":bias") else "w_norm")
    kind = draw(st.sampled_from(kinds))
    if kind == "full":
        return full(shape, seed)
    # ranks above the smaller side are legal
    rank = draw(st.integers(1, 8))
    alpha = draw(st.sampled_from([None, 1.0, 4.0, float(rank), 0.5 * rank]))
    if kind == "tucker" and shape[2:] == (3, 3):
        return tucker(shape, rank, seed, alpha=alpha)
    return low_rank(shape, rank, seed, dtype=draw(dtypes), alpha=alpha)


@st.composite
def adapters(
    draw: Any,
    *,
    names: tuple[str, ...] = tuple(LAYERS),
    kinds: tuple[str, ...] = ("lora", "lora", "lora", "tucker", "full"),
) -> Adapter:
    """An adapter of some of the layers, each of any kind."""
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    return adapter({name: draw(deltas(name, kinds=kinds)) for name in sorted(chosen)})


low_ranks = adapters(names=MATRICES, kinds=("lora", "lora", "tucker"))


@st.composite
def inputs(draw: Any) -> list[tuple[Adapter, float]]:
    """One to three weighted adapters; ranks, dtypes and sites differ."""
    found = draw(st.lists(adapters(), min_size=1, max_size=3))
    return [(a, draw(weights)) for a in found]


def forall(*strategies: Any, examples: int = 25) -> Callable[[Callable[..., None]], None]:
    """Run the decorated function on many examples, at once; where no share is asked for, on half."""

    def run(check: Callable[..., None]) -> None:
        settings(
            max_examples=examples if os.environ.get(SHARE) else -(-examples // 2),
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )(given(*strategies)(check))()

    return run
