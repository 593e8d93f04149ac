"""The files that a recipe writes are those of the commands."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from tests.builders.samples import data_section, relative
from tests.builders.world import rewrite, tune, weights
from tests.recipe.outcomes import CHAIN, done, files
from tests.tail import first

EXAMPLE = """
version: 1
vars: {w: 0.7}
inputs:
  gochiusa: adapters/gochiusa.safetensors            # relative to the recipe; or {path: …, sha256: …}
  flat: {path: adapters/flat-style.safetensors}
  sd21-custom: models/sd21-custom.safetensors
steps:
  blend:
    mix: {adapters: ["gochiusa:${w}", "flat:0.3"], method: linear}
  small:
    resize: {adapter: blend, rank: 8}
    save: out/gochiusa-flat-r8.safetensors
  model:
    bake: {base: sd21-custom, adapters: [small]}
    save: out/sd21-gochiusa.safetensors
"""


def test_the_example_of_the_interface(recipe, run) -> None:
    for source, place in (
        ("b", "adapters/gochiusa"), ("a", "adapters/flat-style"), ("base", "models/sd21-custom"),
    ):  # fmt: skip
        Path(place).parent.mkdir(exist_ok=True)
        shutil.move(f"{source}.safetensors", f"{place}.safetensors")
    recipe(EXAMPLE)
    found = run.ok("run", "recipe.yaml", "--json").json
    small, model = "out/gochiusa-flat-r8.safetensors", "out/sd21-gochiusa.safetensors"
    assert found["outputs"] == [small, model]
    assert [task["status"] for task in found["tasks"].values()] == ["done"] * 3
    mixed = 0.7 * lm.load("adapters/gochiusa.safetensors") + 0.3 * lm.load(
        "adapters/flat-style.safetensors"
    )
    lm.save(lm.resize(mixed, rank=8), "direct.safetensors")
    assert data_section(Path("direct.safetensors")) == data_section(Path(small))
    run.ok("bake", "--base", "models/sd21-custom.safetensors", small, "-o", "baked.safetensors")
    assert Path("baked.safetensors").read_bytes() == Path(model).read_bytes()


COMMANDS = {
    "mix": ("mix a:0.7 b:0.3", 'mix: {adapters: ["a:0.7", "b:0.3"]}'),
    "mix of one": ("mix a:0.5", 'mix: {adapters: ["a:0.5"]}'),
    "mix by component": ("mix b:unet=0.5:te=0 a", 'mix: {adapters: ["b:unet=0.5:te=0", a]}'),
    "mix by block": ("mix a:OUTALL b", 'mix: {adapters: ["a:OUTALL", b]}'),
    "mix cut": ("mix a b --rank 3", "mix: {adapters: [a, b], rank: 3}"),
    "mix in a dialect": ("mix a b --to kohya --dtype float32",
                         "mix: {adapters: [a, b], to: kohya, dtype: float32}"),
    "mix for a program": ("mix a b --for diffusers", "mix: {adapters: [a, b], for: diffusers}"),
    "mix to a size": ("mix a b --max-size 80KB", "mix: {adapters: [a, b], max_size: 80KB}"),
    "mix as kohya": ("mix a:0.5 a:0.5 --compat kohya",
                     'mix: {adapters: ["a:0.5", "a:0.5"], compat: kohya}'),
    "resize": ("resize a --rank 2", "resize: {adapter: a, rank: 2}"),
    "resize by energy": ("resize b --energy 0.5 --dtype bfloat16",
                         "resize: {adapter: b, energy: 0.5, dtype: bfloat16}"),
    "resize to a share": ("resize b --max-size 40%", "resize: {adapter: b, max_size: 40%}"),
    "resize to an error": ("resize b --max-error 0.3", "resize: {adapter: b, max_error: 0.3}"),
    "bake": ("bake --base base a:0.5 b", 'bake: {base: base, adapters: ["a:0.5", b]}'),
    "bake stochastically": ("bake --base base a --rounding stochastic --seed 7",
                            "bake: {base: base, adapters: [a], rounding: stochastic, seed: 7}"),
    "bake to a type": ("bake --base base a --dtype bfloat16",
                       "bake: {base: base, adapters: [a], dtype: bfloat16}"),
    "extract": ("extract --tuned tuned --base base --rank 3",
                "extract: {tuned: tuned, base: base, rank: 3}"),
}  # fmt: skip


@pytest.mark.parametrize("name", first(8, COMMANDS))
def test_a_recipe_of_one_step_gives_the_file_of_the_command(name: str, recipe, run) -> None:
    command, step = COMMANDS[name]
    inputs = "a: a.safetensors, b: b.safetensors, base: base.safetensors"
    if "tuned" in command:
        inputs += ", tuned: tuned.safetensors"
        tune(Path("base.safetensors"), Path("tuned.safetensors"))
    recipe(
        f"version: 1\ninputs: {{{inputs}}}\nsteps: {{x: {{{step}, save: recipe/x.safetensors}}}}\n"
    )
    run.ok("run", "recipe.yaml")
    words = [f"{w}.safetensors" if w in ("base", "tuned") else w.replace("a:", "a.safetensors:", 1)
             if w.startswith("a:") else w.replace("b:", "b.safetensors:", 1) if w.startswith("b:")
             else f"{w}.safetensors" if w in ("a", "b") else w for w in command.split()]  # fmt: skip
    run.ok(*words, "-o", "command/x.safetensors")
    assert Path("command/x.safetensors").read_bytes() == Path("recipe/x.safetensors").read_bytes()


def test_folders_are_the_same_too(recipe, run) -> None:
    recipe("version: 1\nsteps: {x: {mix: {adapters: [b.safetensors], to: peft}, save: recipe/x}}\n")
    run.ok("run", "recipe.yaml")
    run.ok("mix", "b.safetensors", "--to", "peft", "-o", "command/x")
    whole = [{p.relative_to(f): p.read_bytes() for p in Path(f).rglob("*") if p.is_file()}
             for f in ("recipe", "command")]  # fmt: skip
    assert whole[0] == whole[1]
    assert len(whole[0]) > 1


def test_a_recipe_in_which_every_step_saves_gives_what_the_commands_give(recipe, run) -> None:
    lm.run(recipe(CHAIN.replace("save: ", "save: recipe/")))
    Path("command").mkdir()
    a, b, base = (Path(f"{name}.safetensors").absolute() for name in ("a", "b", "base"))
    os.chdir("command")
    run.ok("mix", f"{a}:0.5", b, "-o", "blend.safetensors")
    run.ok("resize", "blend.safetensors", "--rank", "3", "-o", "small.safetensors")
    run.ok("resize", b, "--rank", "2", "-o", "other.safetensors")
    run.ok("bake", "--base", base, "small.safetensors", "-o", "model.safetensors")
    os.chdir("..")
    assert files(Path("command")) == files(Path("recipe"))


def _is_unrounded(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return max(relative(found[k], expected[k]) for k in expected) < 1e-4


def test_results_in_memory_are_not_rounded(recipe, work) -> None:
    """A sum with something a thousand times as large, taken off again, leaves what was added.

    The wrong implementation, a float16 file between the two steps, loses it.
    """
    rewrite(Path("a.safetensors"), Path("big.safetensors"), _scaled(3000.0))
    expected = weights(Path("a.safetensors"))
    memory = """
    version: 1
    steps:
      both: {mix: {adapters: [big.safetensors, a.safetensors], rank: 320}}
      rest: {mix: {adapters: [both, "big.safetensors:-1"], dtype: float32}, save: rest.safetensors}
    """
    lm.run(recipe(memory))
    assert _is_unrounded(weights(Path("rest.safetensors")), expected)
    through = memory.replace("rank: 320}}", "rank: 320, dtype: float16}, save: both.safetensors}")
    lm.run(recipe(through, "file.yaml"), force=True)
    assert not _is_unrounded(weights(Path("rest.safetensors")), expected)


def _scaled(factor: float) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        rng = np.random.default_rng(0)
        for key, array in arrays.items():
            if key.endswith(".lora_up.weight"):
                noise = rng.standard_normal(array.shape)
                arrays[key] = (factor * noise / np.sqrt(noise.size)).astype(np.float16)

    return change


def test_a_baked_base_is_the_base_of_another_bake(recipe, run) -> None:
    recipe("""
    version: 1
    steps:
      one: {bake: {base: base.safetensors, adapters: [a.safetensors]}, save: one.safetensors}
      two: {bake: {base: one, adapters: ["b.safetensors:0.5"]}, save: two.safetensors}
    """)
    run.ok("run", "recipe.yaml")
    run.ok("bake", "--base", "one.safetensors", "b.safetensors:0.5", "-o", "plain.safetensors")
    assert Path("plain.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


def test_reports_with_and_without_a_file(recipe, run) -> None:
    recipe("""
    version: 1
    steps:
      blend: {mix: {adapters: [a.safetensors, b.safetensors]}}
      small: {resize: {adapter: blend, rank: 2}, save: small.safetensors}
      look: {inspect: {files: [small, a.safetensors, blend], deep: true}, save: look.json}
      fits: {inspect: {files: [small], base: base.safetensors}, save: fits.json}
      far: {diff: {a: blend, b: small}}
      near: {diff: {a: "a.safetensors:0.5", b: "a.safetensors:0.5"}, save: near.json}
    """)
    result = lm.run("recipe.yaml")
    assert done(result) == {"blend", "small", "look", "fits", "far", "near"}
    look = json.loads(Path("look.json").read_text("utf-8"))
    assert [Path(one["path"]).name for one in look[:2]] == ["small.safetensors", "a.safetensors"]
    assert look[0]["ranks"] == {"2": len(lm.load("b.safetensors").deltas)}
    assert look[0]["checked"] == "weights"
    assert json.loads(Path("near.json").read_text("utf-8"))["differs"] is False
    far = result.outcomes["far"]
    assert far.output is None
    assert far.result.differs
    assert far.figures["total.relative_distance"] > 0.1
    again = lm.run("recipe.yaml")
    assert done(again) == set()
    assert again.outcomes["far"].figures == far.figures
    Path("near.json").unlink()
    assert done(lm.run("recipe.yaml")) == {"near"}


def test_inputs_from_outside(recipe, run) -> None:
    recipe(CHAIN)
    Path("elsewhere").mkdir()
    shutil.copy("b.safetensors", "elsewhere/c.safetensors")
    run.ok("run", "recipe.yaml", "--input", "a=elsewhere/c.safetensors", "--set", "w=1")
    assert lm.diff(lm.load("blend.safetensors"), 2.0 * lm.load("b.safetensors")).verdict
    assert lm.diff(lm.load("blend.safetensors"), 2.0 * lm.load("b.safetensors")).differs is False


def test_names_of_the_library_and_of_bases(recipe, run) -> None:
    Path("library").mkdir()
    Path("elsewhere").mkdir()
    shutil.move("a.safetensors", "library/style v1.1.safetensors")
    shutil.move("base.safetensors", "elsewhere/base.safetensors")
    run.ok("library", "add", "library")
    run.ok("base", "add", "sd21-custom", "elsewhere/base.safetensors")
    recipe("""
    version: 1
    inputs: {s: style v1.1}
    steps:
      x: {mix: {adapters: ["style v1.1:0.5", s]}}
      y: {bake: {base: sd21-custom, adapters: [x]}, save: y.safetensors}
    """)
    run.ok("run", "recipe.yaml")
    run.ok("mix", "style v1.1:0.5", "style v1.1", "-o", "x.safetensors", "--dtype", "float32")
    assert Path("y.safetensors").stat().st_size > 10_000_000


def test_paths_start_from_the_recipe(recipe, run) -> None:
    Path("sub").mkdir()
    recipe(CHAIN.replace("{a: a.", "{a: ../a.").replace("b: b.", "b: ../b.")
           .replace("base: base.", "base: ../base."), "sub/recipe.yaml")  # fmt: skip
    run.ok("run", "sub/recipe.yaml")
    assert {p.name for p in Path("sub").iterdir()} == {
        "recipe.yaml", "recipe.state.json", "blend.safetensors", "small.safetensors",
        "other.safetensors", "model.safetensors",
    }  # fmt: skip
