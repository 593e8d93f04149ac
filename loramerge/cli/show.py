"""Lines and tables that show results, as wide as the terminal; piped, a row is always one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from loramerge.cli.layout import ModuleName, clean, grid, hanging, is_grid, pairs, wrapped
from loramerge.errors import sized

if TYPE_CHECKING:
    from loramerge.cli.bars import Drawn

__all__ = [
    "Render",
    "at",
    "complaint",
    "count",
    "counted",
    "errors",
    "line",
    "module",
    "numbers",
    "percent",
    "place",
    "ranks",
    "result",
    "scale",
    "size",
    "table",
    "written",
]


Render = Callable[[Any], None]  # shows the result of a verb


def line(text: str = "", *, bold: bool = False, wrap: bool = True) -> None:
    """Print a text on standard output, wrapped between words unless it is to be copied."""
    width = _width() if wrap else None
    _print((part, len(part) if bold else 0) for part in wrapped(text, width))


def table(
    rows: Iterable[Sequence[Any]],
    columns: Sequence[str] = (),
    title: str | None = None,
    *,
    drawn: Drawn | None = None,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Print rows as a table; without columns, as pairs of a label and a value.

    Args:
        drawn: a last column of bars, which is left out where the table would not fit with it, and where
            it goes to a program.
        colours: text of a first cell → its colour on a terminal.
    """
    found = [["" if c is None else c if isinstance(c, str) else str(c) for c in r] for r in rows]
    if not found:
        return
    if title:
        line(title, bold=True)
    width = _width()
    lines = grid(found, columns, width) if columns else pairs(found, width)
    for longest in _BARS if drawn is not None and width is not None else ():
        assert drawn is not None
        cells = drawn.cells(longest, sys.stdout.encoding)
        wider = [[*row, cell] for row, cell in zip(found, cells, strict=True)]
        with_bars = grid(wider, [*columns, drawn.name], width)
        if any(cells) and is_grid(with_bars) >= is_grid(lines):
            lines = with_bars
            break
    _print(lines, colours or {})


_BARS = (12, 6)  # characters of the longest bar, if it fits


def complaint(text: str) -> str:
    """Return a text for standard error: no control characters, no endless lines or lists of them.

    It is wrapped between words where standard error is a terminal. What comes with loramerge has its
    name there.
    """
    from loramerge.library.shipped import by_name

    text = by_name(text)
    lines = [clean(line, _LONGEST_LINE) for line in text.split("\n")]
    if len(lines) > _MOST_LINES:
        left = len(lines) - _MOST_LINES
        lines = [*lines[:_MOST_LINES], f"  … and {left} more lines"]
    width = _width(sys.stderr)
    text = "\n".join(lines)
    return text if width is None else "\n".join(hanging(text, width))


_LONGEST_LINE, _MOST_LINES = 2000, 400


def _width(stream: TextIO | None = None) -> int | None:
    """Return the columns of the terminal; None where lines go to a program."""
    if not (stream or sys.stdout).isatty():
        return None
    from shutil import get_terminal_size

    return get_terminal_size().columns


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _print(lines: Iterable[tuple[str, int]], colours: Mapping[str, str] = {}) -> None:
    """Print lines, each with the length of its start that is bold, and coloured first words."""
    styled = _is_terminal() and not os.environ.get("NO_COLOR")
    for text, bold in lines:
        text = text.rstrip()
        first = styled and colours and text and not text.startswith("  ")  # nor a row's next line
        word = text.split(maxsplit=1)[0] if first else ""
        if styled and (bold or word in colours):
            import click

            start = text.find(word) if word in colours else 0
            end = max(bold, start + len(word) if word in colours else 0)
            part = click.style(text[start:end], bold=bold > 0 or None, fg=colours.get(word))
            click.echo(text[:start] + part + text[end:], color=True)
        else:
            sys.stdout.write(text + "\n")


def result(found: Any) -> None:
    """Show any result of a verb: the figures that `--json` prints, lists and tables left out."""
    content = found.json()
    rows = [("written", path) for path in content.get("outputs", ())]
    rows += [
        (name.replace("_", " "), str(value))
        for name, value in content.items()
        if isinstance(value, (str, int, float))
    ]
    table(rows)


