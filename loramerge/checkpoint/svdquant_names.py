"""The names of the layers in files of nunchaku, and the modules of the model that they hold.

Source: nunchaku, `convert_flux_state_dict`, and its models of Flux.1, Qwen-Image, Z-Image and SDXL.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

__all__ = ["modules_of", "next_of", "pair_of", "shifted", "split_columns", "splits_of"]

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# of the first layout, in the blocks of Flux.1
_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": _QKV,
    "qkv_proj_context": _ADDED,
    "out_proj": ("attn.to_out.0",),
    "out_proj_context": ("attn.to_add_out",),
    "mlp_fc1": ("ff.net.0.proj",),
    "mlp_fc2": ("ff.net.2",),
    "mlp_context_fc1": ("ff_context.net.0.proj",),
    "mlp_context_fc2": ("ff_context.net.2",),
    **{f"norm_{x}": (f"attn.norm_{x}",) for x in ("q", "k", "added_q", "added_k")},
}
_SINGLE: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": _QKV,
    "mlp_fc1": ("proj_mlp",),
    **{f"norm_{x}": (f"attn.norm_{x}",) for x in ("q", "k")},
}
# of every layout, at the end of a name
_FUSED: Mapping[str, tuple[str, ...]] = {
    ".to_qkv": (".to_q", ".to_k", ".to_v"),
    ".add_qkv_proj": (".add_q_proj", ".add_k_proj", ".add_v_proj"),
    # the gate is the second half
    ".feed_forward.net.0.proj": (".feed_forward.w3", ".feed_forward.w1"),
    ".feed_forward.net.2": (".feed_forward.w2",),
}
_BLOCK = re.compile(r"(.*\b(single_)?transformer_blocks\.\d+\.)(.+)")
# layers whose kernels hand one branch's result to the other
_PAIRS = {
    "mlp_fc1": "mlp_fc2",
    "mlp_context_fc1": "mlp_context_fc2",
}
# columns of Flux.1's `proj_out` of single blocks: attention, then the feed-forward layer
_COLUMNS = (("out_proj", "mlp_fc2"), ("attn.to_out", "mlp_fc2"))


def modules_of(stem: str) -> tuple[str, ...]:
    """Return the modules of the model whose rows a layer holds; itself where the names are equal."""
    block = _BLOCK.fullmatch(stem)
    if block is not None:
        head, single, rest = block.groups()
        table = _SINGLE if single else _DOUBLE
        if rest in table:
            return tuple(head + name for name in table[rest])
    for end, names in _FUSED.items():
        if stem.endswith(end):
            return tuple(stem.removesuffix(end) + name for name in names)
    return (stem,)


def pair_of(stem: str) -> str:
    """Return the layer whose branch must have the rank of this one's, '' if there is none."""
    head, _, last = stem.rpartition(".")
    both = {**_PAIRS, **{two: one for one, two in _PAIRS.items()}}
    return f"{head}.{both[last]}" if last in both else ""


def split_columns(stems: Collection[str]) -> Mapping[str, tuple[str, str]]:
    """Return the modules whose columns lie in two layers, with these."""
    found = {}
    for stem in stems:
        block = _BLOCK.fullmatch(stem)
        if block is None or not block[2]:
            continue
        for first, second in _COLUMNS:
            if block[3] == first and block[1] + second in stems:
                found[f"{block[1]}proj_out"] = (stem, block[1] + second)
    return found


# values, and the output layer whose inputs they become
_NEXT = {
    "qkv_proj": ("out_proj",),
    "qkv_proj_context": ("out_proj_context",),
    "to_qkv": ("to_out.0", "to_out"),
    "to_v": ("to_out.0", "to_out"),
    "add_qkv_proj": ("to_add_out",),
    "add_v_proj": ("to_add_out",),
}
_MODULATIONS = (".norm1.linear", ".norm1_context.linear", ".img_mod.1", ".txt_mod.1")
_SHIFTED = re.compile(
    r"(single_)?transformer_blocks\.\d+\."
    r"(mlp_fc2|mlp_context_fc2|ff\.net\.2|ff_context\.net\.2|img_mlp\.net\.2|txt_mlp\.net\.2)"
)


def next_of(stem: str) -> tuple[str, ...]:
    """Return the possible names of the layer whose inputs are mixtures of this one's outputs."""
    head, _, last = stem.rpartition(".")
    return tuple(f"{head}.{name}" for name in _NEXT.get(last, ()))


def splits_of(stem: str) -> int:
    """Return the number of modulations among which the outputs of a layer alternate; 1 for others."""
    if stem.endswith(_MODULATIONS):
        return 6
    return (
        3 if stem.startswith("single_transformer_blocks.") and stem.endswith(".norm.linear") else 1
    )


def shifted(stem: str) -> bool:
    """Return whether the inputs of a layer of whole numbers are shifted, so that none is negative."""
    return _SHIFTED.fullmatch(stem) is not None
