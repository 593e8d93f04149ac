"""Rectified flow, the common part of SD3 and Flux.1.

Source: Esser et al. (arXiv:2403.03206); diffusers' pipelines and `FlowMatchEulerDiscreteScheduler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from loramerge.train.models.architecture import Architecture, Loaded

__all__ = ["RectifiedFlow"]

_NO_SNR = "{} learns a rectified flow, in which there is no signal-to-noise ratio to weigh by"
_NO_PREDICTION = "{} learns a rectified flow, and predicts nothing else"
_NO_OFFSET = "{} learns a flow from plain noise, which an offset would change"


def no_noise_options(name: str) -> dict[str, str]:
    """Return the options about noise that do not apply to a flow → why."""
    return {
        "min_snr": _NO_SNR.format(name),
        "noise_offset": _NO_OFFSET.format(name),
        "prediction": _NO_PREDICTION.format(name),
    }


class RectifiedFlow(Architecture):
    """A transformer that learns ε − x₀."""

    component = "transformer"
    scheduler = "FlowMatchEulerDiscreteScheduler"
    flow = True
    families: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, Any]] = {}

    def sampler(self, loaded: Loaded) -> Any:
        import diffusers

        kind: Any = diffusers.FlowMatchEulerDiscreteScheduler
        return kind.from_config(loaded.scheduler.config)

    def shift(self, scheduler: Any, patches: int) -> float:
        """Return μ of the shift for pictures of so many patches: linear between two sizes."""
        how = scheduler.config
        slope = (how.max_shift - how.base_shift) / (how.max_image_seq_len - how.base_image_seq_len)
        return float(how.base_shift + slope * (patches - how.base_image_seq_len))
