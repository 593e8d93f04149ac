"""Measure adapters on the language model: losses and right answers of each task, and drift.

All adapters and all seeds answer the same questions, so that differences between methods are those of
the methods.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import loramerge as lm
from benchmarks.languagebench.lessons import EXAMPLES, train
from benchmarks.languagebench.model import model_folder
from benchmarks.languagebench.network import Batch, Language
from benchmarks.languagebench.tasks import ENGLISH, TASKS, Example, examples
from benchmarks.proving.cases import Case
from benchmarks.proving.keeping import claimed, say
from benchmarks.proving.resizing import resized
from benchmarks.proving.scores import groups, retention
from loramerge.train.lora.applied import applied

__all__ = ["FIRST", "Score", "Trial", "language"]

FIRST = 24  # of 30 layers: adapters change those from here on
_ASKED = 8  # questions of each task


@dataclass(frozen=True)
class Score:
    """The figures of an adapter on one subject: the mean loss, and the share of right answers."""

    loss: float
    right: float


@cache
def language(wheels: Path, folder: Path) -> Language:
    """Return the language model, read once."""
    return Language(model_folder(wheels, folder), FIRST)


class Trial:
    """The language model and the adapters of one seed.

    Args:
        wheels: folder of the wheels that hold the model.
        folder: where the model, adapters and batches are kept.
    """

    def __init__(self, wheels: Path, folder: Path, seed: int) -> None:
        self.seed, self.folder = seed, folder
        self.language = language(wheels, folder)
        self.adapters = {name: lm.load(self._adapter(name)) for name in self._trained()}
        self._asked: dict[str, Batch] = {}

    def _trained(self) -> list[str]:
        """Train what is not trained; of what another run trains, wait for the end."""
        for wait in (False, True):
            for name, task in TASKS.items():
                with claimed(self.folder, f"{name}-{self.seed}", wait=wait) as ours:
                    path = self._adapter(name)
                    if ours and not path.exists():
                        loss = train(
                            self.language, task, self.seed, self._batch(f"{name}-taught"), path
                        )
                        say(f"{path.name}: loss {loss:.3f}")
        return list(TASKS)

    def _adapter(self, name: str) -> Path:
        return self.folder / f"{name}-{self.seed}"

    # --- texts -----------------------------------------------------------------------------

    def asked(self, subject: str) -> Batch:
        """Return the questions of a task, or the English text (`english`)."""
        if subject not in self._asked:
            self._asked[subject] = self._batch(subject)
        return self._asked[subject]

    def _batch(self, name: str) -> Batch:
        """Return texts as the layers below left them; kept in the folder."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            made, part = self.language.batch(_texts(name)), path.with_suffix(f".{os.getpid()}")
            torch.save((made.hidden, made.targets), part)
            os.replace(part, path)
        return Batch(*torch.load(path, weights_only=True))

    # --- measuring -------------------------------------------------------------------------

    def measure(self, adapter: Any, subjects: Sequence[str]) -> dict[str, Score]:
        """Return the figures of an adapter (None: of the model alone) for some subjects."""
        with applied({"": self.language.model}, [adapter] if adapter is not None else []):
            return self.answers(subjects)

    @torch.no_grad()
    def answers(self, subjects: Sequence[str]) -> dict[str, Score]:
        """Return the figures of the model as it is."""
        found = {}
        for one in subjects:
            losses, right = self.language.losses(self.asked(one))
            found[one] = Score(float(losses.mean()), float(right.float().mean()))
        return found

    @cached_property
    def plain(self) -> dict[str, Score]:
        """The figures of the model alone."""
        return self.measure(None, [*TASKS, "english"])

    @cached_property
    def alone(self) -> dict[str, Score]:
        """The figures of each adapter for its own task."""
        return {name: self.measure(a, [name])[name] for name, a in self.adapters.items()}

    # --- cases -----------------------------------------------------------------------------

    def merged(self, case: Case, count: int) -> dict[str, float]:
        """Return the scores of a method, as means over the groups of so many adapters."""
        rows = [self.mixed(case, group) for group in groups(list(TASKS), count, self.seed)]
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def mixed(self, case: Case, group: Sequence[str]) -> dict[str, float]:
        """Return the scores of a method on one group."""
        settings = dict(case.parameters)
        if case.scale is not None:
            settings["scale"] = case.scale
        adapters = [self.adapters[name] for name in group]
        mixed = lm.mix(adapters, method=case.method, threads=1, **settings)
        return self.scores(group, self.measure(mixed, [*group, "english"]))

    def scores(self, group: Sequence[str], found: dict[str, Score]) -> dict[str, float]:
        """Return the scores of a merge of some adapters."""
        kept = [self._retention(name, found) for name in group]
        right = [found[name].right for name in group]
        drift = found["english"].loss - self.plain["english"].loss
        return {
            "mean": sum(kept) / len(kept),
            "worst": min(kept),
            "right": sum(right) / len(right),
            "least right": min(right),
            "drift": 100 * (math.exp(drift) - 1),
        }

    def resized(self) -> Iterator[dict[str, Any]]:
        """Yield the scores of every rule of resize on each adapter alone, and on the sum of all."""

        def kept(adapter: Any, names: Sequence[str]) -> list[float]:
            found = self.measure(adapter, names)
            return [self._retention(name, found) for name in names]

        return resized(self.adapters, kept, "adapter")

    def _retention(self, name: str, found: dict[str, Score]) -> float:
        return retention(self.plain[name].loss, self.alone[name].loss, found[name].loss)


def _texts(name: str) -> list[Example]:
    """Return the texts of a batch: `sort`, `sort-taught`, `english`."""
    if name == "english":
        return [Example("", text) for text in ENGLISH]
    task, _, taught = name.partition("-")
    drawn = examples(TASKS[task], 0, test=not taught)
    return list(islice(drawn, EXAMPLES if taught else _ASKED))
