"""XLabs' attention processors of Flux: of `linear1` only queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.dialects.native import native_names
from loramerge.dialects.spec import Dialect, Form, Fused, Modules
from loramerge.families import Family

__all__ = ["DIALECT"]

_NAME = "xlabs"
_LEAVES = {
    "img_attn.qkv": "qkv_lora1",
    "txt_attn.qkv": "qkv_lora2",
    "img_attn.proj": "proj_lora1",
    "txt_attn.proj": "proj_lora2",
    "linear1": "qkv_lora",
    "linear2": "proj_lora",
}


def _stems(family: Family, modules: Modules) -> Iterator[tuple[str, Fused]]:
    prefixes = family.prefixes.get(_NAME, {})
    if not prefixes:
        return
    for component, name, target in native_names(family, modules):
        sort, _, rest = name.partition(".")
        number, _, leaf = rest.partition(".")
        spelled = _LEAVES.get(leaf)
        if spelled is None:
            continue
        if leaf == "linear1":
            target = Fused(target.modules[:3], target.spans[:3])
        for prefix in prefixes.get(component, ()):
            yield f"{prefix}{sort}.{number}.processor.{spelled}", target


DIALECT = Dialect(
    name=_NAME,
    title="XLabs: attention processors of Flux",
    example="double_blocks.0.processor.qkv_lora1.down.weight",
    order=7,
    forms=(Form(_stems, {"up": (".up.weight",), "down": (".down.weight",)}),),
    alpha="none",
    prefixes={},
    marks=("diffusion_model.",),
    marked_after=("",),
    writable="low-rank deltas of the attention of Flux (of linear1 without proj_mlp)",
)
