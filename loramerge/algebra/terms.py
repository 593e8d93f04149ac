"""The terms that a merge operator combines: for each module the deltas of adapters, with weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.sites import aligned, cut, for_dialect
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.weights import Weight
from loramerge.dialects import Dialect
from loramerge.errors import AdapterError, LoramergeError, Setting, UsageError

__all__ = ["Term", "apply_weight", "naming", "require_base_free", "terms_of"]


@dataclass(frozen=True)
class Term:
    """The part of one adapter at one site.

    Args:
        delta: ΔW as the adapter holds it.
        weight: the user's coefficient, not 0. The operator decides when to apply it.
        position: of the adapter among the inputs, from 0.
    """

    delta: Delta
    weight: float = 1.0
    position: int = 0

    @property
    def weighted(self) -> Delta:
        """The delta times the weight."""
        return self.delta if self.weight == 1.0 else self.delta.scaled(self.weight)


Places = dict[Site, float]  # single module and parameter → weight


def terms_of(
    inputs: Sequence[tuple[Adapter, Weight]],
    target: Dialect | None = None,
    *,
    one_weight: bool = False,
) -> dict[Site, list[Term]]:
    """Return site → terms, in the order of the inputs; a weight of 0 removes an adapter from a site.

    A delta is cut where the weights of its modules differ. If the dialect still stores such modules
    as one, each part is multiplied by its own weight, and the term has weight 1. That is right for
    a sum, and for no other operator.

    Args:
        target: the dialect to write, whose sites count; None for the finest sites of the inputs.
        one_weight: refuse sites joined from parts whose weights differ.

    Raises:
        UnsupportedKind, ShapeError: if a delta cannot be brought to the sites of the others.
        UsageError: see `one_weight`.
    """
    parts = [_cut_by_weight(adapter, weight) for adapter, weight in inputs]
    adapters = _at_common_sites([adapter for adapter, _ in parts], target)
    uneven = [
        [site for site in adapter.deltas if len(_weights(site, weights)) > 1]
        for adapter, (_, weights) in zip(adapters, parts, strict=True)
    ]
    if any(uneven):
        if one_weight:
            raise UsageError(
                "these modules are stored as one, but their weights differ",
                module=next(sites[0].name for sites in uneven if sites),
                hint=("give them one weight, or write a dialect that stores them apart: ",
                      Setting("to", "diffusers")),
            )  # fmt: skip
        parts = [
            (_multiplied(adapter, weights), dict.fromkeys(weights, 1.0)) if sites else part
            for part, sites in zip(parts, uneven, strict=True)
            for adapter, weights in [part]
        ]
        adapters = _at_common_sites([adapter for adapter, _ in parts], target)
    terms: dict[Site, list[Term]] = {}
    for position, (adapter, (_, weights)) in enumerate(zip(adapters, parts, strict=True)):
        for site, delta in adapter.deltas.items():
            (weight,) = _weights(site, weights)
            term = Term(delta, weight, position)
            if not delta.facts.computable:
                with naming(site, adapter.info.path):
                    term.weighted  # noqa: B018  # refuses any weight but 1, naming the file
            terms.setdefault(site, []).append(term)
    return terms


def _at_common_sites(adapters: Sequence[Adapter], target: Dialect | None) -> list[Adapter]:
    if target is not None:
        adapters = [for_dialect(adapter, target) for adapter in adapters]
    return aligned(adapters)


def _weights(site: Site, weights: Mapping[Site, float]) -> set[float]:
    """Return the weights of a site's modules, without modules that the adapter lacks."""
    alone = (Site((module,), site.parameter) for module in site.modules)
    return {weights[one] for one in alone if one in weights}


def _cut_by_weight(adapter: Adapter, weight: Weight) -> tuple[Adapter, Places]:
    """Return an adapter without modules of weight 0, cut into parts of one weight, and the weights."""
    of = weight.on(adapter)
    deltas: dict[Site, Delta] = {}
    places: Places = {}
    for site, delta in adapter.deltas.items():
        weights = {one: of(one) for one in (Site((m,), site.parameter) for m in site.modules)}
        if len(set(weights.values())) == 1:
            groups = [site] if 0.0 not in weights.values() else []
            found = [(group, delta) for group in groups]
        else:
            with naming(site, adapter.info.path):
                found = [pair for pair in cut(site, delta, list(weights)) if weights[pair[0]]]
        for part, piece in found:
            deltas[part] = piece
            alone = (Site((module,), site.parameter) for module in part.modules)
            places |= {one: weights[one] for one in alone}
    if deltas == adapter.deltas:
        return adapter, places
    return adapter.with_deltas(deltas, dtype=adapter.info.dtype), places


def _multiplied(adapter: Adapter, weights: Places) -> Adapter:
    """Return an adapter whose deltas, each of modules of one weight, are multiplied by it."""
    deltas: dict[Site, Delta] = {}
    for site, delta in adapter.deltas.items():
        (weight,) = _weights(site, weights)
        with naming(site, adapter.info.path):
            deltas[site] = Term(delta, weight).weighted
    if deltas == adapter.deltas:
        return adapter
    return adapter.with_deltas(deltas, dtype=adapter.info.dtype)


def require_base_free(inputs: Sequence[tuple[Adapter, Weight]], rule: RankRule) -> None:
    """Refuse kinds that depend on the base, unless they are only copied.

    Replacements are an exception: equal ones can be mixed.

    Raises:
        AdapterError: naming file, module and kind.
    """
    uses: Counter[Site] = Counter()
    for adapter, weight in inputs:
        of = weight.on(adapter)
        uses.update(site for site in adapter.deltas if of(site) != 0.0)
    for adapter, weight in inputs:
        of = weight.on(adapter)
        for site, delta in adapter.deltas.items():
            w = of(site)
            if not delta.needs_base or delta.facts.replaces or w == 0.0:
                continue
            if rule.truncates or uses[site] > 1 or (w != 1.0 and not delta.facts.weighs):
                raise AdapterError(
                    f"the change of a {delta.kind} module depends on the base; without the base "
                    "it cannot be mixed, weighted or resized",
                    file=adapter.info.path,
                    module=site.name,
                    found=f"kind {delta.kind}",
                    hint=("give the base it is for: ", Setting("base", "B")),
                )


def apply_weight(adapter: Adapter, weight: Weight) -> Adapter:
    """Return the adapter multiplied by a weight; sites of weight 0 are left out.

    A fused delta is cut where the weights of its modules differ.
    """
    return _multiplied(*_cut_by_weight(adapter, weight))


@contextmanager
def naming(site: Site, file: str | None = None) -> Iterator[None]:
    """Add the site's name, and the file if it is known, to errors that pass."""
    try:
        yield
    except LoramergeError as error:
        error.module = error.module or site.name
        error.file = error.file or file
        raise
