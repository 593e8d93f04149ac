"""Re-rank an adapter by truncated SVD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from loramerge.adapter import Adapter, Site
from loramerge.adapter.opaque import commonly_named
from loramerge.adapter.sites import for_dialect
from loramerge.algebra.budget import Cut
from loramerge.algebra.combine import combine_each
from loramerge.algebra.fair import combine_fairly
from loramerge.algebra.outcome import Combined, SizeModel
from loramerge.algebra.ranks import RankRule, check_errors
from loramerge.algebra.terms import Term, require_base_free, terms_of
from loramerge.algebra.weights import Weight
from loramerge.dialects import Dialect
from loramerge.errors import Setting, UsageError
from loramerge.events import Notify, ignore
from loramerge.files.spool import Keep, in_memory

__all__ = ["resize", "resize_each"]


def resize(
    adapter: Adapter,
    rule: RankRule,
    *,
    sizes: SizeModel | None = None,
    target: Dialect | None = None,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    notify: Notify = ignore,
) -> tuple[Adapter, Combined]:
    """Return the adapter cut by a rule, with the error of every site.

    Each site is replaced by the best approximation of its rank (Eckart–Young). Sites whose rank is
    already low enough, and what has no rank (see `has_rank`), stay unchanged.

    Args:
        rule: what to keep.
        sizes: needed where the rule has `max_size`.
        target: the dialect to write; ranks are counted per site that it stores.
        precise: for float64 output, see `svd.decompose`.

    Raises:
        UsageError: if the rule cuts nothing.
        NumericsError: if an input is not finite, or an error limit is exceeded.
    """
    (found,) = resize_each(
        adapter,
        [Cut(rule, sizes)],
        target=target,
        device=device,
        precise=precise,
        threads=threads,
        notify=notify,
    )
    return found


def resize_each(
    adapter: Adapter,
    cuts: Sequence[Cut],
    *,
    ingredients: Sequence[tuple[Adapter, Weight]] = (),
    target: Dialect | None = None,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    keep: Keep = in_memory,
    notify: Notify = ignore,
) -> list[tuple[Adapter, Combined]]:
    """Return the adapter at the ranks of each cut, as `resize` does for one, from one decomposition.

    Args:
        ingredients: adapters, of which this is a mix, to be fair to; see `algebra.fair`.
        keep: holds the tensors of the results until they are written.

    Raises:
        UsageError, NumericsError: see `resize`.
    """
    for cut in cuts:
        _require_truncation(cut.rule)
    adapter.require_sound()
    for cut in cuts:
        require_base_free([(adapter, Weight()), *ingredients], cut.rule)
    if target is not None:
        adapter = for_dialect(adapter, target)
    terms: Mapping[Site, Sequence[Term]] = {
        site: [Term(delta)] for site, delta in adapter.deltas.items()
    }
    work: Any = combine_each
    if ingredients:
        adapter, terms, parts = _with_parts(adapter, ingredients, target)
        work = partial(combine_fairly, ingredients=parts)
    found = work(
        terms,
        cuts=cuts,
        device=device,
        precise=precise or adapter.dtype == "F64",
        threads=threads,
        task="resizing",
        keep=keep,
        notify=notify,
    )
    for cut, combined in zip(cuts, found, strict=True):
        check_errors(cut.rule, combined.error_under(cut.rule, cut.norms), combined.worst)
    return [
        (
            adapter.with_deltas(
                combined.deltas, path=None, files=(), size=None, dtype=adapter.dtype
            ),
            combined,
        )
        for combined in found
    ]


def _require_truncation(rule: RankRule) -> None:
    if not rule.truncates:
        raise UsageError(
            "resize needs a rank option",
            hint=(
                "give ",
                Setting("rank", 8),
                ", or energy, ratio, cumulative, max_size, max_error",
            ),
        )


Terms = Mapping[Site, Sequence[Term]]


def _with_parts(
    adapter: Adapter, ingredients: Sequence[tuple[Adapter, Weight]], target: Dialect | None
) -> tuple[Adapter, Terms, Terms]:
    """Return a mix, its terms, and those of its ingredients, at sites that are common to all.

    Raises:
        UsageError: if no ingredient has a module of it.
    """
    whole, *named = commonly_named([adapter, *(one for one, _ in ingredients)])
    weights = (weight for _, weight in ingredients)
    found = terms_of([(whole, Weight()), *zip(named, weights, strict=True)], target)
    own = {site: terms[:1] for site, terms in found.items() if terms[0].position == 0}
    parts = {
        site: [replace(term, position=term.position - 1) for term in terms[1:]]
        for site, terms in found.items()
        if site in own
    }
    if not any(parts.values()):
        raise UsageError(
            "the ingredients have no module in common with the adapter",
            hint="give the adapters that it was mixed from",
        )
    return whole, own, parts
