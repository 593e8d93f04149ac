"""PEFT: `PeftModel.from_pretrained` on folders, whose keys are the names of the model's modules."""

from __future__ import annotations

from loramerge.dialects.programs.spec import ANY, Program, Reads

__all__ = ["PROGRAM"]

_FORMS = (
    "lora", "dora of outputs", "loha", "lokr", "lokr with a core", "oft of inputs", "boft", "ia3",
    "bias beside factors", "adalora", "beft", "c3a", "deft", "delora", "fourierft", "glora of elements",
    "gralora", "hira", "hra", "miss", "miss, mini", "miss of blocks", "osf", "peanut", "pvera",
    "randlora", "road", "shira", "supertuning", "tinylora", "unilora", "vblora", "vera", "waveft",
)  # fmt: skip

PROGRAM = Program(
    name="peft",
    title="PEFT",
    version="0.21.2",
    order=8,
    reads=(Reads(("peft",), (ANY,), _FORMS, tried=_FORMS),),
)
