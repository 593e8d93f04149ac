"""Estimate the time of a run: count the operations of a step, and measure this machine's speed.

Operations are counted on torch's meta device, which computes only shapes, so no weights are needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from loramerge.dialects.detection import Detection
from loramerge.events import Notify, ignore
from loramerge.files.json_values import read_values
from loramerge.train.dataset.buckets import Size
from loramerge.train.lora.branch import weight_shape
from loramerge.train.lora.modules import inject_trainable_lora, lora_layers
from loramerge.train.lora.names import canonical, detection_of
from loramerge.train.lora.trainees import chosen_modules
from loramerge.train.models.architecture import Architecture, Config
from loramerge.train.models.libraries import class_of, quietly
from loramerge.train.models.registry import architecture_of_pipeline
from loramerge.train.spec.spec import Spec

__all__ = [
    "Estimate",
    "Layer",
    "Shape",
    "denoiser_of",
    "estimate",
    "forward_of",
    "forward_seconds",
    "made_trainable",
    "shape_of",
]

_HALF = ("bf16", "fp16")
_CALL = 5e-5  # seconds that calling a layer costs, there and back


@dataclass(frozen=True)
class Shape:
    """The shape of a base, read from its configurations without its weights."""

    architecture: Architecture
    denoiser: Config
    factor: int
    unit: int
    resolution: int


class Layer(NamedTuple):
    """The shape of a layer's weight, `(out, in[, kernel…])`, and the rank of its LoRA."""

    shape: tuple[int, ...]
    rank: int


@dataclass(frozen=True)
class Estimate:
    """The predicted cost of a run, within a factor of two.

    Args:
        modules, parameters: number of trained modules and parameters.
        seconds: time of all steps.
        operations: floating-point operations of a step, forward and backward.
        layers: module → its layer, of those that get a LoRA.
        detection: the family of the base, by its layers.
    """

    modules: int
    parameters: int
    seconds: float
    operations: float
    layers: Mapping[str, Layer] = field(default_factory=dict)
    detection: Detection = Detection((), "nothing gets a LoRA")


def shape_of(base: Path) -> Shape | None:
    """Return the shape of a folder's base; None for a single file, or if configurations are missing."""
    try:
        kind = architecture_of_pipeline(_read(base / "model_index.json")["_class_name"])
        if kind is None:
            return None
        config = _read(base / kind.component / "config.json")
        vae = _read(base / "vae" / "config.json")
        factor = int(2 ** (len(vae["block_out_channels"]) - 1))
        unit, resolution = kind.unit(config, factor), kind.resolution(config, factor)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Shape(kind, config, factor, unit, resolution)


def _read(path: Path) -> Any:
    return read_values(path)


def estimate(
    spec: Spec, shape: Shape, size: Size, device: Any, notify: Notify = ignore
) -> Estimate:
    """Estimate the cost of a run, as if all images had one size.

    Args:
        notify: told of ranks that layers cannot hold.
    """
    model = denoiser_of(shape)
    values = made_trainable(spec, model, shape, notify)
    operations = _counted(model, spec, shape, size)
    if spec.checkpointing or (spec.checkpointing is None and device.type == "cuda"):
        operations *= 4 / 3
    width = 2 if spec.settings.precision in _HALF else 4
    each = _seconds(model, operations, device, width)
    seconds = each * spec.settings.accumulate * spec.settings.steps
    modules = len({name.rpartition(".lora.")[0] or name.rpartition(".")[0] for name in values})
    parameters = sum(value.numel() for value in values.values())
    layers, detection = _layers(spec, model, shape)
    return Estimate(modules, parameters, seconds, operations, layers, detection)


def _layers(spec: Spec, model: Any, shape: Shape) -> tuple[dict[str, Layer], Detection]:
    """Return the layers that get a LoRA by the names that their modules have in an adapter."""
    if spec.targets.kind == "weights":
        return {}, Detection((), "whole weights are trained")
    component, found = shape.architecture.component, lora_layers(model)
    detection = detection_of({component: model}, [(component, path) for path in found])
    layers = {
        canonical(component, path, detection.naming): Layer(
            weight_shape(layer), int(layer.lora.down.shape[0])
        )
        for path, layer in found.items()
    }
    return layers, detection


def forward_seconds(shape: Shape, size: Size, device: Any, *, batch: int, width: int) -> float:
    """Estimate the time of one forward pass.

    Args:
        size: width and height of the images, in pixels.
        width: bytes of a number.
    """
    model = denoiser_of(shape)
    return _seconds(model, _forward(model, shape, batch, size), device, width)


def _seconds(model: Any, operations: float, device: Any, width: int) -> float:
    """Return the time of so many operations of a model on this machine."""
    calls = sum(1 for module in model.modules() if not any(module.children()))
    # small models wait for the interpreter
    return operations / _speed(device, width) + _CALL * calls


def denoiser_of(shape: Shape, device: str = "meta") -> Any:
    """Return the denoiser, without values on the meta device."""
    with quietly() as (diffusers, _), torch.device(device):
        return class_of(shape.architecture.denoiser, diffusers).from_config(shape.denoiser)


def made_trainable(spec: Spec, model: Any, shape: Shape, notify: Notify = ignore) -> dict[str, Any]:
    """Make a model trainable as in the run; return name → trained parameter."""
    targets, unread = spec.targets, shape.architecture.unread(shape.denoiser)
    model.requires_grad_(False)
    if targets.kind == "weights":
        for module in chosen_modules(model, targets.blocks, unread).values():
            for value in module.parameters(recurse=False):
                value.requires_grad_(True)
    else:
        inject_trainable_lora(
            model, targets.rank, alpha=targets.alpha, preset=targets.targets,
            include=targets.include, exclude=(*targets.exclude, *unread),
            rank_pattern=targets.rank_pattern, alpha_pattern=targets.alpha_pattern,
            rslora=targets.rslora, dropout_p=targets.dropout, decompose=targets.kind == "dora",
            notify=notify,
        )  # fmt: skip
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def forward_of(shape: Shape, model: Any, batch: int, size: Size, dtype: Any) -> Callable[[], Any]:
    """Return the forward pass of a batch on the meta device, its inputs included."""

    def call() -> Any:
        with torch.device("meta"):
            latents, *others = shape.architecture.inputs(shape.denoiser, batch, size, shape.factor)
            times = torch.zeros(batch, dtype=torch.long)
        return shape.architecture.predict(model, latents.to(dtype), times, *others)

    return call


def _counted(model: Any, spec: Spec, shape: Shape, size: Size) -> float:
    """Return the operations of a step."""
    # backward: the gradient of activations always, of weights only where they are trained
    factor = 3.0 if spec.targets.kind == "weights" else 2.2
    return _forward(model, shape, spec.data.batch, size) * factor


def _forward(model: Any, shape: Shape, batch: int, size: Size) -> float:
    """Return the operations of a forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        forward_of(shape, model, batch, size, torch.float32)()
    return float(counter.get_total_flops())


def _speed(device: Any, width: int) -> float:
    """Return operations a second of a product of matrices, as UNets reach about half of."""
    side = 2048 if device.type != "cpu" else 512
    kind = torch.bfloat16 if width == 2 else torch.float32
    matrix = torch.ones(side, side, device=device, dtype=kind)
    matrix @ matrix
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.2:
        float((matrix @ matrix)[0, 0])
        count += 1
    return 0.5 * count * 2 * side**3 / (time.perf_counter() - start)
