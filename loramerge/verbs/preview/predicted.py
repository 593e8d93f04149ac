"""The prediction of `preview`: how many images, and the memory and time of that."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from loramerge.checkpoint.files import find_files
from loramerge.steps.inputs import adapter_of, base_path
from loramerge.steps.parameters import Context
from loramerge.steps.prediction import Prediction
from loramerge.verbs.preview.columns import count_columns
from loramerge.verbs.preview.models import in_half_precision
from loramerge.verbs.preview.parameters import Preview

__all__ = ["predict"]


def predict(parameters: Preview, context: Context = Context()) -> Prediction:
    """Predict how many images are generated, and the memory and time of that.

    Raises:
        LoramergeError: if a base or an adapter cannot be opened.
    """
    parameters.check()
    paths = [base_path(name, context) for name in (*parameters.base, *parameters.baked)]
    for reference in parameters.adapters:
        adapter_of(reference, context)
    columns = count_columns(parameters)
    images = columns * len(parameters.prompt or ("",)) * len(parameters.seed or (0,))
    found = Prediction(remarks=[f"images to generate: {images}, columns: {columns}"])
    if find_spec("torch") is None:
        found.remarks.append("memory and time are not predicted, since torch is not installed")
        return found
    from loramerge.train.device.workers import begin_workers
    from loramerge.train.drawing.seconds import image_seconds

    half = in_half_precision(context)
    found.memory += (2 if half else 4) * max(_elements(path) for path in paths)
    _, device = begin_workers(context.device)
    steps, size = parameters.steps, parameters.size
    times = [image_seconds(one, device, steps=steps, size=size, half=half) for one in paths]
    known = [time for time in times if time is not None]
    found.seconds = images * sum(known) / len(known) if known else 0.0
    return found


def _elements(path: Path) -> int:
    """Return the number of values in the files of a base."""
    files = find_files(path)
    return sum(t.size for file in files.weights for t in file.open()[0].values())
