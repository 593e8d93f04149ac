"""Proof that a written adapter changes the weights as expected: site by site, through factors.

Tensors that were written unchanged are compared by their bytes, the others by their ΔW. For
`expected = U D` and `written = U' D'` choose t with `D' ≈ t D`; then

    written − expected = (U' − U/t) D' + (U/t) (D' − t D),

whose norm has no cancellation in it, and costs two small Gram matrices. ΔW is never formed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.delta import identical
from loramerge.algebra.arrays import Array
from loramerge.algebra.svd import inner_product
from loramerge.algebra.workers import ordered
from loramerge.errors import NumericsError, Setting, listed
from loramerge.events import Notify, ignore
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import Tensor, same_bytes

__all__ = ["Difference", "Proof", "factored_difference", "prove"]

# half the distance to the next number, relative; and half the smallest number, absolute
_ROUNDING = {
    "F64": (2.0**-53, 0.0), "F32": (2.0**-24, 2.0**-150), "F16": (2.0**-11, 2.0**-25),
    "BF16": (2.0**-8, 2.0**-134), "F8_E4M3": (2.0**-4, 2.0**-10), "F8_E5M2": (2.0**-3, 2.0**-17),
}  # fmt: skip
_SINGLE = 2.0**-21  # alphas are float32, and half types are computed in float32


@dataclass(frozen=True)
class Difference:
    """The difference of a written site from the expected one.

    Args:
        relative: ‖written − expected‖ / ‖expected‖; absolute where the expected ΔW is 0.
        allowed: the largest difference that rounding each tensor once to its written type can make.
        same: whether both are equal to the last bit.
    """

    relative: float
    allowed: float
    same: bool = False


@dataclass(frozen=True)
class Proof:
    """The difference of a written adapter from the expected one, over all sites.

    Args:
        same: sites that are equal to the last bit.
        largest: the largest relative difference.
        site: where that is; None where every site is equal.
        allowed: bound of that site.
    """

    sites: int
    same: int
    largest: float
    site: str | None
    allowed: float


def prove(
    expected: Adapter, written: Adapter, *, threads: int | None = None, notify: Notify = ignore
) -> Proof:
    """Compare a written adapter with the expected one.

    Raises:
        NumericsError: if a site is missing, has the wrong shape, or differs by more than one rounding
            of its tensors.
    """
    expected, written = _at_common_sites(expected, written)
    _require_sites(expected, written)

    # bytes are compared in this thread alone: several would only wait for each other, and the
    # digests of the file may be computed at the same time
    rest = [
        site for site in expected.deltas if not _equal(expected.deltas[site], written.deltas[site])
    ]

    def work(site: Site) -> Difference:
        return _difference(site, expected.deltas[site], written.deltas[site])

    compared = ordered(work, rest, threads=threads, task="comparing", notify=notify)
    unequal = dict(zip(rest, compared, strict=True))
    found = {site: unequal.get(site, _SAME) for site in expected.deltas}
    wrong = {s: d for s, d in found.items() if not d.relative <= d.allowed}
    if wrong:
        site = max(wrong, key=lambda s: wrong[s].relative / (wrong[s].allowed or 1.0))
        raise NumericsError(
            f"the written file differs from the result in {_modules(len(wrong))}, so it was not kept",
            module=listed([s.name for s in wrong], 4),
            expected=f"a relative difference ≤ {wrong[site].allowed:.3g}, one rounding of its type",
            found=f"{wrong[site].relative:.3g} in {site.name}",
            hint=("write a wider type: ", Setting("dtype", "float32"), f"; otherwise {_BUG}"),
        )
    different = {s: d for s, d in found.items() if not d.same}
    worst = max(different, key=lambda s: different[s].relative, default=None)
    return Proof(
        len(found),
        len(found) - len(different),
        different[worst].relative if worst else 0.0,
        worst.name if worst else None,
        different[worst].allowed if worst else 0.0,
    )


def _at_common_sites(expected: Adapter, written: Adapter) -> tuple[Adapter, Adapter]:
    """Return both adapters, with the sites split that only one of them stores fused.

    They are split by rows of up alone, independently of the code that wrote the file. Parts that
    are zero and left out of the file do not count.
    """
    if expected.deltas.keys() == written.deltas.keys():
        return expected, written
    ours, theirs = _apart(expected, written), _apart(written, expected)
    wanted = {
        site: delta
        for site, delta in ours.items()
        if site in theirs or site in expected.deltas or not _is_zero(delta)
    }
    return expected.with_deltas(wanted), written.with_deltas(theirs)


def _apart(adapter: Adapter, other: Adapter) -> dict[Site, Delta]:
    found: dict[Site, Delta] = {}
    for site, delta in adapter.deltas.items():
        if len(site.modules) == 1 or site in other.deltas:
            found[site] = delta
            continue
        bounds = site.bounds(delta.shape[0])
        for module, rows in zip(site.modules, pairwise(bounds), strict=True):
            found[Site((module,), site.parameter)] = delta.rows((rows,))
    return found


def _require_sites(expected: Adapter, written: Adapter) -> None:
    """Refuse a file with missing or unexpected modules; zeros used as padding do not count."""
    if not _same_embeddings(expected, written):
        raise NumericsError(
            "the written file does not hold the adapter's embeddings, so it was not kept",
            expected=listed(list(expected.embeddings), 4) or "none",
            found=listed(list(written.embeddings), 4) or "none",
            hint=_BUG,
        )
    missing = [site.name for site in expected.deltas if site not in written.deltas]
    extra = [
        site.name
        for site, delta in written.deltas.items()
        if site not in expected.deltas and not _is_zero(delta)
    ]
    unknown = list(written.info.account.unknown)
    if missing or extra or unknown:
        raise NumericsError(
            "the written file does not read back as expected, so it was not kept",
            module=listed(missing or extra or unknown, 4),
            expected=_modules(len(expected.deltas)),
            found=f"{len(missing)} missing, {len(extra)} unexpected, {len(unknown)} unknown tensors "
            f"({written.info.detection.name or 'an unknown family'})",
            hint="without these modules the family may not be recognised: keep more modules, or "
            "write the dialect of the input",
        )


def _same_embeddings(expected: Adapter, written: Adapter) -> bool:
    """Return whether both hold the same embeddings; dialects spell their names differently."""
    ours, theirs = expected.embeddings.values(), list(written.embeddings.values())
    return len(ours) == len(theirs) and all(
        any(same_bytes(one, other) for other in theirs) for one in ours
    )


def _is_zero(delta: Delta) -> bool:
    return any(not tensor.numpy().any() for tensor in delta.stored().values())


_BUG = "this is a bug in loramerge: please report it"


def _modules(count: int) -> str:
    return f"{count} module" if count == 1 else f"{count} modules"


_SAME = Difference(0.0, _SINGLE, same=True)


def _equal(expected: Delta, written: Delta) -> bool:
    """Return whether the bytes prove two deltas equal, whatever they are added to."""
    alike = expected.flat_shape == written.flat_shape and expected.needs_base == written.needs_base
    return alike and not expected.needs_base and identical(expected, written)


def _difference(site: Site, expected: Delta, written: Delta) -> Difference:
    if expected.flat_shape != written.flat_shape or expected.needs_base != written.needs_base:
        raise NumericsError(
            "the written file does not read back as expected, so it was not kept",
            module=site.name,
            expected=f"{expected.kind} {list(expected.shape)}",
            found=f"{written.kind} {list(written.shape)}",
            hint=_BUG,
        )
    if expected.needs_base:
        return _of_parts(site, expected, written)
    theirs = written.stored()
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        if expected.rank is not None and written.rank is not None:
            half = {t.dtype for t in theirs.values()} == {"F16"} and expected.rank == written.rank
            kind = "float32" if half else "float64"
            relative, size = factored_difference(expected.factors(kind), written.factors(kind))
            if not (math.isfinite(relative) and math.isfinite(size)):
                pair = expected.factors("float64"), written.factors("float64")
                relative, size = factored_difference(*pair)
            return Difference(relative, _allowed(theirs, written, size))
        return _by_values(expected.dense(dtype="float64"), written.dense(dtype="float64"), theirs)


def _of_parts(site: Site, expected: Delta, written: Delta) -> Difference:
    """Compare deltas that depend on the base by their parts, which do not."""
    ours, theirs = expected.content(), written.content()
    numbers = zip(ours.numbers, theirs.numbers, strict=False)
    if (expected.kind, len(ours.free), len(ours.numbers)) != (
        written.kind,
        len(theirs.free),
        len(theirs.numbers),
    ) or not all(math.isclose(a, b, rel_tol=_SINGLE) for a, b in numbers):
        return Difference(math.inf, 0.0)
    found = [
        _SAME if _equal(a, b) else _difference(site, a, b)
        for a, b in zip(ours.free, theirs.free, strict=True)
    ]
    worst = max(found, key=lambda one: one.relative / one.allowed)
    return replace(worst, same=all(one.same for one in found))


def factored_difference(
    expected: tuple[Array, Array], written: tuple[Array, Array]
) -> tuple[float, float]:
    """Return ‖written − expected‖ / ‖expected‖, and ‖expected‖, of deltas given by factors.

    Args:
        expected, written: (up `(m, r)`, down `(r, n)`) in one float type; ranks may differ. For
            half types float32 is enough: its rounding is far below theirs.
    """
    import numpy as np

    (up, down), (new_up, new_down) = expected, written
    if down.shape == new_down.shape:
        square = float((down * down).sum())
        ratio = float((down * new_down).sum()) / square if square else 1.0
        ratio = ratio if ratio and math.isfinite(ratio) else 1.0
        part = up / ratio
        off_up, off_down = new_up - part, new_down - ratio * down
        if not off_down.any():  # the usual case: one Gram matrix of down serves both
            gram = new_down @ new_down.T
            return _ratio(_square(off_up, gram), _square(part, gram))
        rest = np.hstack([off_up, part]), np.vstack([new_down, off_down])
    else:
        rest = np.hstack([new_up, -up]), np.vstack([new_down, down])
    return _ratio(inner_product(rest, rest), inner_product(expected, expected))


def _square(up: Array, gram: Array) -> float:
    """Return ‖up @ down‖² where `gram = down @ downᵀ`."""
    return float(((up.T @ up) * gram).sum())


def _ratio(error: float, whole: float) -> tuple[float, float]:
    """Return √(error / whole) and √whole; the first is absolute where the whole is 0."""
    size = math.sqrt(max(0.0, whole))
    off = math.sqrt(max(0.0, error)) if math.isfinite(error) else math.inf
    return (off / size if size else off), size


def _allowed(tensors: Mapping[str, Tensor], delta: Delta, size: float) -> float:
    """Return the largest relative difference that rounding each tensor once can make.

    A delta is linear in each of its tensors, and no larger than the product of their norms with its
    scale. Rounding changes a tensor in proportion to its own norm.
    """
    import numpy as np

    product, share = 1.0 if delta.core is None else abs(delta.core.factor), _SINGLE
    for tensor in tensors.values():
        if not is_float(tensor.dtype):
            continue
        wide = "float32" if tensor.dtype == "F16" else "float64"
        norm = float(np.linalg.norm(tensor.numpy().astype(wide).reshape(-1)))
        relative, absolute = _ROUNDING[tensor.dtype]
        product *= norm
        share += relative + (absolute * math.sqrt(tensor.size) / norm if norm else 0.0)
    most = share * (1.0 + share) ** len(tensors) * product
    return most / size if size else most


def _by_values(expected: Array, written: Array, tensors: Mapping[str, Tensor]) -> Difference:
    """Compare values, within one rounding of each tensor they are made of."""
    import numpy as np

    roundings = [_ROUNDING[t.dtype] for t in tensors.values() if t.dtype in _ROUNDING]
    size = float(np.linalg.norm(expected))
    off = float(np.linalg.norm(written.reshape(expected.shape) - expected))
    bound = sum(r for r, _ in roundings) * size
    bound += max((a for _, a in roundings), default=0.0) * math.sqrt(expected.size)
    relative, allowed = (off / size, bound / size) if size else (off, bound)
    return Difference(relative, allowed + _SINGLE, same=relative == 0.0)
