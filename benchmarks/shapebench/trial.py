"""Measure adapters on the base: errors on pictures of each concept, and generated pictures.

All adapters of a seed are measured on the same pictures, times and noise, so that differences between
methods are those of the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

import loramerge as lm
from benchmarks.proving.cases import Case
from benchmarks.proving.resizing import resized
from benchmarks.proving.scores import groups, retention
from benchmarks.shapebench.lessons import adapter_of, base_of
from benchmarks.shapebench.network import generate, loss, tensor_of, words_of
from benchmarks.shapebench.pictures import CONCEPTS, random_pictures, shows
from loramerge.train.lora.applied import applied

__all__ = ["PICTURES", "Trial", "Turn"]

PICTURES = 4  # adapters, where pictures are generated, too
_EXAMPLES = 24  # pictures of each subject for errors
_DRAWN = 8  # pictures of each subject that are generated


@dataclass(frozen=True)
class Turn:
    """The figures of an adapter: subject → value. A subject is the concepts that are asked for.

    Args:
        errors: of the velocity, on drawings.
        shown: share of the generated pictures that show what was asked.
    """

    errors: Mapping[tuple[str, ...], float]
    shown: Mapping[tuple[str, ...], float]


class Trial:
    """The base, the adapters of one seed, and the pictures that they are measured on.

    Args:
        share: of the training steps.
    """

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None], share: float) -> None:
        self.seed = seed
        self.base = base_of(folder, say, share)
        self.adapters = {w: adapter_of(folder, self.base, w, seed, say, share) for w in CONCEPTS}
        self._examples: dict[tuple[str, ...], Any] = {}

    # --- measuring -------------------------------------------------------------------------

    @torch.no_grad()
    def measure(
        self, adapter: Any, subjects: Sequence[tuple[str, ...]], pictures: bool = False
    ) -> Turn:
        """Return the figures of an adapter (None: of the base) for some subjects."""
        with applied({"": self.base}, [adapter] if adapter is not None else []):
            found = {one: self._example(one) for one in subjects}
            parts = [torch.cat([f[i] for f in found.values()]) for i in range(4)]
            values = loss(self.base, *parts).split([len(f[0]) for f in found.values()])
            errors = {one: float(value.mean()) for one, value in zip(found, values, strict=True)}
            shown = {one: self._shown(one) for one in subjects} if pictures else {}
        return Turn(errors, shown)

    def _example(self, subject: tuple[str, ...]) -> Any:
        """Return clean pictures, words, times and noise of a subject."""
        if subject not in self._examples:
            count = _EXAMPLES * (1 if subject else 2)
            pictures = random_pictures(count, f"errors {self.seed} {subject}", subject)
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn((count, 3, 24, 24), generator=generator)
            # times spread evenly over the distribution that training draws from
            shares = (torch.arange(count) + 0.5) / count
            times = torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * shares - 1))
            words = words_of([one.words() for one in pictures])
            self._examples[subject] = tensor_of(pictures), words, times, noise
        return self._examples[subject]

    def _shown(self, subject: tuple[str, ...]) -> float:
        """Return the share of generated pictures that show what was asked."""
        asked = random_pictures(
            _DRAWN * (1 if subject else 2), f"drawn {self.seed} {subject}", subject
        )
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((len(asked), 3, 24, 24), generator=generator)
        drawn = generate(self.base, words_of([one.words() for one in asked]), noise)
        axes = [CONCEPTS[word].axis for word in subject] or ["kind", "colour", "ground"]
        right = [shows(picture, one, axes) for picture, one in zip(drawn, asked, strict=True)]
        return float(np.mean(right))

    # --- yardsticks ------------------------------------------------------------------------

    @cached_property
    def plain(self) -> Turn:
        """The base's figures for every subject."""
        return self.measure(None, [(), *((w,) for w in CONCEPTS), *self._pairs(CONCEPTS)])

    @cached_property
    def alone(self) -> dict[str, Turn]:
        """The figures of each adapter for its own concept."""
        return {w: self.measure(a, [(w,)]) for w, a in self.adapters.items()}

    @staticmethod
    def _pairs(words: Collection[str]) -> list[tuple[str, ...]]:
        """Return all pairs of concepts that a picture can show."""
        ordered = [one for name, one in CONCEPTS.items() if name in words]
        return [(a.word, b.word) for a, b in combinations(ordered, 2) if a.goes_with(b)]

    # --- cases -----------------------------------------------------------------------------

    def merged(self, case: Case, count: int) -> dict[str, float]:
        """Return the scores of a method, as means over the groups of so many adapters."""
        pictures = case.table == "operators" and count == PICTURES
        rows = [
            self._scores(group, self._mix(case, group), pictures)
            for group in groups(list(CONCEPTS), count, self.seed)
        ]
        return {
            name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[0]
        }

    def _mix(self, case: Case, group: Sequence[str]) -> Any:
        settings = dict(case.parameters)
        if case.scale is not None:
            settings["scale"] = case.scale
        return lm.mix([self.adapters[w] for w in group], method=case.method, threads=1, **settings)

    def _scores(self, group: Sequence[str], adapter: Any, pictures: bool) -> dict[str, float]:
        pairs = self._pairs(group)[:4]
        turn = self.measure(adapter, [(), *((w,) for w in group), *pairs], pictures)
        found = [self._retention(w, turn) for w in group]
        scores = {
            "mean": float(np.mean(found)),
            "worst": min(found),
            "drift": 100 * (turn.errors[()] / self.plain.errors[()] - 1),
        }
        if pairs:
            # 1: an error as small as that of the base on ordinary pictures
            goal = self.plain.errors[()]
            kept = [retention(self.plain.errors[p], goal, turn.errors[p]) for p in pairs]
            scores["together"] = float(np.mean(kept))
        if pictures:
            scores["shown"] = float(np.mean([turn.shown[w,] for w in group]))
            scores["least shown"] = min(turn.shown[w,] for w in group)
            scores["prompts"] = turn.shown[()]
        return scores

    def resized(self) -> Iterator[dict[str, Any]]:
        """Yield the scores of every rule of resize on each adapter alone, and on the sum of all."""

        def kept(adapter: Any, words: Sequence[str]) -> list[float]:
            turn = self.measure(adapter, [(w,) for w in words])
            return [self._retention(w, turn) for w in words]

        return resized(self.adapters, kept)

    def _retention(self, word: str, turn: Turn) -> float:
        base, alone = self.plain.errors[word,], self.alone[word].errors[word,]
        return retention(base, alone, turn.errors[word,])
