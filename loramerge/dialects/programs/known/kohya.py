"""Networks of sd-scripts, which change most of a UNet and the blocks of diffusion transformers."""

from __future__ import annotations

from loramerge.dialects.programs.spec import Program, Reads

__all__ = ["PROGRAM"]

_OUTSIDE = r"^unet\.(?:time_embedding|add_embedding|conv_in|conv_out)|text_projection"

# what may be stored fused
_FUSED = (
    "lora", "loha", "lokr", "dora of outputs", "full", "ia3", "bias", "lone bias", "norm",
    "norm without bias",
)  # fmt: skip

PROGRAM = Program(
    name="kohya",
    title="sd-scripts",
    version="0.9.1 (48d368f)",
    order=5,
    reads=(
        Reads(("kohya",), ("sd15", "sd21", "sdxl"), ("lora",), _OUTSIDE),
        Reads(
            ("kohya",), ("flux1",), ("lora",), r"^transformer\.(?:norm_out|proj_out$)", tried=_FUSED
        ),
        Reads(("kohya",), ("lumina2",), ("lora",), tried=_FUSED),
    ),
    refuses=frozenset({"tucker"}),
)
