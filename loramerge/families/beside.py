"""The tensors that checkpoints hold beside the networks that a family describes, by their names."""

from __future__ import annotations

from typing import Literal

__all__ = ["VAE", "Sort", "sort_of", "vae_name"]

# vae: of the autoencoder. average: the running average of another network's weights.
# buffer: a constant that programs compute themselves. weight: anything else
Sort = Literal["vae", "average", "buffer", "weight"]

VAE = "vae"  # the folder of a pipeline that holds the autoencoder
_VAE_PREFIXES = ("first_stage_model.", "vae.")
_AVERAGES = ("model_ema.",)
# last levels of the names of constants: schedules of noise, positions, masks, scales of activations,
# and the temperature of CLIP's training, which no text encoder uses
_BUFFERS = frozenset({
    "alphas_cumprod", "alphas_cumprod_prev", "betas", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "logvar", "sigmas", "log_sigmas", "position_ids",
    "inv_freq", "masked_bias", "logit_scale", "scaled_fp8", "scale_input", "input_scale",
})  # fmt: skip


def sort_of(name: str, component: str = "") -> Sort:
    """Return the role of a tensor of a checkpoint.

    Args:
        component: the folder of a pipeline that its file lies in, `''` for a file that holds all.
    """
    if vae_name(name, component) is not None:
        return "vae"
    if name.startswith(_AVERAGES):
        return "average"
    return "buffer" if name.rpartition(".")[2] in _BUFFERS else "weight"


def vae_name(name: str, component: str = "") -> str | None:
    """Return the name of a tensor of the VAE without its prefix, None for another tensor."""
    if component == VAE:
        return name
    prefix = next((one for one in _VAE_PREFIXES if name.startswith(one)), None)
    return None if prefix is None else name.removeprefix(prefix)
