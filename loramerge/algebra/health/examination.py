"""The examination of an adapter: all modules are read once, and the findings follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loramerge.adapter import Adapter, Delta, Problem, Site
from loramerge.algebra.health.alphas import about_alphas, about_header, odd_alphas
from loramerge.algebra.health.findings import about_neighbours, about_values
from loramerge.algebra.health.measure import ModuleFigures, measure
from loramerge.algebra.health.structure import about_structure
from loramerge.algebra.workers import ordered
from loramerge.events import Notify, ignore

__all__ = ["Examination", "examine", "measures_of", "norm_of", "symptoms_of"]


@dataclass(frozen=True)
class Examination:
    """Findings, the norm of everything, and a row per module.

    Args:
        norm: ‖ΔW‖_F over all modules that could be computed; None if one is not finite.
        table: module, kind, shape, rank, alpha, norm, and with spectra the largest singular value,
            the effective rank exp(H(σ²/Σσ²)), the stable rank Σσ²/σ₁², the rank of 99 % of the energy,
            and all singular values.
    """

    problems: list[Problem]
    norm: float | None
    table: list[dict[str, Any]]


def examine(
    adapter: Adapter, *, spectra: bool = False, threads: int | None = None, notify: Notify = ignore
) -> Examination:
    """Read all weights, and report NaN, modules that never trained, spikes and other oddities."""
    measures = measures_of(adapter, spectra=spectra, threads=threads, notify=notify)
    rows = [m.row(spectra=spectra) for m in measures]
    return Examination(symptoms_of(adapter, measures), _total(measures), rows)


def norm_of(adapter: Adapter) -> float | None:
    """Return ‖ΔW‖_F over all modules that could be computed; None if one is not finite."""
    return _total(measures_of(adapter, norms=True))


def measures_of(
    adapter: Adapter,
    *,
    spectra: bool = False,
    norms: bool = False,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[ModuleFigures]:
    """Return the figures of all modules; see `measure`."""

    def work(item: tuple[Site, Delta]) -> ModuleFigures:
        return measure(*item, spectra=spectra, norms=norms)

    sites = list(adapter.deltas.items())
    return list(ordered(work, sites, threads=threads, task="reading weights", notify=notify))


def _total(measures: Sequence[ModuleFigures]) -> float | None:
    if any(m.not_finite for m in measures):
        return None
    return math.sqrt(math.fsum(m.norm * m.norm for m in measures if m.norm is not None))


def symptoms_of(adapter: Adapter, measures: Sequence[ModuleFigures]) -> list[Problem]:
    """Return all findings that need no base, worst first."""
    odd = odd_alphas(adapter)
    found = [
        *about_values(adapter, measures),
        *about_alphas(adapter),
        *about_neighbours(measures, odd),
        *about_header(adapter),
        *about_structure(adapter),
    ]
    return sorted(found, key=lambda p: _ORDER.index(p.severity))


_ORDER = ("error", "warning", "note")
