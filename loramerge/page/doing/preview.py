"""Draw images that are not written; loaded models stay in the process."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

from loramerge.events import Notify
from loramerge.report.pictures import png_bytes
from loramerge.steps import engine
from loramerge.steps.parameters import Context
from loramerge.verbs.preview import Preview, compute_preview

__all__ = ["do"]


def do(request: Mapping[str, Any], notify: Notify) -> dict[str, Any]:
    """Return the images of `preview` with `values`, row by row in each column.

    Raises:
        LoramergeError: of `preview`.
    """
    start = time.perf_counter()
    parameters = engine.parameters_from(Preview, request["values"])
    found = compute_preview(parameters, Context(notify=notify, models=_MODELS))
    columns = [
        {"label": label, "change": change, "pictures": [_png(row[n]) for row in found.images]}
        for n, (label, change) in enumerate(zip(found.columns, found.changes, strict=True))
    ]
    return {"rows": found.rows, "columns": columns, "seconds": time.perf_counter() - start}


_MODELS: dict[Any, Any] = {}


def _png(image: Any) -> dict[str, str]:
    return {"kind": "image/png", "base64": base64.b64encode(png_bytes(image)).decode()}
