"""The preamble of a run and of its dry run: refusals, and the images with their regularisation."""

from __future__ import annotations

from loramerge.events import Notify, Warn, ignore
from loramerge.train.dataset.arrange import Arranged, arrange
from loramerge.train.drawing.prior import Wanted, report_prior, wanted
from loramerge.train.models.recognised import architecture_at
from loramerge.train.models.refusals import refuse_misfits
from loramerge.train.run.board import require_tensorboard
from loramerge.train.spec.optimizers import fast, ready, slow
from loramerge.train.spec.spec import Spec

__all__ = ["arrange_images", "require_possible"]


def require_possible(spec: Spec, notify: Notify = ignore) -> None:
    """Refuse settings that cannot train, before a model is loaded or an image is read.

    Args:
        notify: warned of a learning rate at which a LoRA hardly moves, or is destroyed.

    Raises:
        UsageError: naming a setting that the optimizer or the base does not take.
        MissingExtra: if a package that the run needs is not installed.
    """
    ready(spec.settings, text=spec.targets.text_encoder)
    if (why := slow(spec.settings)) and spec.targets.kind != "weights":
        notify(Warn(why))
    if why := fast(spec.settings):
        notify(Warn(why))
    if spec.tensorboard:
        require_tensorboard()
    refuse_misfits(architecture_at(spec.base, spec.family), spec)


def arrange_images(
    spec: Spec, unit: int, resolution: int, notify: Notify
) -> tuple[Arranged, list[Wanted]]:
    """Arrange the images of a run into buckets.

    Args:
        unit: pixels that every side is a multiple of.
        resolution: of the base, in pixels, where the spec gives none.

    Returns:
        The images, and the regularisation images that the base is still to generate.

    Raises:
        MissingFile: if no image can be read.
    """
    arranged = arrange(spec.data, unit, resolution, spec.settings.seed, notify)
    missing = [] if spec.prior is None else wanted(spec.prior, arranged)
    report_prior(spec, missing, notify)
    return arranged, missing
