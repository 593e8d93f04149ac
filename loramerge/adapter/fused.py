"""One delta of several modules from the deltas of the modules, at the smallest rank.

Rows lie in the order of the site's modules; a module without a delta has rows of zeros. Low-rank
deltas that share their down keep it and their rank; others stand block-diagonally in up, and their
downs one above the other. Where types and scales agree, no value is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from loramerge.adapter.delta import Delta, Site
from loramerge.adapter.kinds.dense import Full, Replacement
from loramerge.adapter.kinds.low_rank import LowRank, Scale
from loramerge.errors import ShapeError, UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.files.views import Derived, same_bytes, unread_like

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["fused"]

Placed = Sequence[tuple[int, Delta]]  # first row, delta


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
    if all(isinstance(delta, LowRank) for delta in deltas):
        return _low_rank(placed, shape)
    if any(isinstance(delta, Replacement) for delta in deltas):
        return _replacement(placed, shape)
    if any(delta.needs_base or not delta.computable for delta in deltas):
        return _of_all_rows(site, parts, total)
    if all(delta.rank is not None for delta in deltas):
        return _from_factors(placed, shape)
    return _dense(site, placed, shape)


def _height(site: Site, parts: Sequence[tuple[Site, Delta]]) -> tuple[int, int]:
    """Return the rows of one span, and of the whole site.

    Raises:
        ShapeError: if the parts say different ones.
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


def _filled(shape: tuple[int, ...], pieces: Callable[[], Sequence[tuple[int, Array]]]) -> Any:
    """Return a function that gives an array of zeros with pieces at their first rows."""

    def make() -> Array:
        import numpy as np

        found = pieces()
        whole = np.zeros(shape, found[0][1].dtype)
        for start, piece in found:
            whole[start : start + piece.shape[0]] = piece
        return whole

    return make


def _low_rank(placed: Placed, shape: tuple[int, ...]) -> Delta:
    deltas = [delta for _, delta in placed if isinstance(delta, LowRank)]
    first = deltas[0]
    dtypes = {(d.up.dtype, d.down.dtype, len(d.up.shape), len(d.down.shape)) for d in deltas}
    scales = {d.scale.value(d.rank) for d in deltas}
    agree = len(dtypes) == 1 and len(scales) == 1
    if len(dtypes) == 1 and all(same_bytes(delta.down, first.down) for delta in deltas):
        return _sharing(placed, deltas, shape, agree=agree)
    if any(d.up.unread or d.down.unread for d in deltas):
        return _stand_in(deltas, shape)
    if agree:
        return _stacked(placed, deltas, shape)
    return _from_factors(placed, shape)


def _sharing(
    placed: Placed, deltas: Sequence[LowRank], shape: tuple[int, ...], *, agree: bool
) -> LowRank:
    """Put ups that share one down above each other; scales that differ are folded into them."""
    first = deltas[0]
    starts = [start for start, _ in placed]
    wide = (shape[0], *first.up.shape[1:])

    def pieces() -> list[tuple[int, Array]]:
        if agree:
            return [(s, d.up.numpy()) for s, d in zip(starts, deltas, strict=True)]
        return [
            (s, d.factors("float64")[0].reshape(d.up.shape))
            for s, d in zip(starts, deltas, strict=True)
        ]

    dtype = first.up.dtype if agree else "F64"
    up = (
        unread_like(dtype, wide) if first.up.unread else Derived(dtype, wide, _filled(wide, pieces))
    )
    return LowRank(up, first.down, shape, first.scale if agree else Scale(float(first.rank)))


def _stand_in(deltas: Sequence[LowRank], shape: tuple[int, ...]) -> LowRank:
    """Return what deltas without values may need at most."""
    first, rank = deltas[0], sum(d.rank for d in deltas)
    return LowRank(
        unread_like(first.up.dtype, (shape[0], rank, *first.up.shape[2:])),
        unread_like(first.down.dtype, (rank, *first.down.shape[1:])),
        shape,
        Scale(float(rank)),
    )


