"""The loss on images that are held back, always with the same noise and times."""

from __future__ import annotations

import torch

from loramerge.train.run.examples import Examples
from loramerge.train.run.loop import Run, autocast, averaged, errors_of
from loramerge.train.spec.seeds import generator_of

__all__ = ["validation_loss"]

_DRAWS = 4  # of noise and time for each image


@torch.no_grad()
def validation_loss(run: Run, examples: Examples, count: int) -> float:
    """Return the mean loss over images, without the weights of training.

    Args:
        examples: the images; `count`: their number.
    """
    models = [run.denoiser, *getattr(run.trainee, "models", {}).values()]
    before = [(model, model.training) for model in models]
    for model in models:
        model.eval()
    total = 0.0
    try:
        with averaged(run), autocast(run):
            for place in range(count):
                batch = examples.one(place)
                for draw in range(_DRAWS):
                    generator = generator_of(0, "validation", place * _DRAWS + draw)
                    noise = torch.randn(batch.latents.shape, generator=generator)
                    times = run.noising.drawn(1, generator)
                    total += float(errors_of(run, batch, noise, times))
    finally:
        for model, training in before:
            model.train(training)
    return total / (count * _DRAWS)
