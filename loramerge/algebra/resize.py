"""Re-rank an adapter by truncated SVD."""

from __future__ import annotations

from loramerge.adapter import Adapter
from loramerge.adapter.sites import for_dialect
from loramerge.algebra.combine import combine
from loramerge.algebra.outcome import Combined, SizeModel
from loramerge.algebra.ranks import RankRule, check_errors
from loramerge.algebra.terms import Term, require_base_free
from loramerge.algebra.weights import Weight
from loramerge.dialects import Dialect
from loramerge.errors import Setting, UsageError
from loramerge.events import Notify, ignore

__all__ = ["resize"]


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
    already low enough, and vectors, stay unchanged.

    Args:
        rule: what to keep.
        sizes: needed where the rule has `max_size`.
        target: the dialect to write; ranks are counted per site that it stores.
        precise: for float64 output, see `svd.decompose`.

    Raises:
        UsageError: if the rule cuts nothing.
        NumericsError: if an input is not finite, or an error limit is exceeded.
    """
    if not rule.truncates:
        raise UsageError(
            "resize needs a rank option",
            hint=(
                "give ",
                Setting("rank", 8),
                ", or energy, ratio, cumulative, max_size, max_error",
            ),
        )
    adapter.require_sound()
    require_base_free([(adapter, Weight())], rule)
    if target is not None:
        adapter = for_dialect(adapter, target)
    combined = combine(
        {site: [Term(delta)] for site, delta in adapter.deltas.items()},
        rule,
        sizes=sizes,
        device=device,
        precise=precise or adapter.dtype == "F64",
        threads=threads,
        task="resizing",
        notify=notify,
    )
    check_errors(rule, combined.relative_error, combined.worst)
    small = adapter.with_deltas(
        combined.deltas, path=None, files=(), size=None, dtype=adapter.dtype
    )
    return small, combined
