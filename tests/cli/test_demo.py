"""The tour: what is shown is what runs, with pictures and without."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from loramerge.cli.main import group
from loramerge.cli.session import Session
from loramerge.errors import NumericsError
from loramerge.steps.engine import parameters_from
from loramerge.steps.loading import loading_torch
from loramerge.steps.parameters import parameters_of
from loramerge.tiny import demo as module
from loramerge.tiny.demo import Demo, DemoResult, DemoStep, demo
from loramerge.verbs.mix import Mix
from tests.builders.sampler import few_steps
from tests.builders.unmeasured import unmeasured

PICTURES = ("diffusers", "transformers", "PIL")


def shown(out: str) -> list[str]:
    return [line[2:] for line in out.splitlines() if line.startswith("$ ")]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch were not installed."""
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else name)


@pytest.mark.usefixtures("light")
def test_without_torch_all_but_the_picture_is_done(run: Any) -> None:
    result = run.ok("demo", "my demo")
    assert [line.split()[1] for line in shown(result.out)] == [
        "mix", "resize", "bake", "inspect", "preview",
    ]  # fmt: skip
    note = "note: Load this file at strength 1"
    before, _, after = result.out.partition(note)
    assert note not in result.err and shown(before)[-1].split()[1] == "mix"
    assert shown(after)[0].split()[1] == "resize"
    folder = run.folder / "my demo"
    assert {path.name for path in folder.iterdir()} == {
        "mix.safetensors", "mix-r4.safetensors", "baked",
    }  # fmt: skip
    assert "Not done. Not installed: torch" in result.out
    assert "pip install 'loramerge[train]'" in result.out.splitlines()[-1]
    run.refused(3, "demo", "my demo", says=("my demo", "--force"))
    run.refused(3, "demo", "a.safetensors", says="another name")
    run.refused(3, "demo", "a.safetensors", "--force", says="another name")
    found = run.ok("demo", "my demo", "--force", "--json").json
    assert len(found["outputs"]) == 3 and len(found["steps"]) == 4
    assert all(os.path.exists(output) for output in found["outputs"])
    assert found["picture"] is None and found["missing"] == ["torch"]
    for line in shown(result.out)[:-1]:
        words = shlex.split(line)[1:]
        run.ok(*words, *(["--force"] if "-o" in words else []))


