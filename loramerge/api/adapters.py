"""Verbs that make an adapter of others: the sum, fewer ranks, other modules, repairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from loramerge.adapter import Adapter
from loramerge.api.running import (
    Given,
    Named,
    Weighted,
    adapter_from,
    checked,
    perform,
    with_parameters,
)
from loramerge.errors import UsageError
from loramerge.events import Notify, ignore
from loramerge.signatures import (
    ConvertParameters,
    HealParameters,
    MixParameters,
    ResizeParameters,
)
from loramerge.steps import engine
from loramerge.steps.given import listed_adapters, one_adapter, references_to
from loramerge.steps.parameters import Context
from loramerge.verbs.convert import Convert
from loramerge.verbs.heal import Heal, HealResult
from loramerge.verbs.mix import Mix
from loramerge.verbs.resize import CurveResult, Resize, compute_curve, compute_each

__all__ = ["convert", "error_curve", "heal", "mix", "resize", "resize_each"]


@with_parameters(Mix, MixParameters)
def mix(
    adapters: Weighted | Iterable[Weighted],
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[MixParameters],
) -> Adapter:
    """Return the exact weighted sum, or the result of another operator (`method`).

    `0.7 * a + 0.3 * b` is `mix([(a, 0.7), (b, 0.3)])`.

    Args:
        adapters: adapters, paths or names, each alone, with a weight behind it (`"zuzu:0.7"`), or in a
            pair with its weight.
    """
    references, context = references_to(listed_adapters(adapters), Context(threads, device, notify))
    return adapter_from("mix", parameters, {"adapters": references}, MixParameters, context)


@with_parameters(Resize, ResizeParameters)
def resize(
    adapter: Given,
    *,
    ingredients: Weighted | Iterable[Weighted] = (),
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[ResizeParameters],
) -> Adapter:
    """Return the adapter at lower ranks, by truncated SVD.

    One of `rank`, `energy`, `ratio`, `cumulative`, `max_size` and `max_error` says what to keep.

    Args:
        ingredients: with `fair`, the adapters in the mix, as for `mix`; by default those that its
            recipe names.
    """
    for word, several in (("rank", "ranks"), ("max_size", "sizes")):
        if isinstance(parameters.get(word), (list, tuple)):
            raise UsageError(
                f"resize gives one result, and several values of {word} are given",
                hint=f"resize_each({several}=[…]) gives a result for each",
            )
    given, known = _with_ingredients("resize", adapter, ingredients)
    context = replace(Context(threads, device, notify), known=known)
    return adapter_from("resize", parameters, given, ResizeParameters, context)


def _with_ingredients(
    verb: str, adapter: object, ingredients: object
) -> tuple[dict[str, Any], Mapping[str, Adapter | Path]]:
    """Return the parameters that name an adapter and its ingredients, and those in memory by name."""
    several = [] if ingredients == () else listed_adapters(ingredients)
    (reference, *others), context = references_to([one_adapter(verb, adapter), *several], Context())
    return {"adapter": reference, "ingredient": tuple(others)}, context.known


@with_parameters(Resize, ResizeParameters)
def resize_each(
    adapter: Given,
    *,
    ranks: Iterable[int] = (),
    sizes: Iterable[str | int] = (),
    ingredients: Weighted | Iterable[Weighted] = (),
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[ResizeParameters],
) -> list[Adapter]:
    """Return the adapter at several ranks or file sizes, each as `resize` gives it, decomposed once.

    Args:
        ranks, sizes: a result for each, or for each pair where both are given.
        ingredients: as for `resize`.
    """
    given, known = _with_ingredients("resize_each", adapter, ingredients)
    context = replace(Context(threads, device, notify), known=known)
    each: list[dict[str, Any]] = [{}]
    for word, values in (("rank", list(ranks)), ("max_size", list(sizes))):
        if values:
            each = [{**one, word: value} for one in each for value in values]
    several = [checked(Resize, {**parameters, **one}, given, ResizeParameters) for one in each]
    found = [one.adapter for one in compute_each(several, context)]
    return [one for one in found if one is not None]


def error_curve(
    adapter: Given,
    *,
    ranks: Iterable[int] = (),
    sizes: Iterable[str | int] = (),
    base: Named | None = None,
    dialect: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> CurveResult:
    """Return the error of an adapter at many ranks, and at the best ranks for files of the same sizes.

    Nothing is written: `result.save(path)` draws it as a PNG image.

    Args:
        ranks: to show; none shows 1, 2, 3, 4, 6, 8, 12, … up to the largest.
        sizes: further sizes to show.
        base: needed for kinds whose change depends on it.
        dialect, dtype: of the files whose sizes are shown; None keeps the adapter's own.
    """
    (reference,), context = references_to(
        [one_adapter("error_curve", adapter)], Context(threads, device, notify)
    )
    own = {"adapter": reference, "base": base, "to": dialect, "dtype": dtype}
    parameters = engine.parameters_from(Resize, own)
    return compute_curve(parameters, list(ranks), [str(size) for size in sizes], context)


@with_parameters(Convert, ConvertParameters)
def convert(
    adapter: Given,
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[ConvertParameters],
) -> Adapter:
    """Return the adapter with some of its modules, rescaled, or as ordinary LoRA.

    Dialect and type are chosen where it is written: `save(adapter, path, dialect="diffusers")`.
    """
    given = one_adapter("convert", adapter)
    (reference,), context = references_to([given], Context(threads, device, notify))
    return adapter_from("convert", parameters, {"adapter": reference}, ConvertParameters, context)


@with_parameters(Heal, HealParameters)
def heal(
    adapter: Given,
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[HealParameters],
) -> HealResult:
    """Repair an adapter: `.adapter` is the repaired one, `.repairs` says what was done.

    Raises:
        AdapterError: if modules cannot be repaired, such as those with NaN, unless `drop_damaged`.
    """
    given = one_adapter("heal", adapter)
    (reference,), context = references_to([given], Context(threads, device, notify))
    found: HealResult = perform(
        "heal", parameters, {"adapter": reference}, HealParameters, context, save=False
    )
    return found
