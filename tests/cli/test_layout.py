"""Tables at the width of a terminal: words stay whole, rows become records where nothing else fits."""

from __future__ import annotations

import pytest

from loramerge.cli import show
from loramerge.cli.layout import ModuleName, grid, pairs, shortened, wrapped

NAME = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
COLUMNS = ("module", "kind", "shape", "rank", "norm")
ROW = [ModuleName(NAME), "lora", "640×640", "8", "1.234"]


def texts(lines):
    return [text.rstrip() for text, _ in lines]


def words(lines):
    return set(" ".join(texts(lines)).replace("─", "").split())


@pytest.mark.parametrize("width", range(20, len(NAME) + 1))
def test_a_name_is_shortened_in_the_middle(width):
    short = shortened(NAME, width)
    assert len(short) <= width and short.startswith("unet") and short.endswith("to_q")
    assert ("…" in short) == (width < len(NAME))


def test_a_shortened_name_keeps_whole_parts():
    assert shortened(NAME, 30) == "unet…0.attn1.to_q" or shortened(NAME, 30).count("…") == 1
    parts = shortened(NAME, 30).split("…")
    assert NAME.startswith(parts[0] + ".") and NAME.endswith("." + parts[1])
    assert len(shortened("x" * 50, 11)) == 11


def test_columns_that_fit_are_a_table_with_a_header():
    lines = texts(grid([ROW, ROW], COLUMNS, 120))
    assert lines[0] == "" and lines[1].split() == list(COLUMNS) and set(lines[2].strip()) == {"─"}
    assert lines[3].split() == list(ROW) and len({len(line) for line in lines[3:5]}) == 1


def test_at_80_columns_names_are_shortened():
    lines = texts(grid([ROW], COLUMNS, 80))
    assert max(map(len, lines)) <= 80 and "…" in lines[3] and lines[3].split()[1:] == ROW[1:]


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 120])
def test_words_are_not_broken(width):
    rows = [["a.safetensors", "a text of several words that is longer than its column", "done"],
            ["b", "one more: " + "word " * 30, ""]]  # fmt: skip
    lines = grid(rows, ("file", "description", "status"), width)
    wanted = {word for row in rows for cell in row for word in cell.split()}
    assert wanted <= words(lines)
    assert max(map(len, texts(lines))) <= width


def test_tables_that_do_not_fit_become_records():
    lines = texts(grid([ROW], COLUMNS, 40))
    assert lines[0].startswith("unet") and len(lines[0]) <= 40
    assert lines[1] == "    kind: lora · shape: 640×640" and "rank: 8" in lines[2]


def test_empty_cells_are_left_out_of_records():
    lines = texts(grid([["x" * 60, "", "y" * 60]], ("name", "size", "why"), 80))
    assert lines == ["x" * 60, "    why: " + "y" * 60]


def test_without_a_width_a_row_is_one_line():
    rows = [["a" * 300, "some words " * 100]]
    assert len(grid(rows, ("a", "b"), None)) == 5  # blank, header, rule, row, blank
    assert texts(grid(rows, ("a", "b"), None))[3].split()[0] == "a" * 300


def test_values_hang_beside_their_labels():
    lines = texts(pairs([("size", "1 MB"), ("reason", "words " * 30)], 60))
    assert lines[0] == "size    1 MB" and lines[2].startswith("        words")
    assert max(map(len, lines)) <= 60


def test_long_labels_stand_above_their_values():
    lines = texts(pairs([("a.very.long.key.of.metadata.in.a.header", "words " * 10)], 50))
    assert lines[0] == "a.very.long.key.of.metadata.in.a.header"
    assert lines[1].startswith("    words") and max(map(len, lines)) <= 50


def test_wide_characters_take_two_columns():
    lines = texts(grid([["ずずず", "x"], ["abcdef", "y"]], ("name", "n"), 80))
    assert lines[3].replace("ずずず", "......") == lines[4].replace("abcdef", "......").replace(
        "y", "x"
    )


def test_control_characters_are_removed():
    assert texts(pairs([("a", "\x1b[31mred\x07")], None)) == ["a  �[31mred�"]
    assert wrapped("a\x9bb", None) == ["a�b"]


def test_markup_is_text(capsys):
    show.table([("name", "[bold]x[/bold] [w=0.5]")])
    assert "[bold]x[/bold] [w=0.5]" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "said"), [(0, "0 modules"), (1, "1 module"), (2, "2 modules")])
def test_plurals(n, said):
    assert show.count(n, "module") == said


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.123456, "12.35 %"), (0.99987, "99.9870 %"), (1.5, "150 %"), (874.92, "87,492 %")],
)
def test_shares_are_written_without_powers_of_ten(share: float, text: str) -> None:
    assert show.percent(share) == text
