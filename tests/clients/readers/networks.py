"""Names and shapes of networks as programs' own classes have them, on the meta device.

`networks.py PROGRAM CHECKOUT NETWORK` writes them as JSON; it knows nothing of loramerge.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[:0] = [sys.argv[2], str(Path(__file__).parent)]
from stubs import stub  # noqa: E402

torch: Any = import_module("torch")

# of the published models: `options/ft_lora.yml` of OmniGen 2, `config.json` of HiDream O1
_OMNIGEN2 = {
    "hidden_size": 2520, "num_layers": 32, "num_attention_heads": 21, "num_kv_heads": 7,
    "axes_dim_rope": (40, 40, 40), "axes_lens": (16, 16, 16), "text_feat_dim": 2048,
}  # fmt: skip
_HIDREAM_O1 = {
    "text_config": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936,
    },
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16,
        "patch_size": 16, "num_position_embeddings": 2304, "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    "tie_word_embeddings": False,
}  # fmt: skip
# what ComfyUI tells a network and its sizes by
_BY: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "omnigen2": {"time_caption_embed.timestep_embedder.linear_1.bias": (1024,)},
    "chroma-radiance": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        "distilled_guidance_layer.norms.0.scale": (5120,),
        "distilled_guidance_layer.0.norms.0.scale": (5120,),
        "nerf_blocks.0.norm.scale": (64,),
        **{f"double_blocks.{i}.img_attn.proj.bias": (3072,) for i in range(19)},
        **{f"single_blocks.{i}.linear2.bias": (3072,) for i in range(38)},
    },
    "wan-s2v": {
        "head.modulation": (1, 2, 5120),
        "head.head.weight": (64, 5120),
        "patch_embedding.weight": (5120, 16, 1, 2, 2),
        "casual_audio_encoder.encoder.final_linear.weight": (5120, 5120),
        **{f"blocks.{i}.ffn.0.weight": (13824, 5120) for i in range(40)},
    },
}
_BY = {
    **_BY,
    "chroma-radiance-conv": {**_BY["chroma-radiance"], "nerf_final_layer_conv.norm.scale": (64,)},
}


def _omnigen2(network: str) -> Any:
    module = import_module("omnigen2.models.transformers.transformer_omnigen2")
    with torch.device("meta"):
        return module.OmniGen2Transformer2DModel(**_OMNIGEN2)


def _hidream_o1(network: str) -> Any:
    rope: Any = import_module("transformers.modeling_rope_utils")
    # which transformers 5 has no longer, and no parameter depends on
    rope.ROPE_INIT_FUNCTIONS.setdefault("default", lambda *_, **__: (torch.ones(1), 1.0))
    config = import_module("transformers").Qwen3VLConfig(**_HIDREAM_O1)
    with torch.device("meta"):
        module = import_module("models.qwen3_vl_transformers")
        return module.Qwen3VLForConditionalGeneration(config)


def _comfyui(network: str) -> Any:
    stub(
        "av", "torchsde", "scipy", "kornia", "spandrel", "aiohttp", "sentencepiece", "torchaudio",
        "torchvision", "comfy_aimdo", "cv2", "sqlalchemy", "alembic", "yarl", "filelock",
    )  # fmt: skip
    options: Any = import_module("comfy.options")
    options.enable_args_parsing(False)
    import_module("comfy.cli_args").args.cpu = True
    state = {name: torch.empty(shape, device="meta") for name, shape in _BY[network].items()}
    config = import_module("comfy.model_detection").model_config_from_unet(state, "")
    return config.get_model(state, "", device="meta").diffusion_model


_PROGRAMS: Mapping[str, Callable[[str], Any]] = {
    "omnigen2": _omnigen2,
    "hidream_o1": _hidream_o1,
    "comfyui": _comfyui,
}

if __name__ == "__main__":
    made = _PROGRAMS[sys.argv[1]](sys.argv[3])
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    Path(sys.argv[4]).write_text(json.dumps(shapes))
