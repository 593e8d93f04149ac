"""Tables that draw conclusions: defaults against their alternatives, published orders against ours.

All leads are paired by seed. A lead is certain if its whole interval lies on one side of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.proving.cases import operators
from benchmarks.proving.scores import Interval
from benchmarks.proving.tables import Figures, lead, table, values_of
from loramerge.algebra.scale import SCALES

__all__ = ["CLAIMS", "Claim", "best_key", "default_table", "order_table", "verdict"]


@dataclass(frozen=True)
class Claim:
    """A published order of two methods; both are taken at the scale that is best here.

    Args:
        equal: whether the source finds no difference.
    """

    words: str
    first: str
    second: str
    equal: bool = False


CLAIMS = (
    Claim("Iso-C 73.6, task arithmetic 63.7", "iso-c", "linear"),
    Claim("Iso-C 73.6, TIES 63.7", "iso-c", "ties"),
    Claim("Iso-C 73.6, KnOTS-TIES 68.0", "iso-c", "ties-knots"),
    Claim("KnOTS-TIES 68.0, TIES 63.7", "ties-knots", "ties"),
    Claim("TIES 63.7, task arithmetic 63.7", "ties", "linear", equal=True),
    Claim("DARE-TIES 63.7, TIES 63.7", "dare-ties", "ties", equal=True),
    Claim("Iso-CTS 73.7, Iso-C 73.6", "iso-cts", "iso-c", equal=True),
    Claim("Pico 3.4 to 8.3 above task arithmetic", "pico", "linear"),
)


def best_key(rows: Figures, method: str, count: int) -> str:
    """Return the case of a method with the rule of scale that keeps most on average."""
    means = {
        key: mean(found.values())
        for key in (method, *(f"{method} scale={scale}" for scale in SCALES))
        if (found := values_of(rows, key, count, "mean"))
    }
    return max(means, key=lambda key: means[key], default=method)


def verdict(found: Interval, *, equal: bool) -> str:
    """Return in words whether a published order holds."""
    if not abs(found.mean) > found.half:  # also for a single seed, whose interval is NaN
        return "yes" if equal else "not certain"
    if equal:
        return "no"
    return "yes" if found.mean > 0 else "no: the reverse"


def order_table(rows: Figures, count: int) -> list[str]:
    """Return the lines of a table: published orders, and whether they hold here."""
    body = []
    for claim in CLAIMS:
        first, second = (best_key(rows, m, count) for m in (claim.first, claim.second))
        found = lead(rows, first, second, count)
        if found is not None:
            cells = [claim.words, f"`{first}`", f"`{second}`", str(found)]
            body.append([*cells, verdict(found, equal=claim.equal)])
    return table(["published", "first", "second", "lead of the first", "holds"], body)


def default_table(rows: Figures, counts: Sequence[int]) -> list[str]:
    """Return the lines of a table: what is certainly better than a default, and by how much."""
    body = []
    for one in operators():
        tried = [r["key"] for r in rows if r.get("method") == one.name and r["key"] != one.name]
        for count in counts:
            leads = {key: lead(rows, key, one.name, count) for key in dict.fromkeys(tried)}
            better = {k: v for k, v in leads.items() if v is not None and v.mean > v.half}
            if better:
                best = max(better, key=lambda key: better[key].mean)
                words = best.removeprefix(one.name).strip()
                body.append([f"`{one.name}`", str(count), f"`{words}`", str(better[best])])
    return table(["method", "n", "better than the default", "lead"], body)
