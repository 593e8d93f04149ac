"""Pictures of the tiny model, with adapters beside its layers or without.

pipe = pipeline(shipped("tiny"))
with applied(pipe, [(lm.load("zuzu"), 1.0), (lm.load("polka"), 0.7)]):
    pictures = drawn(pipe, ["a happy zuzu on a blue background"] * 4, seeds=range(4))
sheet(pictures, columns=4).save("zuzu.png")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image

from loramerge.adapter import Adapter
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from loramerge.errors import UsageError
from loramerge.train.lora.modules import remove_lora
from loramerge.train.lora.saving import load_lora_weight

__all__ = ["applied", "drawn", "pipeline", "sheet"]


def pipeline(folder: str | PathLike[str]) -> Any:
    """Return the diffusers pipeline of a folder, in float32 on the CPU, without progress bars."""
    with _quiet():
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipe.to(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress messages of diffusers and transformers."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    loggings = (of_diffusers, of_transformers)
    before = [(logging.get_verbosity(), logging.is_progress_bar_enabled()) for logging in loggings]
    for logging in loggings:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, (verbosity, bars) in zip(loggings, before, strict=True):
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


@contextmanager
def applied(pipe: Any, adapters: Sequence[tuple[Adapter, float]]) -> Iterator[Any]:
    """Put adapters beside the layers of a pipeline while the block runs; the weights stay as they are.

    Several are summed exactly first. Those of weight 0 are left out.

    Raises:
        LoramergeError: if they do not fit each other or the pipeline.
    """
    weighted = [(adapter, Weight(weight)) for adapter, weight in adapters if weight]
    if not weighted:
        yield pipe
        return
    total, _ = mix(weighted)
    wanted = {site.component for site in total.deltas}
    models = {name: getattr(pipe, name) for name in ("unet", "text_encoder") if name in wanted}
    load_lora_weight(models or {"unet": pipe.unet}, total)
    try:
        yield pipe
    finally:
        for model in models.values():
            remove_lora(model)


def drawn(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 12,
    guidance: float = 2.0,
    rescale: float = 0.7,
    batch: int = 32,
) -> list[Any]:
    """Draw a picture of each prompt from the noise of its seed.

    Args:
        steps: of the DDIM sampler.
        guidance: weight of classifier-free guidance.
        rescale: how far its result is brought back to the spread of the prediction, in `[0, 1]`;
            without it colours are too strong where the schedule ends in noise alone (Lin et al.,
            arXiv:2305.08891, section 3.4).
        batch: pictures drawn at once.

    Returns:
        Pictures `(32, 32, 3)` uint8.

    Raises:
        UsageError: if there are not as many seeds as prompts.
    """
    if len(prompts) != len(seeds):
        raise UsageError("a seed for each prompt", expected=len(prompts), found=len(seeds))
    found: list[Any] = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        values = pipe(
            list(prompts[part]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            guidance_rescale=rescale,
            generator=[torch.Generator().manual_seed(int(seed)) for seed in seeds[part]],
            output_type="np",
        ).images
        found.extend((values * 255).round().astype(np.uint8))
    return found


def sheet(pictures: Sequence[Any], columns: int, enlarged: int = 4) -> Any:
    """Return pictures side by side in rows, as an image of Pillow."""
    blank = np.full_like(pictures[0], 255)
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.concatenate(padded[i : i + columns], 1) for i in range(0, len(padded), columns)]
    image = Image.fromarray(np.concatenate(rows, 0))
    return image.resize((image.width * enlarged, image.height * enlarged), Image.Resampling.NEAREST)
