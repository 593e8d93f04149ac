"""Generate images with a pipeline, each from its own seed.

An image does not depend on the others of the call, and no model changes its dtype.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from loramerge.errors import Setting, UsageError
from loramerge.train.dataset.buckets import Size
from loramerge.train.models.architecture import States
from loramerge.train.models.pipeline import Pipeline
from loramerge.train.models.tiles import in_tiles
from loramerge.train.run.examples import time_ids

__all__ = [
    "SAMPLERS", "AfterStep", "Drawing", "decoded", "draw", "drawing_mode", "guidance_of", "guided",
    "latents_of",
    "usual_rescale",
]  # fmt: skip

# (steps of an image that are done, of how many); an exception that it raises ends the drawing
AfterStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Drawing:
    """The settings of the sampler.

    Args:
        size: width and height.
        steps: steps of the sampler.
        guidance: classifier-free or embedded guidance; 1 is none. None: the architecture's default.
        rescale: φ of `guided`, in `[0, 1]`; None: see `usual_rescale`.
        sampler: a name of `SAMPLERS`; None: the architecture's own.
    """

    size: Size
    steps: int = 25
    guidance: float | None = None
    rescale: float | None = None
    sampler: str | None = None


# name → class of diffusers, and options of it
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": (
        "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
}  # fmt: skip


def sampler_of(pipeline: Pipeline, name: str | None) -> Any:
    """Return a scheduler of diffusers that draws.

    Args:
        name: see `SAMPLERS`; None: the architecture's own.

    Raises:
        UsageError: if the model learns a flow, which these samplers do not follow.
    """
    if name is None:
        return pipeline.architecture.sampler(pipeline)
    if pipeline.architecture.flow:
        raise UsageError(
            "this model learns a flow, which is drawn with Euler's method", file=pipeline.path,
            found=name, hint=("leave out ", Setting("sampler", name)),
        )  # fmt: skip
    kind, options = SAMPLERS[name]
    cls = getattr(import_module("diffusers"), kind)
    return cls.from_config(pipeline.scheduler.config, **{"timestep_spacing": "trailing", **options})


def guidance_of(pipeline: Pipeline, asked: float | None) -> float:
    """Return the guidance: the given one, or the architecture's default.

    Raises:
        UsageError: if the model takes no guidance and one is given.
    """
    kind = pipeline.architecture
    if kind.guidance(pipeline.denoiser.config) == "none":
        if asked not in (None, 1.0):
            raise UsageError(
                "this model was distilled to work without guidance", file=pipeline.path,
                expected="no guidance, or 1", found=asked,
            )  # fmt: skip
        return 1.0
    return kind.usual_guidance if asked is None else asked


def usual_rescale(scheduler: Any) -> float:
    """Return φ for a schedule: 0.7 with zero terminal SNR, else 0.

    Source: Lin et al. (arXiv:2305.08891), section 3.4 and table 2.
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    return 0.7 if alphas is not None and float(alphas[-1]) < 1e-6 else 0.0


def guided(without: Any, found: Any, guidance: float, rescale: float = 0.0) -> Any:
    """Return the prediction with classifier-free guidance, rescaled by φ.

    `g = without + guidance (found − without)`, then `φ g σ(found) / σ(g) + (1 − φ) g`, where σ is the
    standard deviation within each image.

    Args:
        without, found: predictions without and with the text, `(n, …)`.
        rescale: φ, in `[0, 1]`; 0 changes nothing.

    Source: Lin et al. (arXiv:2305.08891), equations 14 to 16.
    """
    strong = without + guidance * (found - without)
    if not rescale:
        return strong
    within = tuple(range(1, strong.ndim))
    spread, wanted = (one.std(within, keepdim=True) for one in (strong, found))
    factor = torch.where(spread > 0, wanted / spread, 1.0)
    return strong * (rescale * factor + (1 - rescale))


@torch.no_grad()
def draw(
    pipeline: Pipeline,
    states: States,
    empty: States,
    seeds: Sequence[int],
    how: Drawing,
    after_step: AfterStep = lambda done, total: None,
) -> list[Any]:
    """Generate one image for each text and seed.

    Args:
        states: text states, as many as seeds.
        empty: states of the negative or the empty prompt; a single row.
        seeds: seeds of the initial noise.
    """
    latents = latents_of(pipeline, states, empty, seeds, how, after_step)
    found: list[Any] = decoded(pipeline, latents)
    return found


