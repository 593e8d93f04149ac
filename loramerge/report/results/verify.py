"""The report of `verify`: the answer, and the strength of each adapter in each block."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any

from loramerge.report.blocks import heat_maps
from loramerge.report.document import Bars, Notes, Part, Report, Section, Table, facts

__all__ = ["report"]


def report(result: Any) -> Report:
    """Return the report of a `VerifyResult`."""
    answer, *rest = result.sentences()
    given = result.source == "given"
    source = "the adapters given" if given else f"the recipe in its header ({result.source})"
    about = {
        "file": PurePath(result.path).name,
        "base": None if result.base is None else PurePath(result.base).name,
        "checked": source,
    }
    notes = [*(("", text) for text in rest), *(("note", text) for text in result.notes)]
    return Report(
        PurePath(result.path).name,
        answer,
        [
            Section("Result", [facts(about), Notes(tuple(notes))]),
            Section("Blocks", [] if result.contents is None else _blocks(result.contents)),
            Section("Modules", _changed(result) if result.contents is None else []),
        ],
    )


def _blocks(found: Any) -> list[Part]:
    labels = [one.claim.label for one in found.found]
    names = list(dict.fromkeys(name for one in found.found for name in one.blocks))
    every = {name: [one.blocks.get(name) for one in found.found] for name in names}
    by_block = {
        name: several
        for name, several in every.items()
        if any(one is not None and (one.rest or one.strength is not None) for one in several)
    }  # without blocks that should not change, and did not
    unexplained = {
        name: max(one.rest for one in several if one is not None)
        for name, several in by_block.items()
    }
    strengths = Bars(
        "Strength by block",
        "Relative to the weight that the adapter should have (to 1 if none is given), by least squares.",
        series=labels,
        rows=[
            (name, [None if one is None else one.strength for one in several])
            for name, several in by_block.items()
        ],
        show=lambda value: "–" if value is None else f"{value:z.3f}",
    )
    rest = Bars(
        "Unexplained by block",
        "Norm of what the adapters do not explain at any strength, rounding included, relative to the "
        "whole change of these modules; a full bar is all of it.",
        series=("unexplained",),
        rows=[(name, (share,)) for name, share in unexplained.items()],
        most=max([1.0, *filter(math.isfinite, unexplained.values())]),
        show=_percent,
    )
    return [strengths, rest]


def _changed(result: Any) -> list[Part]:
    """Return the modules of an adapter that differ from what its recipe gives."""
    maps = heat_maps(
        {name: 100 * share for name, share in result.changed.items()},
        "Distance by block and layer, in %",
        "Of the modules that differ from what the recipe gives; the largest where a cell has several.",
        together=max,
    )
    rows = [(name, _percent(share)) for name, share in result.changed.items()]
    return [*maps, Table("Modules that differ", ("module", "distance"), rows, True)]


def _percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.3g} %"
