"""Running recipes: what comes out, what is not done again, and what is kept meanwhile."""

from __future__ import annotations

import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
import loramerge.recipe.run as engine
from loramerge.adapter import Adapter
from loramerge.errors import LoramergeError, NumericsError, OutputExists
from loramerge.events import Note, Progress
from tests.builders.samples import data_section, read_safetensors, relative
from tests.builders.world import rewrite, tune, weights

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
CHAIN = """
version: 1
vars: {w: 0.5, r: 3}
inputs: {a: a.safetensors, b: b.safetensors, base: base.safetensors}
steps:
  blend: {mix: {adapters: ["a:${w}", b]}, save: blend.safetensors}
  small: {resize: {adapter: blend, rank: "${r}"}, save: small.safetensors}
  other: {resize: {adapter: b, rank: 2}, save: other.safetensors}
  model: {bake: {base: base, adapters: [small]}, save: model.safetensors}
"""


def statuses(result: Any) -> dict[str, str]:
    return {name: outcome.status for name, outcome in result.outcomes.items()}


def done(result: Any) -> set[str]:
    return {name for name, status in statuses(result).items() if status == "done"}


def files(folder: Path) -> dict[str, bytes]:
    """The outputs in a folder, as bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*.safetensors"))
    }


# ---- what comes out


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


@pytest.mark.parametrize("name", COMMANDS)
def test_a_recipe_of_one_step_gives_the_file_of_the_command(name: str, recipe, run) -> None:
    command, step = COMMANDS[name]
    inputs = (
        "inputs: {a: a.safetensors, b: b.safetensors, base: base.safetensors, "
        "tuned: tuned.safetensors}"
    )
    if "tuned" in command:
        tune(Path("base.safetensors"), Path("tuned.safetensors"))
    recipe(f"version: 1\n{inputs}\nsteps: {{x: {{{step}, save: recipe/x.safetensors}}}}\n")
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


# ---- rounding


def _is_unrounded(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return max(relative(found[k], expected[k]) for k in expected) < 1e-4


def test_what_is_handed_on_in_memory_is_not_rounded(recipe, work) -> None:
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


# ---- what is not done again


@pytest.fixture
def chain(recipe, work) -> Path:
    """A recipe that has been run."""
    path = recipe(CHAIN)
    assert done(lm.run(path)) == {"blend", "small", "other", "model"}
    return path


def test_a_second_run_does_nothing(chain, run, monkeypatch) -> None:
    before = run.state()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was run")

    monkeypatch.setattr(engine, "perform", refuse)
    assert set(statuses(lm.run(chain)).values()) == {"up to date"}
    run.ok("run", "recipe.yaml")
    assert run.state() == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"w": 0.25}, {"blend", "small", "model"}), ({"r": 2}, {"small", "model"}), ({}, set()),
    ],
)  # fmt: skip
def test_a_parameter_runs_what_depends_on_it(chain, change, again) -> None:
    assert done(lm.run(chain, set=change)) == again
    assert done(lm.run(chain, set=change)) == set()


@pytest.mark.parametrize(
    ("name", "again"),
    [("a", {"blend", "small", "model"}), ("b", {"blend", "small", "other", "model"}),
     ("base", {"model"})],
)  # fmt: skip
def test_a_changed_input_runs_what_depends_on_it(chain, name: str, again: set[str]) -> None:
    path = Path(f"{name}.safetensors")
    touched = path.read_bytes()
    path.unlink()  # it may be a link to the original
    path.write_bytes(touched)
    os.utime(path, (1, 1))
    assert done(lm.run(chain)) == set()  # content counts, not times

    def change(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        for key, array in arrays.items():
            if array.ndim >= 2:
                arrays[key] = (array * 1.5).astype(array.dtype)

    rewrite(path, path, change)
    assert done(lm.run(chain)) == again


@pytest.mark.parametrize("name", ["blend", "small", "other", "model"])
def test_a_deleted_output_is_made_again_and_nothing_after_it(chain, name: str) -> None:
    """The same bytes come out, so what was made from them is still right."""
    before = files(Path())
    Path(f"{name}.safetensors").unlink()
    assert done(lm.run(chain)) == {name}
    assert files(Path()) == before


def test_an_edited_output_is_refused_and_made_again_with_force(chain, run) -> None:
    path = Path("blend.safetensors")
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    run.refused(3, "run", "recipe.yaml", says=("blend.safetensors", "was changed since", "--force"))
    assert done(lm.run(chain, force=True)) == {"blend"}
    assert path.read_bytes() == before


def test_upstream_run_again_with_the_same_bytes_leaves_downstream(chain) -> None:
    """A spelling of the same weight is another parameter, but not another file."""
    text = chain.read_text("utf-8").replace(
        '["a:${w}", b]', "[{adapter: a, weight: {default: 0.5}}, b]"
    )
    chain.write_text(text.replace("mix: {", "mix: {embeddings: first, "), "utf-8")
    result = lm.run(chain)
    assert done(result) >= {"blend"}
    # embeddings: first is in the header, so the bytes differ; without the header they do not
    lm.run(chain, strip=True)
    chain.write_text(chain.read_text("utf-8").replace("embeddings: first, ", ""), "utf-8")
    assert done(lm.run(chain, strip=True)) == {"blend"}


def test_fresh_runs_everything_and_gives_the_same(chain) -> None:
    before = files(Path())
    assert len(done(lm.run(chain, fresh=True))) == 4
    assert files(Path()) == before


def test_strip_is_part_of_what_is_asked_for(chain) -> None:
    assert done(lm.run(chain, strip=True)) == {"blend", "small", "other", "model"}
    assert "loramerge.recipe" not in read_safetensors(Path("small.safetensors"))[1]
    assert done(lm.run(chain, strip=True)) == set()


def test_other_code_runs_everything(chain, monkeypatch) -> None:
    monkeypatch.setattr("loramerge.recipe.state.package_digest", lambda: "another")
    assert len(done(lm.run(chain))) == 4


def test_threads_are_no_reason_to_run(chain) -> None:
    assert done(lm.run(chain, threads=1)) == set()


def test_outputs_of_others_are_refused_before_any_work(recipe, run) -> None:
    recipe(CHAIN)
    Path("model.safetensors").write_bytes(b"precious")
    run.refused(3, "run", "recipe.yaml", says=("model.safetensors", "to replace it, give --force"))
    run.ok("run", "recipe.yaml", "--force")
    assert Path("model.safetensors").stat().st_size > 1000
    with pytest.raises(OutputExists):
        lm.run(recipe(CHAIN, "twin.yaml"))


def test_unsaved_steps_are_run_only_where_they_are_needed(recipe, work) -> None:
    text = """
    version: 1
    vars: {r: 2}
    steps:
      blend: {mix: {adapters: [a.safetensors, b.safetensors]}}
      one: {resize: {adapter: blend, rank: "${r}"}, save: one.safetensors}
      two: {resize: {adapter: blend, rank: 3}, save: two.safetensors}
    """
    path = recipe(text)
    assert done(lm.run(path)) == {"blend", "one", "two"}
    assert statuses(lm.run(path)) == {
        "blend": "not needed",
        "one": "up to date",
        "two": "up to date",
    }
    assert done(lm.run(path, set={"r": 4})) == {"blend", "one"}


def test_a_state_that_cannot_be_read_is_named(chain, run) -> None:
    Path("recipe.state.json").write_text("{", "utf-8")
    run.refused(3, "run", "recipe.yaml", says=("recipe.state.json", "delete it"))


def test_a_recipe_that_is_no_file_keeps_no_state(work) -> None:
    content = {
        "version": 1,
        "steps": {"x": {"mix": {"adapters": ["a.safetensors"]}, "save": "x.safetensors"}},
    }
    assert done(lm.run(content)) == {"x"}
    assert not list(Path().glob("*.json"))
    with pytest.raises(OutputExists):
        lm.run(content)
    assert done(lm.run(content, force=True)) == {"x"}


# ---- reports, bases, inputs


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


# ---- failures


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


def test_a_failure_names_its_step_and_leaves_whole_files(recipe, run) -> None:
    rewrite(Path("a.safetensors"), Path("broken.safetensors"), _break)
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
    rewrite(Path("a.safetensors"), Path("broken.safetensors"), _break)
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


# ---- memory, order, parallel


SWEEP = """
version: 1
sweep: {w: [0.1, 0.2, 0.3]}
steps:
  blend: {mix: {adapters: ["a.safetensors:${w}", b.safetensors]}}
  small: {resize: {adapter: blend, rank: 2}, save: "${w}.safetensors"}
