"""SDXL: a UNet like those of SD1, which reads two text encoders and is told sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from loramerge.train.models.architecture import Encoder, Loaded, Network, States
from loramerge.train.models.architectures.sd import StableDiffusion
from loramerge.train.models.clip import clip_states, clip_tokens

__all__ = ["ARCHITECTURE", "StableDiffusionXL"]

_CLIP = Encoder("CLIPTextModel", "CLIPTokenizer", "tokenizer", optional=True)


class StableDiffusionXL(StableDiffusion):
    """SDXL, which reads both encoders' last layer but one side by side, and the second's pooled text."""

    name = "sdxl"
    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    families = ("sdxl",)
    encoders: ClassVar[Mapping[str, Encoder]] = {
        "text_encoder": _CLIP,  # which the refiner lacks
        "text_encoder_2": Encoder("CLIPTextModelWithProjection", "CLIPTokenizer", "tokenizer_2"),
    }
    options: ClassVar[Mapping[str, Any]] = {}
    scaling = 0.13025
    schedule_told: ClassVar[Mapping[str, Any]] = {
        "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading",
    }  # fmt: skip
    sizes = True
    zeroes_empty = True
    refused: ClassVar[Mapping[str, str]] = {"clip_skip": "SDXL always reads the last layer but one"}

    def encode(self, loaded: Loaded, texts: Sequence[str], skip: int | None) -> States:
        states, pooled = [], None
        for name, encoder in loaded.encoders.items():
            tokens = clip_tokens(loaded.tokenizers[name], encoder, texts, loaded.windows)
            found = encoder(tokens, output_hidden_states=True)
            states.append(clip_states(found.hidden_states[-2], loaded.windows))
            pooled = found[0][:: loaded.windows] if name == "text_encoder_2" else None
        return States(torch.cat(states, dim=-1), pooled)

    def configurations(
        self, networks: Mapping[str, Network], predicts: str | None
    ) -> Mapping[str, Mapping[str, Any]]:
        found = dict(super().configurations(networks, predicts))
        if found:
            found["model_index.json"] = {
                **found["model_index.json"],
                "force_zeros_for_empty_prompt": True,
            }
        return found

    def side(self, predicts: str | None) -> int:
        return 128

    def unread_text(self, encoder: Any, skip: int | None = None) -> tuple[str, ...]:
        if type(encoder).__name__ != "CLIPTextModel":
            return ()
        return (f"*encoder.layers.{encoder.config.num_hidden_layers - 1}.*",)


ARCHITECTURE = StableDiffusionXL()
