"""Folders of sprites: what train reads is what was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

from PIL import Image

from loramerge.errors import OutputExists
from loramerge.tiny.__main__ import main
from loramerge.tiny.adapters import SEEN, zuzu_pictures
from loramerge.tiny.drawing import draw
from loramerge.tiny.folders import write_folders
from loramerge.tiny.sprites import ZUZU
from loramerge.train.dataset.scan import scan


def test_the_character_and_ordinary_things_lie_apart_with_their_captions(tmp_path: Path) -> None:
    subject, ordinary = write_folders(tmp_path)
    found = scan(subject, regularisation=ordinary)
    assert len(found.subject) == len(found.regular) == 64
    pairs = zuzu_pictures(0)
    drawn = [*found.subject, *found.regular]
    assert [picture.caption for picture in drawn] == [caption for _, caption in pairs]
    for picture, (sprite, _) in zip(drawn, pairs, strict=True):
        assert np.array_equal(np.asarray(Image.open(picture.path)), draw(sprite))
    assert all(f" {ZUZU} " in picture.caption for picture in found.subject)
    assert not any(ZUZU in picture.caption for picture in found.regular)
    assert {sprite.background for sprite, _ in pairs[:64]} == set(SEEN)


@pytest.mark.long_tail
def test_a_seed_gives_the_same_bytes_and_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    write_folders(tmp_path / "a")
    write_folders(tmp_path / "b")
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(names) == 256
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (tmp_path / "b" / "zuzu" / "000.png").unlink()
    with pytest.raises(OutputExists):
        write_folders(tmp_path / "b", seed=1)
    assert not (tmp_path / "b" / "zuzu" / "000.png").exists()
    write_folders(tmp_path / "b", seed=1, force=True)


@pytest.mark.long_tail
def test_the_program_writes_the_folders_and_scores_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pictures", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / n) for n in ("zuzu", "ordinary")]
    assert main(["pictures", str(tmp_path)]) == OutputExists.exit_code
    assert "exists" in capsys.readouterr().err
    assert main(["trial", "zuzu", "--count", "4"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    base, zuzu = (dict(zip(_cells(head), _cells(row), strict=True)) for row in rows)
    assert len(_cells(rule)) == len(base)
    assert (base["base"], base["adapter"], zuzu["adapter"]) == ("tiny", "–", "zuzu")
    assert float(base["teal"]) < 0.02 and float(zuzu["teal"]) > 0.08
    assert main(["trial", "zuzzu", "--count", "4"]) != 0
    printed = capsys.readouterr()
    assert "zuzu?" in printed.err and not printed.out


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
