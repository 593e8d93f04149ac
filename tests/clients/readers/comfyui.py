"""ComfyUI reads files: `comfy.lora` on models of the meta device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [sys.argv[1], str(Path(__file__).parent)]
from job import Job, Loaded, base_of, narrow, narrow_size, serve  # noqa: E402
from stubs import stub  # noqa: E402

stub(
    "av", "torchsde", "scipy", "kornia", "spandrel", "aiohttp", "sentencepiece", "torchaudio",
    "torchvision", "comfy_aimdo", "cv2", "sqlalchemy", "alembic", "yarl", "filelock",
)  # fmt: skip
torch: Any = import_module("torch")

_comfy: Any = import_module("comfy.options")
_comfy.enable_args_parsing(False)
import_module("comfy.cli_args").args.cpu = True
LORA: Any = import_module("comfy.lora")
CONVERT: Any = import_module("comfy.lora_convert")
DETECT: Any = import_module("comfy.model_detection")

# family → module and class of its text encoders, and what they are called there
_CLIP_L = {"clip_l": "text_encoder"}
_SD3 = {**_CLIP_L, "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "sd15": ("comfy.sd1_clip", "SD1ClipModel", _CLIP_L),
    "sd21": ("comfy.text_encoders.sd2_clip", "SD2ClipModel", {"clip_h": "text_encoder"}),
    "sdxl": ("comfy.sdxl_clip", "SDXLClipModel", {**_CLIP_L, "clip_g": "text_encoder_2"}),
    "sdxl-refiner": ("comfy.sdxl_clip", "SDXLRefinerClipModel", {"clip_g": "text_encoder_2"}),
    "sd3": ("comfy.text_encoders.sd3_clip", "SD3ClipModel", _SD3),
    "sd35-medium": ("comfy.text_encoders.sd3_clip", "SD3ClipModel", _SD3),
    "sd35-large": ("comfy.text_encoders.sd3_clip", "SD3ClipModel", _SD3),
    "flux1": ("comfy.text_encoders.flux", "FluxClipModel", {**_CLIP_L, "t5xxl": "text_encoder_2"}),
    "chroma": ("comfy.text_encoders.pixart_t5", "PixArtT5XXL", {"t5xxl": "text_encoder"}),
    "pixart": ("comfy.text_encoders.pixart_t5", "PixArtT5XXL", {"t5xxl": "text_encoder"}),
    "lumina2": ("comfy.text_encoders.lumina2", "LuminaModel", {"gemma2_2b": "text_encoder"}),
    "hunyuan-video": (
        "comfy.text_encoders.hunyuan_video",
        "HunyuanVideoClipModel",
        {"llama": "text_encoder", "clip_l": "text_encoder_2"},
    ),
    "hidream-i1": (
        "comfy.text_encoders.hidream",
        "HiDreamTEModel",
        {
            **_CLIP_L,
            "clip_g": "text_encoder_2",
            "t5xxl": "text_encoder_3",
            "llama": "text_encoder_4",
        },
    ),
    "wan": ("comfy.text_encoders.wan", "WanT5Model", {"umt5xxl": "text_encoder"}),
    "anima": ("comfy.text_encoders.anima", "AnimaTEModel", {"qwen3_06b": "text_encoder"}),
    "qwen-image": (
        "comfy.text_encoders.qwen_image",
        "QwenImageTEModel",
        {"qwen25_7b": "text_encoder"},
    ),
}

# tensors that are no layers, and by which ComfyUI tells what a checkpoint is
TABLES = {
    "wan": {"head.modulation": (1, 2, 5120)},
    "auraflow": {"positional_encoding": (1, 1024, 3072)},
    "ovis-image": {},
}

# families whose original files are whole checkpoints, with names after a prefix
WRAPPED = frozenset({"hidream-o1"})


def _network(job: Job) -> tuple[Any, dict[str, str]]:
    """The model, and its own names → the names of the original file."""
    state = {
        name: torch.empty(shape, device="meta") if len(shape) > 1 else torch.zeros(shape)
        for name, shape in job.network.items()
    }
    state |= {name: torch.zeros(shape) for name, shape in TABLES.get(job.family, {}).items()}
    tags = {id(tensor): name for name, tensor in state.items()}
    if job.family in WRAPPED:
        head = DETECT.unet_prefix_from_state_dict(state)
        state = {name.removeprefix(head): tensor for name, tensor in state.items()}
    config = DETECT.model_config_from_unet(dict(state), "")
    assert config is not None, f"ComfyUI does not know {job.family}"
    model = config.get_model(dict(state), "", device="meta")
    own = config.process_unet_state_dict(dict(state))
    return model, {
        f"diffusion_model.{name}": tags[id(tensor)]
        for name, tensor in own.items()
        if id(tensor) in tags
    }


def _encoders(job: Job) -> tuple[Any, dict[str, str]]:
    if job.family not in ENCODERS:
        return None, {}
    module, name, components = ENCODERS[job.family]
    model = getattr(import_module(module), name)(device="meta", dtype=torch.float32)
    tags = {}
    for key in model.state_dict():
        head, _, rest = key.partition(".transformer.")
        component = components.get(head)
        for name in _levels(rest) if component else ():
            if name in job.encoders[component]:
                tags[key] = f"{component}.{name}"
    return model, tags


def _levels(name: str) -> tuple[str, ...]:
    """A parameter's name, and those it has where the level `model` is another, or is not there."""
    lower = name.replace("model.", "model.language_model.", 1)
    return name, lower, f"model.{name}", name.removeprefix("model.")


def reader(job: Job) -> Callable[[Mapping[str, Any]], Loaded]:
    model, tags = _network(job)
    keys = LORA.model_lora_keys_unet(model, {})
    shapes: dict[str, tuple[int, ...]] = dict(job.network)
    encoder, encoder_tags = _encoders(job)
    if encoder is not None:
        keys = LORA.model_lora_keys_clip(encoder, keys)
        tags |= encoder_tags
        shapes |= {f"{c}.{n}": s for c, held in job.encoders.items() for n, s in held.items()}

    def read(tensors: Mapping[str, Any]) -> Loaded:
        unread = _Unread()
        LORA.logging = unread
        patches = LORA.load_lora(CONVERT.convert_lora(dict(tensors)), keys)
        weights: dict[str, Any] = {}
        for target, patch in patches.items():
            given = (target,) if isinstance(target, str) else target
            key, offset, function = (*given, None, None)[:3]
            if key not in tags:
                continue
            tag = tags[key]
            if tag not in weights:
                weights[tag] = torch.from_numpy(base_of(tag, narrow(shapes[tag])))
            if offset is not None:
                offset = (offset[0], narrow_size(offset[1]), narrow_size(offset[2]))
            weights[tag] = LORA.calculate_weight(
                [(1.0, patch, 1.0, offset, function)], weights[tag].clone(), key
            )
        changes = {t: w.numpy() - base_of(t, narrow(shapes[t])) for t, w in weights.items()}
        return Loaded(unread.keys, changes)

    return read


class _Unread:
    """Takes the place of `logging`: what ComfyUI says it has not loaded."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def warning(self, text: str, *_: Any) -> None:
        self.keys.append(text.removeprefix("lora key not loaded: "))

    error = info = debug = warning


if __name__ == "__main__":
    serve(reader)
