"""Warn of weights for components, blocks or patterns that an input does not have: they do nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from loramerge.adapter import Adapter, Site
from loramerge.algebra.unmatched import unmatched, unmatched_blocks
from loramerge.errors import listed
from loramerge.events import Notify, Warn
from loramerge.steps.references import Reference

if TYPE_CHECKING:
    from loramerge.checkpoint import Checkpoint

__all__ = ["warn_of_idle", "warn_of_idle_in"]


def warn_of_idle(reference: Reference, adapter: Adapter, notify: Notify) -> None:
    """Warn of the rules in the weight of a reference that match no module of its adapter."""
    if reference.weight.plain:
        return
    sites = list(adapter.deltas)
    rules = [
        *unmatched(reference.weight, sites, set(_seconds(adapter))),
        *unmatched_blocks(reference.weight, adapter),
    ]
    _warn(reference, rules, sites, notify)


def warn_of_idle_in(reference: Reference, checkpoint: Checkpoint, notify: Notify) -> None:
    """Warn of the rules in the weight of a reference that match no module of its checkpoint."""
    if not reference.weight.plain:
        sites = [Site((module,), parameter) for module, parameter in checkpoint.slots]
        _warn(reference, list(unmatched(reference.weight, sites)), sites, notify)


def _seconds(adapter: Adapter) -> Iterator[str]:
    """Yield the second networks that the adapter's modules may be for, by a weight that says so."""
    family, has = adapter.info.detection.naming, adapter.components()
    for one in () if family is None else family.components:
        if one.second_of and (one.second_of in has or one.name in has):
            yield from (one.second_of, one.name)


def _warn(
    reference: Reference, rules: Sequence[str], sites: Collection[Site], notify: Notify
) -> None:
    if not rules:
        return
    match = "matches" if len(rules) == 1 else "match"
    components = listed(sorted({site.component for site in sites}), 6)
    several = f"its {len(sites)} modules are" if len(sites) > 1 else "its only module is"
    has = f"{several} of {components}" if components else "it has no modules"
    if any(rule.startswith(("'", '"')) for rule in rules) and sites:
        has += f", such as {min(site.modules[0] for site in sites)}"
    notify(Warn(f"{reference.label}: {listed(rules, 6)} {match} no module; {has}"))
