"""The blocks that Flux.1 and its relatives share, with diffusers' and Black Forest Labs' names.

Widths are `w`, `4w` for the feed-forward, `5w` for what a single block joins, and `head`.
Modulation is apart, because some relatives have none in their blocks.
"""

from __future__ import annotations

from loramerge.families.stacks import Native, Row, fused, linear, norm

__all__ = ["DOUBLE", "DOUBLE_MODULATION", "SINGLE", "SINGLE_MODULATION", "embedder"]


def _norms(*names: tuple[str, str]) -> tuple[Row, ...]:
    return tuple(norm(name, "head", native, weight=".scale") for name, native in names)


def embedder(name: str, native: str, columns: str) -> tuple[Row, ...]:
    """Return the rows of a perceptron that embeds a number or a vector."""
    return (
        linear(f"{name}.linear_1", "w", columns, f"{native}.in_layer"),
        linear(f"{name}.linear_2", "w", "w", f"{native}.out_layer"),
    )


DOUBLE_MODULATION = (
    linear("norm1.linear", "6w", "w", "img_mod.lin"),
    linear("norm1_context.linear", "6w", "w", "txt_mod.lin"),
)
DOUBLE = (
    *_norms(
        ("attn.norm_q", "img_attn.norm.query_norm"),
        ("attn.norm_k", "img_attn.norm.key_norm"),
    ),
    *fused(("attn.to_q", "attn.to_k", "attn.to_v"), "w", "w", "img_attn.qkv"),
    linear("attn.to_out.0", "w", "w", "img_attn.proj"),
    *_norms(
        ("attn.norm_added_q", "txt_attn.norm.query_norm"),
        ("attn.norm_added_k", "txt_attn.norm.key_norm"),
    ),
    *fused(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "w", "w", "txt_attn.qkv"),
    linear("attn.to_add_out", "w", "w", "txt_attn.proj"),
    linear("ff.net.0.proj", "4w", "w", "img_mlp.0"),
    linear("ff.net.2", "w", "4w", "img_mlp.2"),
    linear("ff_context.net.0.proj", "4w", "w", "txt_mlp.0"),
    linear("ff_context.net.2", "w", "4w", "txt_mlp.2"),
)
SINGLE_MODULATION = (linear("norm.linear", "3w", "w", "modulation.lin"),)
# linear1 is queries, keys, values and the feed-forward, which is four times as high
SINGLE = (
    *_norms(("attn.norm_q", "norm.query_norm"), ("attn.norm_k", "norm.key_norm")),
    *(
        Row(f"attn.to_{x}", "linear", ("w", "w"), True, Native("linear1", part, 7))
        for part, x in enumerate("qkv")
    ),
    Row("proj_mlp", "linear", ("4w", "w"), True, Native("linear1", 3, 7, 4)),
    linear("proj_out", "w", "5w", "linear2"),
)
