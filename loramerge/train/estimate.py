"""What a step will take: counted on a model without values, and the speed of this machine measured.

The denoiser is made on torch's meta device, which computes shapes alone: operations are counted, and the
bytes that the backward pass needs are summed as autograd keeps them.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loramerge.train.architectures import Architecture, Config, of_pipeline
from loramerge.train.buckets import Size
from loramerge.train.modules import inject_trainable_lora, lora_layers
from loramerge.train.pipelines import quietly
from loramerge.train.spec import Spec
from loramerge.train.trainees import chosen_modules

__all__ = ["Estimate", "Shape", "estimate", "shape_of"]

_HALF = ("bf16", "fp16")
_CALL = 5e-5  # seconds that calling a layer costs, there and back
_ADAM = 3 * 4  # bytes of a gradient and two moments for each parameter that is trained


@dataclass(frozen=True)
class Shape:
    """What a base's configurations say, read without its weights."""

    architecture: Architecture
    denoiser: Config
    factor: int
    unit: int
    resolution: int


@dataclass(frozen=True)
class Estimate:
    """What a run will take, good to a factor of two.

    Args:
        modules, parameters: that are trained.
        memory: peak bytes of a step, on the device.
        seconds: of all steps.
        operations: of a step, forward and backward.
    """

    modules: int
    parameters: int
    memory: int
    seconds: float
    operations: float


def shape_of(base: Path) -> Shape | None:
    """Return what a folder's configurations say; None for a single file, or where they lack."""
    try:
        kind = of_pipeline(_read(base / "model_index.json")["_class_name"])
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
    return json.loads(path.read_text("utf-8"))


def estimate(spec: Spec, shape: Shape, size: Size, device: Any) -> Estimate:
    """Return what the run will take, if every picture is of one size."""
    with quietly() as (diffusers, _), torch.device("meta"):
        model = getattr(diffusers, shape.architecture.denoiser).from_config(shape.denoiser)
    modules, parameters = _trained(spec, model, shape.architecture.unread(shape.denoiser))
    width = 2 if spec.settings.precision in _HALF else 4
    operations, kept, largest = _counted(model, spec, shape, size, width)
    if spec.checkpointing or (spec.checkpointing is None and device.type == "cuda"):
        operations *= 4 / 3
        kept = largest
    whole = sum(value.numel() for value in model.parameters())
    memory = whole * width + parameters * (4 + _ADAM) + kept
    speed = _speed(device, width)
    calls = sum(1 for module in model.modules() if not any(module.children()))
    each = operations / speed + _CALL * calls  # small models wait for the interpreter
    seconds = each * spec.settings.accumulate * spec.settings.steps
    return Estimate(modules, parameters, int(memory), seconds, operations)


def _trained(spec: Spec, model: Any, unread: tuple[str, ...]) -> tuple[int, int]:
    """Make the model trainable as the run will; return modules and parameters."""
    targets = spec.targets
    if targets.kind == "weights":
        model.requires_grad_(False)
        modules = chosen_modules(model, targets.blocks, unread)
        values = [v for m in modules.values() for v in m.parameters(recurse=False)]
        for value in values:
            value.requires_grad_(True)
        return len(modules), sum(value.numel() for value in values)
    inject_trainable_lora(
        model, targets.rank, preset=targets.preset, include=targets.include,
        exclude=(*targets.exclude, *unread),
        rank_pattern=targets.rank_pattern, alpha_pattern=targets.alpha_pattern,
    )  # fmt: skip
    layers = lora_layers(model).values()
    return len(layers), sum(part.numel() for layer in layers for part in layer.lora.parts)


def _counted(
    model: Any, spec: Spec, shape: Shape, size: Size, width: int
) -> tuple[float, int, int]:
    """Return operations of a step, bytes kept for the backward pass, and those of one block."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = spec.pictures.batch
    with torch.device("meta"):
        latents, *others = shape.architecture.inputs(shape.denoiser, batch, size, shape.factor)
        times = torch.zeros(batch, dtype=torch.long)
    own = {id(value) for value in model.parameters()}
    seen: set[int] = set()
    alive: list[Any] = []  # identities are of living tensors only
    kept = 0

    def keep(value: Any) -> Any:
        nonlocal kept
        if id(value) not in own and id(value) not in seen and value.is_floating_point():
            seen.add(id(value))
            alive.append(value)
            kept += value.numel() * min(value.element_size(), width)
        return value

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        shape.architecture.predict(model, latents, times, *others)
    forward = float(counter.get_total_flops())
    blocks = max(1, shape.architecture.blocks(model))
    # backward: the gradient of activations always, of weights only where they are trained
    factor = 3.0 if spec.targets.kind == "weights" else 2.2
    return forward * factor, kept, 2 * kept // blocks


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
