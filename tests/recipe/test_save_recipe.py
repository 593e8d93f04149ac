"""`--save-recipe`: what a command did, as a recipe that does the same."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from loramerge.recipe.text import parse_text
from tests.builders.world import tune, write_folder
from tests.tail import first

COMMANDS = {
    "mix": "mix a.safetensors:0.7 b.safetensors:0.3 -o @@.safetensors",
    "mix by component": "mix b.safetensors:unet=0.5:te=0.25 a.safetensors -o @@.safetensors",
    "mix by block": "mix a.safetensors:OUTALL b.safetensors:0.1 -o @@.safetensors",
    "mix by files": "mix a.safetensors b.safetensors --weights a=w.yaml "
                    "--weights b=d.yaml -o @@.safetensors",
    "mix with everything": "mix a.safetensors b.safetensors --rank 4 --to kohya --dtype bfloat16 "
                           "--max-error 0.99 --embeddings first -o @@.safetensors",
    "mix for a program": "mix a.safetensors --for diffusers -o @@.safetensors",
    "mix as peft": "mix a.safetensors:0.5 a.safetensors:0.5 --compat peft-linear -o @@.safetensors",
    "mix one twice": "mix a.safetensors:0.5 a.safetensors:0.25 -o @@.safetensors",
    "mix into a folder": "mix b.safetensors --to peft -o @@",
    "mix of a prompt": "mix <lora:style:0.5> -o @@.safetensors",
    "resize": "resize b.safetensors --energy 0.5 -o @@.safetensors",
    "resize to a share": "resize b.safetensors --max-size 40% -o @@.safetensors",
    "resize a folder": "resize loras --rank 2 --out-dir @@",
    "resize a pattern": "resize loras/*.safetensors --rank 2 --out-dir @@",
    "extract": "extract --tuned tuned.safetensors --base folder --energy 0.9 --vectors "
               "-o @@.safetensors",
    "bake": "bake --base base.safetensors a.safetensors:0.5 --lora b.safetensors:0.25 -o @@.safetensors",
    "bake stochastically": "bake --base base.safetensors a.safetensors --rounding stochastic --seed 3 "
                           "-o @@.safetensors",
    "bake by file": "bake --base base.safetensors a.safetensors --weights a=w.yaml -o @@.safetensors",
    "bake names": "bake --base sd21-custom style:0.5 -o @@.safetensors",
    "bake a folder": "bake --base folder a.safetensors -o @@",
    "bake some": "bake --base base.safetensors b.safetensors --skip-missing text_encoder "
                 "--skip-missing unet -o @@.safetensors",
}  # fmt: skip
REPORTS = {
    "inspect": "inspect a.safetensors b.safetensors --deep",
    "inspect a pattern": "inspect loras/*.safetensors",
    "inspect a folder": "inspect loras --modules",
    "inspect with a base": "inspect a.safetensors --base sd21-custom",
    "inspect names": "inspect style base.safetensors",
    "diff": "diff a.safetensors:0.5 b.safetensors",
    "diff with a code": "diff a.safetensors style --exit-code",
}


@pytest.fixture
def names(run) -> Any:
    """A library, a registered base, folders and files of weights."""
    Path("library").mkdir()
    os.link("a.safetensors", "library/style.safetensors")
    (loras := Path("loras/sub")).mkdir(parents=True)
    os.link("a.safetensors", loras / "a [v2].safetensors")
    os.link("b.safetensors", "loras/b.safetensors")
    run.ok("library", "add", "library")
    run.ok("base", "add", "sd21-custom", "base.safetensors")
    write_folder(Path("base.safetensors"), Path("folder"))
    Path("w.yaml").write_text('{default: 0.5, text_encoder: 0, match: {"*attn1*": 0.25}}', "utf-8")
    Path("d.yaml").write_text("{depth: [0, 1, 0.5]}", "utf-8")
    return run


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("name", first(8, COMMANDS))
def test_the_recipe_gives_the_same_bytes(name: str, names) -> None:
    command = COMMANDS[name].replace("@@", "out")
    words = re.split(r" (?![^<]*>)", command)
    if "tuned.safetensors" in words:
        tune(Path("base.safetensors"), Path("tuned.safetensors"))
    names.ok(*words, "--save-recipe", "recipe.yaml")
    output = Path(words[-1])
    before = contents(output)
    assert before
    output.rename("before")
    result = names.ok("run", "recipe.yaml", "--json").json
    assert {t["status"] for t in result["tasks"].values()} == {"done"}
    assert contents(output) == before
    text = Path("recipe.yaml").read_text("utf-8")
    assert str(Path.cwd()) not in text
    content, mistakes = parse_text(text, "recipe.yaml")
    assert not mistakes.found
    assert content["version"] == 1


@pytest.mark.parametrize("name", REPORTS)
def test_the_recipe_gives_the_same_report(name: str, names) -> None:
    code = names(
        *REPORTS[name].split(), "--save-recipe", "recipe.yaml", "--json-file", "plain.json"
    ).code
    assert code in (0, 1)
    content, _ = parse_text(Path("recipe.yaml").read_text("utf-8"), "recipe.yaml")
    (step,) = content["steps"].values()
    assert list(step) == [REPORTS[name].split()[0]]
    assert "exit_code" not in str(step)
    found = names.ok("run", "recipe.yaml", "--json").json
    assert [t["status"] for t in found["tasks"].values()] == ["done"]


def test_a_recipe_elsewhere_finds_its_files(names) -> None:
    Path("deep/er").mkdir(parents=True)
    names.ok(
        "mix", "a.safetensors:0.5", "-o", "out/x.safetensors", "--save-recipe", "deep/er/r.yaml"
    )
    text = Path("deep/er/r.yaml").read_text("utf-8")
    content, _ = parse_text(text, "r")
    assert content["inputs"] == {"a": "../../a.safetensors"}
    assert text.splitlines()[0].startswith("#") and "--allow-outside" in text.splitlines()[0]
    before = Path("out/x.safetensors").read_bytes()
    Path("out/x.safetensors").unlink()
    os.chdir("library")
    names.refused(2, "run", "../deep/er/r.yaml", says="--allow-outside")  # a stranger's may not
    names.ok("run", "../deep/er/r.yaml", "--allow-outside")
    assert Path("../out/x.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["größe 日本", "on", "1e-4", "null", "a, b", "x: y",
                                  "result", "mix", "#1", "${w}", "*star"])  # fmt: skip
def test_files_of_any_name(name: str, names) -> None:
    os.link("a.safetensors", f"{name}.safetensors")
    names.ok("mix", f"./{name}.safetensors", f"{name}.safetensors:0.5", "-o", "out.safetensors",
             "--save-recipe", "recipe.yaml")  # fmt: skip
    before = Path("out.safetensors").read_bytes()
    Path("out.safetensors").unlink()
    names.ok("run", "recipe.yaml")
    assert Path("out.safetensors").read_bytes() == before


def test_outputs_of_any_name(names) -> None:
    names.ok(
        "mix", "a.safetensors", "-o", "cost ${w} $5.safetensors", "--save-recipe", "recipe.yaml"
    )
    before = Path("cost ${w} $5.safetensors").read_bytes()
    Path("cost ${w} $5.safetensors").unlink()
    names.ok("run", "recipe.yaml")
    assert Path("cost ${w} $5.safetensors").read_bytes() == before


def test_an_existing_recipe_is_not_replaced(names) -> None:
    Path("recipe.yaml").write_text("mine", "utf-8")
    names.refused(3, "mix", "a.safetensors", "-o", "x.safetensors", "--save-recipe", "recipe.yaml",
                  says="the recipe exists")  # fmt: skip


def test_a_failed_command_writes_no_recipe(names) -> None:
    names.refused(
        3, "mix", "absent.safetensors", "-o", "x.safetensors", "--save-recipe", "recipe.yaml"
    )
    assert not Path("recipe.yaml").exists()


def test_a_default_name_is_written_out(names) -> None:
    names.ok("mix", "a.safetensors:0.7", "b.safetensors:0.3", "--save-recipe", "recipe.yaml")
    content, _ = parse_text(Path("recipe.yaml").read_text("utf-8"), "r")
    assert content["steps"]["mix"]["save"] == "a@0.7+b@0.3.safetensors"
