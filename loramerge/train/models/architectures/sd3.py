"""SD3 and SD3.5: a joint transformer over latents and states of two CLIPs and, if there is one, T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from loramerge.train.dataset.buckets import Size
from loramerge.train.models.architecture import Config, Encoder, Inputs, Loaded, States
from loramerge.train.models.clip import clip_tokens
from loramerge.train.models.flows import RectifiedFlow, no_noise_options
from loramerge.train.models.objective import Flow
from loramerge.train.models.t5 import t5_states

__all__ = ["ARCHITECTURE", "StableDiffusion3"]

_CLIP_TOKENS, _T5_TOKENS = 77, 256
_CLIPS = ("text_encoder", "text_encoder_2")
_T5 = "text_encoder_3"


class StableDiffusion3(RectifiedFlow):
    """SD3 and SD3.5."""

    name = "sd3"
    pipelines = ("StableDiffusion3Pipeline",)
    denoiser = "SD3Transformer2DModel"
    encoders: ClassVar[Mapping[str, Encoder]] = {
        "text_encoder": Encoder("CLIPTextModelWithProjection", "CLIPTokenizer", "tokenizer"),
        "text_encoder_2": Encoder("CLIPTextModelWithProjection", "CLIPTokenizer", "tokenizer_2"),
        _T5: Encoder("T5EncoderModel", "T5TokenizerFast", "tokenizer_3", False, True),
    }
    refused: ClassVar[Mapping[str, str]] = {
        **no_noise_options("SD3"),
        "clip_skip": "SD3 always reads the last layer but one of both CLIPs",
    }

    def channels(self, config: Config) -> int:
        return int(config["in_channels"])

    def unit(self, config: Config, factor: int) -> int:
        return factor * int(config["patch_size"])

    def resolution(self, config: Config, factor: int) -> int:
        return int(config["sample_size"]) * factor

    def largest(self, config: Config, factor: int) -> int | None:
        return int(config["pos_embed_max_size"]) * int(config["patch_size"]) * factor

    def objective(self, scheduler: Any) -> Flow:
        """Return the flow; times are logit-normal, which the paper finds best (section 5.1)."""
        return Flow.of(scheduler, logit_normal=True)

    def text_length(self, config: Config, component: str, tokenizer: Any) -> int:
        most = _T5_TOKENS if component == _T5 else tokenizer.model_max_length
        return int(min(most, tokenizer.model_max_length))

    def reading(self, config: Config) -> str:
        return f"{self.name} {_T5_TOKENS} {config['joint_attention_dim']}"

    def encode(self, loaded: Loaded, texts: Sequence[str], skip: int | None) -> States:
        """Return both CLIPs' last layer but one side by side, filled up with zeros, and T5's behind.

        A base without T5 has zeros in its place.
        """
        config = loaded.denoiser.config
        states, pooled = [], []
        for name in _CLIPS:
            encoder = loaded.encoders[name]
            tokens = clip_tokens(loaded.tokenizers[name], encoder, texts)
            found = encoder(tokens, output_hidden_states=True)
            states.append(found.hidden_states[-2])
            pooled.append(found[0])
        width = int(config["joint_attention_dim"])
        short = torch.cat(states, dim=-1)
        short = torch.nn.functional.pad(short, (0, width - short.shape[-1]))
        if _T5 in loaded.encoders:
            tokenizer = loaded.tokenizers[_T5]
            length = self.text_length(config, _T5, tokenizer)
            long = t5_states(tokenizer, loaded.encoders[_T5], texts, length)
        else:
            long = short.new_zeros(len(short), _T5_TOKENS, width)
        return States(torch.cat([short, long], dim=1), torch.cat(pooled, dim=-1))

    def predict(
        self,
        denoiser: Any,
        latents: Any,
        times: Any,
        states: States,
        sizes: Any = None,
        guidance: float = 1.0,
    ) -> Any:
        return denoiser(
            hidden_states=latents,
            timestep=times.expand(len(latents)),
            encoder_hidden_states=states.text.to(latents.dtype),
            pooled_projections=states.pooled.to(latents.dtype),
        ).sample

    def schedule(self, scheduler: Any, config: Config, steps: int, latents: Any) -> None:
        how = {}
        if scheduler.config.use_dynamic_shifting:
            patch = int(config["patch_size"])
            how["mu"] = self.shift(
                scheduler, (latents.shape[-2] // patch) * (latents.shape[-1] // patch)
            )
        scheduler.set_timesteps(steps, **how)

    def inputs(self, config: Config, batch: int, size: Size, factor: int) -> Inputs:
        latents = torch.empty(batch, config["in_channels"], size[1] // factor, size[0] // factor)
        text = torch.empty(batch, _CLIP_TOKENS + _T5_TOKENS, config["joint_attention_dim"])
        return Inputs(latents, States(text, torch.empty(batch, config["pooled_projection_dim"])))

    def blocks(self, denoiser: Any) -> int:
        return len(denoiser.transformer_blocks)

    def unread(self, config: Config) -> tuple[str, ...]:
        """Return the last block's queries of the text, whose answers are thrown away."""
        last = f"transformer_blocks.{config['num_layers'] - 1}.attn"
        normed = (f"{last}.norm_added_q",) if config.get("qk_norm") else ()
        return (f"{last}.add_q_proj", *normed)


ARCHITECTURE = StableDiffusion3()
