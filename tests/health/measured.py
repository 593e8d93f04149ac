"""The figures of sound adapters that the limits are compared with, and the table of the document."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median

from loramerge.adapter import Adapter
from loramerge.algebra.health import LIMITS
from loramerge.algebra.health.examination import measures_of
from loramerge.algebra.health.neighbours import attention_of, beside_neighbours, spike_caps
from loramerge.algebra.health.structure import lost_modules

__all__ = ["RECORD", "figures_of", "recorded", "table"]

RECORD = Path(__file__).parents[1] / "data" / "health_of_sound_adapters.json"
SORTS = {"real": "seven real adapters", "merged": "merges by PEFT and diffusers"}


def figures_of(adapter: Adapter) -> dict[str, float]:
    """The figure that each limit is compared with, to three digits; without those that need a base."""
    measures = measures_of(adapter)
    beside = beside_neighbours(measures).values()
    ranks = [m.effective_rank for m in measures if m.norm and (m.rank or 0) > 1]
    factors = [d.core.factor for d in adapter.deltas.values() if d.core is not None]
    found = {
        "spike": max((out for _, out, _ in spike_caps(measures, 0.0)), default=0.0),
        "loud-module": max(beside, default=0.0),
        "faint-module": 1 / min(beside, default=1.0),
        "qkv-imbalance": max(
            (max(n.values()) / min(n.values()) for _, n in attention_of(measures)), default=0.0
        ),
        "alpha-large": max(map(abs, factors), default=0.0),
        "layer-lost": float(len(lost_modules(adapter))),
        "float16-overflow": max((max(m.peaks) for m in measures if m.peaks), default=0.0),
    }
    if ranks:
        found["collapsed"] = median(ranks)
    return {code: float(f"{value:.5g}") for code, value in found.items()}


def recorded() -> dict[str, dict[str, float]]:
    """Sort of adapters → code → the figure that comes closest to the limit."""
    found: dict[str, dict[str, float]] = json.loads(RECORD.read_text("utf-8"))
    return found


def closest(several: list[dict[str, float]]) -> dict[str, float]:
    """The figures that come closest to the limits."""
    found = {}
    for code, limit in LIMITS.items():
        values = [one[code] for one in several if code in one]
        if values:
            found[code] = min(values) if limit.below and code != "layer-lost" else max(values)
    return found


def _shown(value: float | None, code: str) -> str:
    if value is None:
        return "–"
    if code in ("collapsed", "float16-overflow"):
        return (
            "none near" if code == "float16-overflow" and value == 0 else f"{value:.5f}".rstrip("0")
        )
    return f"{math.ceil(value * 100) / 100:g}"


def table() -> list[tuple[str, ...]]:
    """The rows of the table of limits: code, figure, limit, real adapters, merges, reason."""
    known = recorded()
    return [
        (
            f"`{code}`",
            limit.measured,
            f"{'below' if limit.below else 'from'} {limit.value:g}",
            _shown(known["real"].get(code), code),
            _shown(known["merged"].get(code), code),
            limit.reason,
        )
        for code, limit in LIMITS.items()
    ]
