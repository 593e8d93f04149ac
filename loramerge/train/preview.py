"""Pictures of bases with adapters, in a grid: what changes with each, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from loramerge.adapter import Adapter
from loramerge.events import Notify, Progress, ignore
from loramerge.train.applied import applied
from loramerge.train.pictures import grid
from loramerge.train.pipelines import Pipeline
from loramerge.train.sampling import Drawing, draw
from loramerge.train.text import Texts

__all__ = ["Column", "Sheet", "preview"]


@dataclass(frozen=True)
class Column:
    """What one column shows: a base with some adapters, none for the base alone."""

    label: str
    adapters: tuple[Adapter, ...] = ()


@dataclass
class Sheet:
    """The pictures.

    Args:
        cells: rows of pictures; a row is a prompt from a seed.
        changes: of each column, mean |difference| to the first column of its base, of 255.
    """

    rows: list[str]
    columns: list[str] = field(default_factory=list)
    cells: list[list[Any]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)

    def picture(self, title: str | None = None) -> Any:
        """Return the grid."""
        return grid(self.cells, self.rows, self.columns, title)


def preview(
    bases: Sequence[tuple[str, Callable[[], Pipeline]]],
    columns: Sequence[Column],
    prompts: Sequence[str],
    seeds: Sequence[int],
    drawing: Callable[[Pipeline], Drawing],
    *,
    negative: str = "",
    skip: int | None = None,
    notify: Notify = ignore,
) -> Sheet:
    """Draw every prompt from every seed with every column on every base.

    Args:
        bases: (label, function that loads it); one is in memory at a time.

    Raises:
        LoramergeError: see `applied` and `load_pipeline`.
    """
    labels = [f"{prompt or '(no prompt)'} · seed {seed}" for prompt in prompts for seed in seeds]
    sheet = Sheet(labels, cells=[[] for _ in labels])
    total, done = len(bases) * len(columns), 0
    for name, load in bases:
        pipeline = load()
        first: list[Any] = []
        for column in columns:
            pictures = list(
                _column(pipeline, column, prompts, seeds, drawing(pipeline), negative, skip)
            )
            first = first or pictures
            for row, picture in zip(sheet.cells, pictures, strict=True):
                row.append(picture)
            label = f"{name}: {column.label}" if len(bases) > 1 else column.label
            sheet.columns.append(label)
            sheet.changes.append(_difference(first, pictures))
            done += 1
            notify(Progress("preview", done, total, "columns"))
    return sheet


def _column(
    pipeline: Pipeline,
    column: Column,
    prompts: Sequence[str],
    seeds: Sequence[int],
    how: Drawing,
    negative: str,
    skip: int | None,
) -> Iterator[Any]:
    """Yield the pictures of a column, prompt by prompt."""
    with torch.no_grad(), applied(pipeline.models, column.adapters):
        texts = Texts(pipeline, None, skip)
        empty = texts([negative]) if negative else texts.empty()
        for prompt in prompts:
            for seed in seeds:
                yield from draw(pipeline, texts([prompt]), empty, [seed], how)


def _difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    import numpy as np

    apart = [
        float(np.abs(np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)).mean())
        for a, b in zip(one, other, strict=True)
    ]
    return sum(apart) / len(apart)