def module(name: str) -> ModuleName:
    """Return a module's name as a cell, which is shortened in the middle where room is scarce."""
    return ModuleName(name)


def written(output: str | None, weighs: str) -> list[tuple[str, str]]:
    """Return the lines that say where a result is."""
    if output is None:
        return [("written", "no file: later steps of the recipe take it from memory")]
    return [("written", output), ("size", weighs)]


def at(weight: str) -> str:
    """Return the words for a weight as it was written, or for a file of weights."""
    try:
        float(weight)
    except ValueError:
        if weight.endswith(" blocks"):
            return f"with weights for {weight}"
        each = "=" in weight or weight.isupper()
        return f"at weights {weight}" if each else f"with the weights of {weight}"
    return f"at weight {weight}"


def place(path: str) -> str:
    """Return a path; of what comes with loramerge the name by which it is called."""
    from loramerge.library.shipped import shipped_name

    return shipped_name(path) or path


def size(count: int | None) -> str:
    """Return bytes as people read them; MB = 10⁶."""
    return "?" if count is None else sized(count)


def scale(rule: str | float, factors: tuple[float, float]) -> str:
    """Return the rule of a final scale, and the least and the greatest factor that it gave."""
    least, most = factors
    if least == most == 1:
        return f"{rule}"
    return f"{rule} (×{least:.3g})" if least == most else f"{rule} (×{least:.3g} to ×{most:.3g})"


def percent(share: float) -> str:
    """Return a share as a percentage with as many digits as it deserves."""
    if 0.9995 <= share < 1.0:
        return f"{100 * share:.4f} %" if share < 0.9999995 else "> 99.9999 %"
    return f"{100 * share:,.0f} %" if abs(share) >= 100 else f"{100 * share:.4g} %"


def first_rows(rows: Sequence[Sequence[str]], head: Sequence[str], most: int = 12) -> None:
    """Show the first rows of a table, and how many more there are."""
    table(rows[:most], head)
    if len(rows) > most:
        line(f"… and {len(rows) - most} more; --json lists all of them")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return `1 module`, `2 modules`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def counted(counts: Mapping[Any, int], unit: str = "") -> str:
    """Return `lora ×3, loha ×1`; a single entry without its count. Of numbers, see `numbers`."""
    if not counts:
        return "none"
    if len(counts) == 1:
        return f"{next(iter(counts))}{unit}"
    parts = [f"{name}{unit} ×{n}" for name, n in list(counts.items())[:12]]
    more = len(counts) - 12
    return ", ".join(parts) + (f", … {more} more" if more > 0 else "")


def numbers(counts: Mapping[Any, int]) -> str:
    """Return `7 in 21 modules, 15 in 63`; a single number without its count."""
    if len(counts) < 2:
        return counted(counts)
    parts = [f"{number} in {n}" for number, n in list(counts.items())[:12]]
    first = next(iter(counts.values()))
    parts[0] = f"{parts[0]} module{'' if first == 1 else 's'}"
    more = len(counts) - 12
    return ", ".join(parts) + (f", … {more} more" if more > 0 else "")


def ranks(counts: Mapping[int, int]) -> str:
    """Return ranks with counts, or a range where there are many."""
    if len(counts) > 8:
        total = sum(counts.values())
        mean = sum(rank * n for rank, n in counts.items()) / total
        return f"{min(counts)} to {max(counts)}, {mean:.1f} on average"
    return numbers(counts)


def errors(
    lossy: bool,
    relative_error: float,
    norm_kept: float,
    worst: tuple[str, float] | None,
    exact: str = "exact",
) -> list[tuple[str, str]]:
    """Return the lines about the error of a result.

    Args:
        exact: the text for a result without an error.
    """
    if not lossy:
        return [("accuracy", exact)]
    lines = [
        ("accuracy", f"relative error {relative_error:.4g}, {percent(norm_kept)} of the norm kept")
    ]
    if worst is not None:
        lines.append(("worst module", f"{worst[0]}: relative error {worst[1]:.4g}"))
    return lines
