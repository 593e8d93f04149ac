"""`loramerge run OUTPUT`: the recipe in a header, run again and compared."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.library import known, lookup
from loramerge.recipe.header import recipe_of_file
from loramerge.recipe.repeat import _without_places
from tests.builders.samples import read_safetensors
from tests.builders.world import rewrite, tune, write_folder
from tests.tail import first

KEY = "loramerge.recipe"

MAKES = {
    "kohya": ["mix a.safetensors:0.7 b.safetensors:0.3 --to kohya -o out.safetensors"],
    "diffusers": ["mix b.safetensors:unet=0.5:te=0 --to diffusers -o out.safetensors"],
    "peft": ["mix a.safetensors b.safetensors --to peft -o out"],
    "resize": ["resize b.safetensors --energy 0.8 --dtype bfloat16 -o out.safetensors"],
    "by block": ["mix a.safetensors:1,0,1,0,1,0,1,0,1,0,1,0 -o out.safetensors"],
    "by preset": ["mix a.safetensors:OUTALL b.safetensors -o out.safetensors"],
    "by file": ["mix a.safetensors --weights a=w.yaml -o out.safetensors"],
    "by depth": ["mix a.safetensors --weights a=d.yaml -o out.safetensors"],
    "to a size": ["mix a.safetensors b.safetensors --max-size 50% -o out.safetensors"],
    "to a size, resized": ["resize b.safetensors --max-size 70KB -o out.safetensors"],
    "as kohya": ["mix a.safetensors:0.5 a.safetensors:0.5 --compat kohya -o out.safetensors"],
    "a pickle": ["mix only.safetensors --to lora_diffusion -o p.pt",
                 "mix p.pt:0.5 --to kohya -o out.safetensors"],
    "a folder of an adapter": ["mix b.safetensors --to peft -o p",
                               "mix p:0.5 --to kohya -o out.safetensors"],
    "bake": ["bake --base base.safetensors a.safetensors:0.5 b.safetensors -o out.safetensors"],
    "bake stochastically": ["bake --base base.safetensors a.safetensors --rounding stochastic --seed 7 "
                            "-o out.safetensors"],
    "bake a folder": ["bake --base base a.safetensors -o out"],
    "bake to a type": ["bake --base base.safetensors --dtype bfloat16 -o out.safetensors"],
    "extract": ["extract --tuned tuned.safetensors --base base --rank 3 --max-size 60KB "
                "-o out.safetensors"],
    "extract whole": ["extract --tuned tuned.safetensors --base base --full -o out.safetensors"],
    "a chain": ["mix a.safetensors b.safetensors:0.5 -o mixed.safetensors",
                "resize mixed.safetensors --rank 2 -o small.safetensors",
                "bake --base base.safetensors small.safetensors:0.8 -o out.safetensors"],
    "a bake on a bake": ["bake --base base.safetensors a.safetensors -o one.safetensors",
                         "bake --base one.safetensors b.safetensors -o out.safetensors"],
}  # fmt: skip


def make(name: str, run: Any) -> Path:
    """Make an output; returns its path."""
    write_folder(Path("base.safetensors"), Path("base"))
    if "tuned.safetensors" in MAKES[name][0]:
        tune(Path("base.safetensors"), Path("tuned.safetensors"))
    Path("w.yaml").write_text('{default: 0.5, text_encoder: 0, match: {"*attn1*": 0.25}}', "utf-8")
    Path("d.yaml").write_text("{depth: [0, 1, 0.5]}", "utf-8")
    b = lm.load("b.safetensors")  # and one of what lora_diffusion can say
    kept = {s: d for s, d in b.deltas.items() if ".attn2." in s.name or ".self_attn." in s.name}
    lm.save(b.with_deltas(kept), "only.safetensors")
    for command in MAKES[name]:
        run.ok(*command.split(), "--threads", "1")
    return Path(command.split()[-1])


@pytest.mark.parametrize("name", first(8, MAKES))
def test_a_repetition_is_the_same_file(name: str, run) -> None:
    out = make(name, run)
    before = run.state()
    found = run.ok("run", out, "--threads", "2", "--json").json
    assert found["verdict"] == "same file", found
    assert not found["differs"]
    assert found["relative_distance"] == 0
    assert found["outputs"] == []
    assert run.state() == before


@pytest.mark.parametrize("name", ["kohya", "a chain", "bake a folder", "peft"])
def test_the_repetition_can_be_kept(name: str, run) -> None:
    out = make(name, run)
    kept = Path("again") / out.name
    found = run.ok("run", out, "-o", kept, "--json").json
    assert found["outputs"] == [str(kept)]
    if out.is_file():
        assert kept.read_bytes() == out.read_bytes()
    assert found["verdict"] == "same file"
    run.refused(3, "run", out, "-o", kept, says="exist")
    run.ok("run", out, "-o", kept, "--force")


def test_the_verdict_is_shown(run) -> None:
    shown = run.ok("run", make("kohya", run)).out
    assert "same file" in shown
    assert "out.safetensors" in shown


# ---- what is gone, renamed, changed


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("gone", [("mixed",), ("small",), ("mixed", "small")])
def test_missing_intermediate_files_are_made_again(gone: tuple[str, ...], run) -> None:
    out = make("a chain", run)
    for name in gone:
        Path(f"{name}.safetensors").unlink()
    found = run.ok("run", out, "--json").json
    assert found["verdict"] == "same file"
    assert any("was made again" in note for note in found["notes"]) == ("small" in gone)
    assert not Path("small.safetensors").exists() or "small" not in gone


def test_a_changed_file_between_is_made_again(run) -> None:
    out = make("a chain", run)
    shutil.copy("a.safetensors", "small.safetensors")
    assert run.ok("run", out, "--json").json["verdict"] == "same file"


def test_an_input_in_a_folder_of_the_library_is_found_by_its_digest(run) -> None:
    out = make("kohya", run)
    (library := Path("library/deep")).mkdir(parents=True)
    shutil.move("a.safetensors", library / "renamed, too.safetensors")
    run.refused(3, "run", out, says=("a.safetensors", "was not found"))
    run.ok("library", "add", "library")
    assert run.ok("run", out, "--json").json["verdict"] == "same file"


def test_a_base_is_found_among_the_registered_ones(run) -> None:
    out = make("bake", run)
    Path("elsewhere").mkdir()
    shutil.move("base.safetensors", "elsewhere/sd.safetensors")
    run.refused(3, "run", out, says="base.safetensors")
    run.ok("base", "add", "sd21-custom", "elsewhere/sd.safetensors")
    assert run.ok("run", out, "--json").json["verdict"] == "same file"


def test_inputs_beside_the_output_are_found_from_anywhere(run) -> None:
    out = make("kohya", run).absolute()
    Path("other").mkdir()
    os.chdir("other")
    assert run.ok("run", out, "--json").json["verdict"] == "same file"


def test_a_result_of_what_comes_with_loramerge_repeats(run) -> None:
    run.ok("mix", "zuzu:0.7", "polka:0.3", "-o", "both.safetensors")
    assert "same file" in run.ok("run", "both.safetensors").out


def test_the_recipe_of_such_a_result_runs_as_it_is_printed(run) -> None:
    run.ok("mix", "zuzu:0.7", "polka:0.3", "-o", "both.safetensors")
    (run.folder / "r.yaml").write_text(run.ok("plan", "both.safetensors").out)
    assert "up to date" not in run.ok("plan", "r.yaml", "--fresh").out
    run.ok("run", "r.yaml", "--force")
    assert run.ok("run", "both.safetensors").out.endswith("same file\n")


def test_a_file_that_lies_a_folder_further_is_named(run) -> None:
    Path("demo").mkdir()
    run.ok("mix", "a", "-o", "demo/mix.safetensors")
    run.refused(3, "run", "mix.safetensors", says="there is demo/mix.safetensors")
    run.refused(3, "plan", "mix.safetensors", says="there is demo/mix.safetensors")


def test_a_part_of_a_checkpoint_names_the_folder(run) -> None:
    run.ok("bake", "--base", "tiny", "zuzu", "-o", "baked")
    part = "baked/unet/diffusion_pytorch_model.safetensors"
    run.refused(2, "run", part, says="give the folder")


def test_missing_inputs_are_all_named(run) -> None:
    out = make("bake", run)
    for name in ("a", "b", "base"):
        Path(f"{name}.safetensors").unlink()
    run.refused(3, "run", out, says=("3 inputs", "a.safetensors", "b.safetensors", "base.safetensors",
                                     "--input NAME=PATH"))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key"), [("kohya", "a"), ("bake", "base"), ("bake a folder", "base")]
)
def test_an_input_may_be_given(name: str, key: str, run) -> None:
    out = make(name, run)
    source = Path("base") if name.endswith("folder") else Path(f"{key}.safetensors")
    Path("away").mkdir()
    shutil.move(source, f"away/x{source.suffix}")
    if name.endswith("folder"):
        Path("base.safetensors").unlink()
    found = run.ok("run", out, "--input", f"{key}=away/x{source.suffix}", "--json").json
    assert found["verdict"] == "same file", found


def test_a_changed_input_is_not_taken_for_it(run) -> None:
    out = make("kohya", run)
    rewrite(Path("a.safetensors"), Path("a.safetensors"), _scale_up)
    run.refused(3, "run", out, says="a.safetensors")
    result = run("run", out, "--input", "a=a.safetensors", "--json")
    assert result.code == 1
    assert result.json["verdict"].startswith("same weights to 0.")
    assert any("is not the file that was used" in note for note in result.json["notes"])


def _scale_up(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    for key in arrays:
        if "up.weight" in key:
            arrays[key] = (arrays[key] * 1.25).astype(arrays[key].dtype)


# ---- an edited output


def _flip(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    key = next(key for key in arrays if arrays[key].ndim >= 2)
    arrays[key].flat[0] += np.asarray(0.125, arrays[key].dtype)


def _title(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    metadata["modelspec.title"] = "mine"


@pytest.mark.parametrize("name", ["kohya", "diffusers", "resize", "bake"])
def test_edited_tensors_are_told_by_how_much(name: str, run) -> None:
    out = make(name, run)
    rewrite(out, out, _flip)
    result = run("run", out, "--json")
    assert result.code == 1
    assert result.json["verdict"].startswith("same weights to ")
    assert 0 < result.json["relative_distance"] < 0.5
    assert result.json["differs"]


@pytest.mark.parametrize("name", ["kohya", "bake"])
def test_an_edited_header_leaves_the_same_tensors(name: str, run) -> None:
    out = make(name, run)
    rewrite(out, out, _title)
    found = run.ok("run", out, "--json").json
    assert found["verdict"].startswith("same tensors")
    assert not found["differs"]


def test_other_tensors_altogether(run) -> None:
    out = make("kohya", run)
    recipe = read_safetensors(out)[1][KEY]

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata[KEY] = recipe
        for key in arrays:
            arrays[key] = -arrays[key] if "up" in key or "B" in key else arrays[key]

    rewrite(Path("b.safetensors"), out, change)
    result = run("run", out, "--json")
    assert result.code == 1
    assert result.json["verdict"] == "different weights"


# ---- what cannot be repeated


def test_a_file_that_says_nothing(run) -> None:
    run.refused(6, "run", "a.safetensors", says="no recipe that made this file")
    run.refused(3, "run", "absent.safetensors", says="no such file")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"version":1,"inputs":{},"steps":{}}', '{"version":1,"inputs":3,"steps":{}}',
     '{"version":9,"inputs":{},"steps":{"x":{"mix":{"adapters":[]}}}}',
     '{"version":1,"inputs":{"a":3},"steps":{"x":{"mix":{"adapters":["a"]}}}}',
     '{"version":1,"inputs":{},"steps":{"x":3}}', '{"version":1,"inputs":{},"steps":{"x":{"fly":{}}}}',
     '{"version":1,"inputs":{},"steps":{"x":{"mix":{"adapters":["/etc/passwd"]}}}}', "null", "[" * 5000],
)  # fmt: skip
def test_headers_that_hold_no_recipe(text: str, run) -> None:
    """A header is a stranger's: whatever it says ends in an error of ours, and writes nothing."""

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata[KEY] = text

    rewrite(Path("a.safetensors"), Path("x.safetensors"), change)
    before = run.state()
    result = run("run", "x.safetensors")
    assert result.code in (3, 4, 6), (result.code, result.err)
    assert run.state() == before


