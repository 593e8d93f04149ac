"""The terms of a sum: the deltas of adapters at the same sites, each multiplied by its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.sites import aligned, cut, for_dialect
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.weights import Weight
from loramerge.dialects import Dialect
from loramerge.errors import AdapterError, LoramergeError

__all__ = ["naming", "require_base_free", "terms_of", "weighed"]


def terms_of(
    inputs: Sequence[tuple[Adapter, Weight]], target: Dialect | None = None
) -> dict[Site, list[Delta]]:
    """Return site → weighted deltas to add; a weight of 0 removes an adapter from a site.

    Args:
        target: the dialect that will be written, whose sites count; None for the finest of the
            inputs'.

    Raises:
        UnsupportedKind, ShapeError: if a delta cannot be brought to the sites of the others.
    """
    terms: dict[Site, list[Delta]] = {}
    adapters = [weighed(adapter, weight) for adapter, weight in inputs]
    if target is not None:
        adapters = [for_dialect(adapter, target) for adapter in adapters]
    for adapter in aligned(adapters):
        for site, delta in adapter.deltas.items():
            terms.setdefault(site, []).append(delta)
    return terms


def require_base_free(inputs: Sequence[tuple[Adapter, Weight]], rule: RankRule) -> None:
    """Refuse kinds that depend on the base where more is asked than carrying them along.

    Replacements are apart: equal ones can be mixed.

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
                    f"what a {delta.kind} delta changes depends on the base, so without the base "
                    "it cannot be added to others, weighted or re-ranked",
                    file=adapter.info.path,
                    module=site.name,
                    found=f"kind {delta.kind}",
                    hint="give the base it is for: --base B",
                )


def weighed(adapter: Adapter, weight: Weight) -> Adapter:
    """Return the adapter multiplied by a weight; sites of weight 0 are left out.

    A fused delta is cut where the weights of its modules differ.
    """
    of = weight.on(adapter)
    deltas: dict[Site, Delta] = {}
    for site, delta in adapter.deltas.items():
        alone = [Site((module,), site.parameter) for module in site.modules]
        weights = {one: of(one) for one in alone}
        with naming(site, adapter.info.path):
            if len(set(weights.values())) == 1:
                weights = {site: of(alone[0])}
            for part, piece in cut(site, delta, list(weights)):
                w = weights[part]
                if w != 0.0:
                    deltas[part] = piece if w == 1.0 else piece.scaled(w)
    if len(deltas) == len(adapter.deltas) and all(
        delta is adapter.deltas.get(site) for site, delta in deltas.items()
    ):
        return adapter
    return adapter.with_deltas(deltas, dtype=adapter.info.dtype)


@contextmanager
def naming(site: Site, file: str | None = None) -> Iterator[None]:
    """Add the site's name, and the file if it is known, to errors that pass."""
    try:
        yield
    except LoramergeError as error:
        error.module = error.module or site.name
        error.file = error.file or file
        raise
