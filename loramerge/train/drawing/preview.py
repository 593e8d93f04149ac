"""A grid of images of bases with adapters, all from the same noise, so that they can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch

from loramerge.adapter import Adapter
from loramerge.errors import Setting, UsageError
from loramerge.events import Notify, Progress, ignore
from loramerge.report.pictures import grid
from loramerge.train.drawing.sampling import Drawing, draw
from loramerge.train.lora.applied import applied
from loramerge.train.models.pipeline import Pipeline
from loramerge.train.models.texts import Texts, read_whole

__all__ = ["Column", "Sheet", "preview"]


@dataclass(frozen=True)
class Column:
    """One column: a base with adapters, or without any for the base alone."""

    label: str
    adapters: tuple[Adapter, ...] = ()


@dataclass
class Sheet:
    """The grid of images.

    Args:
        cells: rows of images; a row is one prompt with one seed.
        changes: for each column, the mean absolute difference to the first column of its base, 0 to
            255. Models without adapters are compared with the first column of all.
        like: model without adapters → (nearest column, mean absolute difference).
    """

    rows: list[str]
    columns: list[str] = field(default_factory=list)
    cells: list[list[Any]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    like: dict[str, tuple[str, float]] = field(default_factory=dict)

    def add(self, label: str, pictures: Sequence[Any], beside: Sequence[Any]) -> None:
        """Add a column, and its difference to the images `beside`."""
        for row, picture in zip(self.cells, pictures, strict=True):
            row.append(picture)
        self.columns.append(label)
        self.changes.append(_difference(beside, pictures))

    def column(self, index: int) -> list[Any]:
        """Return the pictures of a column."""
        return [row[index] for row in self.cells]

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
    alone: Sequence[tuple[str, Callable[[], Pipeline]]] = (),
    negative: str = "",
    skip: int | None = None,
    notify: Notify = ignore,
) -> Sheet:
    """Generate an image for every prompt, seed, column and base.

    Args:
        bases: (label, function that loads the base); one is in memory at a time.
        alone: further models; each gets a column without adapters.

    Raises:
        UsageError: if one of these models generates images of another size.
        LoramergeError: see `applied` and `load_pipeline`.
    """
    labels = [f"{prompt or '(no prompt)'} · seed {seed}" for prompt in prompts for seed in seeds]
    sheet = Sheet(labels, cells=[[] for _ in labels])
    images = (len(bases) * len(columns) + len(alone)) * len(labels)

    def drawn(pipeline: Pipeline, column: Column) -> list[Any]:
        how = drawing(pipeline)
        before = len(sheet.columns) * len(labels)

        def after_step(number: int, done: int, total: int) -> None:
            steps = (
                before + number
            ) * how.steps + done * how.steps // total  # heun has more of them
            notify(Progress("preview", steps, images * how.steps, "steps"))

        return list(_column(pipeline, column, prompts, seeds, how, negative, skip, after_step))

    for name, load in bases:
        pipeline = load()
        first: list[Any] = []
        for column in columns:
            pictures = drawn(pipeline, column)
            first = first or pictures
            label = f"{name}: {column.label}" if len(bases) > 1 else column.label
            sheet.add(label, pictures, first)
        del pipeline  # before the next is loaded
    others = {label: sheet.column(index) for index, label in enumerate(sheet.columns)}
    for name, load in alone:
        pictures = drawn(load(), Column(name))
        _check_size(name, pictures[0], sheet.cells[0][0])
        apart = {label: _difference(other, pictures) for label, other in others.items()}
        nearest = min(apart, key=lambda label: apart[label])
        sheet.like[name] = nearest, apart[nearest]
        sheet.add(name, pictures, sheet.column(0))
    return sheet


def _check_size(name: str, picture: Any, beside: Any) -> None:
    if picture.size != beside.size:
        raise UsageError(
            f"{name} generates images of another size than the base",
            expected="×".join(map(str, beside.size)),
            found="×".join(map(str, picture.size)),
            hint=("set one size for all with ", Setting("size")),
        )


def _column(
    pipeline: Pipeline,
    column: Column,
    prompts: Sequence[str],
    seeds: Sequence[int],
    how: Drawing,
    negative: str,
    skip: int | None,
    after_step: Callable[[int, int, int], None],
) -> Iterator[Any]:
    """Yield the pictures of a column, prompt by prompt.

    Args:
        after_step: told the number of the picture, and how many of how many steps are done.
    """
    numbers = count()
    with torch.no_grad(), applied(pipeline.models, column.adapters):
        texts = Texts(pipeline, None, skip)
        for prompt in prompts:
            read_whole(pipeline, [prompt, negative])
            empty = texts([negative]) if negative else texts.empty()
            for seed in seeds:
                told = partial(after_step, next(numbers))
                yield from draw(pipeline, texts([prompt]), empty, [seed], how, told)


def _difference(one: Sequence[Any], other: Sequence[Any]) -> float:
    import numpy as np

    apart = [
        float(np.abs(np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)).mean())
        for a, b in zip(one, other, strict=True)
    ]
    return sum(apart) / len(apart)