"""


@pytest.fixture
def alive(monkeypatch) -> Iterator[Callable[[], int]]:
    """How many adapters handed on in memory are alive at most."""
    gc.freeze()  # of the modules that other tests have imported nothing is to be collected
    refs: list[weakref.ref[Adapter]] = []
    most = [0]
    plain = engine.perform

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        if found.adapter is not None:
            refs.append(weakref.ref(found.adapter))
        gc.collect()
        most[0] = max(most[0], sum(ref() is not None for ref in refs))
        return found

    monkeypatch.setattr(engine, "perform", watched)

    def ask() -> int:
        assert refs
        gc.collect()
        assert all(ref() is None for ref in refs)
        return most[0]

    yield ask
    gc.unfreeze()


def test_a_sweep_keeps_one_result_in_memory(recipe, work, alive) -> None:
    result = lm.run(recipe(SWEEP), threads=1)
    assert len(done(result)) == 6
    assert alive() == 1


def test_results_that_are_needed_again_stay_and_then_go(recipe, work, alive) -> None:
    text = SWEEP.replace('["a.safetensors:${w}", b.safetensors]', '["half:${w}", b.safetensors]')
    text += "  half: {mix: {adapters: ['a.safetensors:0.5']}}\n"
    lm.run(recipe(text), threads=1)
    assert alive() == 2


def test_saved_results_are_not_kept_at_all(recipe, work, alive, monkeypatch) -> None:
    text = SWEEP + "  last: {mix: {adapters: [small]}}\n  end: {diff: {a: last, b: small}}\n"
    lm.run(recipe(text), threads=1)
    assert alive() <= 2


@pytest.mark.parametrize(("threads", "jobs"), [(2, 1), (1, 2), (2, 3)])
def test_threads_and_jobs_change_no_byte(threads: int, jobs: int, recipe, work) -> None:
    text = (
        SWEEP
        + """
  model:
    bake: {base: base.safetensors, adapters: [small], rounding: stochastic}
    save: "m${w}.safetensors"