@pytest.mark.usefixtures("light")
def test_a_report_is_shown_before_the_next_step_begins(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(parameters: Any, context: Any) -> None:
        assert [line.split()[1] for line in shown(run._capsys.readouterr().out)] == ["mix"]
        raise NumericsError("a made-up failure")

    monkeypatch.setitem(module._RUNS, "resize", fails)
    result = run("demo", "early")
    assert result.code == 7 and "made-up" in result.err
    assert result.out == ""  # what was shown before is not shown again
    for quiet in ("-q", "--json"):
        monkeypatch.setitem(module._RUNS, "resize", lambda *_: silent_so_far(run))
        assert run("demo", "early", "--force", quiet).code == 7


def silent_so_far(run: Any) -> None:
    assert run._capsys.readouterr().out == ""
    raise NumericsError("a made-up failure")


@pytest.mark.usefixtures("light")
def test_the_error_of_the_resize_is_visible_and_small(tmp_path: Path) -> None:
    error = demo(Demo(folder=str(tmp_path / "d"))).steps[1].result.json()["relative_error"]
    assert 0.1 < error < 0.3


def read(command: str, kind: type[Any]) -> Any:
    """The verb's name, and the parameters of a kind that the command line makes of a command."""
    program, name, *words = shlex.split(command)
    assert program == "loramerge"
    parent = click.Context(group, **group.context_settings)
    found = group.get_command(parent, name)
    assert found is not None
    values = found.make_context(name, words, parent).params
    known = [one.name for one in parameters_of(kind)]
    return name, parameters_from(kind, {word: values[word] for word in known})


def tours(folder: Path) -> list[DemoResult]:
    pytest.importorskip("torch")
    return [module._tour(folder), module._training(folder)]


def test_each_command_says_what_is_done(tmp_path: Path) -> None:
    for tour in tours(tmp_path / "my demo"):
        for step in tour.steps:
            assert read(step.command, type(step.parameters)) == (step.verb, step.parameters)


def test_a_command_that_said_something_else_would_be_found(tmp_path: Path) -> None:
    step = tours(tmp_path)[0].steps[0]
    assert isinstance(step.parameters, Mix)
    command = DemoStep("", "mix", step.parameters).command.replace("zuzu", "zuzu:0.5")
    name, parameters = read(command, Mix)
    assert name == "mix" and parameters.adapters != step.parameters.adapters


# --- waiting --------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if pictures were drawn; gets how many columns each has."""
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    columns: list[int] = []

    def draw(parameters: Any, context: Any) -> Any:
        columns.append(len(parameters.base) + len(parameters.adapters) + len(parameters.baked))
        raise NumericsError("nothing can be drawn here")

    monkeypatch.setitem(module._RUNS, "preview", draw)
    return columns


def _require_told(run: Any, drawn: list[int]) -> None:
    """Require that what takes seconds is told beforehand, and only on standard error."""
    result = run("demo", "--force")
    assert result.err.index("note: 24 images are drawn") < result.err.index("nothing can be drawn")
    assert drawn.pop() * 4 == 24 and "images are drawn" not in result.out
    assert "images are drawn" not in run("demo", "--force", "-q").err


def test_what_takes_seconds_is_told_before_it_begins(run: Any, drawn: list[int]) -> None:
    _require_told(run, drawn)


def test_a_silent_demo_is_found(
    run: Any, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "notify", lambda session, event: None)
    with pytest.raises(ValueError, match="substring not found"):
        _require_told(run, drawn)


def test_the_import_of_torch_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with loading_torch(seen.append):
        assert [(one.task, one.done) for one in seen] == [("loading torch", 0)]
        monkeypatch.setitem(sys.modules, "torch", module)
    with loading_torch(seen.append):
        pass
    assert [one.done for one in seen] == [0, 1]


# --- pictures -------------------------------------------------------------------------------------


def cells(path: Path, rows: int, columns: int) -> Any:
    """The pictures of a grid, `(rows, columns, 32, 32, 3)`: each is three times as large there."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    top, left = height - rows * 102, width - columns * 102
    return np.array(
        [
            [
                pixels[
                    top + y * 102 : top + y * 102 + 96 : 3, left + x * 102 : left + x * 102 + 96 : 3
                ]
                for x in range(columns)
            ]
            for y in range(rows)
        ]
    )


@pytest.mark.slow
@pytest.mark.peers
def test_the_picture_tells_them_apart(run: Any) -> None:
    """The character, the dots, both, both a little weaker; and the bake as the live adapter."""
    for name in PICTURES:
        pytest.importorskip(name)
    from loramerge.tiny.score import dotted, teal

    result = run.ok("demo")
    picture = Path("loramerge-demo", "pictures.png")
    assert f"Open {picture}" in result.out.splitlines()[-1]
    found = cells(picture, 4, 6).transpose(1, 0, 2, 3, 4)
    assert np.abs(found[4].astype(int) - found[5]).mean() < 0.5
    apart = [
        float(np.abs(one.astype(int) - other).mean())
        for index, one in enumerate(found[:5])
        for other in found[index + 1 : 5]
    ]
    assert min(apart) > 4
    colours = [np.mean([teal(one) for one in column[:2]]) for column in found]
    dots = [np.mean([dotted(one) for one in column[2:]]) for column in found]
    for column in (0, 2):
        assert colours[column] < 0.03
    for column in (1, 3, 4, 5):
        assert colours[column] > 0.06
    assert max(dots[:2]) < 0.03 < 0.06 < min(dots[2:])


@pytest.mark.slow
@pytest.mark.peers
def test_the_picture_is_the_same_again(run: Any) -> None:
    run.ok("demo")
    picture = Path("loramerge-demo", "pictures.png")
    found = cells(picture, 4, 6)
    again = run.ok("demo", "--force", "--json").json
    assert again["picture"] == str(picture) and len(again["outputs"]) == 4
    assert again["steps"][-1]["result"]["like"]["baked"]["column"] == "mix-r4"
    assert np.array_equal(cells(picture, 4, 6), found)


@pytest.mark.peers
@pytest.mark.long_tail
def test_training_in_short(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PICTURES:
        pytest.importorskip(name)
    monkeypatch.setattr(module, "_STEPS", 3)
    few_steps(monkeypatch)
    unmeasured(monkeypatch)
    result = run.ok("demo", "--train")
    assert [line.split()[1] for line in shown(result.out)] == ["train", "preview"]
    folder = Path("loramerge-demo-train")
    assert f"Open {folder / 'pictures.png'}" in result.out.splitlines()[-1]
    assert len(list((folder / "pictures" / "zuzu").glob("*.png"))) == 64
    captions = [p.read_text("utf-8") for p in (folder / "pictures" / "zuzu").glob("*.txt")]
    others = [p.read_text("utf-8") for p in (folder / "pictures" / "ordinary").glob("*.txt")]
    assert len(captions) == len(others) == 64
    assert all("zuzu" in text for text in captions) and not any("zuzu" in text for text in others)


@pytest.mark.slow
@pytest.mark.peers
def test_training_learns_the_character(run: Any) -> None:
    from loramerge.tiny.score import look, teal

    run.ok("demo", "--train", "-q")
    base, learned = cells(Path("loramerge-demo-train", "pictures.png"), 4, 2).transpose(
        1, 0, 2, 3, 4
    )
    assert np.mean([teal(one) for one in base[:2]]) < 0.03
    assert np.mean([teal(one) for one in learned[:2]]) > 0.08
    for picture in learned[2:]:  # the cat it knew before
        assert (look(picture).kind, look(picture).colour) == ("cat", "red")
