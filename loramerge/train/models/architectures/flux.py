"""Flux.1 dev and schnell: a transformer over packed latents and T5's states, with CLIP's pooled text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from loramerge.train.dataset.buckets import Size
from loramerge.train.models.architecture import Config, Encoder, Guidance, Inputs, Loaded, States
from loramerge.train.models.clip import clip_tokens
from loramerge.train.models.flows import RectifiedFlow, no_noise_options
from loramerge.train.models.objective import Flow
from loramerge.train.models.t5 import t5_states

__all__ = ["ARCHITECTURE", "Flux"]

_SIDE = 128  # latents of a side, as in diffusers' pipeline; the configuration does not say
_TIMES = 1000  # the transformer takes σ, and times are σ of a thousand
_CLIP, _T5 = "text_encoder", "text_encoder_2"


class Flux(RectifiedFlow):
    """Flux.1. Dev is told of its guidance; schnell has none.

    Dev is trained at a guidance of 1, where it gives the flow itself, which is what the loss is about;
    at others it gives one that was bent towards the text, and training would straighten that.
    """

    name = "flux"
    pipelines = ("FluxPipeline",)
    denoiser = "FluxTransformer2DModel"
    encoders: ClassVar[Mapping[str, Encoder]] = {
        _CLIP: Encoder("CLIPTextModel", "CLIPTokenizer", "tokenizer"),
        _T5: Encoder("T5EncoderModel", "T5TokenizerFast", "tokenizer_2", False),
    }
    usual_guidance = 3.5
    refused: ClassVar[Mapping[str, str]] = {
        **no_noise_options("Flux.1"),
        "clip_skip": "Flux.1 reads only the pooled text of CLIP",
        "negative": "Flux.1 is not guided away from anything, so it reads no negative prompt",
        "guidance_rescale": "Flux.1 is told its guidance, which strengthens nothing to be rescaled",
    }

    def channels(self, config: Config) -> int:
        return int(config["in_channels"]) // 4

    def unit(self, config: Config, factor: int) -> int:
        return factor * 2

    def resolution(self, config: Config, factor: int) -> int:
        return _SIDE * factor

    def guidance(self, config: Config) -> Guidance:
        return "embedded" if config["guidance_embeds"] else "none"

    def objective(self, scheduler: Any) -> Flow:
        """Return the flow; all times are as likely, as in diffusers' script."""
        return Flow.of(scheduler)

    def text_length(self, config: Config, component: str, tokenizer: Any) -> int:
        most = tokenizer.model_max_length
        return int(most if component == _CLIP else min(most, _t5_tokens(config)))

    def reading(self, config: Config) -> str:
        return f"{self.name} {_t5_tokens(config)}"

    def encode(self, loaded: Loaded, texts: Sequence[str], skip: int | None) -> States:
        clip, tokenizer = loaded.encoders[_CLIP], loaded.tokenizers[_T5]
        tokens = clip_tokens(loaded.tokenizers[_CLIP], clip, texts)
        length = self.text_length(loaded.denoiser.config, _T5, tokenizer)
        text = t5_states(tokenizer, loaded.encoders[_T5], texts, length)
        return States(text, clip(tokens).pooler_output)

    def predict(
        self,
        denoiser: Any,
        latents: Any,
        times: Any,
        states: States,
        sizes: Any = None,
        guidance: float = 1.0,
    ) -> Any:
        count, _, height, width = latents.shape
        place, dtype = latents.device, latents.dtype
        told = None
        if denoiser.config.guidance_embeds:
            told = torch.full((count,), guidance, device=place)
        found = denoiser(
            hidden_states=packed(latents),
            timestep=times.expand(count) / _TIMES,
            guidance=told,
            pooled_projections=states.pooled.to(dtype),
            encoder_hidden_states=states.text.to(dtype),
            txt_ids=torch.zeros(states.text.shape[1], 3, device=place),
            img_ids=_places(height // 2, width // 2, place),
        ).sample
        return unpacked(found, height, width)

    def schedule(self, scheduler: Any, config: Config, steps: int, latents: Any) -> None:
        patches = latents.shape[-2] * latents.shape[-1] // 4
        sigmas = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist()
        scheduler.set_timesteps(sigmas=sigmas, mu=self.shift(scheduler, patches))

    def inputs(self, config: Config, batch: int, size: Size, factor: int) -> Inputs:
        latents = torch.empty(batch, self.channels(config), size[1] // factor, size[0] // factor)
        text = torch.empty(batch, _t5_tokens(config), config["joint_attention_dim"])
        return Inputs(latents, States(text, torch.empty(batch, config["pooled_projection_dim"])))

    def blocks(self, denoiser: Any) -> int:
        return len(denoiser.transformer_blocks) + len(denoiser.single_transformer_blocks)


ARCHITECTURE = Flux()


def _t5_tokens(config: Config) -> int:
    """Return the number of T5 tokens that are read: 512 by dev, 256 by schnell (as in BFL's code)."""
    return 512 if config["guidance_embeds"] else 256


def packed(latents: Any) -> Any:
    """Return patches of 2×2 latents as rows, `(n, h/2 · w/2, 4c)`; channels first, then the places."""
    count, channels, height, width = latents.shape
    cut = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * 4)


def unpacked(rows: Any, height: int, width: int) -> Any:
    """Undo `packed`."""
    count, _, depth = rows.shape
    cut = rows.reshape(count, height // 2, width // 2, depth // 4, 2, 2)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(count, depth // 4, height, width)


def _places(height: int, width: int, place: Any) -> Any:
    """Return (0, row, column) of every patch, `(height · width, 3)`."""
    rows, columns = torch.arange(height, device=place), torch.arange(width, device=place)
    grid = torch.zeros(height, width, 3, device=place)
    grid[..., 1] = rows[:, None].float()
    grid[..., 2] = columns[None, :].float()
    return grid.reshape(-1, 3)