@pytest.mark.parametrize(
    "where", ["../evil.safetensors", "/tmp/evil.safetensors", "sub/evil.safetensors"]
)
def test_a_header_cannot_write_elsewhere(where: str, run) -> None:
    """Only the last step's result is wanted; saves in a header are not obeyed."""

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        content = {"version": 1, "inputs": {"a": {"path": "a.safetensors"}}, "steps": {
            "x": {"mix": {"adapters": ["a"]}, "save": where},
            "y": {"inspect": {"files": ["a"]}, "save": where.replace("safetensors", "json")},
            "result": {"mix": {"adapters": ["x", "a"]}}}}  # fmt: skip
        metadata[KEY] = json.dumps(content)

    rewrite(Path("a.safetensors"), Path("x.safetensors"), change)
    before = run.state()
    run("run", "x.safetensors")
    assert run.state() == before
    assert not Path("../evil.safetensors").exists()
    assert not Path("/tmp/evil.safetensors").exists()
    assert not Path("/tmp/evil.json").exists()


@pytest.mark.parametrize("word", ["folder", "cache"])
def test_a_header_names_no_folders_to_write_to(word: str) -> None:
    step = {"train": {"base": "b", word: "/tmp/evil"}, "save": "/tmp/evil.safetensors"}
    assert _without_places(step) == {"train": {"base": "b"}}
    assert step["train"] == {"base": "b", word: "/tmp/evil"}


