"""The settings of the optimisation, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from loramerge.errors import UsageError
from loramerge.train.spec.timesteps import Timesteps

__all__ = ["PRECISIONS", "SCHEDULES", "Init", "Precision", "Settings", "learning_rate"]

SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("no", "bf16", "fp16")
Precision = Literal["no", "bf16", "fp16"]
Init = Literal["kaiming", "gaussian"]  # how `down` of a LoRA is drawn; `up` is zero


@dataclass(frozen=True)
class Settings:
    """The settings of the optimisation.

    Args:
        steps: number of all steps; schedules end there.
        lr: the peak learning rate.
        warmup_steps: steps over which the learning rate rises to its peak.
        schedule: its course after the warm-up; `linear` and `cosine` fall to 0.
        betas, weight_decay: of AdamW, and of other optimizers that take `betas` and `weight_decay`.
        max_grad_norm: gradients are clipped to this norm, taken over all together; 0: no clipping.
        min_snr: γ of the min-SNR weights, 5 in the paper; None: every time step weighs the same.
        noise_offset: deviation of a constant added to the noise of each channel.
        seed: of batches, noise, time steps and dropout.
        optimizer: a class by its import path, or a short name of `optimizers.NAMES`.
        optimizer_options: further (name, value) for it.
        accumulate: batches whose gradients make one step.
        ema: decay of a moving average of the trained parameters, which is kept instead of the last
            values; None: none.
        text_lr: the peak learning rate of text encoders; None: half of `lr`.
        lora_plus: LoRA+: learning rate of up as a multiple of that of down.
        precision: mixed precision of the forward pass; trained parameters stay float32.
        timesteps: which times are drawn, see `timesteps.Timesteps`; empty: the architecture's own.
    """

    steps: int = 1000
    lr: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    min_snr: float | None = None
    noise_offset: float = 0.0
    seed: int = 0
    optimizer: str = "adamw"
    optimizer_options: tuple[tuple[str, Any], ...] = ()
    accumulate: int = 1
    ema: float | None = None
    text_lr: float | None = None
    lora_plus: float = 1.0
    precision: Precision = "no"
    timesteps: str = ""

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, fine in {
                "steps": self.steps >= 1,
                "lr": 0 < self.lr < math.inf,
                "warmup_steps": 0 <= self.warmup_steps < self.steps,
                "schedule": self.schedule in SCHEDULES,
                "max_grad_norm": self.max_grad_norm >= 0,
                "min_snr": self.min_snr is None or self.min_snr > 0,
                "noise_offset": self.noise_offset >= 0,
                "accumulate": self.accumulate >= 1,
                "ema": self.ema is None or 0 < self.ema < 1,
                "text_lr": self.text_lr is None or 0 < self.text_lr < math.inf,
                "lora_plus": 0 < self.lora_plus < math.inf,
                "precision": self.precision in PRECISIONS,
            }.items()
            if not fine
        ]
        if wrong:
            found = ", ".join(f"{name} {getattr(self, name)}" for name in wrong)
            raise UsageError("some settings are out of range", found=found)
        if self.timesteps:
            Timesteps.of(self.timesteps)

    @property
    def text_factor(self) -> float:
        """The rate of text encoders in units of the denoiser's."""
        return 0.5 if self.text_lr is None else self.text_lr / self.lr


def learning_rate(settings: Settings, number: int) -> float:
    """Return the learning rate of a step, counted from 0; it is never 0."""
    if number < settings.warmup_steps:
        return settings.lr * (number + 1) / settings.warmup_steps
    passed = (number - settings.warmup_steps) / (settings.steps - settings.warmup_steps)
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * passed)) / 2
    return settings.lr * (1 - passed if settings.schedule == "linear" else 1.0)
