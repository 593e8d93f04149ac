"""The T5 text encoder (v1.1, gated) and umT5 with transformers' names."""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.families.spec import Module
from loramerge.records import record

__all__ = ["T5", "T5_SIGN", "t5_modules"]


# what stands in the names of every file of these encoders, for `Family.sign`
T5_SIGN = r"SelfAttention|enc\.blk\."


@record
class T5:
    """The numbers that tell one T5 encoder from another.

    Args:
        width, layers: hidden size and number of blocks.
        inner: width of all attention heads together; hidden: of the feed-forward.
        heads, buckets: shape of the relative position bias.
        biased: every block has a bias of its own (umT5); otherwise all read that of the first.
    """

    width: int = 4096
    layers: int = 24
    inner: int = 4096
    hidden: int = 10240
    heads: int = 64
    buckets: int = 32
    vocabulary: int = 32128
    biased: bool = False


def t5_modules(t5: T5) -> Iterator[Module]:
    """Yield every layer with its transformers path and full-width shape."""
    w = t5.width
    yield Module("shared", "embedding", (t5.vocabulary, w), False)
    for i in range(t5.layers):
        block = f"encoder.block.{i}.layer"
        for name in ("q", "k", "v"):
            yield Module(f"{block}.0.SelfAttention.{name}", "linear", (t5.inner, w), False)
        yield Module(f"{block}.0.SelfAttention.o", "linear", (w, t5.inner), False)
        if i == 0 or t5.biased:
            path = f"{block}.0.SelfAttention.relative_attention_bias"
            yield Module(path, "embedding", (t5.buckets, t5.heads), False)
        yield Module(f"{block}.0.layer_norm", "norm", (w,), False)
        yield Module(f"{block}.1.DenseReluDense.wi_0", "linear", (t5.hidden, w), False)
        yield Module(f"{block}.1.DenseReluDense.wi_1", "linear", (t5.hidden, w), False)
        yield Module(f"{block}.1.DenseReluDense.wo", "linear", (w, t5.hidden), False)
        yield Module(f"{block}.1.layer_norm", "norm", (w,), False)
    yield Module("encoder.final_layer_norm", "norm", (w,), False)
