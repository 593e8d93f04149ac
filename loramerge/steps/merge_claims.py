"""Claims on a merge of checkpoints: differences of models on a base, as adapters of every weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter, Info
from loramerge.algebra.weights import Weight, weight_of
from loramerge.checkpoint import Checkpoint, open_checkpoint
from loramerge.errors import RecipeError, listed
from loramerge.steps.claims import Claim
from loramerge.steps.inputs import adapter_of
from loramerge.steps.recorded import Recorded
from loramerge.steps.references import Reference
from loramerge.stream.extract import whole_difference
from loramerge.stream.pairing import paired

__all__ = ["difference", "merge_claims"]

_LINEAR = ("models", "base", "method", "dtype", "layout", "allow_nonfinite")
_RUN = "`loramerge run FILE` makes it again and compares the two"


def merge_claims(
    content: Mapping[str, Any], recorded: Recorded
) -> tuple[Checkpoint, list[Claim], list[str]]:
    """Return the base of a merge by weights, what was added to it, and notes on what is not checked.

    Without a base of its own the first model is the base, which has the weight that the others leave.

    Raises:
        RecipeError: for another merge than a weighted sum, or a sum of weighted differences.
        LoramergeError: if an input cannot be found or opened.
    """
    others = [word for word in content if word not in _LINEAR]
    if content.get("method", "linear") not in ("linear", "weighted-sum") or others:
        raise RecipeError(
            "only merges by weights alone are checked by their change",
            file=recorded.path,
            found=listed([str(content.get("method", "linear")), *others], 6),
            hint=_RUN,
        )
    models: list[tuple[str, Checkpoint, Weight]] = []
    adapters: list[Claim] = []
    for part in content.get("models", ()):
        weight = weight_of(part.get("weight", 1.0), "a recipe in a header")
        if "adapter" in part:
            name = part["adapter"]
            adapters.append(Claim(_adapter(name, recorded), name, weight, True))
        else:
            name = str(part.get("model"))
            models.append((name, open_checkpoint(recorded.file(name)), weight))
    if "base" in content:
        base = open_checkpoint(recorded.file(str(content["base"])))
    else:
        (_, base, _), *models = models
    claims = [
        Claim(difference(model, base), f"{name} − {base.path.stem}", weight, True)
        for name, model, weight in models
    ]
    return base, [*claims, *adapters], ["the VAE and constants of a merge are not checked"]


def _adapter(name: str, recorded: Recorded) -> Adapter:
    found = recorded.adapter(name)
    if isinstance(found, Path):
        known = {**recorded.context.known, name: found}
        return adapter_of(
            Reference(name), replace(recorded.context, known=known, skip_unknown=True)
        )
    return found


def difference(tuned: Checkpoint, base: Checkpoint) -> Adapter:
    """Return the exact difference of two checkpoints as an adapter, which is read when it is needed.

    Raises:
        FamilyError, FormatError, ShapeError: see `stream.pairing.paired`.
    """
    sites = paired(tuned, base, None, skip=("all",))
    dtype = "F64" if "F64" in sites.dtypes else "F32"
    deltas = {group.site: whole_difference(group, dtype) for group in sites.groups}
    return Adapter(dict(deltas), info=Info(detection=sites.detection))
