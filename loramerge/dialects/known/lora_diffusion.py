"""Lists of lora_diffusion of 2022 (cloneofsimo/lora): modules are counted, not named.

The order is that of `named_modules` in diffusers ≤ 0.12 (down, up, then mid blocks), and in each
transformer block attn1, the first half of the feed-forward, attn2; in CLIP k, v, q, out. Families
that never had this dialect state no prefixes for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.dialects.spec import Dialect, Form, Modules
from loramerge.families import Family

__all__ = ["DIALECT"]

_NAME = "lora_diffusion"
_TRANSFORMER = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj",
    "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
)  # fmt: skip
_ENCODER = ("k_proj", "v_proj", "q_proj", "out_proj")
_SECTIONS = ("down_blocks.", "up_blocks.", "mid_block.")


def _positions(family: Family, component: str) -> list[str]:
    """Return the module paths of a component in the order of the list."""
    modules = next((c.modules for c in family.components if c.name == component), ())
    if component == "unet":
        blocks = [
            m.path.removesuffix(".norm1")
            for section in _SECTIONS
            for m in modules
            if m.path.startswith(section) and ".transformer_blocks." in m.path
            if m.path.endswith(".norm1")
        ]
        return [f"{block}.{leaf}" for block in blocks for leaf in _TRANSFORMER]
    layers = [m.path.removesuffix(".q_proj") for m in modules if m.path.endswith(".q_proj")]
    return [f"{layer}.{leaf}" for layer in layers for leaf in _ENCODER]


def _stems(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
    prefixes = family.prefixes.get(_NAME, {})
    for component in dict.fromkeys(component for component, _ in modules):
        for prefix in prefixes.get(component, ()):
            for index, path in enumerate(_positions(family, component)):
                yield f"{prefix}{index}", f"{component}.{path}"


DIALECT = Dialect(
    name=_NAME,
    title="lora_diffusion of 2022 (cloneofsimo/lora)",
    example="unet:17:up",
    order=4,
    forms=(Form(_stems, {"up": (":up",), "down": (":down",)}),),
    alpha="none",
    prefixes={},
    writable="low-rank deltas of the attention layers and ff.net.0.proj of SD1 and SD2",
    container="lora_diffusion",
    embeddings="token",
    positional=True,
    pickle=True,
)