@torch.no_grad()
def latents_of(
    pipeline: Pipeline,
    states: States,
    empty: States,
    seeds: Sequence[int],
    how: Drawing,
    after_step: AfterStep = lambda done, total: None,
) -> list[Any]:
    """Return the latents of images, each `(1, c, h, w)`; see `draw`."""
    with drawing_mode(pipeline):
        return [
            _latents(pipeline, _row(states, index), empty, seed, how, after_step)
            for index, seed in enumerate(seeds)
        ]


@torch.no_grad()
def decoded(pipeline: Pipeline, latents: Sequence[Any], *, tiled: bool = False) -> list[Any]:
    """Return the images of latents.

    Args:
        tiled: decode images larger than a tile of 512 pixels in overlapping tiles, which needs less
            memory and changes an image slightly.
    """
    vae = pipeline.vae
    if not tiled:
        return [_decoded(vae, one) for one in latents]
    with in_tiles(vae, pipeline.factor):
        return [_decoded(vae, one) for one in latents]


@contextmanager
def drawing_mode(pipeline: Pipeline) -> Iterator[None]:
    """Switch dropout off for a while."""
    before = {model: model.training for model in pipeline.models.values()}
    for model in before:
        model.eval()
    try:
        yield
    finally:
        for model, training in before.items():
            model.train(training)


def _row(states: States, index: int) -> States:
    return States(*(None if part is None else part[index : index + 1] for part in states))


def _latents(
    pipeline: Pipeline,
    text: States,
    empty: States,
    seed: int,
    how: Drawing,
    after_step: AfterStep,
) -> Any:
    architecture, denoiser = pipeline.architecture, pipeline.denoiser
    place, dtype = denoiser.device, next(denoiser.parameters()).dtype
    width, height = how.size
    channels = architecture.channels(denoiser.config)
    shape = (1, channels, height // pipeline.factor, width // pipeline.factor)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    scheduler = sampler_of(pipeline, how.sampler)
    architecture.schedule(scheduler, denoiser.config, how.steps, noise)
    guidance = guidance_of(pipeline, how.guidance)
    rescale = usual_rescale(scheduler) if how.rescale is None else how.rescale
    free = architecture.guidance(denoiser.config) == "classifier-free" and guidance != 1.0
    both = [empty, text] if free else [text]
    states = _joined(both, place)
    sizes = None
    if architecture.sizes:
        sizes = time_ids(how.size, how.size).repeat(len(both), 1).to(place)
    latents = noise.to(place) * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda latents, time: latents)
    further = {}
    if "generator" in inspect.signature(scheduler.step).parameters and how.sampler is not None:
        further["generator"] = generator  # of what a sampler adds at each step
    total = len(scheduler.timesteps)
    for done, time in enumerate(scheduler.timesteps, 1):
        inputs = torch.cat([scaled(latents, time)] * len(both)).to(dtype)
        found = architecture.predict(
            denoiser, inputs, time.to(place), states, sizes, guidance
        ).float()
        if free:
            without, found = found.chunk(2)
            found = guided(without, found, guidance, rescale)
        latents = scheduler.step(found, time, latents, **further).prev_sample
        after_step(done, total)
    return latents


def _joined(parts: Sequence[States], place: Any) -> States:
    """Return the states of several texts in one batch."""
    text = torch.cat([one.text for one in parts]).to(place)
    if parts[0].pooled is None:
        return States(text)
    return States(text, torch.cat([one.pooled for one in parts]).to(place))


def _decoded(vae: Any, latents: Any) -> Any:
    """Decode latents, `(1, c, h, w)`, to an image."""
    from PIL import Image

    shift = getattr(vae.config, "shift_factor", None) or 0.0
    decoded = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype)).sample
    values = torch.nan_to_num((decoded[0].float() / 2 + 0.5).clamp(0, 1)).cpu()
    return Image.fromarray((values.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
