"""Refuse a bake that rounding takes much from, and measure what would keep more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from loramerge.checkpoint import CheckpointFile
from loramerge.checkpoint.composed import Composed
from loramerge.checkpoint.conversion import Conversion
from loramerge.checkpoint.storages import encodings
from loramerge.errors import Message, NumericsError, Setting
from loramerge.events import Notify, ignore
from loramerge.files.dtypes import DTYPES
from loramerge.files.forms import GGUF
from loramerge.steps.foreseen import figures_of
from loramerge.steps.rounding_words import LEAST, rounding_words
from loramerge.stream.bake import survey
from loramerge.stream.edits import BakePlan, Edit
from loramerge.stream.on_grid import WAYS
from loramerge.stream.stored_anew import forms_in
from loramerge.stream.survival import Survival, Totals, totals_of

__all__ = [
    "WHOLE",
    "forecast",
    "require_kept",
    "warned_of",
    "wider_type",
]

_SURE = 0.8  # share kept by some tensors, below which all of them keep less than `LEAST`
_SAMPLES = 4  # tensors on which remedies are measured
WHOLE = 64 << 20  # bytes of changed tensors that a forecast reads; half a second on one core
_IN_BLOCKS = "Q8_0"  # of GGUF, the storage of most bits that is none of floats
_FORECAST = 32  # tensors on which it is measured where all of them have more

Remedy = tuple[Setting, BakePlan, int | None]  # its setting, the plan with it, and the seed


def require_kept(
    plan: BakePlan, survivals: Sequence[Survival], seed: int | None, threads: int | None
) -> None:
    """Refuse a result that has less than `LEAST` of the change.

    Args:
        seed: of stochastic rounding, None where it rounds to nearest.

    Raises:
        NumericsError: naming remedies, with what they keep of the change of a few tensors.
    """
    totals = totals_of(survivals)
    if totals is not None and totals.survived < LEAST:
        raise _refusal(plan, totals, seed, threads)


def _refusal(
    plan: BakePlan, totals: Totals, seed: int | None, threads: int | None
) -> NumericsError:
    """Return the error of a result that keeps too little, with what remedies keep."""
    shares = ", ".join(plan.dtypes)
    hint: list[str | Setting] = []
    for setting, other, number in _remedies(_sampled(plan, _SAMPLES), seed):
        found = totals_of(survey(other, seed=number, threads=threads))
        if found is not None:
            figures = (
                f"keeps {100 * found.survived:.0f} %, relative error {found.relative_error:.2g}"
            )
            hint += [setting, f" {figures}; "]
    return NumericsError(
        f"only {100 * totals.survived:.0f} % of the change would be kept after rounding to {shares}",
        file=plan.checkpoint.path,
        module=totals.worst.module,
        expected=f"at least {100 * LEAST:.0f} %",
        found=f"relative error {totals.relative_error:.2g}",
        hint=(
            f"measured on {_SAMPLES} tensors at most: ",
            *hint,
            "the result as it is: ",
            Setting("allow_loss", True),
        ),
    )


def wider_type(plan: BakePlan) -> str:
    """Return a type of plain floats that is wider than those of the tensors that change."""
    types = {edit.place.tensor.dtype for *_, edit in plan.all_edits()}
    narrow = all(DTYPES[one].bits < 16 * DTYPES[one].elements for one in types)
    return "BF16" if narrow else "F32"


def _remedies(plan: BakePlan, seed: int | None) -> Iterator[Remedy]:
    """Yield what keeps more of the change."""
    if seed is None and not plan.onto and plan.conversion is None:
        for way in WAYS:
            yield Setting("rounding", way), replace(plan, onto=way), None
    if seed is None and not plan.onto:
        yield Setting("rounding", "stochastic"), plan, 0
    if plan.wider is None and plan.dtype is None:
        for name in _more_bits(plan):
            yield Setting("storage", name), _stored_as(plan, name), seed
    if plan.wider is None and plan.dtype is None and plan.conversion is None:
        wider = wider_type(plan)
        plan = replace(plan, wider=wider)
        if any(forms_in(plan, file) for file in plan.edits):
            yield Setting("keep_touched", DTYPES[wider].word), plan, seed


def _more_bits(plan: BakePlan) -> Iterator[str]:
    """Yield a storage of more bits for the tensors that change, if there is one for such files."""
    places = [edit.place for *_, edit in plan.all_edits()]
    if any(isinstance(place.tensor, Composed) for place in places):
        return
    anew = plan.conversion
    if anew is None:
        names = {DTYPES[place.tensor.dtype].word for place in places}
        in_gguf, wide = any(file.gguf for file in plan.edits), DTYPES[wider_type(plan)].word
    else:
        names = {form.name for forms in anew.forms.values() for form in forms.values()}
        in_gguf, wide = anew.suffix == GGUF, "float32" if "bfloat16" in names else "bfloat16"
    blocks = in_gguf and not names & {_IN_BLOCKS, "float16", "bfloat16", "float32"}
    yield _IN_BLOCKS if blocks else wide


def _stored_as(plan: BakePlan, name: str) -> BakePlan:
    """Return a plan with its changed tensors in a storage, as far as it holds them."""
    form = encodings()[name]
    forms = {
        file: {t: form for t, edits in found.items() if form.holds(edits[0].place.tensor.shape)}
        for file, found in plan.edits.items()
    }
    old = plan.conversion or Conversion("", {})
    return replace(plan, conversion=replace(old, forms=forms, label=name), onto="")


def warned_of(
    plan: BakePlan, kept: float, relative_error: float, seed: int | None
) -> Iterator[Message]:
    """Yield the warning of what rounding takes from a bake, or adds to it; nothing if it is little.

    Args:
        kept, relative_error: of the change, as the bake reports them.
        seed: of stochastic rounding, None where it rounds to nearest.
    """
    remedies: list[str | Setting] = []
    wider = DTYPES[wider_type(plan)].word
    if kept < LEAST and seed is None and not plan.onto and plan.conversion is None:
        remedies += ["it is kept on average with ", Setting("rounding", "stochastic"), "; "]
    if plan.conversion is not None:
        remedies += ["give a type of more bits as ", Setting("storage")]
    else:
        word = "keep_touched" if plan.dtype is None else "dtype"
        remedies += ["nearly all of it is kept as it is with ", Setting(word, wider)]
    yield from rounding_words(kept, relative_error, plan.dtypes, tuple(remedies))


def forecast(
    plan: BakePlan,
    seed: int | None,
    *,
    allow_loss: bool,
    threads: int | None = None,
    notify: Notify = ignore,
) -> tuple[dict[str, Any], NumericsError | None] | None:
    """Return how much of a change rounding will keep, measured without writing; None without a change.

    All tensors that change are measured if they are small enough, else some of them.

    Args:
        seed: of stochastic rounding, None where it rounds to nearest.
        allow_loss: whether the bake may keep little.

    Returns:
        The figures, see `foreseen.figures_of`. Then the error that the bake will end with, None if none
        is foreseen: some tensors must keep clearly too little for it.
    """
    some = plan if _bytes(plan) <= WHOLE else _sampled(plan, _FORECAST)
    totals = totals_of(survey(some, seed=seed, threads=threads, notify=notify))
    if totals is None:
        return None
    found = figures_of(totals, len(_names(some)), len(_names(plan)))
    least = LEAST if found["estimated"] is None else _SURE
    refused = not allow_loss and totals.survived < least
    return found, _refusal(plan, totals, seed, threads) if refused else None


def _bytes(plan: BakePlan) -> int:
    """Return the bytes of the tensors that change."""
    sizes = {(file, name): edit.place.tensor.nbytes for file, name, edit in plan.all_edits()}
    return sum(sizes.values())


def _names(plan: BakePlan) -> list[tuple[CheckpointFile, str]]:
    return list(dict.fromkeys((file, name) for file, name, _ in plan.all_edits()))


def _sampled(plan: BakePlan, most: int) -> BakePlan:
    """Return a plan of a few of its tensors, from first to last."""
    names = _names(plan)
    step = max(1, len(names) // most)
    edits: dict[CheckpointFile, dict[str, list[Edit]]] = {}
    for file, name in names[::step][:most]:
        edits.setdefault(file, {})[name] = plan.edits[file][name]
    return replace(plan, edits=edits)
