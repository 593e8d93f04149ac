"""LoRA on the layers of any torch model: inject, tune, extract, collapse, remove.

    unet_lora_params, names = lm.inject_trainable_lora(unet, r=64)
    optimizer = torch.optim.AdamW(itertools.chain(*unet_lora_params), lr=1e-4)

The functions are called as those of lora_diffusion, which the reports of 2022 used. Base weights are
frozen, and a model is changed in place, layer by layer, without renaming anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from loramerge.errors import AdapterError, NumericsError, UsageError, listed
from loramerge.events import Notify, ignore
from loramerge.train.lora.branch import Branch, attach, detach
from loramerge.train.lora.choosing import check_numbers, choice_of, note_clamped, plan_of
from loramerge.train.lora.targets import (
    chosen_layers,
    lineage_of,
)
from loramerge.train.spec.settings import Init

__all__ = [
    "Groups",
    "attach_all",
    "collapse_lora",
    "extract_lora_ups_down",
    "inject_trainable_lora",
    "inject_trainable_lora_extended",
    "lora_layers",
    "refuse_injected",
    "remove_lora",
    "tune_lora_scale",
]

Groups: TypeAlias = list[list[nn.Parameter]]  # of each layer, its trainable parameters


def inject_trainable_lora(
    model: nn.Module,
    r: int = 4,
    *,
    alpha: float | None = None,
    preset: str | None = None,
    target_replace_module: Iterable[str] | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    rslora: bool = False,
    dropout_p: float = 0.0,
    init: Init = "kaiming",
    decompose: bool = False,
    notify: Notify = ignore,
) -> tuple[Groups, list[str]]:
    """Put a trainable LoRA beside the chosen layers of a model, and freeze everything else.

    `y = layer(x) + alpha / r · up(down(x))`; up is zero at first, so nothing changes yet. New
    parameters are float32 (float64 in a float64 model) and stay on the device of their layer's
    weight. `.half()` and `.bfloat16()` do not change their type. Call `torch.manual_seed` first for
    reproducible values; PEFT gives the same ones for the same seed.

    Args:
        model: any torch module, before or after it is moved to a device.
        r: the rank; a layer too small for it gets its largest rank at the same scale, with a note.
        alpha: the scale is `alpha / r`, or `alpha / sqrt(r)` with `rslora`; None: alpha is the
            rank of each layer.
        preset: `attn`, `attn-ff`, `full`, …; see `train.lora.targets.PRESETS`. None: `attn`, as in the
            reports, unless `target_replace_module` or `include` is given.
        target_replace_module: names of classes instead of a preset; their linear layers are chosen.
        include: globs on full names that narrow the choice; without a preset, all of what they
            match.
        exclude: globs on full names to leave out.
        rank_pattern, alpha_pattern: glob → rank or alpha; the last that matches counts.
        dropout_p: dropout before down, in `[0, 1)`.
        init: of down, `kaiming` or `gaussian`.
        decompose: DoRA: also train a magnitude for each output, `(out,)`; without dropout.
        notify: called with notes.

    Returns:
        For each layer the list of its parameters (down, up, and the magnitude of a DoRA), and the
        layers' full names; both in the model's order. `itertools.chain(*groups)` gives every parameter.

    Raises:
        UsageError: for an invalid value, an unknown preset, or a pattern that matches nothing.
        AdapterError: if the model has a LoRA already, or no layer is chosen.
    """
    check_numbers(r, dropout_p, init, rank_pattern or {}, alpha, alpha_pattern or {})
    if decompose and dropout_p:
        raise UsageError("DoRA takes no dropout, which would change the norms", found=dropout_p)
    refuse_injected(model)
    choice = choice_of(preset, target_replace_module, include)
    patterns = [*(rank_pattern or {}), *(alpha_pattern or {})]
    layers = chosen_layers(model, choice, include, exclude, patterns)
    plans = [
        plan_of(name, layer, r, alpha, rank_pattern or {}, alpha_pattern or {}, rslora)
        for name, layer in layers.items()
    ]
    note_clamped(plans, notify)
    branches = {
        plan.name: Branch(
            plan.layer,
            plan.rank,
            plan.alpha,
            rslora=rslora,
            dropout=dropout_p,
            init=init,
            decompose=decompose,
        )
        for plan in plans
    }
    return attach_all(model, branches)


def inject_trainable_lora_extended(
    model: nn.Module, r: int = 4, **options: Any
) -> tuple[Groups, list[str]]:
    """Inject into the layers of residual blocks too, convolutions included."""
    if "target_replace_module" not in options:
        options.setdefault("preset", "attn-resnet")
    return inject_trainable_lora(model, r, **options)


def extract_lora_ups_down(
    model: nn.Module, target_replace_module: Iterable[str] | None = None
) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Return (up, down) of every layer, in the model's order: the parameters themselves.

    up is `(out, r)` and down `(r, in)`; for convolutions `(out, r, 1, …)` and `(r, in, kernel…)`. The
    scale is not in them.

    Args:
        target_replace_module: names of classes; only layers inside modules of these.

    Raises:
        AdapterError: if the model has no LoRA, or none inside these classes.
    """
    layers = lora_layers(model, target_replace_module)
    return [(layer.lora.up, layer.lora.down) for layer in layers.values()]