def _stacked(placed: Placed, deltas: Sequence[LowRank], shape: tuple[int, ...]) -> LowRank:
    """Stack factors of one type and scale as they are."""
    first, rank = deltas[0], sum(d.rank for d in deltas)
    tail = first.up.shape[2:]
    starts = [start for start, _ in placed]

    def up() -> Array:
        return _block_diagonal(
            [d.up.numpy().reshape(d.up.shape[:2]) for d in deltas], starts, (shape[0], rank)
        )

    def down() -> Array:
        import numpy as np

        return np.concatenate([d.down.numpy() for d in deltas])

    return LowRank(
        Derived(first.up.dtype, (shape[0], rank, *tail), up),
        Derived(first.down.dtype, (rank, *first.down.shape[1:]), down),
        shape,
        first.scale.moved(first.rank, rank),
    )


def _block_diagonal(ups: Sequence[Array], starts: Sequence[int], shape: tuple[int, int]) -> Array:
    import numpy as np

    whole: Array = np.zeros(shape, ups[0].dtype)
    column = 0
    for start, up in zip(starts, ups, strict=True):
        whole[start : start + up.shape[0], column : column + up.shape[1]] = up
        column += up.shape[1]
    return whole


def _from_factors(placed: Placed, shape: tuple[int, ...]) -> LowRank:
    """Stack factors in float64, with the square root of each scale on both sides."""
    import numpy as np

    ups, downs = [], []
    for _, delta in placed:
        up, down = delta.factors("float64")
        scale = delta.scale.value(delta.rank) if isinstance(delta, LowRank) else 1.0
        root = abs(scale) ** 0.5 or 1.0
        ups.append(up / root)
        downs.append(down * root)
    starts = [start for start, _ in placed]
    rank = sum(up.shape[1] for up in ups)
    return LowRank.from_arrays(
        _block_diagonal(ups, starts, (shape[0], rank)), np.concatenate(downs), shape
    )


def _of_all_rows(site: Site, parts: Sequence[tuple[Site, Delta]], total: int) -> Delta:
    """Join deltas that depend on the base, which says nothing of rows without one."""
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
            hint="write a dialect that stores these modules apart, or make it plain LoRA: convert "
            "--to-lora --base B",
        )
    return joined


def _replacement(placed: Placed, shape: tuple[int, ...]) -> Delta:
    """Join tensors that replace the base's; all parts must be there, and all be such."""
    tensors: list[tuple[int, Tensor]] = []
    for start, delta in placed:
        if isinstance(delta, Replacement) and delta.weight == 1.0:
            tensors.append((start, delta.value))
    dtypes = {tensor.dtype for _, tensor in tensors}
    whole = sum(tensor.shape[0] for _, tensor in tensors) == shape[0]
    if not whole or len(dtypes) > 1 or len(tensors) < len(placed):
        raise UnsupportedKind(
            "replacement tensors can be stored fused only if every part is replaced",
            hint="write a dialect that stores these modules apart",
        )
    make = _filled(shape, lambda: [(start, t.numpy()) for start, t in tensors])
    return Replacement.of(Derived(dtypes.pop(), shape, make), "set_weight")


def _dense(site: Site, placed: Placed, shape: tuple[int, ...]) -> Delta:
    """Join dense differences; a part without one has none (zeros)."""
    values = [(start, d.value) for start, d in placed if isinstance(d, Full) and d.weight == 1.0]
    dtypes = {value.dtype for _, value in values}
    if len(values) == len(placed) and len(dtypes) == 1:
        make = _filled(shape, lambda: [(start, value.numpy()) for start, value in values])
        joined = Derived(dtypes.pop(), shape, make)
    else:
        wide = _filled(shape, lambda: [(start, d.dense(dtype="float64")) for start, d in placed])
        joined = Derived("F64", shape, wide)
    return Full.of(joined, "diff" if site.parameter == "weight" else "diff_b")
