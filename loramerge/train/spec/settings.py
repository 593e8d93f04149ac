"""What training is asked for, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from loramerge.errors import UsageError

__all__ = ["PRECISIONS", "SCHEDULES", "Init", "Precision", "Settings", "learning_rate"]

SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("no", "bf16", "fp16")
Precision = Literal["no", "bf16", "fp16"]
Init = Literal["kaiming", "gaussian"]  # how `down` of a LoRA is drawn; `up` is zero


@dataclass(frozen=True)
class Settings:
    """What training is asked for.

    Args:
        steps: in all; schedules end there.
        rate: the peak learning rate.
        warmup: steps over which the rate rises to it.
        schedule: what it does then; `linear` and `cosine` fall to 0.
        betas, decay: of AdamW, and of other optimizers that take `betas` and `weight_decay`.
        clip: the largest norm of all gradients together; None: no clipping.
        min_snr: γ of the min-SNR weights, 5 in the paper; None: every time step weighs the same.
        noise_offset: deviation of a constant added to the noise of each channel.
        seed: of batches, noise, time steps and dropout.
        optimizer: a class by its import path, or a short name of `optimizers.NAMES`.
        options: further (name, value) for it.
        accumulate: batches whose gradients make one step.
        ema: decay of a running mean of what is trained, which is what is kept then; None: the last.
        text_rate: the peak rate of text encoders; None: half of `rate`.
        plus: LoRA+: the rate of up, in units of that of down.
        precision: type of the forward pass where it is not float32; what is trained stays float32.
    """

    steps: int = 1000
    rate: float = 1e-4
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 1e-2
    clip: float | None = 1.0
    min_snr: float | None = None
    noise_offset: float = 0.0
    seed: int = 0
    optimizer: str = "adamw"
    options: tuple[tuple[str, Any], ...] = ()
    accumulate: int = 1
    ema: float | None = None
    text_rate: float | None = None
    plus: float = 1.0
    precision: Precision = "no"

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, fine in {
                "steps": self.steps >= 1,
                "rate": 0 < self.rate < math.inf,
                "warmup": 0 <= self.warmup < self.steps,
                "schedule": self.schedule in SCHEDULES,
                "clip": self.clip is None or self.clip > 0,
                "min_snr": self.min_snr is None or self.min_snr > 0,
                "noise_offset": self.noise_offset >= 0,
                "accumulate": self.accumulate >= 1,
                "ema": self.ema is None or 0 < self.ema < 1,
                "text_rate": self.text_rate is None or 0 < self.text_rate < math.inf,
                "plus": 0 < self.plus < math.inf,
                "precision": self.precision in PRECISIONS,
            }.items()
            if not fine
        ]
        if wrong:
            found = ", ".join(f"{name} {getattr(self, name)}" for name in wrong)
            raise UsageError("settings that cannot be meant", found=found)

    @property
    def text_factor(self) -> float:
        """The rate of text encoders in units of the denoiser's."""
        return 0.5 if self.text_rate is None else self.text_rate / self.rate


def learning_rate(settings: Settings, number: int) -> float:
    """Return the learning rate of a step, counted from 0; it is never 0."""
    if number < settings.warmup:
        return settings.rate * (number + 1) / settings.warmup
    passed = (number - settings.warmup) / (settings.steps - settings.warmup)
    if settings.schedule == "cosine":
        return settings.rate * (1 + math.cos(math.pi * passed)) / 2
    return settings.rate * (1 - passed if settings.schedule == "linear" else 1.0)
