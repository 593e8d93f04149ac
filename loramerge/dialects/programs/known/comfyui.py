"""ComfyUI: `comfy.lora` and `comfy.weight_adapter`."""

from __future__ import annotations

from loramerge.dialects.programs.others import (
    BASE_NORM,
    DORA_OF_OUTPUTS,
    NO_CORE,
    NO_FACTORS,
    OTHER_CONSTRAINT,
)
from loramerge.dialects.programs.spec import Program, Reads

__all__ = ["PROGRAM"]

_FACTORS = ("lora", "loha", "lokr", "full", "bias", "dora of outputs")
_USUAL = ("lora", "full", "bias")
_VECTORS = ("lone bias", "norm", "norm without bias")
_OF_THE_BASE = ("oft", "oft with factors", "oft with constraint", "glora", "dora of inputs")
_UNET = (
    *_FACTORS, *DORA_OF_OUTPUTS[1:], "tucker", "loha with cores", "lokr with a core", *_VECTORS,
    *_OF_THE_BASE,
)  # fmt: skip
# what is stored fused holds no rotations
_FUSED = (*_FACTORS, *_VECTORS)
_SPLIT = (*_FUSED, *_OF_THE_BASE)
# (magnitudes of the inputs of a layer with one output were not computed alike)
_OF_KREA2 = tuple(form for form in _SPLIT if form != "dora of inputs")
_UNREAD = ("ia3",)
_HEAD = r"^text_encoder(?:_4)?\.lm_head$"  # what language models have for predicting
_TEXT_NORMS = r"^text_encoder.*(?:layer_?norm|embeddings)"

PROGRAM = Program(
    name="comfyui",
    title="ComfyUI",
    version="0.29.0",
    order=1,
    reads=(
        Reads(("kohya",), ("sd15", "sd21", "sdxl"), _UNET, _TEXT_NORMS, tried=(*_UNET, *_UNREAD)),
        # the projection is named for an encoder that the refiner has not
        Reads(
            ("kohya",),
            ("sdxl-refiner",),
            _UNET,
            f"{_TEXT_NORMS}|text_projection",
            tried=(*_UNET, *_UNREAD),
        ),
        # of these the usual kinds alone were tried
        Reads(
            ("kohya",),
            ("krea2", "ideogram4", "ernie-image", "hunyuan-video-15", "kandinsky5", "lumina2"),
            _USUAL,
            tried=_USUAL,
        ),
        Reads(("kohya",), ("chroma",), _USUAL, r"^text_encoder", tried=_USUAL),
        Reads(
            ("comfyui",),
            (
                *("flux1", "flux2-dev", "flux2-klein-4b", "flux2-klein-9b", "lumina2", "chroma"),
                *("ideogram4", "hunyuan-video-15", "hunyuan-image"),
            ),
            _FUSED,
            tried=(*_FUSED, *_UNREAD),
        ),
        Reads(
            ("comfyui",),
            (
                *("z-image", "anima", "cosmos2-14b", "ltx-video", "ltx-video-13b", "wan"),
                *("ernie-image", "kandinsky5", "auraflow"),
            ),
            _SPLIT,
            tried=(*_SPLIT, *_UNREAD),
        ),
        # of this one, these kinds alone were tried, on the first and the last layer of each sort
        Reads(("comfyui",), ("omnigen2",), ("lora",), tried=("lora",)),
        Reads(
            ("bare",),
            ("omnigen2",),
            ("lora", "full"),
            r"\.image_index_embedding$",
            tried=("lora", "full"),
        ),
        # the head for words and what the deep layers see of pictures are dropped
        Reads(
            ("comfyui",),
            ("hidream-o1",),
            _SPLIT,
            r"\.(?:lm_head$|visual\.deepstack_merger_list\.)",
            tried=(*_SPLIT, *_UNREAD),
        ),
        # 2.3 has these layers, which are made only by the configuration in a checkpoint's header; the
        # connectors belong to the text encoder there
        Reads(
            ("comfyui",),
            ("ltx-2",),
            _SPLIT,
            unseen=r"prompt_adaln|to_gate_logits|^connectors\.",
            tried=(*_SPLIT, *_UNREAD),
        ),
        # its norms of queries and keys hold a `scale`, which is no weight
        Reads(
            ("comfyui",),
            ("hunyuan-video", "longcat-image"),
            _FUSED,
            r"\.norm_(?:added_)?[qk]$",
            tried=(*_FUSED, *_UNREAD),
        ),
        # all of its norms hold a `scale`
        Reads(
            ("comfyui",),
            ("krea2",),
            _OF_KREA2,
            r"[._]norm(?:_[qk]|\d)?$",
            tried=(*_OF_KREA2, *_UNREAD),
        ),
        # of a Tucker core it takes the two factors alone
        Reads(
            ("comfyui",),
            ("sd3", "sd35-medium", "sd35-large", "mochi"),
            (*_FUSED, "lokr with a core"),
            tried=(*_FUSED, "lokr with a core", "tucker", *_UNREAD),
        ),
        Reads(
            ("comfyui",),
            ("qwen-image", "hidream-i1"),
            _SPLIT,
            _HEAD,
            tried=(*_SPLIT, *_UNREAD),
        ),
    ),
    otherwise={
        "lokr with a core": NO_CORE,
        **dict.fromkeys(DORA_OF_OUTPUTS, BASE_NORM),
        "oft with factors": NO_FACTORS,
        "oft with constraint": OTHER_CONSTRAINT,
    },
)
