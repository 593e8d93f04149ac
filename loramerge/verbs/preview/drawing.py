"""Generate the images of a preview."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter
from loramerge.adapter.metadata import trigger_words
from loramerge.errors import Message, Setting, UsageError, listed
from loramerge.events import Note, Warn
from loramerge.steps.inputs import adapter_of
from loramerge.steps.loading import loading_torch
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference
from loramerge.verbs.preview.columns import columns
from loramerge.verbs.preview.models import base_name, load_model
from loramerge.verbs.preview.parameters import Preview

if TYPE_CHECKING:
    from loramerge.train.drawing.preview import Sheet
    from loramerge.train.drawing.sampling import Drawing
    from loramerge.train.models.pipeline import Pipeline

__all__ = ["draw_sheet"]


def draw_sheet(parameters: Preview, context: Context) -> Sheet:
    """Generate the images of a preview.

    Raises:
        LoramergeError: see `train.drawing.preview.preview`.
    """
    adapters = [(r, _adapter(r, context)) for r in parameters.adapters]
    if not any(parameters.prompt):
        _note_words([adapter for _, adapter in adapters], context)
    with loading_torch(context.notify):
        from loramerge.train.device.exhaustion import naming_exhaustion
        from loramerge.train.device.threads import torch_threads
        from loramerge.train.device.workers import begin_workers
        from loramerge.train.drawing.preview import preview

    _, device = begin_workers(context.device)

    def naming(doing: str) -> AbstractContextManager[None]:
        return naming_exhaustion(device, doing, lambda: _advice(device))

    def loader(name: str) -> Callable[[], Pipeline]:
        def load() -> Pipeline:
            with naming(f"loading {name}"):
                return load_model(name, parameters, context, device)

        return load

    def loaders(names: Sequence[str]) -> list[tuple[str, Callable[[], Pipeline]]]:
        return [(base_name(name, context), loader(name)) for name in names]

    with torch_threads(context.torch_threads), naming("generating images"):
        return preview(
            loaders(parameters.base),
            columns(parameters, adapters),
            parameters.prompt or ("",),
            parameters.seed or (0,),
            lambda pipeline: _settings(parameters, pipeline),
            alone=loaders(parameters.baked),
            negative=parameters.negative,
            skip=parameters.clip_skip,
            notify=context.notify,
        )


def _settings(parameters: Preview, pipeline: Pipeline) -> Drawing:
    """Return how one base is to draw, after a check that it can."""
    from loramerge.train.drawing.sampling import Drawing
    from loramerge.train.models.refusals import refuse_idle, refuse_large

    side = (parameters.size or pipeline.resolution) // pipeline.unit * pipeline.unit
    if not side:
        raise UsageError(
            f"the smallest image of this base has {pipeline.unit} pixels on a side",
            found=parameters.size,
        )
    size = (side, side)
    kind = pipeline.architecture
    asked = {
        "negative": parameters.negative,
        "clip_skip": parameters.clip_skip,
        "guidance_rescale": parameters.guidance_rescale,
    }
    refuse_idle(kind, pipeline.path, asked)
    refuse_large(kind, pipeline.denoiser.config, pipeline.factor, [size])
    return Drawing(
        size,
        parameters.steps,
        parameters.guidance,
        parameters.guidance_rescale,
        parameters.sampler,
    )


def _advice(device: Any) -> Message:
    """Return the advice for a device with too little memory."""
    rest = () if device.type == "cpu" else (", or ", Setting("device", "cpu"))
    return ("end other programs, or give a smaller ", Setting("size"), *rest)


def _adapter(reference: Reference, context: Context) -> Adapter:
    adapter = adapter_of(reference, context)
    if adapter.embeddings:
        names = ", ".join(adapter.embeddings)
        context.notify(Warn(f"{reference.label}: a preview does not use its embeddings: {names}"))
    return adapter


def _note_words(adapters: Sequence[Adapter], context: Context) -> None:
    """Name the trigger words of adapters that are drawn without a prompt."""
    words = dict.fromkeys(word for one in adapters for word in trigger_words(one.info.metadata))
    if words:
        context.notify(Note(f"no prompt is given; trigger words: {listed(list(words), 6)}"))
