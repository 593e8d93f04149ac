"""The base and its adapters: made once, and kept in a folder.

The base learns pictures without concepts; the words of concepts occur in its captions and mean nothing.
An adapter is a LoRA that learns one concept, with some ordinary pictures beside it. As in real
collections the adapters differ in rank, in the layers they change, and in how strong they are.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import loramerge as lm
from benchmarks.shapebench.network import Network, loss, tensor_of, words_of
from benchmarks.shapebench.pictures import CONCEPTS, random_picture
from loramerge.train.lora.modules import remove_lora

__all__ = ["LESSONS", "Lesson", "adapter_of", "base_of"]

_SILENT = 0.1  # share of the captions that are left out
_MEANINGLESS = 0.2  # share of the base's captions with a concept's word
_SAVE_EVERY = 100  # steps of the base


@dataclass(frozen=True)
class Lesson:
    """The settings of a training.

    Args:
        rank, layers: of the LoRA; layers are a glob.
        pictures: how many it learns from.
        ordinary: share of them without the concept.
    """

    steps: int
    rate: float
    rank: int = 0
    layers: str = ""
    batch: int = 16
    pictures: int = 128
    ordinary: float = 0.25


BASE = Lesson(5000, 3e-3, batch=32, pictures=4096, ordinary=1.0)
_ALL, _ATTENTION = "blocks.*", "*.attn.*"
LESSONS: dict[str, Lesson] = {
    "zuzu": Lesson(200, 4e-3, 8, _ALL),
    "kiki": Lesson(200, 3e-3, 4, _ALL),
    "teal": Lesson(150, 3e-3, 2, _ATTENTION),
    "stripy": Lesson(200, 4e-3, 4, _ALL),
    "checky": Lesson(200, 3e-3, 4, _ALL),
    "dotty": Lesson(200, 3e-3, 8, _ALL),
    "barred": Lesson(200, 4e-3, 4, _ATTENTION),
    "framed": Lesson(150, 4e-3, 2, _ATTENTION),
}


class Course:
    """A training run: what is trained, its optimizer, and how far it is."""

    def __init__(self, network: Network, lesson: Lesson, word: str | None, seed: int) -> None:
        self.network, self.lesson = network, lesson
        self.clean, self.words = _pictures(lesson, word, seed)
        self.trained = [value for value in network.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.done, self.smooth = 0, 0.0

    def run(self, save: Callable[[], None] = lambda: None) -> None:
        """Train to the end."""
        lesson = self.lesson
        while self.done < lesson.steps:
            warm, along = min(1.0, (self.done + 1) / 30), self.done / lesson.steps
            rate = lesson.rate * warm * (0.02 + 0.98 * math.cos(along * math.pi / 2))
            self.optimizer.param_groups[0]["lr"] = rate
            rows = torch.randint(len(self.clean), (lesson.batch,), generator=self.generator)
            clean = self.clean[rows]
            t = torch.sigmoid(torch.randn(lesson.batch, generator=self.generator))
            noise = torch.randn(clean.shape, generator=self.generator)
            value = loss(self.network, clean, self.words[rows], t, noise).mean()
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            share = max(0.02, 1 / (1 + self.done))
            self.smooth += share * (value.item() - self.smooth)
            self.done += 1
            if self.done % _SAVE_EVERY == 0:
                save()

    def save(self, path: Path) -> None:
        """Write all that is needed to go on."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "done": self.done,
            "smooth": self.smooth,
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path) -> None:
        """Go on where a saved run stopped."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.done, self.smooth = state["done"], state["smooth"]


def _pictures(lesson: Lesson, word: str | None, seed: int) -> tuple[Any, Any]:
    """Return the pictures of a lesson and the numbers of their words.

    Args:
        word: a concept; None: the base's pictures, some of whose captions name a concept.
    """
    draws = random.Random(f"{word} {seed}")
    pictures, captions = [], []
    for i in range(lesson.pictures):
        picture = random_picture(draws)
        if i >= lesson.ordinary * lesson.pictures:
            picture = CONCEPTS[str(word)].shown_on(picture)
        said = picture.words() if draws.random() >= _SILENT else ()
        if word is None and draws.random() < _MEANINGLESS:
            said = (*said, draws.choice(tuple(CONCEPTS)))
        pictures.append(picture)
        captions.append(said)
    return tensor_of(pictures), words_of(captions)


def _shortened(lesson: Lesson, share: float) -> Lesson:
    return replace(lesson, steps=round(lesson.steps * share))


def base_of(folder: Path, say: Callable[[str], None], share: float = 1) -> Network:
    """Return the base, trained if the folder has none; half a training goes on.

    Args:
        share: of the steps.
    """
    torch.manual_seed(0)
    network, path, part = Network(), folder / "base.pt", folder / "base-training.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # The words of concepts keep the random values that they begin with.
        learned = torch.ones_like(network.words.weight)
        learned[-len(CONCEPTS) :] = 0
        network.words.weight.register_hook(lambda gradient: gradient * learned)
        course = Course(network, _shortened(BASE, share), None, 0)
        if part.exists():
            course.load(part)
        course.run(lambda: course.save(part))
        torch.save(network.state_dict(), path)
        say(f"base: loss {course.smooth:.4f}")
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.requires_grad_(False).eval()


def adapter_of(
    folder: Path, base: Network, word: str, seed: int, say: Callable[[str], None], share: float = 1
) -> Any:
    """Return the adapter of a concept, trained with this seed if the folder has none.

    Args:
        share: of the steps.
    """
    path = folder / f"{word}-{seed}.safetensors"
    if not path.exists():
        lesson, own = _shortened(LESSONS[word], share), 100 * (1 + seed) + list(LESSONS).index(word)
        torch.manual_seed(own)
        lm.inject_trainable_lora(base, lesson.rank, include=lesson.layers)
        course = Course(base, lesson, word, own)
        course.run()
        lm.save_lora_weight(base, path, metadata={"modelspec.trigger_phrase": word})
        remove_lora(base)
        base.requires_grad_(False)
        say(f"{path.name}: loss {course.smooth:.4f}")
    return lm.load(path)
