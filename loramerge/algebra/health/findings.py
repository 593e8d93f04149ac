"""Findings about modules, from their figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from statistics import median

from loramerge.adapter import Adapter, Problem, Site
from loramerge.algebra.health.limits import LIMITS
from loramerge.algebra.health.measure import ModuleFigures
from loramerge.algebra.health.neighbours import attention_of, beside_neighbours, spike_caps

__all__ = ["about_neighbours", "about_values"]

HEAL = "loramerge heal repairs it"
_LEAST_RANK = 2  # of modules whose effective rank says something


def about_values(adapter: Adapter, measures: Sequence[ModuleFigures]) -> Iterator[Problem]:
    """Yield what the values of single modules say: NaN, zeros, dead ranks, sizes for float16."""
    for m in measures:
        yield from _not_finite(m)
    untrained = [m for m in measures if m.norm == 0 and m.delta.alpha != 0]
    for m in untrained:
        yield _untrained(adapter, m)
    if untrained and len(untrained) == len(adapter.deltas):
        yield Problem(
            "error",
            "no-effect",
            None,
            "every module is exactly zero: the adapter changes nothing",
            "it was never trained; check that it received gradients",
        )
    padded = _padded(measures)
    for m in measures:
        if m.dead and m.norm and m.site not in padded:
            yield Problem(
                "warning",
                "dead-ranks",
                m.site.name,
                f"{len(m.dead)} of {m.rank} ranks {'is' if len(m.dead) == 1 else 'are'} exactly zero",
                f"{HEAL}: the file gets smaller, and the change stays the same",
            )
        yield from _overflow(m)
    yield from _collapsed(measures)


def _not_finite(m: ModuleFigures) -> Iterator[Problem]:
    if m.not_finite:
        bad = ", ".join(
            f"{count} {'value' if count == 1 else 'values'} of {role}"
            for role, count in m.not_finite.items()
        )
        yield Problem(
            "error",
            "not-finite",
            m.site.name,
            f"NaN or infinity in {bad}",
            "training diverged; use an earlier checkpoint",
        )


def _untrained(adapter: Adapter, m: ModuleFigures) -> Problem:
    what = "up is exactly zero" if m.zero_up else "the change is exactly zero"
    reason = _unreached(adapter, m.site)
    if reason is not None:
        return Problem(
            "note",
            "untrained-as-usual",
            m.site.name,
            f"{what}, as it should be: {reason}",
            f"no action needed; {HEAL.removesuffix(' repairs it')} would leave it out",
        )
    return Problem(
        "warning",
        "untrained",
        m.site.name,
        what,
        "the module was never trained; if there are many, check that they received gradients",
    )


def _unreached(adapter: Adapter, site: Site) -> str | None:
    """Return why no gradient reaches a module, None if one should."""
    for candidate in adapter.info.detection.candidates:
        for pattern, reason in candidate.unreached.items():
            if all(fnmatchcase(module, pattern) for module in site.modules):
                return reason
    return None


def _padded(measures: Sequence[ModuleFigures]) -> set[Site]:
    """Return the sites whose first or last ranks are zero as in other modules.

    PEFT's `cat` fills up so where one of the adapters lacks the module; nothing is wrong with that.
    """
    found: dict[tuple[int | None, tuple[int, ...]], list[Site]] = defaultdict(list)
    for m in measures:
        one_block = m.dead and m.dead[-1] - m.dead[0] == len(m.dead) - 1
        if one_block and (m.dead[0] == 0 or m.dead[-1] == (m.rank or 0) - 1):
            found[m.rank, m.dead].append(m.site)
    return {site for sites in found.values() if len(sites) > 1 for site in sites}


def _overflow(m: ModuleFigures) -> Iterator[Problem]:
    limit = LIMITS["float16-overflow"].value
    if m.peaks is None or max(m.peaks) <= limit:
        return
    factors, product, change = m.peaks
    if change > limit:
        yield Problem(
            "error",
            "float16-overflow",
            m.site.name,
            f"ΔW has values up to {change:.3g}; float16 ends at {limit:.0f}",
            "the change destroys the layer; use an earlier checkpoint",
        )
        return
    what = "factors have" if factors > limit else "the product of the factors has"
    yield Problem(
        "warning",
        "float16-product",
        m.site.name,
        f"{what} values up to {max(factors, product):.3g}, although ΔW has none above "
        f"{change:.3g}; programs that compute in float16 get infinity",
        f"{HEAL}: the factors get equal sizes, and the change stays the same",
    )


def _collapsed(measures: Sequence[ModuleFigures]) -> Iterator[Problem]:
    ranks = [
        m.effective_rank
        for m in measures
        if m.norm and m.singular_values is not None and (m.rank or 0) >= _LEAST_RANK
    ]
    limit = LIMITS["collapsed"].value
    if ranks and median(ranks) < limit:
        yield Problem(
            "note",
            "collapsed",
            None,
            "in half of the modules nearly all of the change is in one direction: the others are "
            "below a thousandth of it",
            "resize to rank 1 keeps it; a lower rate in training uses more ranks",
        )


def about_neighbours(
    measures: Sequence[ModuleFigures], explained: Iterable[Site] = ()
) -> Iterator[Problem]:
    """Yield what modules say beside their neighbours: spikes, odd strengths, uneven attention.

    Args:
        explained: sites whose strength another finding explains.
    """
    known = set(explained)
    for m, out, _ in spike_caps(measures, LIMITS["spike"].value):
        if m.site in known:
            continue
        yield Problem(
            "warning",
            "spike",
            m.site.name,
            f"the largest singular value is {out:.3g} times the next and what is usual in other blocks",
            f"{HEAL} by lowering it to what is usual; merges with other adapters may break otherwise",
        )
    loud, faint = LIMITS["loud-module"].value, LIMITS["faint-module"].value
    for site, times in beside_neighbours(measures).items():
        if site in known:
            continue
        if times >= loud:
            yield Problem(
                "warning",
                "loud-module",
                site.name,
                f"its change is {times:.3g} times as strong as that of its neighbours",
                f"if that was not meant, give the module a weight of {1 / times:.2g}",
            )
        elif times <= 1 / faint:
            yield Problem(
                "note",
                "faint-module",
                site.name,
                f"its change is only {times:.2g} times as strong as that of its neighbours",
                "check its alpha; if it was meant so, no action is needed",
            )
    limit = LIMITS["qkv-imbalance"].value
    for name, norms in attention_of(measures):
        least, most = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
        if norms[most] >= limit * norms[least]:
            yield Problem(
                "note",
                "qkv-imbalance",
                name,
                f"{most} changes {norms[most] / norms[least]:.3g} times as much as {least}",
                "no action needed if it was trained so; else check the alphas of both",
            )
