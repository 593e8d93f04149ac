"""Refusals of options that do not apply to an architecture, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from loramerge.errors import Setting, UsageError
from loramerge.train.dataset.buckets import Size
from loramerge.train.models.architecture import Architecture, Config
from loramerge.train.spec.spec import Spec

__all__ = ["refuse_idle", "refuse_large", "refuse_misfits"]


def refuse_misfits(kind: Architecture, spec: Spec) -> None:
    """Refuse options of a run that its base has no use for.

    Raises:
        UsageError: naming the first.
    """
    samples = spec.samples
    refuse_idle(
        kind,
        spec.base,
        {
            "min_snr": spec.settings.min_snr,
            "noise_offset": spec.settings.noise_offset,
            "clip_skip": spec.data.clip_skip,
            "prediction": spec.prediction,
            "negative": samples.negative if samples.sample_every else "",
            "guidance_rescale": samples.guidance_rescale if samples.sample_every else None,
        },
    )


def refuse_idle(kind: Architecture, base: Path, asked: Mapping[str, object]) -> None:
    """Refuse options that a kind has no use for.

    Args:
        asked: option → value; what is empty or 0 was not asked for.

    Raises:
        UsageError: naming the first.
    """
    for name, value in asked.items():
        if value and name in kind.refused:
            raise UsageError(
                kind.refused[name], file=base, hint=("leave out ", Setting(name, value))
            )


def refuse_large(kind: Architecture, config: Config, factor: int, sizes: Iterable[Size]) -> None:
    """Refuse images larger than the position embeddings of a denoiser.

    Raises:
        UsageError: naming the largest side.
    """
    most = kind.largest(config, factor)
    side = max(max(size) for size in sizes)
    if most is not None and side > most:
        raise UsageError(
            "this model has no position embeddings for images of this size",
            expected=f"sides of at most {most} pixels",
            found=side,
            hint=(
                "give a lower ",
                Setting("resolution"),
                ", or ",
                Setting("no_buckets", True),
            ),
        )
