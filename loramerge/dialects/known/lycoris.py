"""LyCORIS' own wrapper of a whole network, as SimpleTuner writes it."""

from __future__ import annotations

from loramerge.dialects.spec import Dialect, Form
from loramerge.dialects.spelling import flat, prefixes, spell
from loramerge.dialects.suffixes import KOHYA

__all__ = ["DIALECT"]

_PREFIXES = prefixes("lycoris", {"unet": ("lycoris_",), "transformer": ("lycoris_",)})

DIALECT = Dialect(
    name="lycoris",
    title="LyCORIS' wrapper of a whole network, as SimpleTuner writes it",
    example="lycoris_transformer_blocks_0_attn_to_q.lokr_w1",
    order=9,
    forms=(Form(spell(_PREFIXES, flat), KOHYA, ("lycoris",)),),
    alpha="tensor",
    prefixes={"lycoris_": ""},
    writable="any module of a known UNet or diffusion transformer",
)
