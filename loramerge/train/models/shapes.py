"""Configurations of the models of SD1, SD2 and SDXL, from the shapes of their layers.

What shapes do not tell is the same in all of them, or follows from others: heads are 64 wide where
proj_in is linear, and 8 where it is a convolution; OpenCLIP has GELU, OpenAI's CLIP its own.

Source: the configurations that Stability AI, Runway and OpenAI published with these models.
"""

from __future__ import annotations

import re
from typing import Any

from loramerge.train.models.architecture import Network, Shapes

__all__ = ["clip_config", "unet_config", "vae_config"]


def _count(shapes: Shapes, pattern: str) -> int:
    """Count the numbers that the group of a pattern takes at the beginning of names."""
    found = (re.match(pattern, name) for name in shapes)
    return len({match[1] for match in found if match})


def unet_config(shapes: Shapes, side: int) -> dict[str, Any]:
    """Return the configuration of a UNet.

    Args:
        shapes: of its modules, named as in diffusers.
        side: of the latents it was made for.
    """
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    widths = [shapes[f"down_blocks.{n}.resnets.0.conv1"][0] for n in range(levels)]
    depths = [
        _count(shapes, rf"down_blocks\.{n}\.attentions\.0\.transformer_blocks\.(\d+)\.")
        for n in range(levels)
    ]
    linear = len(shapes["mid_block.attentions.0.proj_in"]) == 2
    context = shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"][1]
    found = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side,
        "in_channels": shapes["conv_in"][1],
        "out_channels": shapes["conv_out"][0],
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)],
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "attention_head_dim": [width // 64 if linear else 8 for width in widths],
        "cross_attention_dim": context,
        "use_linear_projection": linear,
    }
    added = shapes.get("add_embedding.linear_1")
    if added is not None:
        found |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                  "projection_class_embeddings_input_dim": added[1]}  # fmt: skip
    return found


def vae_config(shapes: Shapes, scaling: float) -> dict[str, Any]:
    """Return the configuration of a VAE.

    Args:
        shapes: of its tensors, named as in the single file.
        scaling: factor of its latents.
    """
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [
            shapes[f"encoder.down.{n}.block.0.conv1.weight"][0] for n in range(levels)
        ],
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": scaling,
    }


def clip_config(network: Network) -> dict[str, Any]:
    """Return the configuration of a CLIP text encoder."""
    shapes = network.shapes
    rows, width = shapes["text_model.embeddings.token_embedding"]
    projection = shapes.get("text_projection", (width,))[0]
    return {
        "model_type": "clip_text_model",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1"][0],
        "num_hidden_layers": _count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding"][0],
        "projection_dim": projection,
        "hidden_act": "gelu" if network.openclip else "quick_gelu",
        "bos_token_id": rows - 2,
        "eos_token_id": rows - 1,
        "pad_token_id": 0 if network.openclip else rows - 1,
    }
