"""Rows of text laid out in a width: columns where they fit, else a record of a few lines a row.

Words are never broken, names of modules are shortened in the middle. A line comes with the length
of its start that is to be bold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["ModuleName", "clean", "grid", "hanging", "is_grid", "pairs", "shortened", "wrapped"]

Line = tuple[str, int]

_GAP = 3  # blanks between columns
_TIGHT = 2  # where columns do not fit otherwise
_LEAST = 16  # characters of a column whose texts are wrapped
_MOST_LINES = 4  # of a wrapped cell; a record is easier to read than more
_SHORT = 24  # characters of a shortened name of a module
_INDENT = "    "
_LONGEST = 4000  # characters of a cell; `--json` has all
_TURNS = (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))  # lines and directions
_CONTROLS = {n: "�" for n in (*range(32), *range(127, 160), *_TURNS) if n != 10} | {9: " "}
_IN_JSON = {n: f"\\u{n:04x}" for n in _CONTROLS if n > 31}  # JSON itself escapes the rest


class ModuleName(str):
    """The name of a module, which may be shortened in the middle."""

    __slots__ = ()


def shortened(name: str, width: int) -> str:
    """Return a dotted name in at most `width` characters: `unet.down…attn1.to_q`."""
    if _wide(name) <= width:
        return name
    parts = name.split(".")
    best = ""
    for ends in range(1, len(parts)):
        for starts in range(1, len(parts) - ends):
            text = f"{'.'.join(parts[:starts])}…{'.'.join(parts[-ends:])}"
            if len(best) < len(text) <= width:
                best = text
    if best:
        return best
    head = (width - 1) // 2
    return f"{name[:head]}…{name[head + 1 - width :]}"


def pairs(rows: Sequence[Sequence[str]], width: int | None) -> list[Line]:
    """Return labels with their values, those wrapped beside them."""
    label = max(_wide(clean(row[0])) for row in rows) + 2
    narrow = width is not None and label > width // 2
    found: list[Line] = []
    for row in rows:
        name, value = clean(row[0], _LONGEST), clean("  ".join(row[1:]), _LONGEST)
        if narrow:
            found.append((name, len(name)))
            found += [(_INDENT + text, 0) for text in _wrapped(value, width, len(_INDENT))]
            continue
        first, *rest = _wrapped(value, width, label)
        found.append((_padded(name, label) + first, len(name)))
        found += [(" " * label + text, 0) for text in rest]
    return found


def grid(rows: Sequence[Sequence[str]], columns: Sequence[str], width: int | None) -> list[Line]:
    """Return a table with a header, or records where its columns do not fit."""
    cells = [[_cell(c) for c in row] for row in rows]
    natural = [_column(cells, columns, index) for index in range(len(columns))]
    gap, widths = _GAP, natural if width is None else _fitted(cells, columns, natural, width, _GAP)
    if widths is None and width is not None:
        gap, widths = _TIGHT, _fitted(cells, columns, natural, width, _TIGHT)
    if widths is None:
        return list(_records(cells, columns, width or 0))
    head = " " + (" " * gap).join(map(_padded, columns, widths))
    rule = " " + "─" * (sum(widths) + gap * (len(widths) - 1))
    found: list[Line] = [("", 0), (head, len(head)), (rule, 0)]
    for row in cells:
        found += [(text, 0) for text in _row(row, widths, gap)]
    return [*found, ("", 0)]


def is_grid(lines: Sequence[Line]) -> bool:
    """Return whether lines of `grid` are a table; records begin with a name."""
    return bool(lines) and lines[0] == ("", 0)


def _cell(text: str) -> str:
    cleaned = clean(text, _LONGEST)
    return ModuleName(cleaned) if isinstance(text, ModuleName) else cleaned


def _column(cells: Sequence[Sequence[str]], columns: Sequence[str], index: int) -> int:
    texts = (text for row in cells for text in row[index].split("\n"))
    return max(_wide(columns[index]), *(_wide(text) for text in texts))


def _fitted(
    cells: Sequence[Sequence[str]],
    columns: Sequence[str],
    natural: Sequence[int],
    width: int,
    gap: int,
) -> list[int] | None:
    """Return widths that fit, None if some column would get too narrow to be read."""
    room = width - 1 - gap * (len(columns) - 1)
    widths = list(natural)
    least = [
        min(most, _SHORT) if any(isinstance(row[i], ModuleName) for row in cells) else
        max(min(most, _LEAST), _wide(columns[i]), *(_longest(row[i]) for row in cells))
        for i, most in enumerate(natural)
    ]  # fmt: skip
    while sum(widths) > room:
        loose = [i for i, one in enumerate(widths) if one > least[i]]
        if not loose:
            return None
        widths[max(loose, key=lambda i: widths[i] - least[i])] -= 1
    tall = (
        len(_wrapped(text, widths[i] + 1, 0)) > _MOST_LINES
        for row in cells
        for i, text in enumerate(row)
        if not isinstance(text, ModuleName)
    )
    return None if any(tall) else widths


def _row(row: Sequence[str], widths: Sequence[int], gap: int) -> Iterator[str]:
    parts = [
        [shortened(text, one)] if isinstance(text, ModuleName) else _wrapped(text, one + 1, 0)
        for text, one in zip(row, widths, strict=True)
    ]
    for index in range(max(map(len, parts))):
        texts = (part[index] if index < len(part) else "" for part in parts)
        yield " " + (" " * gap).join(map(_padded, texts, widths))


def _records(cells: Sequence[Sequence[str]], columns: Sequence[str], width: int) -> Iterator[Line]:
    """Yield every row as its first cell, and below it the others with their names."""
    for row in cells:
        name = shortened(row[0], width) if isinstance(row[0], ModuleName) else row[0]
        yield name, len(name)
        items = [f"{c}: {text}" if c else text for c, text in zip(columns[1:], row[1:], strict=True)
                 if text]  # fmt: skip
        text = ""
        for item in items:
            longer = f"{text} · {item}" if text else item
            if text and _wide(longer) + len(_INDENT) >= width:
                yield from ((_INDENT + part, 0) for part in _wrapped(text, width, len(_INDENT)))
                longer = item
            text = longer
        yield from ((_INDENT + part, 0) for part in _wrapped(text, width, len(_INDENT)))


def wrapped(text: str, width: int | None) -> list[str]:
    """Return the lines of a text that may be as wide as the terminal."""
    return _wrapped(clean(text), width, 0)


def hanging(text: str, width: int) -> list[str]:
    """Return the lines of a text; wrapped parts are indented by two more spaces."""
    lines: list[str] = []
    for whole in text.split("\n"):
        start = len(whole) - len(whole.lstrip(" "))
        first, *rest = _wrapped(whole[start:], width, start + 2)
        lines += [" " * start + first, *(" " * (start + 2) + part for part in rest)]
    return lines


def _wrapped(text: str, width: int | None, used: int) -> list[str]:
    """Return the lines of a text between words; `used` characters of the width are taken."""
    lines: list[str] = []
    for whole in text.split("\n"):
        if width is None or _wide(whole) + used < width:
            lines.append(whole)
            continue
        line = ""
        for word in whole.split(" "):
            longer = f"{line} {word}" if line else word
            if line and _wide(longer) + used >= width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _longest(text: str) -> int:
    """Return the width of the longest word of a cell; a name of a module has none."""
    return max(map(_wide, text.split()), default=0)


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _wide(text))


def clean(text: str, longest: int | None = None) -> str:
    """Return a text without characters that would steer the terminal, cut after a number of them."""
    text = text if text.isprintable() else text.translate(_CONTROLS)
    return text if longest is None or len(text) <= longest else f"{text[:longest]}…"


def clean_json(text: str) -> str:
    """Return JSON that says the same without characters that would steer the terminal."""
    return text.translate(_IN_JSON)


def _wide(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 1 + (east_asian_width(c) in "WF") for c in text)
