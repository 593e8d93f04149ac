"""Inputs of verbs that compute an adapter: adapters with weights, and the base they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter
from loramerge.steps.inputs import adapter_of, at_base, open_base, weighted
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import Given, Made, Node, base_input, input_of, step_of
from loramerge.steps.references import Reference

if TYPE_CHECKING:
    from loramerge.checkpoint import Checkpoint

__all__ = ["Source", "open_source"]


@dataclass(frozen=True)
class Source:
    """Opened inputs of a verb.

    Args:
        references: names and weights, as given.
        adapters: one for each reference; weights are not applied.
        base: for adapters that depend on one; None if none is given.
        given: the recipe of each input, for the header of a result.
    """

    references: tuple[Reference, ...]
    adapters: tuple[Adapter, ...]
    base: Checkpoint | None
    given: Given

    @property
    def adapter(self) -> Adapter:
        """The only adapter, of a verb that takes one."""
        (only,) = self.adapters
        return only

    def changed(self, change: Callable[[Adapter], Adapter]) -> Source:
        """Return the same with a function applied to every adapter."""
        return replace(self, adapters=tuple(map(change, self.adapters)))

    def at_base(self) -> list[Adapter]:
        """Return the adapters, with base-dependent modules computed for it."""
        return [at_base(adapter, self.base) for adapter in self.adapters]

    def weighted(self) -> Adapter:
        """Return the only adapter, computed for the base and multiplied by its weight."""
        (found,), (reference,) = self.at_base(), self.references
        return weighted(found, reference.weight)

    def step(self, verb: str, parameters: Any) -> Made | None:
        """Return the step that uses these inputs, None if the origin of one is not known."""
        return step_of(verb, parameters, self.given)


def open_source(
    references: Sequence[Reference],
    base: str | None,
    context: Context,
    *,
    skip_unknown: bool = False,
) -> Source:
    """Open adapters and the base they may need.

    Args:
        skip_unknown: leave out tensors that are not known, rather than refuse them.

    Raises:
        NotFound: if there is none of a name.
        LoramergeError: see `inputs.adapter_of` and `inputs.open_base`.
    """
    adapters = tuple(
        adapter_of(reference, context, whole=not skip_unknown) for reference in references
    )
    given: dict[tuple[str, str], Node | None] = {
        ("adapters", reference.name): input_of(adapter)
        for reference, adapter in zip(references, adapters, strict=True)
    }
    opened = None
    if base is not None:
        opened = open_base(base, context)
        given["bases", base] = base_input(opened)
    return Source(tuple(references), adapters, opened, given)
