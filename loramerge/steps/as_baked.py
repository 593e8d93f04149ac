"""The adapters that are taken out of a checkpoint, beside what its header says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import RECIPE_KEY
from loramerge.algebra.weights import Weight, shown_number
from loramerge.errors import AdapterError, Setting
from loramerge.events import Note, Warn
from loramerge.steps.inside import inside, total_of, weights_of
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import FileInput, input_of, recipe_in
from loramerge.steps.references import Reference

__all__ = ["as_baked", "require_inside"]


def as_baked(
    references: Sequence[Reference],
    source: FileInput,
    adapters: Sequence[Adapter],
    context: Context,
) -> tuple[tuple[Reference, ...], list[Adapter]]:
    """Give adapters without a weight those by which a checkpoint holds them, by its header.

    Args:
        references: one for each adapter.
        source: the checkpoint.

    Returns:
        The references and their adapters; one that was baked with several weights that do not add up
        to one stands there several times.
    """
    recipe = recipe_in({RECIPE_KEY: source.recipe or ""})
    # a header that is repeated leaves out weights of 1
    those = [] if context.allow_again else inside(recipe)
    found: list[tuple[Reference, Adapter]] = []
    for reference, adapter in zip(references, adapters, strict=True):
        node = input_of(adapter)
        weights: list[Weight] = []
        if those and not reference.stated and isinstance(node, FileInput):
            weights = weights_of(those, node.digest())
            if weights and weights != [Weight()]:
                words = " and ".join(one.text() for one in weights)
                text = f"{node.name} is subtracted at the weight of the bake, {words}"
                context.notify(Note(text))
        given = [replace(reference, weight=one, written=one.text(), stated=True) for one in weights]
        found += [(one, adapter) for one in given or [reference]]
    return tuple(reference for reference, _ in found), [adapter for _, adapter in found]


def require_inside(
    references: Sequence[Reference],
    source: FileInput,
    adapters: Sequence[Adapter],
    context: Context,
    *,
    unrecorded: bool,
) -> None:
    """Refuse an adapter that is not in a checkpoint according to its header.

    Args:
        references: one for each adapter.
        source: the checkpoint.
        unrecorded: whether such an adapter may be subtracted.

    Raises:
        AdapterError: naming it, and what is recorded.
    """
    recipe = recipe_in({RECIPE_KEY: source.recipe or ""})
    if recipe is None:
        context.notify(
            Note(
                "the header does not say what is in the checkpoint; `loramerge verify` finds it out"
            )
        )
        return
    those = inside(recipe)
    for reference, adapter in zip(references, adapters, strict=True):
        node = input_of(adapter)
        if not isinstance(node, FileInput):
            continue
        digest = node.digest()
        baked = [one for one in those if one.sha256 == digest]
        total = total_of(those, digest)
        if not baked or total == 0.0:
            problem = (
                f"{node.name} was taken out of this checkpoint already"
                if baked
                else f"{node.name} was not baked into this checkpoint"
            )
            if unrecorded or context.allow_again:
                context.notify(Warn(f"{problem}, according to its header"))
                continue
            raise AdapterError(
                problem,
                file=source.path,
                found="the recipe in its header",
                hint=("to subtract it all the same, give ", Setting("allow_unrecorded", True)),
            )
        weight = reference.weight
        if total is not None and weight.plain and abs(total - weight.default) > 1e-6:
            context.notify(
                Warn(
                    f"{node.name} is in the checkpoint at the weight {shown_number(total)}, and is "
                    f"subtracted at {shown_number(weight.default)}"
                )
            )
