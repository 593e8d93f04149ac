"""Forge: `backend.patcher.lora`, an older `comfy.lora`."""

from __future__ import annotations

from loramerge.dialects.programs.others import BASE_NORM, DORA_OF_OUTPUTS
from loramerge.dialects.programs.spec import Program, Reads

__all__ = ["PROGRAM"]

_FORMS = (
    "lora", "tucker", "loha", "loha with cores", "lokr", "full", "bias", "lone bias", "norm",
    "norm without bias", "glora", *DORA_OF_OUTPUTS, "dora of inputs",
)  # fmt: skip
_TRIED = (
    *_FORMS, "lokr with a core", "ia3", "oft", "oft with factors", "oft with constraint",
)  # fmt: skip
_TEXT_NORMS = r"^text_encoder.*(?:layer_?norm|embeddings)"

PROGRAM = Program(
    name="forge",
    title="Forge",
    version="2.0 (dfdcbab)",
    order=3,
    reads=(Reads(("kohya",), ("sd15", "sd21", "sdxl"), _FORMS, _TEXT_NORMS, tried=_TRIED),),
    otherwise=dict.fromkeys(DORA_OF_OUTPUTS, BASE_NORM),
    refuses=frozenset({"lokr with a core"}),
    most_unread=12,
)