"""
    )
    text = text.replace("[0.1, 0.2, 0.3]", "[0.1, 0.2]")
    lm.run(recipe(text.replace('save: "', 'save: "one/')), threads=1)
    lm.run(recipe(text.replace('save: "', 'save: "two/'), "two.yaml"), threads=threads, jobs=jobs)
    assert files(Path("one")) == files(Path("two"))
    assert len(files(Path("one"))) == 4


def test_progress_is_told_over_the_whole_graph(recipe, work) -> None:
    events: list[Any] = []
    lm.run(recipe(SWEEP), notify=events.append)
    whole = [e for e in events if isinstance(e, Progress) and e.task.endswith("recipe.yaml")]
    assert [e.done for e in whole] == sorted(e.done for e in whole)
    assert {e.total for e in whole} == {3}
    assert whole[-1].done == 3
    inner = {e.task.partition(":")[0] for e in events if isinstance(e, Progress)}
    assert "small[w=0.3]" in inner
    assert not any(isinstance(e, Note) and "weight 1" in e.text for e in events)


def test_a_quiet_run_prints_nothing(recipe, run) -> None:
    recipe(SWEEP)
    result = run.ok("run", "recipe.yaml", "-q")
    assert result.out == result.err == ""
    shown = run.ok("run", "recipe.yaml").out
    assert "small[w=0.3]" in shown
    assert "up to date" in shown


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


def test_what_is_up_to_date_by_the_state_of_another_machine_stays(run, recipe):
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
