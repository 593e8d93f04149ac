"""The names of Stable Diffusion's VAE in single files; no adapter touches it, so it is in no family."""

from __future__ import annotations

__all__ = ["ldm_vae_name"]

_TOP = {"conv_norm_out": "norm_out"}
_SAMPLERS = {"downsamplers": "downsample", "upsamplers": "upsample"}
_RESNET = {"conv_shortcut": "nin_shortcut"}
_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip


def ldm_vae_name(path: str, resolutions: int) -> str:
    """Return the LDM name of a layer of diffusers' `AutoencoderKL`.

    Resolutions of the decoder are counted from the inside in diffusers and from the outside in LDM.
    The layers of the attention are matrices in diffusers and 1×1 convolutions in LDM.

    Args:
        resolutions: number of blocks each way, 4 in Stable Diffusion.

    Raises:
        KeyError: if the attention has no such layer.

    Source: the module order of CompVis' `diffusionmodules/model.py`, as read from checkpoints.
    """
    side, _, rest = path.partition(".")
    block, _, below = rest.partition(".")
    if block not in ("down_blocks", "up_blocks", "mid_block"):
        return f"{side}.{_TOP.get(block, block)}" if rest else side
    if block == "mid_block":
        sort, index, leaf = below.split(".", 2)
        if sort == "attentions":
            return f"{side}.mid.attn_1.{_ATTENTION[leaf]}"
        return f"{side}.mid.block_{int(index) + 1}.{_RESNET.get(leaf, leaf)}"
    number, sort, index, leaf = below.split(".", 3)
    if block == "up_blocks":
        number = str(resolutions - 1 - int(number))
    level = f"{side}.{block.partition('_')[0]}.{number}"
    if sort == "resnets":
        return f"{level}.block.{index}.{_RESNET.get(leaf, leaf)}"
    return f"{level}.{_SAMPLERS[sort]}.conv"
