"""Convert any kind of delta to ordinary LoRA: exactly where possible, else cut by a rule."""

from __future__ import annotations

from loramerge.adapter import Adapter, Delta, LowRank, Site
from loramerge.adapter.widths import widest
from loramerge.algebra.arrays import Array
from loramerge.algebra.combine import combine, has_rank
from loramerge.algebra.outcome import Combined, SizeModel, moved, uncut
from loramerge.algebra.ranks import RankRule, check_errors
from loramerge.algebra.svd import decompose
from loramerge.algebra.terms import Term, naming
from loramerge.algebra.workers import ordered
from loramerge.errors import AdapterError, Setting, UsageError, listed
from loramerge.events import Notify, ignore
from loramerge.files.spool import Keep, in_memory

__all__ = ["check_to_lora", "to_lora"]


def to_lora(
    adapter: Adapter,
    rule: RankRule,
    *,
    sizes: SizeModel | None = None,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    keep: Keep = in_memory,
    notify: Notify = ignore,
) -> tuple[Adapter, Combined]:
    """Return the adapter with every matrix as a LoRA, and the error of every site.

    Vectors (biases, norms, tables of one row) have no rank and stay unchanged. A criterion cuts all
    modules, those that are ordinary LoRA already included.

    Args:
        rule: required if a kind has no exact low-rank form; otherwise it may be empty.
        sizes: needed where the rule has `max_size`.
        keep: holds the tensors of the result until they are written.

    Raises:
        UsageError: if a kind has no exact low-rank form and the rule cuts nothing.
        AdapterError: naming the modules whose change depends on the base; `stream.against` supplies
            the base.
        NumericsError: if an input is not finite, or an error limit is exceeded.
    """
    adapter.require_sound()
    check_to_lora(adapter, rule)
    if rule.truncates:
        combined = combine(
            {site: [Term(delta)] for site, delta in adapter.deltas.items()},
            rule,
            sizes=sizes,
            device=device,
            precise=precise or adapter.dtype == "F64",
            threads=threads,
            task="converting",
            keep=keep,
            notify=notify,
        )
        check_errors(rule, combined.relative_error, combined.worst)
    else:
        combined = uncut(adapter)
    found = combined.deltas
    rest = [s for s, d in found.items() if has_rank(d) and not d.facts.plain]

    def work(site: Site) -> LowRank:
        with naming(site, adapter.info.path):
            return _exact(found[site])

    plain = ordered(work, rest, threads=threads, task="converting", notify=notify)
    found |= {site: moved(delta, keep) for site, delta in zip(rest, plain, strict=True)}
    types = {
        site: widest({t.dtype for t in adapter.deltas[site].stored().values()})
        for site, delta in found.items()
        if delta is not adapter.deltas[site]
    }
    return adapter.with_deltas(found, types=adapter.info.types | types), combined


def check_to_lora(adapter: Adapter, rule: RankRule) -> None:
    """Refuse modules that cannot become a LoRA; see `to_lora`. Only headers are needed.

    Raises:
        UsageError, AdapterError: see `to_lora`.
    """
    matrices = {site: d for site, d in adapter.deltas.items() if has_rank(d) or d.needs_base}
    bound = [f"{site.name} ({d.kind})" for site, d in matrices.items() if d.needs_base]
    if bound:
        raise AdapterError(
            f"the change of {len(bound)} module{'s'[: len(bound) > 1]} depends on the base",
            file=adapter.info.path,
            module=listed(bound, 4),
            hint=(
                "give the base it is for: ",
                Setting("base", "B"),
                ", and a rank, or leave these modules out with ",
                Setting("drop"),
            ),
        )
    rankless = [site.name for site, d in matrices.items() if d.rank is None]
    if rankless and not rule.truncates:
        raise UsageError(
            "modules without an exact low-rank form need a rank",
            file=adapter.info.path,
            module=listed(rankless, 4),
            hint=(
                "give ",
                Setting("rank", 32),
                ", or ",
                Setting("energy"),
                ", ",
                Setting("max_error"),
                " or ",
                Setting("max_size"),
            ),
        )


def _exact(delta: Delta) -> LowRank:
    """Return the exact LoRA of a delta, of a rank that is at most its smaller side."""
    up, down = delta.factors("float64")
    if up.shape[1] > min(up.shape[0], down.shape[1]):
        up, down = _reduced(up, down)
    return LowRank.from_arrays(up, down, delta.shape)


def _reduced(up: Array, down: Array) -> tuple[Array, Array]:
    found = decompose(up, down, precise=True)
    return found.truncate(max(1, found.rank))
