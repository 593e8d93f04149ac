"""The models of one base together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from loramerge.train.models.architecture import Architecture

__all__ = ["Pipeline", "identity_of"]


@dataclass
class Pipeline:
    """The models of one base.

    Args:
        architecture: its kind.
        denoiser: the UNet or transformer.
        scheduler: of the base's configuration.
        encoders, tokenizers: by component, `text_encoder`, `text_encoder_2`, ….
        windows: in which CLIP reads every text; `texts.read_whole` sets it.
        empty_is_zero: whether no prompt at all is states of zeros, as SDXL's configuration may say.
    """

    architecture: Architecture
    path: Path
    denoiser: Any
    vae: Any
    scheduler: Any
    encoders: dict[str, Any]
    tokenizers: dict[str, Any]
    empty_is_zero: bool = False
    windows: int = 1
    _identities: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, Any]:
        """Component → model, of what an adapter can act on."""
        return {self.architecture.component: self.denoiser, **self.encoders}

    @property
    def factor(self) -> int:
        """Pixels of one latent along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def unit(self) -> int:
        """Pixels that every side must be a multiple of."""
        return self.architecture.unit(self.denoiser.config, self.factor)

    @property
    def resolution(self) -> int:
        """Pixels of a side of what the model was made for."""
        return self.architecture.resolution(self.denoiser.config, self.factor)

    def identity(self, component: str) -> str:
        """Return the digest of the VAE's or of all text encoders' configuration and values."""
        if component not in self._identities:
            models = [self.vae] if component == "vae" else list(self.encoders.values())
            own = "" if component == "vae" else self.architecture.reading(self.denoiser.config)
            self._identities[component] = identity_of(models) + own
        return self._identities[component]

    def to(self, device: Any) -> Pipeline:
        """Move all models."""
        for model in (self.denoiser, self.vae, *self.encoders.values()):
            model.to(device)
        return self

    def release_encoders(self) -> None:
        """Let the text encoders go, once all texts are encoded."""
        self.identity("encoders")
        self.encoders.clear()


def identity_of(models: list[Any]) -> str:
    """Return a digest of the models' values and of what says how they are used."""
    total = hashlib.sha256()
    for model in models:
        factor = getattr(model.config, "scaling_factor", None)
        shift = getattr(model.config, "shift_factor", None)
        moved = "" if shift is None else f"{shift}\0"
        total.update(f"{type(model).__name__}\0{factor}\0{moved}".encode())
        for name, value in sorted(model.state_dict().items()):
            total.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            total.update(raw.numpy().data)
    return total.hexdigest()[:32]
