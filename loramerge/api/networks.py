"""Verbs that run networks: images with adapters, and training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Unpack

from loramerge.adapter import Adapter
from loramerge.api.running import (
    Named,
    Weighted,
    adapter_from,
    checked,
    with_parameters,
)
from loramerge.events import Notify, ignore
from loramerge.signatures import PreviewParameters, TrainParameters
from loramerge.steps.given import listed_adapters, references_to
from loramerge.steps.parameters import Context
from loramerge.verbs.preview import Preview, PreviewResult, compute_preview
from loramerge.verbs.train.parameters import Train

__all__ = ["preview", "train"]


@with_parameters(Preview, PreviewParameters)
def preview(
    base: Named | Sequence[Named],
    adapters: Weighted | Iterable[Weighted] = (),
    *,
    device: str | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[PreviewParameters],
) -> PreviewResult:
    """Generate images with adapters side by side; the result shows them in a notebook.

    Nothing is written: `result.save(path)` writes the grid, `result.images` are its cells.

    Args:
        base: a diffusers folder, a single file, or a registered name; or several.
        adapters: one or several, as for `mix`; each gets a column.
    """
    references, context = references_to(listed_adapters(adapters), Context(None, device, notify))
    own = {"base": base, "adapters": references}
    return compute_preview(checked(Preview, parameters, own, PreviewParameters), context)


@with_parameters(Train, TrainParameters)
def train(
    base: Named,
    images: Named,
    *,
    device: str | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[TrainParameters],
) -> Adapter:
    """Train on a folder of images and return the adapter; `save` writes it.

    Log, samples and state go into the run's folder (`folder=`), from which `resume=True` continues.

    Args:
        base: a diffusers folder, a single file, or a registered name.
        images: folder of images with captions.
    """
    own = {"base": base, "images": images}
    context = Context(None, device, notify, allow_import=True)
    return adapter_from("train", parameters, own, TrainParameters, context)
