"""Predict a step that trains, for `plan`: its length, memory and time, and the shapes of its adapter."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from loramerge.adapter import Adapter, Info, Site
from loramerge.adapter.encode import choose_dialect, encode
from loramerge.files.dtypes import DTYPES
from loramerge.steps.prediction import Prediction
from loramerge.steps.sizes import encoded_size, stand_in
from loramerge.verbs.train.memory import Fit

if TYPE_CHECKING:
    from loramerge.train.dry_run import Check
    from loramerge.train.memory.estimate import Estimate
    from loramerge.train.spec.spec import Spec

__all__ = ["predict_training"]

_HEADER = 8192  # bytes that the metadata of an adapter takes, unless there are hundreds of tags
_USUAL = "F32"  # the type in which adapters are trained


def predict_training(fitted: Fit, spec: Spec) -> Prediction:
    """Predict a run from its images' headers and the base's configurations.

    Args:
        fitted: the settings chosen for the memory.
        spec: of the run with them.

    Raises:
        LoramergeError: what a dry run refuses; see `train.dry_run.check`.
    """
    from loramerge.train.dry_run import check

    found = check(spec, whole=False)
    result = Prediction(remarks=[_length(found)])
    if fitted.rung is not None:
        result.memory = fitted.rung.memory
    if found.estimate is None:
        result.remarks.append("the base is a single file, so its layers and time are not predicted")
        return result
    result.seconds = found.estimate.seconds + (found.drawing or 0.0)
    if spec.targets.text_encoder:
        result.remarks.append("layers of text encoders are not counted")
        return result
    _add_adapter(result, found.estimate, fitted)
    return result


def _length(found: Check) -> str:
    """Return the length of the run in a sentence."""
    epochs = "1 epoch" if found.epochs == 1 else f"{found.epochs:.3g} epochs"
    images = "1 image" if found.shown == 1 else f"{found.shown} images"
    steps = "1 step is" if found.steps == 1 else f"{found.steps} steps are"
    return f"{steps} {epochs} of {images} at {found.resolution} pixels"


def _add_adapter(result: Prediction, estimate: Estimate, fitted: Fit) -> None:
    """Add what the shapes of the trained layers tell: modules, ranks, bytes, and a stand-in."""
    parameters = fitted.parameters
    dtype = parameters.float_type() or _USUAL
    result.modules = estimate.modules
    most = parameters.save_rank
    ranks = {
        name: layer.rank if most is None else min(most, layer.rank)
        for name, layer in estimate.layers.items()
    }
    result.at_most = most is not None
    result.ranks = dict(sorted(Counter(ranks.values()).items()))
    result.size = estimate.parameters * DTYPES[dtype].bits // 8 + _HEADER
    if parameters.method != "lora":
        return
    deltas = {
        Site((name,)): stand_in(layer.shape, ranks[name], dtype)
        for name, layer in estimate.layers.items()
    }
    adapter = Adapter(deltas, {}, Info(detection=estimate.detection, dtype=dtype))
    result.adapter = adapter
    dialect = choose_dialect(parameters.target(), [adapter])
    result.size = encoded_size(encode(adapter, dialect, dtype)) + _HEADER
