"""No text of a table is a formula in a spreadsheet; numbers are numbers; one place writes tables."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

import loramerge
from loramerge.files import tables
from loramerge.files.tables import write_table

FORMULAS = (
    "=cmd|'/c calc'!A0", "+1+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(1+1)", "\t=1+1", "\r=1+1", "\n=1",
    "＝1+1", "－1+1", "-", "+", "--1", "-1e", "-1.5.2", '=HYPERLINK("http://x","y")', "-x.safetensors",
)  # fmt: skip
NUMBERS = (-0.25, -3, 1e-7, -1e300, True, "-0.5", "+3", "-1e-4", "-.5", "12")
WORDS = (
    "a=b",
    "face [v2].safetensors",
    "'quoted'",
    "",
    " =1",
    "x,y",
    'say "a"',
    "two\nlines",
    "猫",
)


def _dangerous(cell: str) -> bool:
    """Return whether a spreadsheet might run a cell; the writer has a rule of its own."""
    if cell[:1] not in set("=+-@\t\r\n＝＋－＠") or not cell:
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def _written(tmp_path: Path, columns: list[str], rows: list[list[object]]) -> list[list[str]]:
    path = tmp_path / "table.csv"
    write_table(path, columns, rows)
    return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))


def test_no_text_is_a_formula(tmp_path: Path) -> None:
    found = _written(tmp_path, ["file", "=head"], [[text, text] for text in FORMULAS])
    assert found[0] == ["file", "'=head"]
    assert [row[0] for row in found[1:]] == [f"'{text}".replace("\r", "\n") for text in FORMULAS]
    assert not [cell for row in found for cell in row if _dangerous(cell)]


def test_a_writer_that_guards_nothing_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_cell", lambda value: value)
    found = _written(tmp_path, ["file"], [[text] for text in FORMULAS])
    assert [cell for row in found for cell in row if _dangerous(cell)]


def test_a_writer_that_guards_numbers_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def numbers(cells: list[list[str]]) -> bool:
        return [row[0] for row in cells[1:]] == [str(number) for number in NUMBERS]

    rows: list[list[object]] = [[number] for number in NUMBERS]
    assert numbers(_written(tmp_path, ["file"], rows))
    monkeypatch.setattr(tables, "_NUMBER", re.compile("(?!)"))
    assert not numbers(_written(tmp_path, ["file"], rows))


def test_no_text_begins_a_row(tmp_path: Path) -> None:
    found = _written(tmp_path, ["file"], [["a\r=1+1"], ["a\r\n=1+1"], ["a\n=1+1"]])
    assert found == [["file"]] + [["a\n=1+1"]] * 3


def test_other_text_is_as_it_was(tmp_path: Path) -> None:
    found = _written(tmp_path, ["file"], [[text] for text in WORDS if text])
    assert [row[0] for row in found[1:]] == [text for text in WORDS if text]
    assert _written(tmp_path, ["file", "x"], [["a", None]])[1] == ["a", ""]


def test_one_place_writes_csv() -> None:
    root = Path(loramerge.__file__).parent
    pattern = re.compile(r"^\s*(import csv\b|from csv\b)|csv\.(writer|DictWriter)", re.MULTILINE)
    found = [path for path in root.rglob("*.py") if pattern.search(path.read_text("utf-8"))]
    assert found == [root / "files" / "tables.py"]
