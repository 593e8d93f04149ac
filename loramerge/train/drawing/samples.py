"""The samples of a run: the same prompts and seeds at several steps, in a sheet that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loramerge.files.folders import RUN_SAMPLES
from loramerge.files.writer import write_bytes
from loramerge.report.pictures import grid, png_bytes, write_png
from loramerge.train.dataset.arrange import Arranged
from loramerge.train.device.placing import elsewhere, placed
from loramerge.train.drawing.sampling import (
    Drawing,
    decoded,
    drawing_mode,
    guidance_of,
    latents_of,
)
from loramerge.train.models.pipeline import Pipeline
from loramerge.train.models.texts import Texts
from loramerge.train.spec.spec import Samples

__all__ = ["SampleSheet"]


class SampleSheet:
    """Generates the samples: `samples/000250-1.png`, and all of them together in `samples.png`.

    The first row is step 0, the base itself.
    """

    def __init__(self, how: Samples, folder: Path, arranged: Arranged, pipeline: Pipeline) -> None:
        self._how, self._folder, self._pipeline = how, folder, pipeline
        self.prompts: list[str] = list(how.prompt) or _usual(arranged)
        side = arranged.resolution // pipeline.unit * pipeline.unit
        self._drawing = Drawing((side, side), how.sample_steps, how.guidance, how.guidance_rescale)
        if how.sample_every:
            guidance_of(pipeline, how.guidance)

    @property
    def texts(self) -> list[str]:
        """All texts to encode."""
        return [*self.prompts, self._how.negative] if self._how.sample_every else []

    def due(self, done: int, steps: int) -> bool:
        """Return whether samples are generated after this number of steps."""
        every = self._how.sample_every
        return every > 0 and (done % every == 0 or done == steps)

    def forget_later(self, done: int) -> None:
        """Remove what an earlier run in this folder generated after this number of steps."""
        for path in (self._folder / "samples").glob(_FILES):
            if not done or int(path.name[:6]) > done:
                path.unlink(missing_ok=True)
        if not done or not self._how.sample_every:
            (self._folder / RUN_SAMPLES).unlink(missing_ok=True)

    def draw(self, texts: Texts, done: int) -> list[Any]:
        """Generate the samples of a step, write the sheet up to this step, and return the samples."""
        if not self._how.sample_every:
            return []
        seeds = [self._how.sample_seed + index for index in range(len(self.prompts))]
        with torch.no_grad(), drawing_mode(self._pipeline):
            empty = texts([self._how.negative]) if self._how.negative else texts.empty()
            states = texts(self.prompts)
        device = self._pipeline.denoiser.device
        latents = latents_of(self._pipeline, states, empty, seeds, self._drawing)
        away = [self._pipeline.denoiser] if self._how.sparing else []
        with elsewhere(device, *away), placed(device, self._pipeline.vae):
            found: list[Any] = decoded(self._pipeline, latents, tiled=self._how.sparing)
        for index, (picture, prompt, seed) in enumerate(
            zip(found, self.prompts, seeds, strict=True)
        ):
            path = self._folder / "samples" / f"{done:06}-{index}.png"
            write_bytes(path, png_bytes(picture, _about(prompt, seed)), force=True)
        write_png(
            sheet(self._folder, self.prompts, self._how.sample_seed, done),
            self._folder / RUN_SAMPLES,
        )
        return found


_FILES = "??????-*.png"


def _about(prompt: str, seed: int) -> dict[str, str]:
    """Return the text in a sample's file, so that a sheet never mixes prompts."""
    return {"prompt": prompt, "seed": str(seed)}


def sheet(folder: Path, prompts: list[str], seed: int, last: int) -> Any:
    """Return the grid of all samples up to a step: a row for each step, a column for each prompt.

    A step at which other prompts were drawn has no row.
    """
    from PIL import Image

    steps = sorted({int(path.name[:6]) for path in (folder / "samples").glob(_FILES)})
    steps = [step for step in steps if step <= last]

    def cell(step: int, index: int) -> Any:
        path = folder / "samples" / f"{step:06}-{index}.png"
        if not path.is_file():
            return None
        with Image.open(path) as picture:
            about = {name: picture.info.get(name) for name in ("prompt", "seed")}
            other = about["prompt"] is not None and about != _about(prompts[index], seed + index)
            return None if other else picture.copy()

    drawn = {step: [cell(step, index) for index in range(len(prompts))] for step in steps}
    steps = [step for step, row in drawn.items() if any(one is not None for one in row)]
    cells = [drawn[step] for step in steps]
    heads = [f"{prompt or '(no prompt)'} · seed {seed + n}" for n, prompt in enumerate(prompts)]
    return grid(cells, [f"step {step}" for step in steps], heads)


def _usual(arranged: Arranged) -> list[str]:
    """Return the default prompts: the trigger and the first caption."""
    captioning, subject = arranged.captioning, arranged.dataset.subject
    found = [captioning.trigger or "", captioning.whole(subject[0])]
    return list(dict.fromkeys(text for text in found if text)) or [""]
