"""The error of an adapter against rank and size, and what the worst modules lose at one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loramerge.algebra.curve import CurvePoint
from loramerge.events import Notify
from loramerge.steps import engine
from loramerge.steps.kept import Recent, state_of
from loramerge.steps.parameters import Context
from loramerge.verbs.resize import Curve, CurveResult, Resize

__all__ = ["do"]

_CURVES: Recent[tuple[Curve, CurveResult]] = Recent(4)
_UNUSED = ("rank", "max_size", "output", "force")  # of the handle on a curve, not of the curve


def do(request: Mapping[str, Any], notify: Notify) -> Any:
    """Return the curve of `resize` with `values`; with a rank or a size also what is lost there.

    The spectra of the last adapters are kept, so that the second answer takes milliseconds.

    Raises:
        LoramergeError: of `resize`.
    """
    values = {name: value for name, value in request["values"].items() if name not in _UNUSED}
    parameters: Resize = engine.parameters_from(Resize, request["values"])
    path = parameters.adapter.path()
    key = (state_of(path), repr(sorted(values.items())))

    def made() -> tuple[Curve, CurveResult]:
        bare = replace(parameters, rank=None, max_size=None, output=None)
        curve = Curve(bare, Context(notify=notify))
        return curve, curve.points()

    curve, points = _CURVES.of(key, made)
    found = points.json()
    for point in found["best"]:
        point["max_size"] = str(point["max_size"])
    chosen = _chosen(curve, parameters)
    worst = [] if chosen is None else curve.worst(chosen)
    return {
        **found,
        "chosen": None
        if chosen is None
        else {
            "rank": chosen.rank,
            "size": chosen.size,
            "relative_error": chosen.relative_error,
            "norm_kept": chosen.norm_kept,
            "ranks": dict(chosen.ranks),
        },
        "worst": [
            {"module": one.site.name, "rank": one.rank, "relative_error": one.relative_error}
            for one in worst
        ],
    }


def _chosen(curve: Curve, parameters: Resize) -> CurvePoint | None:
    if parameters.max_size is not None:
        return curve.at_size(parameters.max_size)
    return None if parameters.rank is None else curve.at_rank(parameters.rank)
