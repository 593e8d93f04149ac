"""The adapters of the tiny model: each is trained on captioned images for a number of steps.

`tiny-outlined` is the second base as an adapter of every layer; `zuzu` is a character and `polka` a
style, adapters of attention. The ordinary pictures in a lesson keep the rest of the world as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch

from loramerge.errors import UsageError, suggestion
from loramerge.tiny.build import as_tensor, tokens_of
from loramerge.tiny.drawing import draw
from loramerge.tiny.pictures import pipeline
from loramerge.tiny.sprites import (
    BACKGROUNDS,
    Sprite,
    random_sprite,
    random_zuzu,
    some_of,
)
from loramerge.train.lora.modules import inject_trainable_lora
from loramerge.train.lora.saving import save_lora_weight
from loramerge.train.models.objective import Noising
from loramerge.train.run.batches import Batch, shuffled
from loramerge.train.run.loop import TrainStep, advance, begin
from loramerge.train.spec.settings import Settings

__all__ = ["HELD", "LESSONS", "SEEN", "Lesson", "examples", "make", "teach"]

SEEN = tuple(BACKGROUNDS)[:6]  # the backgrounds that the character is shown on
HELD = tuple(BACKGROUNDS)[6:]
_SILENT = 0.1  # share of examples without a caption, which guidance needs

Pairs = Sequence[tuple[Sprite, str]]


@dataclass(frozen=True)
class Lesson:
    """A set of captioned pictures and the settings that learn it.

    Args:
        pictures: function of a seed that gives sprites and captions.
        rank, preset: of the LoRA.
        batch: examples a step.
    """

    pictures: Callable[[int], Pairs] = field(repr=False)
    rank: int
    preset: str
    settings: Settings
    batch: int = 16
    dialect: str = "kohya"
    metadata: Mapping[str, str] = field(default_factory=dict)


def _ordinary(count: int, seed: int, **style: bool) -> Pairs:
    draws = random.Random(f"ordinary {seed}")
    found = [random_sprite(draws, **style) for _ in range(count)]
    return [(sprite, sprite.caption(some_of(draws))) for sprite in found]


def zuzu_pictures(seed: int, *, regularisation: int = 64, outlined: bool = False) -> Pairs:
    """Return 64 captioned pictures of the character, and ordinary ones beside them."""
    draws = random.Random(f"zuzu {seed}")
    found = [replace(random_zuzu(draws, SEEN), outlined=outlined) for _ in range(64)]
    return [
        *((sprite, sprite.caption(("mood", "background"))) for sprite in found),
        *_ordinary(regularisation, seed, outlined=outlined),
    ]


def _settings(steps: int, rate: float = 2e-3) -> Settings:
    return Settings(steps=steps, lr=rate, warmup_steps=min(20, steps - 1), betas=(0.9, 0.99))


LESSONS: dict[str, Lesson] = {
    "tiny-outlined": Lesson(
        lambda seed: _ordinary(2048, seed, outlined=True),
        6,
        "full",
        _settings(400, 5e-4),
        batch=32,
        dialect="diffusers",
        metadata={"modelspec.title": "tiny-outlined"},
    ),
    "zuzu": Lesson(
        zuzu_pictures,
        7,
        "attn-ff",
        _settings(500, 3e-3),
        metadata={"modelspec.title": "zuzu", "modelspec.trigger_phrase": "zuzu"},
    ),
    "polka": Lesson(
        lambda seed: _ordinary(256, seed, dotted=True),
        8,
        "attn",
        _settings(600),
        dialect="diffusers",
        metadata={"modelspec.title": "polka"},
    ),
}


@torch.no_grad()
def examples(pipe: Any, pairs: Pairs, *, silent: float = _SILENT, seed: int = 0) -> Batch:
    """Return latents and text states of captioned sprites, ready to train on.

    Args:
        silent: share of the examples whose caption is left out.
    """
    draws = random.Random(f"silent {seed}")
    captions = ["" if draws.random() < silent else caption for _, caption in pairs]
    pictures = as_tensor([draw(sprite) for sprite, _ in pairs])
    latents = [pipe.vae.encode(part).latent_dist.mode() for part in pictures.split(64)]
    text = pipe.text_encoder(tokens_of(pipe.tokenizer, captions)).last_hidden_state
    return Batch(torch.cat(latents) * pipe.vae.config.scaling_factor, text)


def teach(
    pipe: Any,
    lesson: Lesson,
    *,
    seed: int = 0,
    on_step: Callable[[TrainStep], None] = lambda step: None,
) -> Any:
    """Train a LoRA on the UNet of a pipeline, leave it there, and return the finished run."""
    torch.manual_seed(seed)
    inject_trainable_lora(pipe.unet, lesson.rank, preset=lesson.preset)
    batches = shuffled(examples(pipe, lesson.pictures(seed), seed=seed), lesson.batch, seed)
    settings = replace(lesson.settings, seed=seed)
    run = begin(pipe.unet, Noising.of(pipe.scheduler), batches, settings)
    advance(run, on_step=on_step)
    pipe.unet.eval()
    return run


def make(
    name: str,
    base: str | PathLike[str],
    output: str | PathLike[str],
    *,
    seed: int = 0,
    on_step: Callable[[TrainStep], None] = lambda step: None,
) -> int:
    """Train a lesson on a base and write the adapter as float16; return the bytes written.

    Raises:
        UsageError: if there is no such lesson.
        LoramergeError: see `train.run.loop.advance` and `train.lora.saving.save_lora_weight`.
    """
    if name not in LESSONS:
        raise UsageError(
            f"no lesson {name!r}",
            expected=", ".join(LESSONS),
            hint=suggestion(name, LESSONS),
        )
    lesson, pipe = LESSONS[name], pipeline(base)
    teach(pipe, lesson, seed=seed, on_step=on_step)
    return save_lora_weight(
        pipe.unet,
        output,
        dialect=lesson.dialect,
        dtype="float16",
        family="tiny",
        prediction="v_prediction",
        metadata=lesson.metadata,
        force=True,
    )
