"""Figures of many modules: by block of the network, and by block and layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from loramerge.adapter import Adapter, Site
from loramerge.algebra.compare import block_of, in_order
from loramerge.report.document import Bars, HeatMap, Panel, Panels

__all__ = ["Measured", "heat_maps", "measured", "norm_bars", "of_rows", "place_of", "spectra"]

# module → ‖ΔW‖ and the singular values of ΔW, None and empty where they are not known
Measured = Mapping[str, tuple[float | None, Sequence[float]]]

_LEVELS = 2  # numbered parts of a name that tell a row of a heat map
_LARGEST = 90  # rows of a heat map; where there are more, blocks are rows
_CELLS = 14  # columns up to which cells have room for numbers
_SHOWN = 64  # singular values of a spectrum


def measured(adapter: Adapter, threads: int | None = None) -> Measured:
    """Return the norms and spectra of an adapter's modules; those that need a base have none."""
    from loramerge.algebra.health import examine

    return of_rows(examine(adapter, spectra=True, threads=threads).table)


def of_rows(rows: Iterable[Mapping[str, object]]) -> Measured:
    """Return the norms and spectra in rows of an examination, see `algebra.health`."""
    found: dict[str, tuple[float | None, Sequence[float]]] = {}
    for row in rows:
        norm, values = row.get("norm"), row.get("singular_values")
        found[str(row["module"])] = (
            float(norm) if isinstance(norm, (int, float)) else None,
            [float(value) for value in values] if isinstance(values, list) else [],
        )
    return found


def place_of(module: str) -> tuple[str, str, str]:
    """Return the component, the row and the column of a module in a heat map.

    `unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q` has the row `down_blocks 0.1`
    and the column `attn1.to_q`.
    """
    component, *parts = module.split(" + ")[0].split(".")
    head, numbers, rest = "", [], list[str]()
    index = 0
    while index < len(parts):
        part = parts[index]
        counted = index + 1 < len(parts) and parts[index + 1].isdigit() and part.endswith("s")
        if part == "mid_block" and not head:
            head, numbers = part, [""]
            index += 1
        elif counted:
            if not head:
                head = part
                rest.clear()  # what holds all blocks of a component tells none of them
            if len(numbers) < _LEVELS:
                numbers.append(parts[index + 1])
                if len(numbers) == _LEVELS and part != "attentions":
                    rest.append(part)
            index += 2
        else:
            rest.append(part)
            index += 1
    name = f"{head} {'.'.join(filter(None, numbers))}".strip()
    return component, name or component, ".".join(rest) or component


def heat_maps(
    values: Mapping[str, float | None],
    title: str,
    caption: str,
    *,
    together: Callable[[Sequence[float]], float] | None = None,
    most: float | None = None,
) -> list[HeatMap]:
    """Return a heat map of block × layer for each component.

    Args:
        values: module → its value.
        together: function that makes one value of those of a cell; None takes the root of the sum of
            squares, as for norms.
        most: value with the strongest colour.
    """
    join = together or (lambda several: math.sqrt(math.fsum(one * one for one in several)))
    components: dict[str, dict[tuple[str, str], list[float]]] = {}
    for module, value in values.items():
        if value is None or not math.isfinite(value):
            continue
        component, row, column = place_of(module)
        components.setdefault(component, {}).setdefault((row, column), []).append(value)
    return [
        _matrix(component, cells, title, caption, join, most)
        for component, cells in components.items()
    ]


def _matrix(
    component: str,
    cells: Mapping[tuple[str, str], list[float]],
    title: str,
    caption: str,
    join: Callable[[Sequence[float]], float],
    most: float | None,
) -> HeatMap:
    if len({row for row, _ in cells}) > _LARGEST:
        merged: dict[tuple[str, str], list[float]] = {}
        for (row, column), several in cells.items():
            merged.setdefault((row.partition(".")[0], column), []).extend(several)
        cells = merged
    rows = in_order({row.replace(" ", ".") for row, _ in cells})
    names = {row.replace(" ", "."): row for row, _ in cells}
    columns = list(dict.fromkeys(column for _, column in cells))
    found = [
        [join(cells[names[row], column]) if (names[row], column) in cells else None
         for column in columns]
        for row in rows
    ]  # fmt: skip
    return HeatMap(
        f"{title}: {component}",
        caption,
        rows=[names[row] for row in rows],
        columns=columns,
        values=found,
        most=most,
        numbers=len(columns) <= _CELLS,
    )


def norm_bars(several: Mapping[str, Measured], title: str = "Size of the change by block") -> Bars:
    """Return ‖ΔW‖ of every block, a bar for each adapter by its name."""
    sums: dict[str, list[float]] = {}
    for place, found in enumerate(several.values()):
        for module, (norm, _) in found.items():
            block = block_of(Site((module,)))
            if norm is not None and math.isfinite(norm):
                sums.setdefault(block, [0.0] * len(several))[place] += norm * norm
    rows = [(block, [math.sqrt(energy) for energy in sums[block]]) for block in in_order(sums)]
    caption = "Norm of the change (‖ΔW‖, Frobenius) over all modules of a block."
    return Bars(title, caption, series=[name or "norm" for name in several], rows=rows)


def spectra(several: Mapping[str, Measured]) -> Panels:
    """Return the spectra of every block, a line for each adapter by its name."""
    blocks: dict[str, list[list[Sequence[float]]]] = {}
    for place, found in enumerate(several.values()):
        for module, (_, values) in found.items():
            if values and values[0] > 0:
                block = block_of(Site((module,)))
                blocks.setdefault(block, [[] for _ in several])[place].append(values)
    panels = [Panel(block, [_band(those) for those in blocks[block]]) for block in in_order(blocks)]
    return Panels(
        "Singular values by block",
        "Line: median over the modules of the block; band: least to greatest. A steep fall means that "
        f"a lower rank would do. At most {_SHOWN} values are shown.",
        panels=panels,
        series=list(several),
        across="number of the singular value",
        up="singular value of ΔW, logarithmic",
    )


def _band(several: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Return the median, the least and the greatest of values at each place that half of them have."""
    lengths = sorted(len(one) for one in several)
    last = min(_SHOWN, lengths[len(lengths) // 2]) if lengths else 0
    places = [[one[n] for one in several if n < len(one)] for n in range(last)]
    return [median(p) for p in places], [min(p) for p in places], [max(p) for p in places]
