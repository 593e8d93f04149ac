"""The models that generate the images of a preview: opened by name, and kept for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loramerge.checkpoint.files import find_files
from loramerge.events import Progress
from loramerge.library.paths import bare
from loramerge.library.shipped import shipped_name
from loramerge.steps.inputs import base_path, family_of_file
from loramerge.steps.parameters import Context
from loramerge.verbs.preview.parameters import Preview

if TYPE_CHECKING:
    from loramerge.train.models.pipeline import Pipeline

__all__ = ["base_name", "in_half_precision", "load_model"]


def base_name(name: str, context: Context) -> str:
    """Return the name of a base for labels and file names."""
    path = base_path(name, context)
    return shipped_name(path) or bare(path.name)


def in_half_precision(context: Context) -> bool:
    """Return whether bases are loaded in half precision."""
    from loramerge.train.device.workers import usual_precision

    return usual_precision(context.device) == "bf16"


def load_model(name: str, parameters: Preview, context: Context, device: Any) -> Pipeline:
    """Return a loaded model: the one that drew last, if it is the same and was kept.

    Raises:
        LoramergeError: if it cannot be loaded.
    """
    if context.models is None:
        return _load(name, parameters, context, device)
    path = base_path(name, context)
    states = [(f.path, f.path.stat().st_mtime_ns) for f in find_files(path).weights]
    key = (str(path), *states, parameters.config, parameters.prediction, str(device))
    if key not in context.models:
        context.models.clear()  # before the next is loaded
        context.models[key] = _load(name, parameters, context, device)
    found: Pipeline = context.models[key]
    return found


def _load(name: str, parameters: Preview, context: Context, device: Any) -> Pipeline:
    """Load a model, and report when it begins and ends."""
    context.notify(Progress("loading", 0, 1, "models", base_name(name, context)))
    found = _loaded(name, parameters, context).to(device)
    context.notify(Progress("loading", 1, 1, "models"))
    return found


def _loaded(name: str, parameters: Preview, context: Context) -> Pipeline:
    import torch

    from loramerge.train.models.loading import load_pipeline

    path = base_path(name, context)
    config = None if parameters.config is None else base_path(parameters.config, context)
    dtype = torch.bfloat16 if in_half_precision(context) else torch.float32
    return load_pipeline(
        path,
        dtype=dtype,
        config=config,
        family=family_of_file(path),
        prediction=parameters.prediction,
    )
