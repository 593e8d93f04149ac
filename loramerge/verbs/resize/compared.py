"""The inputs that losses are compared with: the weights of a base, or the ingredients of a mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter, Site
from loramerge.adapter.sites import for_dialect
from loramerge.algebra.outcome import Combined
from loramerge.algebra.weights import Weight
from loramerge.steps.ingredients import ingredients_of
from loramerge.steps.inputs import adapter_of, at_base, open_base
from loramerge.steps.outputs import Output
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import base_input, input_of
from loramerge.steps.references import Reference
from loramerge.steps.source import Source
from loramerge.verbs.resize.parameters import Resize

if TYPE_CHECKING:
    from loramerge.checkpoint import Checkpoint

__all__ = ["Compared"]


@dataclass(frozen=True)
class Compared:
    """The inputs that losses are compared with: a base, or the ingredients of a mix.

    Args:
        references, ingredients: of a fair result, as given or as the header names them.
        base: whose `norms` changes are compared with; None compares them as they are.
    """

    parameters: Resize
    references: tuple[Reference, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    ingredients: tuple[tuple[Adapter, Weight], ...] = ()
    base: Checkpoint | None = None
    norms: Mapping[Site, float] | None = None

    @staticmethod
    def of(
        parameters: Resize,
        source: Source,
        whole: Adapter,
        output: Output,
        context: Context,
        *,
        values: bool = True,
    ) -> Compared:
        """Find and open what parameters name.

        Args:
            values: compute norms; otherwise only headers are read.
        """
        found = Compared(parameters)
        if parameters.fair:
            references = parameters.ingredient or tuple(ingredients_of(source.adapter))
            adapters = tuple(
                adapter_of(one, context, whole=not parameters.skip_unknown) for one in references
            )
            weights = (one.weight for one in references)
            there = [at_base(one, source.base) for one in adapters]
            pairs = tuple(zip(there, weights, strict=True))
            found = replace(found, references=references, adapters=adapters, ingredients=pairs)
        if parameters.relative_to is not None:
            found = replace(found, base=open_base(parameters.relative_to, context))
        if found.base is not None and values:
            from loramerge.stream.norms import norms_of

            stored = for_dialect(whole, output.dialect)
            norms = norms_of(
                stored, found.base, parameters.norm, threads=context.threads, notify=context.notify
            )
            found = replace(found, norms=norms)
        return found

    def named(self, source: Source) -> Source:
        """Return a source that knows these inputs, too, for the recipe in the header."""
        given = dict(source.given)
        for reference, adapter in zip(self.references, self.adapters, strict=True):
            given["adapters", reference.name] = input_of(adapter)
        if self.base is not None:
            given["bases", str(self.parameters.relative_to)] = base_input(self.base)
        return replace(source, given=given)

    def lost(self, combined: Combined) -> list[dict[str, Any]]:
        """Return what each ingredient loses."""
        return [
            {
                "adapter": one.label,
                "weight": one.weight_in_words,
                "relative_error": combined.losses[place],
            }
            for place, one in enumerate(self.references)
            if place in combined.losses
        ]
