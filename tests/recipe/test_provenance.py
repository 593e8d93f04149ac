"""What headers say of how a file was made: a recipe of names and digests, the same everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
from loramerge.files.tensors import ArrayTensor
from loramerge.recipe.recipe import recipe_of
from tests.builders.samples import read_safetensors
from tests.builders.world import write_folder
from tests.tail import first

KEY = "loramerge.recipe"

WRITES = {
    "mix": "mix a.safetensors:0.7 b.safetensors:0.3 -o @@.safetensors",
    "mix in kohya": "mix a.safetensors b.safetensors --to kohya --dtype float32 -o @@.safetensors",
    "mix in diffusers": "mix a.safetensors --to diffusers -o @@.safetensors",
    "mix in peft": "mix b.safetensors --to peft -o @@",
    "mix for": "mix a.safetensors --for comfyui -o @@.safetensors",
    "mix by component": "mix b.safetensors:unet=0.5:te=0.25 -o @@.safetensors",
    "mix by block": "mix a.safetensors:OUTALL -o @@.safetensors",
    "mix by file": "mix a.safetensors --weights a=w.yaml -o @@.safetensors",
    "mix to a size": "mix a.safetensors b.safetensors --max-size 50% -o @@.safetensors",
    "mix as kohya": "mix a.safetensors:0.5 a.safetensors:0.5 --compat kohya -o @@.safetensors",
    "resize": "resize a.safetensors --rank 2 -o @@.safetensors",
    "resize many": "resize b.safetensors --energy 0.9 --conv-rank 1 --max-error 0.9 -o @@.safetensors",
    "bake": "bake --base base.safetensors a.safetensors:0.5 -o @@.safetensors",
    "bake stochastically": "bake --base base.safetensors a.safetensors --rounding stochastic --seed 3 "
                           "-o @@.safetensors",
    "bake a folder": "bake --base base a.safetensors -o @@",
    "bake some": "bake --base base.safetensors b.safetensors --skip-missing all --dtype bfloat16 "
                 "-o @@.safetensors",
}  # fmt: skip


def header(path: Path) -> dict[str, str]:
    """Metadata of a file, or of the first weights of a folder."""
    if path.is_dir():
        path = min(path.rglob("*.safetensors"))
    return read_safetensors(path)[1]


def prepare() -> None:
    """Add a base that is a folder and a file of weights to the current folder."""
    write_folder(Path("base.safetensors"), Path("base"))
    Path("w.yaml").write_text('{default: 0.5, text_encoder: 0, match: {"*attn1*": 0.25}}', "utf-8")


def output(arguments: list[str]) -> Path:
    return Path(arguments[arguments.index("-o") + 1])


def made(path: str = "out.safetensors") -> dict[str, Any]:
    return json.loads(header(Path(path))[KEY])


@pytest.mark.parametrize("name", WRITES)
def test_headers_hold_recipes_without_anything_of_the_machine(name: str, run, tmp_path) -> None:
    prepare()
    arguments = WRITES[name].replace("@@", "out").split()
    run.ok(*arguments, "--threads", "2")
    text = header(output(arguments))[KEY]
    content = json.loads(text)
    assert json.dumps(content, ensure_ascii=False, separators=(",", ":")) == text
    assert list(content) == ["version", "inputs", "steps"]
    # it is a valid recipe, but for the folder and the save
    steps = {n: {**s, "save": "x" if output(arguments).suffix == "" else "x.safetensors"}
             if n == "result" else s for n, s in content["steps"].items()}  # fmt: skip
    found = recipe_of({**content, "steps": steps}, Path())
    assert found.tasks["result"].verb.name == arguments[0]
    for entry in content["inputs"].values():
        assert set(entry) <= {"path", "sha256", "recipe"}
        path = Path(entry["path"])
        assert path.name == entry["path"]
        if path.is_file():
            assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for secret in (
        str(tmp_path),
        os.uname().nodename,
        "thread",
        "/",
        "device",
        "2026",
        "force",
        "out.",
    ):
        assert secret not in text.replace("sha256", ""), secret
    assert not re.search(r"\d\d:\d\d", text)


@pytest.mark.parametrize("name", first(8, WRITES))
def test_equal_inputs_give_equal_bytes_wherever_they_lie(name: str, run) -> None:
    prepare()
    (here := Path("here")).mkdir()
    run.ok(*WRITES[name].replace("@@", "here/out").split(), "--threads", "1")
    there = Path("über all/there")
    there.mkdir(parents=True)
    for path in Path().iterdir():
        if path.suffix in (".safetensors", ".yaml"):
            os.link(path, there / path.name)
    shutil.copytree("base", there / "base")
    arguments = WRITES[name].replace("@@", "out").split()
    moved = [re.sub(r"^((a|b|base)\.safetensors|base$)", lambda m: str(there.absolute() / m[0]), word)
             for word in arguments]  # fmt: skip
    os.chdir(there)
    run.ok(*moved, "--threads", "2")
    one, two = here.absolute().parent.parent.parent / "here", Path()
    target = output(arguments)
    assert _bytes(one / target) == _bytes(two / target)


def _bytes(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("name", ["mix", "resize", "bake", "bake a folder", "mix in peft"])
def test_strip_leaves_nothing(name: str, run) -> None:
    prepare()
    arguments = WRITES[name].replace("@@", "out").split()
    run.ok(*arguments, "--strip")
    assert not [key for key in header(output(arguments)) if key.startswith("loramerge")]
    target = output(arguments)
    run.refused(6, "run", target, says="no recipe that made this file")


def test_parameters_without_effect_on_the_result_are_not_recorded(run) -> None:
    for index, extra in enumerate(([], ["--seed", "9"], ["--trained-on", "base.safetensors"])):
        run.ok(
            "bake",
            "--base",
            "base.safetensors",
            "a.safetensors",
            "-o",
            f"{index}.safetensors",
            *extra,
        )
    assert len({Path(f"{i}.safetensors").read_bytes() for i in range(3)}) == 1


# ---- chains


def test_a_chain_brings_its_recipe_along(run) -> None:
    run.ok("mix", "a.safetensors:0.5", "b.safetensors", "-o", "mixed.safetensors")
    run.ok("resize", "mixed.safetensors", "--rank", "2", "-o", "out.safetensors")
    content = made()
    assert content["inputs"]["mixed"]["recipe"] == made("mixed.safetensors")
    assert (
        content["inputs"]["mixed"]["sha256"]
        == hashlib.sha256(Path("mixed.safetensors").read_bytes()).hexdigest()
    )
    step = content["steps"]["result"]["resize"]
    assert step["adapter"] == {"adapter": "mixed"}
    assert (step["rank"], step["dtype"]) == (2, "float16")


def test_one_file_under_two_names_is_two_inputs_and_one_used_twice_is_one(run) -> None:
    shutil.copy("a.safetensors", "twin.safetensors")
    run.ok(
        "mix",
        "a.safetensors:0.5",
        "twin.safetensors:0.5",
        "a.safetensors:0.1",
        "-o",
        "out.safetensors",
    )
    content = made()
    assert [entry["path"] for entry in content["inputs"].values()] == [
        "a.safetensors",
        "twin.safetensors",
    ]
    assert len({entry["sha256"] for entry in content["inputs"].values()}) == 1


def test_steps_in_memory_are_steps_of_the_recipe(work) -> None:
    a, b = lm.load("a.safetensors"), lm.load("b.safetensors")
    blend = 0.7 * a + 0.3 * b
    lm.save(lm.resize(blend, rank=2), "out.safetensors", dialect="kohya", dtype="float16")
    content = made()
    assert list(content["inputs"]) == ["a", "b"]
    assert content["steps"]["result"]["resize"]["to"] == "kohya"
    assert content["steps"]["result"]["resize"]["dtype"] == "float16"
    assert all("mix" in step for name, step in content["steps"].items() if name != "result")


@pytest.mark.parametrize("base", ["base.safetensors", "base"])
def test_a_base_that_an_adapter_was_made_with_is_one_input_of_a_bake(base: str, work) -> None:
    prepare()
    small = lm.resize(lm.load("a.safetensors"), rank=2, base=base)
    lm.bake(base, [(small, 1.0)], "baked.safetensors" if base.endswith("s") else "baked")
    (made,) = Path().glob("baked*")
    recipe = json.loads(header(made)[KEY])
    assert sorted(recipe["inputs"]) == ["a", "base"]
    assert recipe["steps"]["step1"]["resize"]["base"] == "base"
    assert recipe["steps"]["result"]["bake"]["base"] == "base"


@pytest.mark.parametrize(
    "name",
    [
        "result",
        "step1",
        "step 2 of 3",
        "a:b" if os.name != "nt" else "x",
        "größe",
        "${w}",
        "x" * 90,
    ],
)
def test_files_of_any_name_are_inputs(name: str, run) -> None:
    shutil.copy("a.safetensors", f"{name}.safetensors")
    run.ok("mix", f"./{name}.safetensors", "-o", "out.safetensors")
    found = run.ok("run", "out.safetensors", "--json").json
    assert found["verdict"] == "same file"


def test_a_long_recipe_of_an_input_is_not_carried_on(run) -> None:
    from tests.builders.world import rewrite

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata[KEY] = json.dumps({"version": 1, "inputs": {}, "steps": {"x": "y" * (1 << 18)}})

    rewrite(Path("a.safetensors"), Path("long.safetensors"), change)
    run.ok("resize", "long.safetensors", "--rank", "2", "-o", "out.safetensors")
    assert "recipe" not in made()["inputs"]["long"]


# ---- by hand


def test_an_adapter_as_it_was_read_is_its_file(work) -> None:
    a = lm.load("a.safetensors")
    lm.save(lm.mix([(a, 0.5)]), "out.safetensors")
    assert list(made()["inputs"]) == ["a"]


def _scale_one(adapter: lm.Adapter) -> lm.Adapter:
    (first, delta), *rest = adapter.deltas.items()
    return adapter.with_deltas(dict([(first, delta.scaled(2.0)), *rest]))


def _drop_one(adapter: lm.Adapter) -> lm.Adapter:
    return adapter.with_deltas(dict(list(adapter.deltas.items())[1:]))


def _say_more(adapter: lm.Adapter) -> lm.Adapter:
    metadata = adapter.info.metadata | {"ss_tag_frequency": "{}"}
    return adapter.with_deltas(adapter.deltas, metadata=metadata)


def _embed(adapter: lm.Adapter) -> lm.Adapter:
    import numpy as np

    return replace(adapter, embeddings={"<new>": ArrayTensor(np.ones((1, 4), np.float32))})


@pytest.mark.parametrize("change", [_scale_one, _drop_one, _say_more, _embed])
@pytest.mark.parametrize("computed", [False, True])
def test_adapters_changed_by_hand_have_no_recipe(change, computed: bool, work) -> None:
    adapter = lm.load("a.safetensors")
    if computed:
        adapter = lm.mix([(adapter, 0.5)])
    adapter = change(adapter)
    lm.save(adapter, "out.safetensors", dialect="kohya")
    assert KEY not in header(Path("out.safetensors"))
    lm.save(lm.mix([(adapter, 1.0)], embeddings="none"), "next.safetensors", dialect="kohya")
    assert KEY not in header(Path("next.safetensors"))


def test_a_change_taken_back_is_none(work) -> None:
    adapter = lm.load("a.safetensors")
    kept = adapter.deltas
    adapter = _scale_one(adapter).with_deltas(kept)
    lm.save(lm.mix([(adapter, 0.5)]), "out.safetensors")
    assert KEY in header(Path("out.safetensors"))


def test_an_adapter_of_other_deltas_is_not_what_it_was_made_from(work) -> None:
    adapter = lm.load("a.safetensors")
    half = adapter.with_deltas(dict(list(adapter.deltas.items())[:5]))
    lm.save(half, "out.safetensors", dialect="kohya")
    assert KEY not in header(Path("out.safetensors"))
    assert replace(adapter).maker is not None


def test_saving_what_was_read_converts_it(run) -> None:
    run.ok("mix", "a.safetensors:0.5", "-o", "mixed.safetensors")
    lm.save(lm.load("mixed.safetensors"), "copy.safetensors")
    copy = made("copy.safetensors")
    assert copy["inputs"]["mixed"]["recipe"] == made("mixed.safetensors")
    steps = {"result": {"convert": {"adapter": {"adapter": "mixed"}, "to": "kohya"}}}
    assert copy["steps"] == steps
    assert run.ok("run", "copy.safetensors", "--json").json["verdict"] == "same file"
    lm.save(1.0 * lm.load("mixed.safetensors"), "times.safetensors")
    assert made("times.safetensors")["inputs"]["mixed"]["recipe"] == made("mixed.safetensors")


def test_a_recipe_may_be_thousands_of_steps_deep(tmp_path):
    import json

    from loramerge.steps.provenance import FileInput, Made, length_is_known, recipe_text

    node = FileInput(tmp_path / "a.safetensors", (tmp_path / "a.safetensors",), None)
    for _ in range(5000):  # each uses the one before it twice
        node = Made("mix", {"adapters": [{"adapter": node}, {"adapter": node, "weight": 0.5}]})
    assert length_is_known(node)
    steps = json.loads(recipe_text(node, {}, lambda _: "0"))["steps"]
    assert len(steps) == 5000 and list(steps)[-1] == "result"
    assert steps["step2"]["mix"]["adapters"][1] == {"adapter": "step1", "weight": 0.5}
