"""One delta of several modules from the deltas of the modules, at the smallest rank.

Rows are in the order of the site's modules; a module without a delta has rows of zeros. Low-rank
deltas that share their down keep it and their rank; others are block-diagonal in up, with their
downs stacked. Where types and scales agree, no value is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.adapter.delta import Delta
from loramerge.adapter.kinds.full import join_differences
from loramerge.adapter.kinds.lora import join_loras, join_low_rank
from loramerge.adapter.kinds.replacement import join_replacements
from loramerge.adapter.site import Site
from loramerge.errors import Setting, ShapeError, UnsupportedKind

__all__ = ["fused"]


def fused(site: Site, parts: Sequence[tuple[Site, Delta]]) -> Delta:
    """Return the delta of a site from those of some of its modules.

    Args:
        parts: deltas of modules that follow each other in the site, none twice.

    Raises:
        ShapeError: if their shapes do not fit together.
        UnsupportedKind: if a kind cannot be joined with others.
    """
    unit, total = _height(site, parts)
    bounds = site.bounds(total)
    parts = sorted(parts, key=lambda part: site.modules.index(part[0].modules[0]))
    placed = [(bounds[site.modules.index(part.modules[0])], delta) for part, delta in parts]
    tails = {delta.shape[1:] for _, delta in placed}
    if len(tails) > 1 or unit == 0:
        raise ShapeError(
            "deltas of modules that are stored fused differ in their inputs",
            module=site.name,
            found=", ".join(str(list(delta.shape)) for _, delta in placed),
        )
    shape = (total, *tails.pop())
    deltas = [delta for _, delta in placed]
    if all(delta.facts.plain for delta in deltas):
        return join_loras(placed, shape)
    if any(delta.facts.replaces for delta in deltas):
        return join_replacements(placed, shape)
    if any(delta.needs_base or not delta.facts.computable for delta in deltas):
        return _of_all_rows(site, parts, total)
    if all(delta.rank is not None for delta in deltas):
        return join_low_rank(placed, shape)
    return join_differences(placed, shape, "diff" if site.parameter == "weight" else "diff_b")


def _height(site: Site, parts: Sequence[tuple[Site, Delta]]) -> tuple[int, int]:
    """Return the rows of one span, and of the whole site.

    Raises:
        ShapeError: if the parts have different ones.
    """
    spans = dict(zip(site.modules, site.spans, strict=True))
    units = set()
    for part, delta in parts:
        unit, rest = divmod(delta.shape[0], sum(spans[m] for m in part.modules))
        units.add(unit if not rest else 0)
    if len(units) > 1 or 0 in units:
        raise ShapeError(
            "deltas of modules that are stored fused do not fit together",
            module=site.name,
            expected=f"rows in the ratio {':'.join(map(str, site.spans))}",
            found=", ".join(f"{p.name} {list(d.shape)}" for p, d in parts),
        )
    unit = units.pop()
    return unit, unit * sum(site.spans)


def _of_all_rows(site: Site, parts: Sequence[tuple[Site, Delta]], total: int) -> Delta:
    """Join deltas that depend on the base; rows without a delta cannot be computed."""
    sites, deltas = [part for part, _ in parts], [delta for _, delta in parts]
    joined = None
    if sum(delta.shape[0] for delta in deltas) == total:
        joined = deltas[0].joined(
            deltas, lambda inner: fused(site, list(zip(sites, inner, strict=True)))
        )
    if joined is None:
        kinds = ", ".join(sorted({delta.kind for delta in deltas}))
        raise UnsupportedKind(
            f"these deltas of kind {kinds} cannot be stored fused",
            module=site.name,
            hint=(
                "write a dialect that stores these modules apart, or convert it to plain LoRA (",
                Setting("to_lora", True),
                ") with its ",
                Setting("base"),
            ),
        )
    return joined
