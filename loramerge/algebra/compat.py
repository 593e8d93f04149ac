"""Merges as other tools compute them, for people who need their old results.

These tools merge factors, not changes: `Σ up` times `Σ down` has products of one adapter's up with
another's down that no adapter asked for. `algebra.mix` is the exact sum; these are not, on purpose.

With `ρᵢ` the ratio, `αᵢ` the alpha (the rank where none is stored) and `rᵢ` the rank of adapter i at one
module, and the sums over the adapters that have the module:

- `kohya`: `ΔW = 1/r (Σ |ρᵢ| √αᵢ upᵢ) (Σ ρᵢ √αᵢ downᵢ)`. The file holds `Σ |cᵢ| upᵢ`, `Σ cᵢ downᵢ` and
  α₁, with `cᵢ = ρᵢ √(αᵢ/α₁)` and α₁ of the first adapter that has the module. One adapter at ratio 0.5
  acts at 0.25; a negative ratio keeps its sign, on down only.
- `kohya-concat` (`--concat`): `ΔW = 1/Σrᵢ · Σ |ρᵢ| ρᵢ αᵢ upᵢ downᵢ`: no mixed products, but the ratio
  squared, and alpha not raised with the rank: two adapters of one rank at 1 and 1 act at a half.
- `peft-linear`: `ΔW = (Σ √|sᵢ| upᵢ) (Σ ±√|sᵢ| downᵢ)`, with `sᵢ = ρᵢ · scaleᵢ` and its sign. One adapter
  is exact. Where the first adapter is rsLoRA, PEFT scales the result by √r once more.

Text encoders and convolutions are merged like everything else.

Source: sd-scripts `networks/merge_lora.py`, `merge_lora_models`, at 48d368fa (2026-02-16; the same
since 14aa2923 of 2023-09-28, and in `flux_merge_lora.py` and, without `--lbws`, `sdxl_merge_lora.py`;
with it a negative block weight loses its sign there, and keeps it here); PEFT
`LoraModel.add_weighted_adapter(combination_type="linear")` at 5d602fdb (2026-08-21; with signs since
64f95827 of 2025-11-20). sd-webui-supermerger (0b1c491) merges as `kohya` where no ratio is negative,
and with "same to Strength" as `peft-linear`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter, LowRank, Scale, Site
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.lora import as_lora
from loramerge.algebra.mix import frame_of
from loramerge.algebra.terms import naming
from loramerge.algebra.weights import Weight
from loramerge.algebra.workers import ordered
from loramerge.errors import (
    AdapterError,
    NumericsError,
    Setting,
    ShapeError,
    UnsupportedKind,
    UsageError,
    suggestion,
)
from loramerge.events import Notify, ignore
from loramerge.files.tensors import ArrayTensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["COMPATS", "mix_like"]

_EXACT = "mix without compat: the exact mix accepts it"


@dataclass(frozen=True)
class _Term:
    """One adapter's part of one site.

    Args:
        file: the adapter's, for messages.
        ratio: the user's coefficient, as the tool takes it.
    """

    file: str
    delta: LowRank
    ratio: float

    @property
    def sign(self) -> float:
        """The sign of a weight that was applied before; a writer puts it into up."""
        return math.copysign(1.0, self.delta.scale.weight)

    @property
    def scale(self) -> float:
        """The scale of up and down that a file of this delta states."""
        return self.sign * self.delta.scale.value(self.delta.rank)

    @property
    def alpha(self) -> float:
        """The alpha such a file states, or the rank where it states none."""
        return self.scale * self.delta.rank

    def up(self, factor: float) -> Array:
        """Return up as stored, in float64, times a factor."""
        product: Array = values(self.delta.up, "float64") * (self.sign * factor)
        return product

    def down(self, factor: float) -> Array:
        """Return down as stored, in float64, times a factor."""
        product: Array = values(self.delta.down, "float64") * factor
        return product


# the terms of a site → up, down and alpha of the tool's file
_Merge = Callable[[Sequence[_Term]], tuple["Array", "Array", float]]
# the inputs → what the tool multiplies a site of the result by, beside alpha / rank
_Outer = Callable[[Sequence[Adapter]], Callable[[Site], float]]


@dataclass(frozen=True)
class _Tool:
    """A tool's formulas for one site, and for a factor of the whole.

    Args:
        one_rank: whether it refuses ranks that differ.
    """

    merge: _Merge
    outer: _Outer
    one_rank: bool = True


def mix_like(
    tool: str,
    inputs: Sequence[tuple[Adapter, Weight]],
    *,
    embeddings: str = "all",
    notify: Notify = ignore,
) -> Adapter:
    """Return the adapter that a tool would make of the same inputs.

    ΔW, factors, rank and alpha are the tool's. They are computed in float64 from the stored
    factors; the tools compute in float32 or less, so their files differ by rounding (in float32 up
    to 1e-6 of a module's norm; in half types more). Adapters may have any dialect, even if the tool
    reads only its own.

    Args:
        tool: one of `COMPATS`.
        inputs: adapters with ratios, at least one. A weight is evaluated site by site and taken as
            the tool's ratio there, though none of the tools has ratios per block. Sites of ratio 0
            count as they do there (their alpha, their rank); those that are 0 in the end are left out.
        embeddings: as for `algebra.mix.mix`.

    Raises:
        UsageError: if the tool is unknown, or nothing is left to write.
        FamilyError: if two adapters belong to different families.
        ShapeError: if ranks or shapes differ where the tool refuses that.
        UnsupportedKind: if an adapter holds anything but plain LoRA: the tools stop there, or
            multiply every part of it by the ratio.
        AdapterError: if the tool's formula has no value for these alphas.
        NumericsError: if an input holds NaN or infinity.
    """
    if tool not in _TOOLS:
        raise UsageError(
            f"compat has no tool {tool!r}",
            expected=", ".join(COMPATS),
            hint=suggestion(tool, COMPATS),
        )
    if not inputs:
        raise UsageError("mix needs at least one adapter")
    adapters = [adapter.require_sound() for adapter, _ in inputs]
    terms = _terms(tool, inputs)
    frame = frame_of(adapters, embeddings, notify)
    formulas = _TOOLS[tool]
    outer = formulas.outer(adapters)

    def work(site: Site) -> tuple[Site, LowRank | None]:
        with naming(site):
            _check_shapes(tool, terms[site], formulas)
            return site, _merged(terms[site], formulas, outer(site))

    done = ordered(work, terms, threads=None, task="mixing", notify=notify)
    deltas = {site: delta for site, delta in done if delta is not None}
    if not deltas:
        raise UsageError("all weights are 0, so nothing is left to write")
    return frame.with_deltas(deltas)


def _terms(tool: str, inputs: Sequence[tuple[Adapter, Weight]]) -> dict[Site, list[_Term]]:
    """Return the terms of every site, in the order of the inputs."""
    terms: dict[Site, list[_Term]] = {}
    for adapter, weight in inputs:
        of = weight.on(adapter)
        for site, delta in adapter.deltas.items():
            lora = as_lora(delta)
            if lora is None:
                raise UnsupportedKind(
                    f"{tool} cannot merge this kind of module",
                    file=adapter.label,
                    module=site.name,
                    expected="lora",
                    found=delta.kind,
                    hint="mix without compat, or drop the module",
                )
            terms.setdefault(site, []).append(_Term(adapter.label, lora, of(site)))
    return terms


def _check_shapes(tool: str, terms: Sequence[_Term], formulas: _Tool) -> None:
    """Refuse inputs that the tool would refuse: other shapes, and other ranks unless it joins them."""
    first = terms[0]
    for other in terms[1:]:
        files = f"{first.file} and {other.file}"
        if (len(first.delta.up.shape), first.delta.shape) != (
            len(other.delta.up.shape),
            other.delta.shape,
        ):
            raise ShapeError(
                f"{tool} refuses modules that differ in shape",
                file=files,
                expected=_shapes(first.delta),
                found=_shapes(other.delta),
                hint="they were made for different bases, or by programs that store 1×1 kernels "
                "differently",
            )
        if formulas.one_rank and first.delta.rank != other.delta.rank:
            raise ShapeError(
                f"{tool} refuses adapters of different ranks",
                file=files,
                expected=f"rank {first.delta.rank}",
                found=f"rank {other.delta.rank}",
                hint=_EXACT,
            )


def _shapes(delta: LowRank) -> str:
    return f"up {list(delta.up.shape)} and down {list(delta.down.shape)}"


def _merged(terms: Sequence[_Term], formulas: _Tool, outer: float) -> LowRank | None:
    """Return the tool's result at a site, or None where all ratios are 0."""
    import numpy as np

    if all(term.ratio == 0.0 for term in terms):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        up, down, alpha = formulas.merge(terms)
    if not (np.isfinite(up).all() and np.isfinite(down).all()):
        raise NumericsError(
            "NaN or infinity in the input",
            file=" and ".join(term.file for term in terms),
            hint=("inspect it with ", Setting("deep", True), " to list the modules that hold it"),
        )
    return LowRank(ArrayTensor(up), ArrayTensor(down), terms[0].delta.shape, Scale(alpha * outer))


def _kohya_coefficients(terms: Sequence[_Term]) -> list[float]:
    """Return `ρᵢ √(αᵢ/α₁)`.

    Raises:
        AdapterError: if α₁ is 0, or alphas differ in sign.
    """
    first = terms[0]
    for term in terms:
        if first.alpha == 0.0 or term.alpha / first.alpha < 0.0:
            raise AdapterError(
                "kohya's script divides by the first adapter's alpha and takes the square root",
                file=term.file if term is first else f"{first.file} and {term.file}",
                expected="alphas of one sign, the first not 0",
                found=", ".join(f"{one.alpha:g}" for one in terms),
                hint=_EXACT,
            )
    return [term.ratio * math.sqrt(term.alpha / first.alpha) for term in terms]


def _total(arrays: Sequence[Array]) -> Array:
    first, *rest = arrays
    total = first.copy()
    for array in rest:
        total += array
    return total


def _kohya(terms: Sequence[_Term]) -> tuple[Array, Array, float]:
    found = list(zip(terms, _kohya_coefficients(terms), strict=True))
    return (
        _total([term.up(abs(c)) for term, c in found]),
        _total([term.down(c) for term, c in found]),
        terms[0].alpha,
    )


def _kohya_concat(terms: Sequence[_Term]) -> tuple[Array, Array, float]:
    import numpy as np

    found = list(zip(terms, _kohya_coefficients(terms), strict=True))
    return (
        np.concatenate([term.up(abs(c)) for term, c in found], axis=1),
        np.concatenate([term.down(c) for term, c in found]),
        terms[0].alpha,
    )


def _peft_linear(terms: Sequence[_Term]) -> tuple[Array, Array, float]:
    found = [(term, term.ratio * term.scale) for term in terms]
    return (
        _total([term.up(math.sqrt(abs(s))) for term, s in found]),
        _total([term.down(math.copysign(math.sqrt(abs(s)), s)) for term, s in found]),
        float(terms[0].delta.rank),
    )


def _nothing(adapters: Sequence[Adapter]) -> Callable[[Site], float]:
    return lambda site: 1.0


def _peft_outer(adapters: Sequence[Adapter]) -> Callable[[Site], float]:
    """Return the scaling of PEFT's new adapter in each model: 1, or √r where it is rsLoRA.

    PEFT copies the first adapter's configuration, `use_rslora` included, and sets its r and
    lora_alpha to the common rank. The rank of an adapter in a model is its largest there.

    Raises:
        ShapeError: if ranks differ.
    """
    scaling: dict[str, float] = {}
    first: dict[str, tuple[str, int]] = {}
    for adapter in adapters:
        ranks: dict[str, int] = {}
        root: dict[str, bool] = {}
        for site, delta in adapter.deltas.items():
            lora = as_lora(delta)
            assert lora is not None  # others were refused
            model = _model(site, adapter)
            ranks[model] = max(ranks.get(model, 0), lora.rank)
            root[model] = root.get(model, False) or lora.scale.root
        for model, rank in ranks.items():
            file, expected = first.setdefault(model, (adapter.label, rank))
            scaling.setdefault(model, math.sqrt(rank) if root[model] else 1.0)
            if rank != expected:
                raise ShapeError(
                    "peft-linear refuses adapters of different ranks",
                    file=f"{file} and {adapter.label}",
                    module=model or None,
                    expected=f"rank {expected}",
                    found=f"rank {rank}",
                    hint=_EXACT,
                )
    return lambda site: scaling[_model(site, adapters[0])]


def _model(site: Site, adapter: Adapter) -> str:
    """Return the network that holds the site in PEFT; opaque names count as one network."""
    return site.component if adapter.info.detection.naming else ""


_TOOLS: Mapping[str, _Tool] = {
    "kohya": _Tool(_kohya, _nothing),
    "kohya-concat": _Tool(_kohya_concat, _nothing, one_rank=False),
    "peft-linear": _Tool(_peft_linear, _peft_outer),
}

COMPATS: tuple[str, ...] = tuple(_TOOLS)
