"""What training is asked for, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loramerge.errors import UsageError

__all__ = ["Settings", "learning_rate"]


@dataclass(frozen=True)
class Settings:
    """What training is asked for.

    Args:
        steps: in all; schedules end there.
        rate: the peak learning rate.
        warmup: steps over which the rate rises to it.
        schedule: what it does then; `linear` and `cosine` fall to 0.
        betas, decay: of AdamW.
        clip: the largest norm of all gradients together; None: no clipping.
        min_snr: γ of the min-SNR weights, 5 in the paper; None: every time step weighs the same.
        noise_offset: deviation of a constant added to the noise of each channel.
        seed: of batches, noise, time steps and dropout.
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

    def __post_init__(self) -> None:
        wrong = [
            name
            for name, fine in {
                "steps": self.steps >= 1,
                "rate": 0 < self.rate < math.inf,
                "warmup": 0 <= self.warmup < self.steps,
                "schedule": self.schedule in ("constant", "linear", "cosine"),
                "clip": self.clip is None or self.clip > 0,
                "min_snr": self.min_snr is None or self.min_snr > 0,
                "noise_offset": self.noise_offset >= 0,
            }.items()
            if not fine
        ]
        if wrong:
            found = ", ".join(f"{name} {getattr(self, name)}" for name in wrong)
            raise UsageError("settings that cannot be meant", found=found)


def learning_rate(settings: Settings, number: int) -> float:
    """Return the learning rate of a step, counted from 0; it is never 0."""
    if number < settings.warmup:
        return settings.rate * (number + 1) / settings.warmup
    passed = (number - settings.warmup) / (settings.steps - settings.warmup)
    if settings.schedule == "cosine":
        return settings.rate * (1 + math.cos(math.pi * passed)) / 2
    return settings.rate * (1 - passed if settings.schedule == "linear" else 1.0)
