"""The result of a merge of checkpoints: how far each part moved, and what rounding left of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.adapter import Site
from loramerge.algebra.compare import block_of, in_order
from loramerge.steps.shown import Shown
from loramerge.stream.ingredients import Blended
from loramerge.stream.survival import Survival, totals_of

__all__ = ["MergeResult", "add_figures", "add_survivals"]


@dataclass(repr=False)
class MergeResult(Shown):
    """The result of a merge.

    Args:
        models: every checkpoint with its weight, or with the layers that it gives.
        adapters: what was added, with its weight.
        reference: what movements are measured from: the base, or the first input.
        method, scale: the operator and its final scale.
        factors: the least and the greatest factor of the final scale over the merged tensors; a dry run
            does not know them, nor `blocks` and `cosines`.
        merged: number of tensors that were merged, rather than copied.
        united: number of tensors that not every input has.
        dtypes: types of the merged tensors, as written.
        notes: what was not merged, in words.
        moved: ‖W' − W‖ / ‖W‖ over all merged tensors, W those of the reference.
        blocks: the same for each block of the network.
        cosines: cosine of the changes of two inputs from the base, over all merged tensors.
        survived: ⟨ΔW_written, ΔW_asked⟩ / ‖ΔW_asked‖² over all merged tensors; of a dry run, a forecast,
            as `moved`, `relative_error` and `worst` are.
        worst: the module with the largest relative error, and that error.
        size: bytes of all files; of a dry run, those that they will have.
        estimated: from how many tensors the forecast of a dry run is; None if from all.
        touched: of a dry run, one entry for each parameter that is merged.
    """

    headline = ("output", "family", "method", "moved")
    reported_as = "merge"

    output: str
    dry_run: bool
    family: str
    layouts: dict[str, str]
    models: list[dict[str, Any]]
    adapters: list[dict[str, Any]]
    base: str | None
    reference: str
    method: str
    scale: str | float
    merged: int
    united: int
    dtypes: list[str]
    notes: list[str]
    factors: tuple[float, float] = (1.0, 1.0)
    moved: float | None = None
    blocks: dict[str, float] = field(default_factory=dict)
    cosines: list[tuple[int, int, float]] = field(default_factory=list)
    survived: float | None = None
    relative_error: float | None = None
    worst: dict[str, Any] | None = None
    size: int | None = None
    estimated: str | None = None
    touched: list[dict[str, Any]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        least, most = self.factors
        return {
            "outputs": [] if self.dry_run else [self.output],
            "output": self.output,
            "dry_run": self.dry_run,
            "family": self.family,
            "layouts": self.layouts,
            "models": self.models,
            "adapters": self.adapters,
            "base": self.base,
            "reference": self.reference,
            "method": self.method,
            "scale": self.scale,
            "factors": None if self.dry_run else {"least": least, "most": most},
            "merged": self.merged,
            "united": self.united,
            "dtypes": self.dtypes,
            "notes": self.notes,
            "moved": self.moved,
            "blocks": self.blocks,
            "cosines": [
                {"a": self.models[i]["path"], "b": self.models[j]["path"], "cosine": cosine}
                for i, j, cosine in self.cosines
            ],
            "survived": self.survived,
            "relative_error": self.relative_error,
            "worst": self.worst,
            "size": self.size,
            **({"estimated": self.estimated, "touched": self.touched} if self.dry_run else {}),
        }


def add_figures(result: MergeResult, found: Sequence[Blended]) -> None:
    """Add the figures of what was written to a result.

    They are of what was merged. A type for the whole file also computes what is only copied, such as
    the VAE, and figures over that would depend on the type.
    """
    found = [one for one in found if not one.copied]
    survivals = [one.survival for one in found]
    add_survivals(result, survivals)
    if found:
        factors = [one.factor for one in found]
        result.factors = min(factors), max(factors)
    blocks: dict[str, list[Survival]] = {}
    for one in survivals:
        blocks.setdefault(block_of(Site((one.module,))), []).append(one)
    result.blocks = {
        name: moved for name in in_order(blocks) if (moved := _moved(blocks[name])) is not None
    }
    products: dict[tuple[int, int], float] = {}
    for blended in found:
        for pair, value in blended.products.items():
            products[pair] = products.get(pair, 0.0) + value
    result.cosines = [
        (i, j, cosine)
        for i, j in sorted(products)
        if i < j and (cosine := _cosine(products, i, j)) is not None
    ]


def add_survivals(result: MergeResult, survivals: Sequence[Survival]) -> None:
    """Add the size of the whole change, and what rounding keeps of it, to a result."""
    result.moved = _moved(survivals)
    totals = totals_of(survivals)
    if totals is not None:
        result.survived, result.relative_error = totals.survived, totals.relative_error
        worst = totals.worst
        result.worst = {"module": worst.module, "relative_error": worst.relative_error}


def _moved(survivals: Sequence[Survival]) -> float | None:
    """Return the size of a change beside the weights that it changes, None if those are zero."""
    before = math.fsum(one.base for one in survivals)
    return math.sqrt(math.fsum(one.asked for one in survivals) / before) if before > 0 else None


def _cosine(products: Mapping[tuple[int, int], float], i: int, j: int) -> float | None:
    size = math.sqrt(products[i, i] * products[j, j])
    return max(-1.0, min(1.0, products[i, j] / size)) if size > 0 else None
