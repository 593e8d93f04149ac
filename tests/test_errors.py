"""Messages are spelled in the language of whoever reads them."""

import ast
from pathlib import Path

import pytest

import loramerge
from loramerge.cli.main import main
from loramerge.comfyui.known import known_nodes
from loramerge.errors import (
    LoramergeError,
    Setting,
    UsageError,
    in_python,
    in_recipe,
    on_command_line,
    sized,
    spelled,
)
from loramerge.recipe.registry import known_verbs
from loramerge.steps.parameters import parameters_of

ROOT = Path(loramerge.__file__).parent


@pytest.mark.parametrize(
    ("setting", "command", "recipe", "python"),
    [
        (Setting("rank", 8), "--rank 8", "rank: 8", "rank=8"),
        (Setting("max_size", "20MB"), "--max-size 20MB", "max_size: 20MB", "max_size='20MB'"),
        (Setting("force", True), "--force", "force: true", "force=True"),
        (Setting("energy"), "--energy", "energy", "energy"),
    ],
)
def test_a_setting_is_spelled_for_its_reader(setting, command, recipe, python):
    assert on_command_line(setting) == command
    assert in_recipe(setting) == recipe
    assert in_python(setting) == python


def test_a_hint_holds_text_and_settings():
    error = LoramergeError("no", hint=("give ", Setting("rank", 8), " or ", Setting("energy", 0.9)))
    assert str(error).endswith("hint: give rank=8 or energy=0.9")
    assert error.text(on_command_line).endswith("hint: give --rank 8 or --energy 0.9")
    assert spelled(error.hint or "", in_recipe) == "give rank: 8 or energy: 0.9"


def _settings():
    """Yield the file and the name of every setting that some message advises."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            advises = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Setting"
            if advises and isinstance(node.args[0], ast.Constant):
                yield path.relative_to(ROOT).as_posix(), node.args[0].value


RUNNING = {
    "threads",
    "device",
    "quiet",
    "json_file",
    "save_recipe",
    "strip",
    "fresh",
    "jobs",
    "operator",
}


def test_every_setting_that_is_advised_exists():
    known = {one.word for verb in known_verbs().values() for one in parameters_of(verb.parameters)}
    known |= RUNNING | {"results", "out_dir", "input", "set", "lock", "dask", "allow_outside"}
    known |= {"curve", "plot", "most"}  # of files alone, and of the library
    known |= {one.name for node in known_nodes() for one in node.inputs}  # of ComfyUI
    assert [(file, name) for file, name in _settings() if name not in known] == []


def test_the_command_line_speaks_of_options(monkeypatch, capsys):
    def fail(**_):
        raise UsageError("no", hint=("give ", Setting("rank", 8)))

    from loramerge.cli.main import group

    monkeypatch.setattr(group, "main", fail)
    assert main(["mix"]) == 2
    assert "hint: give --rank 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (-5, "0 bytes"),
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1023, "1.02 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (999_999_999, "1 GB"),
        (24_000_000_000, "24 GB"),
        (999_999_999_999, "1 TB"),
        (1_500_000_000_000, "1.5 TB"),
        (2 * 10**15, "2 PB"),
        (12_345 * 10**15, "12,345 PB"),
    ],
)
def test_sizes_from_bytes_to_terabytes(count, text):
    assert sized(count) == text
