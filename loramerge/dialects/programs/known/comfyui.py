"""ComfyUI: `comfy.lora` and `comfy.weight_adapter`."""

from __future__ import annotations

from loramerge.dialects.programs.spec import Program, Reads

__all__ = ["PROGRAM"]

_TRANSFORMERS = (
    "sd3", "sd35-medium", "sd35-large", "flux1", "flux2-dev", "flux2-klein-4b", "flux2-klein-9b",
    "z-image", "lumina2", "anima", "cosmos2-14b", "wan", "ltx-video", "ltx-video-13b",
)  # fmt: skip
_FORMS = (
    "lora", "tucker", "loha", "lokr", "lokr with a core", "full", "bias", "lone bias",
    "norm", "norm without bias", "oft", "oft with factors", "oft with constraint", "glora",
    "dora of outputs", "dora of inputs",
)  # fmt: skip
_TEXT_NORMS = r"^text_encoder.*(?:layer_?norm|embeddings)"

PROGRAM = Program(
    name="comfyui",
    title="ComfyUI",
    version="0.26.0",
    order=1,
    reads=(
        Reads(("kohya",), ("sd15", "sd21", "sdxl"), _FORMS, _TEXT_NORMS),
        # the projection is named for an encoder that the refiner has not
        Reads(("kohya",), ("sdxl-refiner",), _FORMS, f"{_TEXT_NORMS}|text_projection"),
        Reads(("comfyui",), _TRANSFORMERS, _FORMS),
        Reads(("comfyui",), ("qwen-image",), _FORMS, "^text_encoder"),
        # its norms of queries and keys hold a `scale`, which is no weight
        Reads(("comfyui",), ("hunyuan-video",), _FORMS, r"\.norm_(?:added_)?[qk]$"),
    ),
    otherwise={
        "lokr with a core": "a LoKr with a core changes nothing",
        "dora of outputs": "DoRA is normalised by the base's outputs rather than by the changed ones",
        "oft with factors": "the factors of the outputs are left out",
        "oft with constraint": "the constraint is counted otherwise",
    },
)
