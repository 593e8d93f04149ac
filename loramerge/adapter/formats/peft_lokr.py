"""A PEFT configuration for LoKr tensors made elsewhere: PEFT computes their shapes from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from loramerge.adapter.delta import Delta
from loramerge.errors import NotExpressible, Setting, listed

__all__ = ["lokr_config"]


class _Halves(NamedTuple):
    """Sizes of one LoKr: w1 `(a, c)`, w2 `(b, d)`; which halves are factored; the inner size."""

    a: int
    c: int
    b: int
    d: int
    first: bool
    second: bool
    core: bool
    kernel: bool
    dim: int | None

    def rank(self, both: bool) -> int | None:
        """Return the smallest rank at which PEFT makes these tensors, None if there is none.

        PEFT factors w2 where `r < max(b, d) / 2`, and w1 where that is asked for and
        `r < max(a, c) / 2`.
        """
        first, second = max(self.a, self.c), max(self.b, self.d)
        least = max(
            1 if self.second else _half(second), _half(first) if both and not self.first else 1
        )
        rank = self.dim or least
        fits = rank >= least and not (self.second and 2 * rank >= second)
        return rank if fits and not (self.first and 2 * rank >= first) else None


def _half(size: int) -> int:
    return -(-size // 2)


def _split(size: int, factor: int) -> tuple[int, int]:
    """Return the two factors into which PEFT (as LyCORIS) splits a size; -1 means automatic."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    m = next(m for m in range(max(1, most), 0, -1) if size % m == 0)
    return m, size // m


def _halves(delta: Delta) -> _Halves:
    parts = delta.stored()
    w1 = parts.get("lokr_w1")
    a, c = w1.shape if w1 is not None else (
        parts["lokr_w1_a"].shape[0], parts["lokr_w1_b"].shape[1],
    )  # fmt: skip
    out, inside, *kernel = delta.shape
    return _Halves(
        a, c, out // a, inside // c,
        first=w1 is None,
        second="lokr_w2" not in parts,
        core="lokr_t2" in parts,
        kernel=math.prod(kernel) > 1,
        dim=None if delta.core is None else delta.core.dim,
    )  # fmt: skip


def lokr_config(deltas: Mapping[str, Delta]) -> dict[str, Any]:
    """Return the configuration under which PEFT makes exactly these tensors.

    Args:
        deltas: LoKr of one component by path.

    Returns:
        `decompose_factor` and its kin as PEFT names them, and by path `ranks` and `alphas`.

    Raises:
        NotExpressible: if one configuration cannot give all of them.
    """
    halves = {path: _halves(delta) for path, delta in deltas.items()}
    both = any(h.first for h in halves.values())
    cores = any(h.core for h in halves.values())
    factor = _factor(list(halves.values()))
    ranks = {path: h.rank(both) for path, h in halves.items()}
    odd = [
        path
        for path, h in halves.items()
        if ranks[path] is None or (h.second and h.kernel and h.core != cores)
    ]
    if factor is None or odd:
        raise NotExpressible(
            "PEFT computes the shapes of LoKr from one decompose_factor and the ranks, and no "
            "value gives these shapes",
            module=listed(odd or list(deltas), 4),
            hint=(
                "write kohya: ",
                Setting("to", "kohya"),
                "; or make it plain LoRA: ",
                Setting("to_lora", True),
            ),
        )
    found = {path: rank or 1 for path, rank in ranks.items()}
    alphas = {
        path: abs(d.core.factor) * found[path] for path, d in deltas.items() if d.core is not None
    }
    return {
        "decompose_factor": factor,
        "decompose_both": both,
        "use_effective_conv2d": cores,
        "ranks": found,
        "alphas": alphas,
    }


def _factor(halves: Sequence[_Halves]) -> int | None:
    """Return the wish for a factor under which all sizes split as they do."""
    wishes = [-1, *sorted({size for h in halves for size in (h.a, h.c)})]
    for wish in wishes:
        if all(
            _split(h.a * h.b, wish) == (h.a, h.b) and _split(h.c * h.d, wish) == (h.c, h.d)
            for h in halves
        ):
            return wish
    return None
