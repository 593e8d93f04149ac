"""The choice of layers for a LoRA, and the rank and alpha of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from loramerge.errors import UsageError, listed
from loramerge.events import Note, Notify, Warn
from loramerge.train.lora.branch import full_rank
from loramerge.train.lora.targets import Preset, find_preset, last_match

__all__ = ["LayerPlan", "check_numbers", "choice_of", "note_clamped", "plan_of"]


@dataclass(frozen=True)
class LayerPlan:
    """The LoRA that a layer gets.

    Args:
        asked: the rank before it is clamped to what the layer can hold.
    """

    name: str
    layer: nn.Module
    asked: int
    rank: int
    alpha: float


def choice_of(
    name: str | None, classes: Iterable[str] | None, include: Sequence[str]
) -> Preset | None:
    """Return the preset that a call means, None where `include` alone chooses.

    Raises:
        UsageError: if both a preset and classes are given, or the preset is unknown.
    """
    if classes is not None:
        if name is not None or isinstance(classes, str):
            raise UsageError(
                "give a preset or a list of classes, not both"
                if name is not None
                else "target_replace_module is a list or a set of class names",
                found=classes,
            )
        return Preset("classes", tuple(sorted(classes)), "linear")
    if name is not None:
        return find_preset(name)
    return None if include else find_preset("attn")


def plan_of(
    name: str,
    layer: nn.Module,
    r: int,
    alpha: float | None,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    rslora: bool,
) -> LayerPlan:
    """Return rank and alpha of a layer; a rank that is clamped keeps the scale that was asked for."""
    asked = last_match(ranks, name, r)
    rank = min(asked, full_rank(layer))
    stated = last_match(alphas, name, alpha)
    if stated is None:
        return LayerPlan(name, layer, asked, rank, float(rank))
    ratio = rank / asked
    return LayerPlan(name, layer, asked, rank, stated * (math.sqrt(ratio) if rslora else ratio))


def note_clamped(plans: Sequence[LayerPlan], notify: Notify) -> None:
    """Tell which layers get a lower rank than asked for; a warning if all of them do."""
    clamped = [f"{p.name} {p.asked} → {p.rank}" for p in plans if p.rank != p.asked]
    if clamped:
        kind = Warn if len(clamped) == len(plans) else Note  # then it is no low rank anywhere
        every = (
            "any layer"
            if kind is Warn
            else f"{len(clamped)} layers"
            if len(clamped) > 1
            else "1 layer"
        )
        notify(kind(f"the rank is more than {every} can hold: {listed(clamped, 5)}"))


def check_numbers(
    r: object,
    dropout: float,
    init: str,
    ranks: Mapping[str, object],
    alpha: float | None,
    alphas: Mapping[str, float],
) -> None:
    """Refuse numbers that cannot be.

    Raises:
        UsageError: naming the parameter.
    """
    for what, rank in {"r": r, **ranks}.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise UsageError(
                f"the rank {what} is not a positive whole number",
                found=rank,
                hint=None
                if isinstance(rank, (int, float))
                else "classes are given as target_replace_module=",
            )
    for what, value in {"alpha": alpha, **alphas}.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{what} is not a positive number", found=value)
    if not 0 <= dropout < 1:
        raise UsageError("dropout_p is not a probability below 1", found=dropout)
    if init not in ("kaiming", "gaussian"):
        raise UsageError("no such initialisation", expected="kaiming, gaussian", found=init)