def tune_lora_scale(model: nn.Module, scale: float = 1.0) -> None:
    """Multiply what every layer's LoRA adds by `scale`; at 0 the model is the base, bit for bit.

    It replaces the scale tuned before, and is part of what `save_lora_weight` writes.

    Raises:
        AdapterError: if the model has no LoRA.
        UsageError: if the scale is not finite.
    """
    if not math.isfinite(scale):
        raise UsageError("a scale is a finite number", found=scale)
    for layer in lora_layers(model).values():
        layer.lora.weight = float(scale)


@torch.no_grad()
def collapse_lora(model: nn.Module, weight: float = 1.0) -> None:
    """Add `weight · ΔW` to the base weights and take the LoRA off.

    ΔW holds the scale tuned by `tune_lora_scale`. The sum is made in float32 (or wider) and rounded
    once to the type of the base.

    Raises:
        AdapterError: if the model has no LoRA, or a base weight is quantised.
        NumericsError: if a result is not finite; then no layer is changed.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():  # all are tried first; keeping them would double the model
        _merged(name, layer, weight)
    for name, layer in layers.items():
        layer.weight.copy_(_merged(name, layer, weight))
        detach(layer)


def remove_lora(model: nn.Module) -> None:
    """Take every LoRA off; the model is what it was, but for its parameters being frozen.

    Raises:
        AdapterError: if the model has no LoRA.
    """
    for layer in lora_layers(model).values():
        detach(layer)


def lora_layers(model: nn.Module, inside: Iterable[str] | None = None) -> dict[str, Any]:
    """Return full name → layer of every layer with a LoRA, in the model's order.

    Args:
        inside: names of classes; only layers inside modules of these.

    Raises:
        AdapterError: if there is none.
    """
    found = _injected(model)
    if inside is not None:
        lineage, classes = lineage_of(model), set(inside)
        found = {n: one for n, one in found.items() if classes & lineage[n.rpartition(".")[0]]}
    if not found:
        raise AdapterError(
            "the model has no LoRA",
            module=type(model).__name__,
            hint="inject_trainable_lora or load_lora_weight puts one there",
        )
    return found


def _injected(model: nn.Module) -> dict[str, Any]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "lora", None), Branch)
    }


def refuse_injected(model: nn.Module) -> None:
    """Refuse a model that has a LoRA already.

    Raises:
        AdapterError: saying where.
    """
    found = _injected(model)
    if found:
        raise AdapterError(
            f"the model has a LoRA already, on {len(found)} layers",
            module=type(model).__name__,
            expected="a model without one",
            found=listed(list(found), 3),
            hint="remove_lora(model) takes it off, collapse_lora(model) adds it to the weights",
        )


def attach_all(model: nn.Module, branches: Mapping[str, Branch]) -> tuple[Groups, list[str]]:
    """Attach branches to the layers of these names, and freeze all other parameters.

    Returns:
        The parameters of each layer, and the names.

    Raises:
        AdapterError: if a layer's own `forward` would never reach its branch.
    """
    layers = {name: model.get_submodule(name) for name in branches}
    hooked = [name for name, layer in layers.items() if "forward" in vars(layer)]
    if hooked:
        raise AdapterError(
            "the forward of these layers was replaced, so a LoRA there would do nothing",
            module=listed(hooked, 3),
            hint="inject before offloading is switched on (accelerate's hooks replace forward)",
        )
    model.requires_grad_(False)
    for name, branch in branches.items():
        attach(layers[name], branch)
    return [list(branch.parts) for branch in branches.values()], list(branches)


def _merged(name: str, layer: Any, weight: float) -> Any:
    base = layer.weight
    if not base.is_floating_point() or tuple(base.shape) != tuple(layer.lora.product().shape):
        raise AdapterError(
            "the base weight is quantised, so nothing can be added to it",
            module=name,
            found=str(base.dtype),
            hint="save the LoRA and bake it into the checkpoint",
        )
    change = layer.lora.change(base) * weight
    merged = (base.to(change.dtype) + change).to(base.dtype)
    if not torch.isfinite(merged).all():
        raise NumericsError(
            "the sum of base and LoRA is not finite", module=name, hint="no layer was changed"
        )
    return merged
