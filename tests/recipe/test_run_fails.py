"""Runs that fail, and outputs that a run may not replace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import LoramergeError, NumericsError, OutputExists
from loramerge.recipe.recipe import load_recipe
from loramerge.recipe.saves import outside_places
from tests.builders.world import rewrite
from tests.recipe.outcomes import CHAIN, done


def test_outputs_of_others_are_refused_before_any_work(recipe, run) -> None:
    recipe(CHAIN)
    Path("model.safetensors").write_bytes(b"precious")
    run.refused(3, "run", "recipe.yaml", says=("model.safetensors", "to replace it, give --force"))
    run.ok("run", "recipe.yaml", "--force")
    assert Path("model.safetensors").stat().st_size > 1000
    with pytest.raises(OutputExists):
        lm.run(recipe(CHAIN, "twin.yaml"))


FAILS = """
version: 1
steps:
  good: {resize: {adapter: a.safetensors, rank: 1}, save: good.safetensors}
  bad: {mix: {adapters: [good, broken.safetensors]}, save: bad.safetensors}
  after: {resize: {adapter: bad, rank: 1}, save: after.safetensors}
  apart: {resize: {adapter: b.safetensors, rank: 1}, save: apart.safetensors}
"""


def _break(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    key = next(key for key in arrays if key.endswith("up.weight"))
    arrays[key].flat[0] = np.nan


def broken_copy() -> None:
    """Write broken.safetensors, with a value that is not finite."""
    rewrite(Path("a.safetensors"), Path("broken.safetensors"), _break)


def test_a_failure_names_its_step_and_leaves_whole_files(recipe, run) -> None:
    broken_copy()
    path = recipe(FAILS)
    with pytest.raises(LoramergeError) as caught:
        lm.run(path)
    assert isinstance(caught.value, NumericsError)
    assert caught.value.step == "bad"
    assert str(caught.value).startswith("step bad: ")
    assert set(lm.load("good.safetensors").ranks()) == {1}
    assert {p.name for p in Path().iterdir()} >= {"good.safetensors"}
    assert not Path("bad.safetensors").exists()
    assert not list(Path().glob("*.tmp*")) + list(Path().glob(".*"))
    result = run("run", "recipe.yaml")
    assert result.code == 7
    assert "error: step bad: " in result.err
    shutil.copy("a.safetensors", "broken.safetensors")
    assert done(lm.run(path)) == {"bad", "after", "apart"}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_keep_going_does_all_that_can_be_done(jobs: str, recipe, run) -> None:
    broken_copy()
    recipe(FAILS)
    result = run(
        "run", "recipe.yaml", "--keep-going", "--jobs", jobs, "--json", "--results", "t.csv"
    )
    assert result.code == 7
    tasks = result.json["tasks"]
    assert {n: t["status"] for n, t in tasks.items()} == {
        "good": "done", "bad": "failed", "after": "left out", "apart": "done",
    }  # fmt: skip
    assert "NaN" in tasks["bad"]["error"] or "finite" in tasks["bad"]["error"]
    assert tasks["after"]["error"] == "bad failed"
    assert Path("apart.safetensors").exists()
    assert "failed" in Path("t.csv").read_text("utf-8")


def test_a_failure_leaves_nothing_behind(run) -> None:
    Path("cut.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:200])
    step = "  {0}:\n    mix: {{adapters: [{0}.safetensors]}}\n    save: out-{0}.safetensors\n"
    Path("r.yaml").write_text("version: 1\nsteps:\n" + step.format("cut"), "utf-8")
    run.refused(3, "run", "r.yaml", says="step cut")
    Path("r.yaml").write_text(
        "version: 1\nsteps:\n" + step.format("a") + step.format("cut"), "utf-8"
    )
    assert run("run", "r.yaml").code == 3
    state = json.loads(Path("r.state.json").read_text("utf-8"))
    assert state["running"] == [] and list(state["tasks"]) == ["a"]


SAVES = """
version: 1
inputs: {{a: a.safetensors}}
steps: {{s: {{resize: {{adapter: a, rank: {rank}}}, save: {save}}}}}
"""


def test_the_state_of_a_stranger_gives_no_right_to_replace_files(run, recipe):
    """It lies beside a recipe from elsewhere, and says of a file of the user that it made it."""
    from loramerge.files.digest import sha256_of_file
    from loramerge.library.registry import cache

    recipe(SAVES.format(rank=1, save="mine.safetensors"))
    run.ok("run", "recipe.yaml")
    recipe(SAVES.format(rank=2, save="mine.safetensors"))
    run.ok("run", "recipe.yaml")  # what it made itself, it replaces
    state = Path("recipe.state.json")
    content = json.loads(state.read_text("utf-8"))
    Path("mine.safetensors").write_bytes(Path("b.safetensors").read_bytes())
    content["tasks"]["s"]["sha256"] = sha256_of_file(Path("b.safetensors"))
    recipe(SAVES.format(rank=3, save="mine.safetensors"))
    for running in ([], ["mine.safetensors"]):
        content["running"] = running
        state.write_text(json.dumps(content), "utf-8")
        run.refused(3, "run", "recipe.yaml", says=("mine.safetensors", "--force"))
    run.ok("run", "recipe.yaml", "--force")
    recipe(SAVES.format(rank=1, save="mine.safetensors"))
    run.ok("run", "recipe.yaml")
    marks = list((cache() / "states").iterdir())
    assert len(marks) == 2  # of the last one, and of the one that was changed by hand


def test_outputs_stay_up_to_date_by_the_state_of_another_machine(run, recipe):
    from loramerge.library.registry import cache

    recipe(SAVES.format(rank=1, save="out.safetensors"))
    run.ok("run", "recipe.yaml")
    shutil.rmtree(cache())
    assert "up to date" in run.ok("run", "recipe.yaml").out


@pytest.mark.parametrize("save", ["../out.safetensors", "linked/out.safetensors", "absolute"])
def test_a_recipe_writes_outside_of_its_folder_only_if_told_to(run, recipe, tmp_path, save):
    (tmp_path / "elsewhere").mkdir()
    Path("linked").symlink_to(tmp_path / "elsewhere")
    save = str(tmp_path / "elsewhere" / "out.safetensors") if save == "absolute" else save
    recipe(SAVES.format(rank=1, save=save))
    said = run.ok("plan", "recipe.yaml").err
    assert "warning" in said and "--allow-outside" in said and Path(save).name in said
    run.refused(2, "run", "recipe.yaml", says=("outside of its folder", "--allow-outside"))
    run.ok("run", "recipe.yaml", "--allow-outside")


def test_a_recipe_below_writes_in_its_own_folder_alone(run):
    """`sub/../out` from `sub` is not `sub/sub/../out`: the path of a save starts from the recipe's
    folder already."""
    place = Path("sub")
    place.mkdir()
    (place / "recipe.yaml").write_text(
        SAVES.format(rank=1, save="../out.safetensors").replace("a.saf", "../a.saf")
    )
    run.refused(2, "run", "sub/recipe.yaml", says=("outside of its folder", "--allow-outside"))
    assert not Path("out.safetensors").exists()
    text = SAVES.format(rank=1, save="out.safetensors").replace("a.saf", "../a.saf")
    (place / "recipe.yaml").write_text(text)
    run.ok("run", "sub/recipe.yaml")
    assert (place / "out.safetensors").exists()


def test_folders_of_a_run_and_pictures_start_from_the_recipe(work):
    step = "train: {{base: tiny, images: ., folder: '{0}', cache: '{0}-cache'}}"
    place = Path("sub")
    place.mkdir()
    for named, outside in (("runs", 0), ("../runs", 2), (str(work / "runs"), 2)):
        text = f"version: 1\nsteps:\n  s:\n    {step.format(named)}\n    save: a.safetensors\n"
        (place / "recipe.yaml").write_text(text)
        found = load_recipe("sub/recipe.yaml")
        parameters = found.tasks["s"].parameters
        assert parameters.folder == str(Path("sub") / named)
        assert len(outside_places(found.root, found.tasks)) == outside
    text = "version: 1\nsteps:\n  s: {card: {file: zuzu, picture: [a.png]}, save: a.md}\n"
    (place / "recipe.yaml").write_text(text)
    assert load_recipe("sub/recipe.yaml").tasks["s"].parameters.picture == ("sub/a.png",)
