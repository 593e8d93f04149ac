"""The kinds of models that are trained and drawn with, one small module for each."""

from __future__ import annotations

from typing import Any

from loramerge.train.architectures.flux import Flux
from loramerge.train.architectures.sd3 import StableDiffusion3
from loramerge.train.architectures.spec import Architecture, Config, Encoder, Inputs, States
from loramerge.train.architectures.unets import StableDiffusion, StableDiffusionXL

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Config",
    "Encoder",
    "Inputs",
    "States",
    "of_family",
    "of_model",
    "of_pipeline",
]

ARCHITECTURES: tuple[Architecture, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux(),
)


def of_pipeline(name: object) -> Architecture | None:
    """Return the kind that a model_index.json names."""
    return next((one for one in ARCHITECTURES if name in one.pipelines), None)


def of_family(name: str | None) -> Architecture | None:
    """Return the kind of single files of a family."""
    return next((one for one in ARCHITECTURES if name in one.families), None)


def of_model(denoiser: Any) -> Architecture:
    """Return the kind a denoiser is called as; a class of no kind is called as a UNet is."""
    name = type(denoiser).__name__
    return next((one for one in ARCHITECTURES if one.denoiser == name), ARCHITECTURES[0])
