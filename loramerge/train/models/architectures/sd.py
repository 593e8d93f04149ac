"""SD1 and SD2: UNets that learn noise or v, with CLIP's states through cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from loramerge.train.dataset.buckets import Size
from loramerge.train.models.architecture import (
    Architecture,
    Config,
    Encoder,
    Inputs,
    Loaded,
    States,
)
from loramerge.train.models.clip import clip_tokens, require_layer
from loramerge.train.models.objective import Noising

__all__ = ["ARCHITECTURE", "StableDiffusion"]

_TOKENS = 77
_CLIP = Encoder("CLIPTextModel", "CLIPTokenizer", "tokenizer")


class StableDiffusion(Architecture):
    """SD1 and SD2, which read CLIP's last layer, or with a skip an earlier one, normed."""

    name = "sd"
    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
    )
    families: ClassVar[tuple[str, ...]] = ("sd15", "sd21")
    component = "unet"
    denoiser = "UNet2DConditionModel"
    scheduler = "DDPMScheduler"
    encoders: ClassVar[Mapping[str, Encoder]] = {"text_encoder": _CLIP}
    options: ClassVar[Mapping[str, Any]] = {"safety_checker": None}

    def channels(self, config: Config) -> int:
        return int(config["in_channels"])

    def unit(self, config: Config, factor: int) -> int:
        return factor * int(2 ** (len(config["block_out_channels"]) - 1))

    def resolution(self, config: Config, factor: int) -> int:
        size = config.get("sample_size") or 64
        return (size if isinstance(size, int) else min(size)) * factor

    def objective(self, scheduler: Any) -> Noising:
        return Noising.of(scheduler)

    def encode(self, loaded: Loaded, texts: Sequence[str], skip: int | None) -> States:
        encoder = loaded.encoders["text_encoder"]
        require_layer(encoder, skip)
        tokens = clip_tokens(loaded.tokenizers["text_encoder"], encoder, texts)
        if skip in (None, 1):
            return States(encoder(tokens)[0])
        layers = encoder(tokens, output_hidden_states=True).hidden_states
        inner = getattr(encoder, "text_model", encoder)
        return States(inner.final_layer_norm(layers[-skip]))

    def predict(
        self,
        denoiser: Any,
        latents: Any,
        times: Any,
        states: States,
        sizes: Any = None,
        guidance: float = 1.0,
    ) -> Any:
        dtype = latents.dtype
        options = {}
        if states.pooled is not None:
            added = {"text_embeds": states.pooled.to(dtype), "time_ids": sizes.to(dtype)}
            options["added_cond_kwargs"] = added
        return denoiser(latents, times, states.text.to(dtype), **options).sample

    def sampler(self, loaded: Loaded) -> Any:
        """Return a DDIM sampler of the base's schedule.

        Where the last step leaves no signal it must be the first that is drawn (Lin et al.,
        arXiv:2305.08891, section 3.3), and so it is for all.
        """
        import diffusers

        kind: Any = diffusers.DDIMScheduler
        return kind.from_config(
            loaded.scheduler.config, timestep_spacing="trailing", clip_sample=False
        )

    def schedule(self, scheduler: Any, config: Config, steps: int, latents: Any) -> None:
        scheduler.set_timesteps(steps)

    def inputs(self, config: Config, batch: int, size: Size, factor: int) -> Inputs:
        latents = torch.empty(batch, config["in_channels"], size[1] // factor, size[0] // factor)
        text = torch.empty(batch, _TOKENS, config["cross_attention_dim"])
        if config.get("addition_embed_type") != "text_time":
            return Inputs(latents, States(text))
        length = config["projection_class_embeddings_input_dim"]
        pooled = length - 6 * config["addition_time_embed_dim"]
        states = States(text, torch.empty(batch, pooled))
        return Inputs(latents, states, torch.empty(batch, 6))

    def unread_text(self, encoder: Any, skip: int | None = None) -> tuple[str, ...]:
        """Return the layers behind the one that is read."""
        count = int(encoder.config.num_hidden_layers)
        return tuple(f"*encoder.layers.{count - n}.*" for n in range(1, skip or 1))

    def blocks(self, denoiser: Any) -> int:
        return len(denoiser.down_blocks) + len(denoiser.up_blocks) + 1


ARCHITECTURE = StableDiffusion()
