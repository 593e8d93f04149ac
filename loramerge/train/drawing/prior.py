"""Prior preservation: regularisation images that the base generates before it is trained.

    asked = wanted(spec.prior, arranged)
    folder = draw_prior(spec, pipeline, asked, workers, notify)     # PNG files, captions beside

The images depend only on the base, the prompts and the sizes. The cache keeps them by these, so the next
run, or a resumed one, generates only those that are missing.

Source: Ruiz et al., DreamBooth (arXiv:2208.12242), section 3.3, prior preservation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loramerge.errors import LoramergeError, Setting
from loramerge.events import Note, Notify, Progress, Warn
from loramerge.files.writer import write_bytes
from loramerge.report.pictures import png_bytes
from loramerge.train.dataset.arrange import Arranged
from loramerge.train.dataset.buckets import Size
from loramerge.train.dataset.captions import words_pattern
from loramerge.train.dataset.images import opened
from loramerge.train.dataset.scan import Picture
from loramerge.train.device.workers import Workers
from loramerge.train.drawing.sampling import Drawing, draw, guidance_of
from loramerge.train.memory.estimate import Shape, estimate
from loramerge.train.models.pipeline import Pipeline, identity_of
from loramerge.train.models.texts import Texts, read_whole
from loramerge.train.spec.seeds import seed_of
from loramerge.train.spec.spec import Prior, Spec, Targets

__all__ = [
    "FOLDER",
    "MOST",
    "Wanted",
    "draw_prior",
    "drawing_seconds",
    "foreseen",
    "report_prior",
    "wanted",
    "without_trigger",
]

FOLDER = "regularisation"
MOST = 200  # images, if no number is given
_PLACE = "[trigger]"
_STEP = 2.2  # time of a training step of a LoRA, in forward passes


@dataclass(frozen=True)
class Wanted:
    """One image to generate: everything it depends on, the base and the sampler apart."""

    prompt: str
    seed: int
    size: Size


def wanted(prior: Prior, arranged: Arranged) -> list[Wanted]:
    """Return the images to generate, with the sizes of the subject's images.

    Their seeds do not depend on the run's seed, so runs with other seeds share them.

    Args:
        arranged: the subject's images, in buckets.
    """
    subject = list(zip(arranged.dataset.subject, arranged.buckets, strict=False))
    count = (
        min(len(subject), MOST)
        if prior.regularisation_count is None
        else prior.regularisation_count
    )
    trigger = arranged.captioning.trigger
    found = []
    for index in range(count):
        place = index * len(subject) // count if count < len(subject) else index % len(subject)
        picture, size = subject[place]
        if prior.regularisation_prompt:
            prompt = prior.regularisation_prompt[index % len(prior.regularisation_prompt)]
        else:
            prompt = without_trigger(picture.caption or "", trigger)
        found.append(Wanted(prompt, seed_of(0, FOLDER, index), size))
    return found


def without_trigger(caption: str, trigger: str | None) -> str:
    """Return a caption without the trigger words and the commas around them."""
    rest = caption.replace(_PLACE, " ")
    if trigger:
        rest = re.sub(r"(?<=\x00)['’]s\b|\x00", " ", words_pattern(trigger).sub("\x00", rest))
    parts = (" ".join(part.split()) for part in rest.split(","))
    return ", ".join(part for part in parts if part)


def report_prior(spec: Spec, asked: Sequence[Wanted], notify: Notify) -> None:
    """Warn about empty prompts; without regularisation images, note what they are for."""
    if spec.prior is None:
        if spec.data.regularisation is None and spec.data.trigger:
            notify(
                Note(
                    (
                        "Without regularisation images the model may forget other subjects. ",
                        Setting("regularisation", "auto"),
                        " generates some.",
                    )
                )
            )
        return
    empty = sum(not one.prompt for one in asked)
    if empty and not spec.prior.regularisation_prompt:
        notify(
            Warn(
                (
                    f"{empty} of {len(asked)} captions are the trigger alone, so their "
                    "regularisation images are generated without a prompt. Describe what the model "
                    "should keep with ",
                    Setting("regularisation_prompt", "'a photo of a cat'"),
                    ".",
                )
            )
        )


def draw_prior(
    spec: Spec, pipeline: Pipeline, asked: Sequence[Wanted], workers: Workers, notify: Notify
) -> Path:
    """Generate the images that the cache lacks, in one process; return the folder with all of them.

    Args:
        pipeline: the unchanged base, on its device, before a LoRA is injected.
    """
    assert spec.prior is not None
    folder = spec.folder / FOLDER
    if workers.first:
        pictures = _drawn(spec, spec.prior, pipeline, asked, notify)
        _lay_out(folder, asked, pictures)
    workers.wait()
    return folder


@torch.no_grad()
def _drawn(
    spec: Spec, prior: Prior, pipeline: Pipeline, asked: Sequence[Wanted], notify: Notify
) -> list[Path]:
    """Generate the missing images; return the files of all of them in the cache."""
    base = _identity(pipeline, prior, spec.data.clip_skip)
    paths = [spec.cache / FOLDER / f"{_key(base, one)}.png" for one in asked]
    missing = [
        (one, path) for one, path in zip(asked, paths, strict=True) if not _is_whole(path, one.size)
    ]
    texts = Texts(pipeline, None, spec.data.clip_skip)
    for done, (one, path) in enumerate(missing, 1):
        how = Drawing(one.size, prior.sampler_steps, prior.regularisation_guidance)
        read_whole(pipeline, [one.prompt])
        (picture,) = draw(pipeline, texts([one.prompt]), texts.empty(), [one.seed], how)
        write_bytes(path, png_bytes(picture), force=True)
        notify(
            Progress(
                "generating regularisation images", done, len(missing), "images", one.prompt[:60]
            )
        )
    return paths


def _identity(pipeline: Pipeline, prior: Prior, skip: int | None) -> str:
    """Return a digest of what all images depend on: the base and its sampler."""
    sampler = pipeline.architecture.sampler(pipeline)
    skipped = None if skip in (None, 1) else skip - 1  # as older caches count
    how = (
        identity_of([pipeline.denoiser]), pipeline.identity("vae"), pipeline.identity("encoders"),
        pipeline.empty_is_zero, json.dumps(dict(sampler.config), sort_keys=True, default=str),
        prior.sampler_steps, float(guidance_of(pipeline, prior.regularisation_guidance)), skipped,
    )  # fmt: skip
    return _digest(*how)


def _key(base: str, one: Wanted) -> str:
    return _digest(base, one.prompt, one.seed, *one.size)


def _digest(*values: Any) -> str:
    return hashlib.sha256("\0".join(map(str, values)).encode()).hexdigest()[:32]


def _is_whole(path: Path, size: Size) -> bool:
    """Return whether an image exists and can be read to its end."""
    try:
        return path.is_file() and opened(path).size == size
    except LoramergeError:
        return False


def _lay_out(folder: Path, asked: Sequence[Wanted], pictures: Sequence[Path]) -> None:
    """Copy the images into the run's folder as `000.png` with `000.txt`, and remove older ones."""
    kept = set()
    digits = max(3, len(str(len(asked) - 1)))
    for index, (one, path) in enumerate(zip(asked, pictures, strict=True)):
        for suffix, data in ((".png", path.read_bytes()), (".txt", f"{one.prompt}\n".encode())):
            place = folder / f"{index:0{digits}}{suffix}"
            kept.add(place)
            if not place.is_file() or place.read_bytes() != data:
                write_bytes(place, data, force=True)
    for old in folder.glob("[0-9]*.*"):  # of an earlier run in this folder
        if old not in kept and old.suffix in (".png", ".txt"):
            old.unlink()


def drawing_seconds(
    spec: Spec, prior: Prior, shape: Shape, count: int, size: Size, device: Any
) -> float:
    """Estimate the seconds that generating these images takes, from those of a training step."""
    kind = shape.architecture.guidance(shape.denoiser)
    guided = kind == "classifier-free" and prior.regularisation_guidance != 1.0
    once = replace(
        spec,
        targets=Targets(),
        data=replace(spec.data, batch=2 if guided else 1),
        settings=replace(spec.settings, steps=1, warmup_steps=0, accumulate=1),
        checkpointing=False,
    )
    forward = estimate(once, shape, size, device).seconds / _STEP
    return forward * prior.sampler_steps * count


def foreseen(arranged: Arranged, asked: Sequence[Wanted]) -> Arranged:
    """Return the data set with the images that will be generated; their files do not exist yet."""
    drawn = [
        Picture(Path(FOLDER, str(index)), one.size, one.prompt, regular=True)
        for index, one in enumerate(asked)
    ]
    dataset = replace(arranged.dataset, pictures=[*arranged.pictures, *drawn])
    return replace(
        arranged, dataset=dataset, buckets=[*arranged.buckets, *(one.size for one in asked)]
    )
