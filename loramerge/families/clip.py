"""The CLIP text encoders of the Stable Diffusion line, and OpenCLIP's names for them.

Modules carry transformers' names (`text_model.encoder.layers.0.self_attn.q_proj`). Since
transformers 5 a plain `CLIPTextModel` saves the same names without `text_model.`; checkpoints and
adapters come in both spellings, and both are accepted everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from loramerge.families.spec import Module, Parameter, Slot
from loramerge.records import record

__all__ = ["CLIP_BIG_G", "CLIP_L", "Clip", "clip_modules", "openclip_slot"]


@record
class Clip:
    """The numbers that tell one CLIP text encoder from another.

    Args:
        width, layers: hidden size and number of layers.
        projection: output width of `text_projection`, or None where the encoder has none.
        vocabulary, positions: sizes of the embeddings.
    """

    width: int
    layers: int
    projection: int | None = None
    vocabulary: int = 49408
    positions: int = 77


CLIP_L = Clip(width=768, layers=12)
CLIP_BIG_G = Clip(width=1280, layers=32, projection=1280)
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def clip_modules(clip: Clip) -> Iterator[Module]:
    """Yield every layer with its transformers path and full-width shape."""
    w = clip.width
    yield Module("text_model.embeddings.token_embedding", "embedding", (clip.vocabulary, w), False)
    yield Module(
        "text_model.embeddings.position_embedding", "embedding", (clip.positions, w), False
    )
    for i in range(clip.layers):
        layer = f"text_model.encoder.layers.{i}"
        for name in _ATTENTION:
            yield Module(f"{layer}.self_attn.{name}", "linear", (w, w), True)
        yield Module(f"{layer}.layer_norm1", "norm", (w,), True)
        yield Module(f"{layer}.mlp.fc1", "linear", (4 * w, w), True)
        yield Module(f"{layer}.mlp.fc2", "linear", (w, 4 * w), True)
        yield Module(f"{layer}.layer_norm2", "norm", (w,), True)
    yield Module("text_model.final_layer_norm", "norm", (w,), True)
    if clip.projection is not None:
        yield Module("text_projection", "linear", (clip.projection, w), False)


_OPENCLIP_TOP = {
    ("text_model.embeddings.token_embedding", "weight"): Slot("token_embedding.weight"),
    ("text_model.embeddings.position_embedding", "weight"): Slot("positional_embedding"),
    ("text_model.final_layer_norm", "weight"): Slot("ln_final.weight"),
    ("text_model.final_layer_norm", "bias"): Slot("ln_final.bias"),
    ("text_projection", "weight"): Slot("text_projection", transposed=True),
}
_OPENCLIP_LEAVES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_FUSED = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}
_LAYER = r"text_model\.encoder\.layers\.(\d+)\.(.+)"


def openclip_slot(module: Module, parameter: Parameter) -> Slot | None:
    """Return the slot of a parameter in an OpenCLIP text tower.

    Queries, keys and values are the thirds of `in_proj_weight` and `in_proj_bias`, in this order.
    """
    top = _OPENCLIP_TOP.get((module.path, parameter))
    if top is not None:
        return top
    matched = re.fullmatch(_LAYER, module.path)
    if not matched:
        return None
    index, leaf = matched.groups()
    block = f"transformer.resblocks.{index}"
    if leaf in _FUSED:
        return Slot(f"{block}.attn.in_proj_{parameter}", _FUSED[leaf], 3)
    return Slot(f"{block}.{_OPENCLIP_LEAVES[leaf]}.{parameter}")
