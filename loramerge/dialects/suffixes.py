"""Suffixes that several dialects share: role → suffixes, the first is written.

They are those of ordinary LoRA and of differences; how other kinds are spelled is theirs to say, and
a form names the containers whose suffixes it takes (`words.Words`).
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["KOHYA", "ORIGINAL", "PEFT", "PEFT_FIRST"]

# what stands beside the factors in files of kohya's and LyCORIS' line
ORIGINAL: Mapping[str, tuple[str, ...]] = {
    "alpha": (".alpha",),
    "diff": (".diff",),
    "diff_b": (".diff_b",),
    "w_norm": (".w_norm",),
    "b_norm": (".b_norm",),
    "scale": (".scale",),
}
KOHYA: Mapping[str, tuple[str, ...]] = {
    "up": (".lora_up.weight", ".lora_B.weight"),
    "down": (".lora_down.weight", ".lora_A.weight"),
    **ORIGINAL,
}
# factors of diffusion transformers: PEFT's words are written, kohya's are read
PEFT_FIRST: Mapping[str, tuple[str, ...]] = {
    "up": (".lora_B.weight", ".lora_up.weight", ".lora_B.default.weight"),
    "down": (".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight"),
    "up_bias": (".lora_B.bias",),
}
PEFT: Mapping[str, tuple[str, ...]] = {
    "down": (".lora_A.weight", ".lora_A.default.weight"),
    "up": (".lora_B.weight", ".lora_B.default.weight"),
}
