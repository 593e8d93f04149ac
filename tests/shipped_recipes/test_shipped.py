"""The recipes come with the package: listed, printed and written by a command."""

from __future__ import annotations

import importlib.resources
import tomllib
from pathlib import Path

import pytest

import loramerge
from loramerge.errors import FileError, UsageError
from loramerge.recipe.shipped import shipped_recipe, shipped_recipes
from tests.cli.test_imports import HEAVY, TORCH, _start
from tests.shipped_recipes.conftest import RECIPES, ROOT

NAMES = sorted(path.stem for path in RECIPES.iterdir())


def test_all_are_listed_with_their_first_line(run):
    assert [recipe.name for recipe in shipped_recipes()] == NAMES
    out = run.ok("recipes").out
    found = run.ok("recipes", "--json").json
    assert [one["name"] for one in found] == NAMES
    for one in found:
        first = (RECIPES / f"{one['name']}.yaml").read_text("utf-8").splitlines()[0]
        assert f"# {one['title']}" == first and one["title"] in out and one["name"] in out


@pytest.mark.parametrize("name", NAMES)
def test_one_is_printed_as_it_is(run, name):
    text = (RECIPES / f"{name}.yaml").read_text("utf-8")
    assert run.ok("recipes", name).out == text == run.ok("recipes", f"{name}.yaml").out
    assert run.ok("recipes", name, "--json").json["text"] == text


def test_one_is_written(run):
    written = run.ok("recipes", "locked", "-o", "mine/first.yaml", "--json").json
    assert written["outputs"] == ["mine/first.yaml"]
    path = run.folder / "mine" / "first.yaml"
    assert path.read_bytes() == (RECIPES / "locked.yaml").read_bytes()
    run.refused(3, "recipes", "locked", "-o", "mine/first.yaml", says="exists")
    assert "written" in run.ok("recipes", "rank-ladder", "-o", "mine/first.yaml", "--force").out
    assert path.read_bytes() == (RECIPES / "rank-ladder.yaml").read_bytes()


def test_an_unknown_recipe_is_refused_with_the_nearest(run):
    run.refused(2, "recipes", "rank-lader", says=("no recipe 'rank-lader'", "rank-ladder?"))
    run.refused(2, "recipes", "../recipes/locked", says="no recipe")
    run.refused(2, "recipes", "-o", "x.yaml", says="name of a recipe is missing")
    with pytest.raises(UsageError):
        shipped_recipe("")


def test_only_click_and_rich_are_imported(run):
    for arguments in (("recipes",), ("recipes", "locked"), ("recipes", "--help")):
        code, imported, errors, _ = _start(run, arguments)
        assert code == 0, errors
        assert not imported & (HEAVY | TORCH)


def test_names_complete(run):
    env = {"_LORAMERGE_COMPLETE": "bash_complete", "COMP_WORDS": "loramerge recipes ra",
           "COMP_CWORD": "2"}  # fmt: skip
    code, imported, errors, out = _start(run, (), env=env)
    assert code == 0 and not imported, errors
    assert out.split() == ["plain,rank-ladder"]


def test_the_wheel_holds_them():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    targets = project["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["force-include"]["recipes"] == "loramerge/recipes"
    assert "recipes" in targets["sdist"]["include"]


def _installed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A place that the package seems to be installed in."""
    package = folder / "loramerge"
    package.mkdir()
    monkeypatch.setattr(loramerge, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(importlib.resources, "files", lambda _: package)
    return package


def test_recipes_of_the_package_come_before_those_of_the_checkout(tmp_path, monkeypatch):
    package = _installed(monkeypatch, tmp_path)
    for folder, title in ((package, "Inside."), (tmp_path, "Beside.")):
        (folder / "recipes").mkdir()
        (folder / "recipes" / "one.yaml").write_text(f"# {title}\nversion: 1\n", "utf-8")
        (folder / "recipes" / "notes.txt").write_text("no recipe", "utf-8")
    (tmp_path / "pyproject.toml").touch()
    assert [(r.name, r.title) for r in shipped_recipes()] == [("one", "Inside.")]
    for path in (package / "recipes").iterdir():
        path.unlink()
    (package / "recipes").rmdir()
    assert [(r.name, r.title) for r in shipped_recipes()] == [("one", "Beside.")]
    (tmp_path / "pyproject.toml").unlink()  # a folder of that name that is somebody else's
    with pytest.raises(FileError, match="not installed"):
        shipped_recipes()
