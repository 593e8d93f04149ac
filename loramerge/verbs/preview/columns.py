"""The columns of a preview: the base alone, and each adapter at each weight, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.steps.inputs import weighted
from loramerge.steps.references import Reference
from loramerge.verbs.preview.parameters import Preview

if TYPE_CHECKING:
    from loramerge.train.drawing.preview import Column

__all__ = ["columns", "count_columns", "distinct_labels"]


def columns(parameters: Preview, adapters: list[tuple[Reference, Adapter]]) -> list[Column]:
    """Return the columns of one base. With `together`, all adapters are in one for each weight."""
    from loramerge.train.drawing.preview import Column

    found = [] if parameters.no_base else [Column("base")]
    names = distinct_labels([r.label for r, _ in adapters], [r.name for r, _ in adapters])
    grid = [
        [(_label(name, r, times), weighted(weighted(a, r.weight), Weight(times)))
         for times in parameters.weights()]
        for name, (r, a) in zip(names, adapters, strict=True)
    ]  # fmt: skip
    if parameters.together:  # a column for each weight
        found += [
            Column(" + ".join(n for n, _ in scaled), tuple(a for _, a in scaled))
            for scaled in zip(*grid, strict=True)
        ]
    else:  # the columns of an adapter stand together
        found += [Column(name, (adapter,)) for row in grid for name, adapter in row]
    return found


def count_columns(parameters: Preview) -> int:
    """Return the number of columns of all bases together."""
    weights = len(parameters.weights())
    adapters = min(1, len(parameters.adapters)) if parameters.together else len(parameters.adapters)
    each = (not parameters.no_base) + weights * adapters
    return each * len(parameters.base) + len(parameters.baked)


def distinct_labels(labels: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return labels that differ where paths do: by folders where these differ, else by numbers."""
    found = list(labels)
    for label in set(labels):
        places = [n for n, one in enumerate(labels) if one == label]
        files = list(dict.fromkeys(paths[n] for n in places))
        if len(files) == 1:
            continue
        folders = [Path(file).parent.name for file in files]
        apart = len(set(folders)) == len(folders) and all(folders)
        for place in places:
            number = files.index(paths[place])
            found[place] = f"{folders[number]}/{label}" if apart else f"{label} ({number + 1})"
    return found


def _label(name: str, reference: Reference, times: float) -> str:
    own = "" if reference.written == "1" else f" at {reference.weight_in_words}"
    if times == 1.0:
        return name + own
    return f"{name}{own} × {times:g}" if own else f"{name} at {times:g}"
