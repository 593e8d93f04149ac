"""Signs of damage in an adapter's weights: NaN, infinity, modules that never trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from loramerge.adapter import Adapter, Delta, Problem, Site
from loramerge.adapter.problems import takes_too_much
from loramerge.algebra.svd import decompose, decompose_dense, inner_product
from loramerge.algebra.workers import ordered
from loramerge.events import Notify, ignore

__all__ = ["Examination", "examine"]


@dataclass(frozen=True)
class Examination:
    """Findings, the norm of everything, and a row per module.

    Args:
        norm: ‖ΔW‖_F over all modules that could be computed; None if one is not finite.
        table: module, kind, shape, rank, alpha, norm, and with spectra the largest singular value,
            the effective rank exp(H(σ²/Σσ²)), the rank of 99 % of the energy, and all singular values.
    """

    problems: list[Problem]
    norm: float | None
    table: list[dict[str, Any]]


def examine(
    adapter: Adapter, *, spectra: bool = False, threads: int | None = None, notify: Notify = ignore
) -> Examination:
    """Read all weights and report NaN, infinity and modules that never trained."""
    sites = list(adapter.deltas.items())

    def work(item: tuple[Site, Delta]) -> tuple[list[Problem], dict[str, Any]]:
        return _module(*item, spectra=spectra)

    found = list(ordered(work, sites, threads=threads, task="reading weights", notify=notify))
    problems = [problem for one, _ in found for problem in one]
    table = [row for _, row in found]
    norms = [row["norm"] for row in table if row["norm"] is not None]
    broken = any(p.code == "not-finite" for p in problems)
    total = None if broken else math.sqrt(math.fsum(n * n for n in norms))
    untrained = [p for p in problems if p.code == "untrained"]
    if untrained and len(untrained) == len(adapter.deltas):
        problems.append(
            Problem(
                "error",
                "no-effect",
                None,
                "every module is exactly zero: the adapter changes nothing",
                "it was never trained; check that it received gradients",
            )
        )
    return Examination(problems, total, table)


def _module(site: Site, delta: Delta, *, spectra: bool) -> tuple[list[Problem], dict[str, Any]]:
    row: dict[str, Any] = {
        "module": site.name,
        "kind": delta.kind,
        "shape": list(delta.shape),
        "rank": None if delta.core is None else delta.core.dim,
        "alpha": delta.alpha,
        "norm": None,
    }
    problems = _not_finite(site, delta)
    computable = delta.facts.computable and not delta.needs_base and not takes_too_much(delta)
    if problems or not computable:
        return problems, row
    if delta.rank is None:
        dense = delta.dense()
        row["norm"] = math.sqrt(float((dense**2).sum()))
        if spectra and dense.ndim > 1:
            _add_spectrum(row, decompose_dense(dense.reshape(delta.flat_shape)).singular_values)
    else:
        up, down = delta.factors("float64")
        row["norm"] = math.sqrt(max(0.0, inner_product((up, down), (up, down))))
        if spectra:
            _add_spectrum(row, decompose(up, down).singular_values)
    if row["norm"] == 0 and delta.alpha != 0:
        problems.append(
            Problem(
                "warning",
                "untrained",
                site.name,
                _untrained(delta),
                "the module was never trained; if there are many, check that they received "
                "gradients",
            )
        )
    return problems, row


def _untrained(delta: Delta) -> str:
    stored = delta.stored()
    if "up" in stored and not stored["up"].numpy().any():
        return "up is exactly zero"
    return "the change is exactly zero"


def _not_finite(site: Site, delta: Delta) -> list[Problem]:
    import numpy as np

    bad = []
    for role, tensor in delta.stored().items():
        if tensor.dtype not in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"):
            continue
        count = int((~np.isfinite(tensor.numpy().astype("float32"))).sum())
        if count:
            bad.append(f"{count} values of {role}")
    if not bad:
        return []
    return [
        Problem(
            "error",
            "not-finite",
            site.name,
            f"NaN or infinity in {', '.join(bad)}",
            "training diverged; use an earlier checkpoint",
        )
    ]


def _add_spectrum(row: dict[str, Any], singular_values: Any) -> None:
    import numpy as np

    energy = singular_values**2
    total = float(energy.sum())
    if total == 0:
        row |= {"largest": 0.0, "effective_rank": 0.0, "rank_99": 0, "singular_values": []}
        return
    share = energy[energy > 0] / total
    row |= {
        "largest": float(singular_values[0]),
        "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
        "rank_99": int((np.cumsum(energy) >= 0.99 * total * (1 - 1e-12)).argmax()) + 1,
        "singular_values": [float(value) for value in singular_values],
    }
