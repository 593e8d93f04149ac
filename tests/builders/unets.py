"""A tiny UNet of diffusers, and one step of denoising with it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

diffusers: Any = pytest.importorskip("diffusers")


def tiny_unet(seed: int = 0, blocks: int = 3) -> Any:
    """Of three blocks, whose names are a part of SD2's, or of two, whose names are of no family."""
    torch.manual_seed(seed)
    inner = ["CrossAttn"] * 2
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16, 16)[:blocks], norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=12, use_linear_projection=True,
        down_block_types=[f"{s}DownBlock2D" for s in [*inner, ""][:blocks]],
        up_block_types=[f"{s}UpBlock2D" for s in ["", *inner][-blocks:]],
    )  # fmt: skip


def batch(step: int = 0, latents_need_gradient: bool = False) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(step)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 12, generator=generator)
    return latents.requires_grad_(latents_need_gradient), torch.tensor([3, 500]), text


def loss_of(unet: Any, step: int = 0, **options: Any) -> Any:
    latents, times, text = batch(step, **options)
    return (unet(latents, times, text).sample - latents.detach()).square().mean()


def checkpoint_as_in_2022(unet: Any) -> None:
    """Reentrant checkpoints everywhere but in the middle block, whose inputs need no gradient."""
    checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=True)
    unet.enable_gradient_checkpointing(checkpoint)
    for module in unet.mid_block.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    unet.train()
