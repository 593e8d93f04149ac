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
    Network,
    States,
)
from loramerge.train.models.clip import clip_states, clip_tokens, require_layer
from loramerge.train.models.objective import Noising
from loramerge.train.models.shapes import clip_config, unet_config, vae_config

__all__ = ["ARCHITECTURE", "StableDiffusion"]

_TOKENS = 77
_BETAS = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1,
}  # fmt: skip
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
    windows = 3
    scaling: ClassVar[float] = 0.18215  # of the VAE's latents
    schedule_told: ClassVar[Mapping[str, Any]] = {  # by the published configurations
        "_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True,
    }  # fmt: skip

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
        windows = loaded.windows
        tokens = clip_tokens(loaded.tokenizers["text_encoder"], encoder, texts, windows)
        if skip in (None, 1):
            return States(clip_states(encoder(tokens)[0], windows))
        layers = encoder(tokens, output_hidden_states=True).hidden_states
        inner = getattr(encoder, "text_model", encoder)
        return States(clip_states(inner.final_layer_norm(layers[-skip]), windows))

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

    def configurations(
        self, networks: Mapping[str, Network], predicts: str | None
    ) -> Mapping[str, Mapping[str, Any]]:
        if "unet" not in networks or not networks["vae"].shapes:
            return {}
        texts = {name: one for name, one in self.encoders.items() if name in networks}
        models = {
            "unet": ("diffusers", self.denoiser), "vae": ("diffusers", "AutoencoderKL"),
            "scheduler": ("diffusers", self.schedule_told["_class_name"]),
            **{name: ("transformers", one.model) for name, one in texts.items()},
            **{one.folder: ("transformers", one.tokenizer) for one in texts.values()},
        }  # fmt: skip
        schedule = {**_BETAS, **self.schedule_told, "prediction_type": predicts or "epsilon"}
        return {
            "model_index.json": {"_class_name": self.pipelines[0], **models},
            "unet/config.json": unet_config(networks["unet"].shapes, self.side(predicts)),
            "vae/config.json": vae_config(networks["vae"].shapes, self.scaling),
            "scheduler/scheduler_config.json": schedule,
            **{f"{name}/config.json": clip_config(networks[name]) for name in texts},
        }

    def side(self, predicts: str | None) -> int:
        """Return the side of the latents; of published ones only that of 768 pixels learns v."""
        return 96 if predicts == "v_prediction" else 64

    def unread_text(self, encoder: Any, skip: int | None = None) -> tuple[str, ...]:
        """Return the layers behind the one that is read."""
        count = int(encoder.config.num_hidden_layers)
        return tuple(f"*encoder.layers.{count - n}.*" for n in range(1, skip or 1))

    def blocks(self, denoiser: Any) -> int:
        return len(denoiser.down_blocks) + len(denoiser.up_blocks) + 1


ARCHITECTURE = StableDiffusion()
