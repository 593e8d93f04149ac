"""Pins and locks: what a recipe reads is what it read then, or it does not run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import loramerge as lm
from loramerge.errors import CorruptFile, RecipeError
from tests.builders.world import rewrite

TEXT = """
version: 1
inputs: {a: a.safetensors}
steps:
  x: {mix: {adapters: ["a:0.5", b.safetensors]}, save: x.safetensors}
"""


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def change(path: str) -> None:
    def edit(arrays, metadata) -> None:
        metadata["note"] = "changed"

    rewrite(Path(path), Path(path), edit)


# ---- pins


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_a_pin_that_holds(case, recipe, run) -> None:
    digest = case(sha256("a.safetensors"))
    recipe(
        TEXT.replace("{a: a.safetensors}", f"{{a: {{path: a.safetensors, sha256: '{digest}'}}}}")
    )
    run.ok("run", "recipe.yaml")


def test_a_pinned_file_that_changed_is_refused(recipe, run) -> None:
    old = sha256("a.safetensors")
    recipe(TEXT.replace("{a: a.safetensors}", f"{{a: {{path: a.safetensors, sha256: '{old}'}}}}"))
    change("a.safetensors")
    new = sha256("a.safetensors")
    run.refused(
        6, "run", "recipe.yaml", says=("'a' has changed", old[:12], new[:12], "recipe.yaml:2:")
    )


def test_a_pinned_file_elsewhere_is_found_by_its_digest(recipe, run) -> None:
    digest = sha256("a.safetensors")
    recipe(
        TEXT.replace("{a: a.safetensors}", f"{{a: {{path: a.safetensors, sha256: '{digest}'}}}}")
    )
    run.ok("run", "recipe.yaml")
    before = Path("x.safetensors").read_bytes()
    Path("library").mkdir()
    shutil.move("a.safetensors", "library/other name.safetensors")
    run.refused(6, "run", "recipe.yaml", says="'a' was not found")
    run.ok("library", "add", "library")
    run.ok("run", "recipe.yaml", "--fresh")
    assert lm.diff(lm.load("x.safetensors"), lm.load("x.safetensors")).differs is False
    assert len(Path("x.safetensors").read_bytes()) >= len(before)


def test_a_pin_holds_for_inputs_from_outside_too(recipe, run) -> None:
    digest = sha256("a.safetensors")
    recipe(
        TEXT.replace("{a: a.safetensors}", f"{{a: {{path: a.safetensors, sha256: '{digest}'}}}}")
    )
    run.refused(6, "run", "recipe.yaml", "--input", "a=b.safetensors", says="'a' has changed")


# ---- locks


def test_a_lock_holds_names_and_digests_only(recipe, run) -> None:
    recipe(TEXT)
    found = run.ok("run", "recipe.yaml", "--lock", "--json").json
    assert found["lock"] == "recipe.lock.json"
    content = json.loads(Path("recipe.lock.json").read_text("utf-8"))
    assert content == {"version": 1, "inputs": {
        "a": {"name": "a.safetensors", "sha256": sha256("a.safetensors")},
        "b.safetensors": {"name": "b.safetensors", "sha256": sha256("b.safetensors")}}}  # fmt: skip
    assert run.ok("run", "recipe.yaml", "--json").json["lock"] is None


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_locked_recipe_refuses_changed_inputs(name: str, recipe, run) -> None:
    recipe(TEXT)
    run.ok("run", "recipe.yaml", "--lock")
    change(f"{name}.safetensors")
    for command in ("run", "plan"):
        run.refused(6, command, "recipe.yaml", says=(f"{name}.safetensors has sha256", "--lock"))
    run.ok("run", "recipe.yaml", "--lock")
    run.ok("run", "recipe.yaml")


def test_a_locked_recipe_refuses_inputs_it_did_not_have(recipe, run) -> None:
    path = recipe(TEXT)
    run.ok("run", "recipe.yaml", "--lock")
    shutil.copy("b.safetensors", "c.safetensors")
    path.write_text(path.read_text("utf-8").replace("b.safetensors]", "c.safetensors]"), "utf-8")
    run.refused(6, "run", "recipe.yaml", says="c.safetensors: not in the lock")


def test_every_change_is_named(recipe, run) -> None:
    path = recipe(TEXT)
    run.ok("run", "recipe.yaml", "--lock")
    change("a.safetensors")
    change("b.safetensors")
    with pytest.raises(RecipeError) as caught:
        lm.run(path)
    assert len(caught.value.mistakes) == 2


def test_a_broken_lock_is_named(recipe, work) -> None:
    path = recipe(TEXT)
    for text in ("{", "[]", '{"inputs": {"a": 3}}', '{"inputs": []}'):
        Path("recipe.lock.json").write_text(text, "utf-8")
        with pytest.raises(CorruptFile, match=r"recipe\.lock\.json"):
            lm.run(path)


def test_a_recipe_in_no_file_cannot_be_locked(work) -> None:
    content = {
        "version": 1,
        "steps": {"x": {"mix": {"adapters": ["a.safetensors"]}, "save": "x.safetensors"}},
    }
    with pytest.raises(RecipeError, match="only a recipe in a file"):
        lm.run(content, lock=True)
    assert not Path("x.safetensors").exists()


def test_folders_are_locked_by_their_weights(recipe, run) -> None:
    run.ok("mix", "b.safetensors", "--to", "peft", "-o", "p")
    recipe("version: 1\nsteps: {x: {mix: {adapters: [p], to: kohya}, save: x.safetensors}}\n")
    run.ok("run", "recipe.yaml", "--lock")
    run.ok("run", "recipe.yaml")
    weights = next(Path("p").rglob("*.safetensors"))
    change(str(weights))
    run.refused(6, "run", "recipe.yaml", says="locked")