EVIL = """
from pathlib import Path
Path("ran").touch()
class Optimizer: pass
"""
TRAINING = """
version: 1
steps:
  t:
    train: {base: base.safetensors, images: pictures, optimizer: evil.Optimizer}
    save: t.safetensors
"""


def test_a_recipe_or_header_imports_nothing_of_a_strangers(run, monkeypatch) -> None:
    Path("evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(".")
    Path("pictures").mkdir()
    Path("pictures/0.png").write_bytes(b"not looked at")
    Path("recipe.yaml").write_text(TRAINING)
    run.refused(2, "run", "recipe.yaml", says=("evil.Optimizer", "--allow-import"))
    assert "runs its code" in run("plan", "recipe.yaml").out
    assert not Path("ran").exists()
    assert "runs its code" not in run("plan", "recipe.yaml", "--allow-import").out
    Path("ran").unlink(missing_ok=True)  # that it may

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        train = {
            "base": "base",
            "images": "pictures",
            "optimizer": "evil.Optimizer",
            "folder": "evil",
        }
        inputs = {"base": {"path": "base.safetensors"}}
        steps = {"t": {"train": train | {"allow_import": True}}}
        metadata[KEY] = json.dumps({"version": 1, "inputs": inputs, "steps": steps})

    rewrite(Path("a.safetensors"), Path("x.safetensors"), change)
    assert run("run", "x.safetensors").code != 0
    assert not Path("ran").exists() and not Path("evil").exists()


def test_an_input_cannot_be_read_by_a_path_in_a_header(run) -> None:
    """The path of an input is a name: folders in it are not followed."""
    Path("secret").mkdir()
    shutil.move("b.safetensors", "secret/b.safetensors")

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata[KEY] = json.dumps({"version": 1, "inputs": {"b": {"path": "secret/b.safetensors"}},
                                    "steps": {"result": {"mix": {"adapters": ["b"]}}}})  # fmt: skip

    rewrite(Path("a.safetensors"), Path("x.safetensors"), change)
    run.refused(3, "run", "x.safetensors", says="was not found")


@pytest.mark.parametrize(
    "option", [("--set", "w=1"), ("--results", "t.csv"), ("--lock",), ("--dask", "x")]
)
def test_options_of_recipes_are_refused(option: tuple[str, ...], run) -> None:
    out = make("kohya", run)
    run.refused(2, "run", out, *option, says="is for recipes")


def test_other_versions_are_named(run) -> None:
    out = make("kohya", run)

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["loramerge.version"] = "0.0.1"

    rewrite(out, out, change)
    found = run.ok("run", out, "--json").json
    assert any("written by loramerge 0.0.1" in note for note in found["notes"])


# ---- made in Python


MADE = {
    "operators": lambda a, b: 0.7 * a + 0.3 * b,
    "difference": lambda a, b: (a - b) / 2.0,
    "mix": lambda a, b: lm.mix([(a, 0.7), (b, lm.Weight(0.5, {"text_encoder": 0.0}))]),
    "mix cut": lambda a, b: lm.mix([(a, 0.7), (b, 0.3)], rank=3),
    "mix to a size": lambda a, b: lm.mix([(a, 0.7), (b, 0.3)], max_size=60_000),
    "resize": lambda a, b: lm.resize(b, rank=2),
    "a chain": lambda a, b: lm.resize(lm.mix([(0.5 * a + b, 0.5), (b, -1.0)]), max_error=0.3),
}


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("name", first(4, MADE))
def test_a_file_made_from_python_repeats(name: str, run) -> None:
    found = MADE[name](lm.load("a.safetensors"), lm.load("b.safetensors"))
    lm.save(found, "out.safetensors", dialect="kohya")
    assert run.ok("run", "out.safetensors", "--json").json["verdict"] == "same file"
    lm.bake("base.safetensors", [(found, 0.5)], "baked.safetensors", seed=3)
    assert run.ok("run", "baked.safetensors", "--json").json["verdict"] == "same file"


def test_a_file_made_by_a_recipe_repeats(recipe, run) -> None:
    recipe("""
    version: 1
    sweep: {w: [0.5, 1]}
    steps:
      blend: {mix: {adapters: ["a.safetensors:${w}", b.safetensors]}}
      small: {resize: {adapter: blend, max_size: 40%}, save: "small ${w}.safetensors"}
      all: {mix: {adapters: [{each: blend}]}}
      model: {bake: {base: base.safetensors, adapters: [{each: small}, all], rounding: stochastic},
              save: model.safetensors}
    """)
    run.ok("run", "recipe.yaml")
    for name in ("small 0.5", "small 1", "model"):
        assert run.ok("run", f"{name}.safetensors", "--json").json["verdict"] == "same file"


def test_whole_numbers_equal_floats(run) -> None:
    """A preset in a recipe, and integers given from Python, repeat to the byte."""
    weight = {"preset": "OUTALL", "te1": 0, "match": {"*attn1*": 2}}
    mix = {
        "mix": {"adapters": [{"adapter": "a", "weight": weight}], "ratio": 50},
        "save": "x.safetensors",
    }
    lm.run({"version": 1, "inputs": {"a": "a.safetensors"}, "steps": {"mix": mix}})
    lm.save(
        lm.resize(lm.mix([(lm.load("b.safetensors"), lm.Weight(1, {"unet": 2}))]), energy=1),
        "y.safetensors",
    )
    for name in ("x.safetensors", "y.safetensors"):
        assert run.ok("run", name, "--json").json["verdict"] == "same file"


def test_for_many_lost_inputs_the_library_is_listed_once_and_each_file_read_once(
    run, monkeypatch
) -> None:
    names = [f"one-{number}.safetensors" for number in range(12)]
    for name in names:
        shutil.copy("a.safetensors", name)
    run.ok("mix", *names, "--rank", "2", "-o", "out.safetensors")
    Path("library").mkdir()
    run.ok("library", "add", "library")
    for name in names[:6]:
        shutil.move(name, f"library/moved-{name}")
    for name in names[6:]:
        Path(name).unlink()
    for number in range(4):
        shutil.copy("b.safetensors", f"library/other-{number}.safetensors")
    listed, read = [], []
    walk, digest = lookup.walk, known.digest_at
    monkeypatch.setattr(lookup, "walk", lambda *args: (listed.append(args), walk(*args))[1])
    monkeypatch.setattr(known, "digest_at", lambda path: (read.append(Path(path)), digest(path))[1])
    recipe, _ = recipe_of_file(Path("out.safetensors"))
    files = known.KnownFiles()
    found = [
        files.search(entry["path"], entry["sha256"], [Path.cwd()])
        for entry in recipe["inputs"].values()
    ]
    assert len(found) == 12 and None not in found
    assert len(listed) == len(set(listed)) <= 2
    inside = [path for path in read if path.parent.name == "library"]
    assert len(inside) == len(set(inside)) <= 10
