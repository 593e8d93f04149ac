"""A1111's web UI: its extension `Lora`."""

from __future__ import annotations

from loramerge.dialects.programs.others import ALL_BY_INPUTS, DORA_OF_OUTPUTS
from loramerge.dialects.programs.spec import Program, Reads

__all__ = ["PROGRAM"]

_FORMS = (
    "lora", "tucker", "loha", "loha with cores", "lokr", "lokr with a core", "full", "bias", "norm",
    "oft", "oft with factors", "oft with constraint", *DORA_OF_OUTPUTS, "dora of inputs",
)  # fmt: skip
_TRIED = (*_FORMS, "ia3", "glora", "lone bias", "norm without bias")
_NOT = (
    r"^text_encoder.*(?:final_layer_norm|embeddings|text_projection)|^text_encoder_2.*layer_norm"
    "|conv_norm_out"
)

PROGRAM = Program(
    name="a1111",
    title="A1111",
    version="1.10",
    order=2,
    reads=(
        Reads(("kohya",), ("sd15", "sdxl"), _FORMS, _NOT, tried=_TRIED),
        # of convolutions it makes another shape, and leaves them as they are
        Reads(
            ("kohya",), ("sd15", "sdxl"), ("ia3",), f"{_NOT}|conv|proj_(?:in|out)$", tried=_TRIED
        ),
    ),
    otherwise=dict.fromkeys(DORA_OF_OUTPUTS, ALL_BY_INPUTS),
    refuses=frozenset({"lone bias", "norm without bias"}),
)
