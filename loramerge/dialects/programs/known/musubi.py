"""Networks of musubi-tuner, which change the blocks of diffusion transformers."""

from __future__ import annotations

from loramerge.dialects.programs.spec import Program, Reads

__all__ = ["PROGRAM"]

_BLOCKS = r"^(?!transformer\.(?:single_)?transformer_blocks\.)"

PROGRAM = Program(
    name="musubi",
    title="musubi-tuner",
    version="0.3.4 (30c658c)",
    order=6,
    reads=(
        Reads(
            ("kohya",),
            ("flux1", "flux2-klein-4b", "hunyuan-video"),
            ("lora",),
            _BLOCKS,
            tried=("lora",),
        ),
        Reads(("kohya",), ("wan",), ("lora",), r"^(?!transformer\.blocks\.)", tried=("lora",)),
        Reads(("kohya",), ("hidream-o1",), ("lora",), r"\.lm_head$", tried=("lora",)),
    ),
)
