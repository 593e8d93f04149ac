"""The error of an adapter against rank and size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.events import Notify
from loramerge.steps import engine
from loramerge.steps.parameters import Context
from loramerge.verbs.resize import Resize, compute_curve

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> Any:
    """Return the curve of `resize` with `values`, as its JSON.

    Raises:
        LoramergeError: of `resize`.
    """
    parameters = engine.parameters_from(Resize, request["values"])
    return compute_curve(parameters, (), (), Context(notify=notify)).json()
