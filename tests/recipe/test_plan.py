"""Plans: what is predicted, against what a run then gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
from loramerge.adapter.save import save
from loramerge.checkpoint import open_checkpoint
from loramerge.recipe.plan import Plan, plan_recipe
from loramerge.recipe.recipe import load_recipe
from loramerge.recipe.writing import yaml_text
from tests.builders.deltas import adapter
from tests.builders.pictures import folder_of
from tests.builders.world import rewrite, tune
from tests.stream.test_kinds_at_a_base import KINDS
from tests.tail import first

CHAIN = """
version: 1
vars: {w: 0.5, r: 3}
inputs: {a: a.safetensors, b: b.safetensors, base: base.safetensors}
steps:
  blend: {mix: {adapters: ["a:${w}", b]}}
  small: {resize: {adapter: blend, rank: "${r}"}, save: small.safetensors}
  twice: {mix: {adapters: [small, blend], to: kohya, dtype: float32}, save: twice.safetensors}
  model: {bake: {base: base, adapters: [small]}, save: model.safetensors}
  half: {bake: {base: model, adapters: [blend], dtype: float16}, save: half.safetensors}
  look: {inspect: {files: [small, model], deep: true}, save: look.json}
  far: {diff: {a: blend, b: small}}
"""
SINGLE = {
    "mix": "mix: {adapters: [a, b]}",
    "mix weighted": 'mix: {adapters: ["a:0.3", "b:unet=0.5:te=0"]}',
    "mix of one": 'mix: {adapters: ["b:0.5"]}',
    "mix cut": "mix: {adapters: [a, b], rank: 5}",
    "mix in kohya": "mix: {adapters: [b], to: kohya, dtype: float32}",
    "mix in diffusers": "mix: {adapters: [a, b], to: diffusers, dtype: bfloat16}",
    "mix for": "mix: {adapters: [a, b], for: comfyui}",
    "mix as kohya": 'mix: {adapters: ["b:0.5", "b:0.5"], compat: kohya}',
    "mix as kohya-concat": 'mix: {adapters: ["b:0.5", "b:0.5"], compat: kohya-concat}',
    "resize": "resize: {adapter: b, rank: 2}",
    "resize to nothing less": "resize: {adapter: a, rank: 64}",
    "resize by energy": "resize: {adapter: b, energy: 0.7}",
    "resize by ratio": "resize: {adapter: b, ratio: 2}",
    "resize to a share": "resize: {adapter: b, max_size: 50%}",
    "resize to a size": "mix: {adapters: [a, b], max_size: 90KB}",
    "resize to an error": "resize: {adapter: b, max_error: 0.2}",
    "extract": "extract: {tuned: tuned.safetensors, base: base.safetensors, rank: 3}",
    "extract whole": "extract: {tuned: tuned.safetensors, base: base.safetensors, full: true}",
}


# independent inputs have as many directions as their ranks together
TIGHT = (
    "mix",
    "mix weighted",
    "mix cut",
    "mix in diffusers",
    "mix for",
    "mix as kohya-concat",
    "resize",
)


def plan(path: Path, **more: Any) -> Plan:
    return plan_recipe(load_recipe(path), **more)


def states(found: Plan) -> dict[str, str]:
    return {name: planned.state for name, planned in found.tasks.items()}


def ran(path: Path, **more: Any) -> dict[str, str]:
    """What a run does, in the words of plans."""
    words = {"done": "will run", "up to date": "up to date", "not needed": "not needed"}
    return {name: words[o.status] for name, o in lm.run(path, **more).outcomes.items()}


def test_plan_from_python_takes_a_file_or_its_content(recipe, work) -> None:
    content = {
        "version": 1,
        "vars": {"r": 3},
        "inputs": {"a": "a.safetensors"},
        "steps": {"x": {"resize": {"adapter": "a", "rank": "${r}"}, "save": "x.safetensors"}},
    }
    path = recipe(yaml_text(content))
    for source in (path, str(path), content):
        found = lm.plan(source, set={"r": 2}).tasks["x"]
        assert found.state == "will run"
        assert found.prediction is not None
        assert max(found.prediction.ranks) == 2


# ---- sizes, ranks, modules


@pytest.mark.parametrize("name", SINGLE)
def test_a_file_is_as_large_as_predicted_or_smaller(name: str, recipe, run) -> None:
    inputs = "inputs: {a: a.safetensors, b: b.safetensors}"
    path = recipe(f"version: 1\n{inputs}\nsteps: {{x: {{{SINGLE[name]}, save: x.safetensors}}}}\n")
    if "tuned" in SINGLE[name]:
        tune(Path("base.safetensors"), Path("tuned.safetensors"))
    before = run.state()
    found = plan(path).tasks["x"].prediction
    assert run.state() == before
    assert found is not None
    assert found.size is not None
    result = lm.run(path).outcomes["x"].result
    size = Path("x.safetensors").stat().st_size
    assert size == result.size
    if found.at_most:
        assert size <= found.size
        assert result.modules <= (found.modules or 0)
        assert max(result.ranks, default=0) <= max(found.ranks, default=0)
        if name in TIGHT:
            assert (size, result.ranks) == (found.size, found.ranks)
    else:
        assert size == found.size
        assert result.ranks == found.ranks
        assert result.modules == found.modules
    assert found.seconds > 0
    assert found.memory > 0


def test_a_whole_graph(recipe, run) -> None:
    path = recipe(CHAIN)
    before = run.state()
    found = plan(path)
    assert run.state() == before
    assert set(states(found).values()) == {"will run"}
    assert states(found) == ran(path)
    for name in ("small", "twice"):
        prediction = found.tasks[name].prediction
        assert prediction is not None, found.tasks[name].reason
        size, ranks = (
            Path(f"{name}.safetensors").stat().st_size,
            lm.load(f"{name}.safetensors").ranks(),
        )
        assert prediction.at_most
        assert prediction.size is not None
        assert prediction.size >= size
        if name == "small":
            assert (prediction.size, prediction.ranks) == (size, ranks)
        else:  # small lies in the span of blend, which ranks alone do not tell
            assert sum(prediction.ranks.values()) == sum(ranks.values())
            assert max(prediction.ranks) > max(ranks)
    for name in ("model", "half"):
        prediction = found.tasks[name].prediction
        if prediction is not None:  # the second depends on a file that does not exist yet
            size = Path(f"{name}.safetensors").stat().st_size
            assert abs(size - (prediction.size or 0)) < 0.05 * size
    assert found.tasks["model"].prediction is not None
    assert set(states(plan(path)).values()) == {"up to date", "not needed"}
    assert states(plan(path)) == ran(path)


def test_a_bake_of_a_file_that_is_there(recipe, run) -> None:
    path = recipe(CHAIN)
    lm.run(path)
    found = plan(path).tasks["half"].prediction
    assert found is not None
    assert found.modules


def test_measured_times_beat_estimates(recipe, work) -> None:
    path = recipe(CHAIN)
    lm.run(path)
    records = json.loads(Path("recipe.state.json").read_text("utf-8"))["tasks"]
    found = plan(path, fresh=True).tasks["small"].prediction
    assert found is not None
    assert found.seconds == records["small"]["seconds"]


# ---- states


def _edit_b(arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    for key in arrays:
        if key.endswith("lora_B.weight"):
            arrays[key] = (arrays[key] * 1.5).astype(arrays[key].dtype)


CHANGES = {
    "nothing": dict,
    "a variable": lambda: {"set": {"w": 0.75}},
    "another variable": lambda: {"set": {"r": 2}},
    "an output gone": lambda: Path("twice.safetensors").unlink() or {},
    "a report gone": lambda: Path("look.json").unlink() or {},
    "an input": lambda: rewrite(Path("b.safetensors"), Path("b.safetensors"), _edit_b) and {},
    "two outputs gone": lambda: (
        Path("model.safetensors").unlink() or Path("half.safetensors").unlink() or {}
    ),
}


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("change", first(3, CHANGES))
def test_states_are_what_a_run_then_does(change: str, recipe, run) -> None:
    """A run may do less than planned, where a result comes out with the bytes it had; never more."""
    path = recipe(CHAIN)
    lm.run(path)
    more = CHANGES[change]()
    before = run.state()
    planned = states(plan_recipe(load_recipe(path, **more)))
    assert run.state() == before
    done = ran(path, **more)
    for name, state in planned.items():
        assert done[name] == state or (
            state == "will run" and done[name] in ("up to date", "not needed")
        )
    if change in ("nothing", "a variable", "an input", "another variable"):
        assert done == planned


def test_fresh(recipe, work) -> None:
    path = recipe(CHAIN)
    lm.run(path)
    assert set(states(plan(path, fresh=True)).values()) == {"will run"}


# ---- the command


def test_the_command_shows_every_task(recipe, run) -> None:
    recipe(CHAIN)
    before = run.state()
    shown = run.ok("plan", "recipe.yaml").out
    for name in ("blend", "small", "twice", "model", "half", "look", "far"):
        assert re.search(rf"^\s*{name}\b", shown, re.MULTILINE), (name, shown)
    assert "will write" in shown
    assert "will run" in shown
    assert run.state() == before
    found = run.ok("plan", "recipe.yaml", "--json", "--set", "r=2").json
    assert list(found) == ["recipe", "seconds", "memory", "size", "tasks"]
    keys = {"step", "case", "verb", "needs", "save", "state", "modules", "ranks", "at_most", "size",
            "memory", "seconds", "remarks", "reason", "refused"}  # fmt: skip
    assert {frozenset(task) for task in found["tasks"].values()} == {frozenset(keys)}
    assert found["tasks"]["small"]["ranks"] == {"2": found["tasks"]["small"]["modules"]}
    assert run.state() == before


def test_pictures_mention_every_task_and_file(recipe, run) -> None:
    recipe(CHAIN.replace("steps:", "sweep: {v: [1, 2]}\nsteps:\n  swept: {mix: {adapters: ['a:${v}']}, "
                         "save: 'v ${v}.safetensors'}"))  # fmt: skip
    tasks = load_recipe("recipe.yaml").tasks
    before = run.state()
    edges = sum(len(t.needs) + len(t.files) for t in tasks.values())
    dot, mermaid = (run.ok("plan", "recipe.yaml", f"--{kind}").out for kind in ("dot", "mermaid"))
    for text, arrow in ((dot, " -> "), (mermaid, " --> ")):
        for name, task in tasks.items():
            assert name in text
            assert task.save is None or task.save.name in text
            assert all(file in text for file in task.files)
        assert text.count(arrow) == edges
    assert dot.startswith("digraph recipe {")
    assert dot.count("{") == dot.count("}")
    assert mermaid.startswith("flowchart LR")
    assert run.state() == before


def test_pictures_quote_names(recipe, run) -> None:
    path = recipe("""
    version: 1
    steps:
      'say "hi"': {mix: {adapters: [a.safetensors]}, save: x.safetensors}
    """)
    assert r"say \"hi\"" in run.ok("plan", path, "--dot").out
    assert "say #quot;hi#quot;" in run.ok("plan", path, "--mermaid").out


def test_unpredictable_results_are_marked(recipe, run) -> None:
    Path("broken.safetensors").write_bytes(b"nothing")
    recipe("""
    version: 1
    steps:
      x: {mix: {adapters: [broken.safetensors]}}
      y: {resize: {adapter: x, rank: 2}, save: y.safetensors}
    """)
    result = run("plan", "recipe.yaml", "--json")
    found = result.json["tasks"]
    assert result.code == found["x"]["refused"] == run("run", "recipe.yaml").code == 3
    assert found["y"]["refused"] is None
    assert "broken.safetensors" in found["x"]["reason"]
    assert found["y"]["reason"] == "depends on a step that has not run yet"
    assert found["y"]["size"] is None
    shown = run("plan", "recipe.yaml").out
    assert "x: this would be refused: broken.safetensors" in shown and "will write" not in shown


def test_what_is_of_unknown_size_is_named(recipe, run) -> None:
    recipe("""
    version: 1
    steps:
      tuned: {mix: {adapters: [a]}, save: small.safetensors}
      learnt: {train: {base: base.safetensors, images: pictures}, save: x.safetensors}
    """)
    folder_of(run.folder / "pictures", 1)
    shown = " ".join(run.ok("plan", "recipe.yaml").out.split())
    assert "kB and the result of learnt, of unknown size. It needs" in shown


NEEDY = """
version: 1
inputs: {k: k.safetensors, a: a.safetensors, base: base.safetensors}
steps:
  half: {mix: {adapters: ["k:0.5"]}, save: half.safetensors}
  small: {resize: {adapter: k, rank: 2}, save: small.safetensors}
  plain: {convert: {adapter: k, to_lora: true, rank: 2}, save: plain.safetensors}
  same: {convert: {adapter: k}, save: same.safetensors}
"""


def test_kinds_that_need_a_base_are_predicted(run, recipe):
    """Headers tell the kinds, so a plan says what the run would: that a step lacks its base."""
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    (place,) = open_checkpoint(run.folder / "base.safetensors").slots[name, "weight"]
    needy = adapter({name: KINDS["dora-out"](place.shape)}, families=["sd21"])
    save(needy, run.folder / "k.safetensors", to="kohya")
    recipe(NEEDY)
    planned = run("plan", "recipe.yaml", "--json")
    tasks = planned.json["tasks"]
    for step in ("half", "small", "plain"):
        assert tasks[step]["size"] is None, step
        for words in ("depends on the base", "dora", "base: B"):
            assert words in tasks[step]["reason"], (step, words)
    assert tasks["same"]["reason"] is None and tasks["same"]["size"]
    assert run("run", "recipe.yaml").code == planned.code == 5
    given = NEEDY
    for words in ('["k:0.5"]', "rank: 2}, save: small", "rank: 2}, save: plain"):
        head, _, tail = words.partition("}")
        given = given.replace(words, f"{head}, base: base" + (f"}}{tail}" if tail else ""))
    recipe(given)
    tasks = run.ok("plan", "recipe.yaml", "--json").json["tasks"]
    assert all(task["reason"] is None for task in tasks.values())
    run.ok("run", "recipe.yaml")
    for step, task in tasks.items():
        size = (run.folder / f"{step}.safetensors").stat().st_size
        assert size <= task["size"], step


def test_what_a_base_holds_already_is_refused(recipe: Any, run: Any) -> None:
    """A run of it would end with the same error."""
    run.ok("bake", "-b", "base.safetensors", "a", "-o", "with.safetensors")
    path = recipe(
        "version: 1\ninputs: {a: a.safetensors, base: with.safetensors}\n"
        "steps: {model: {bake: {base: base, adapters: [a]}, save: model.safetensors}}"
    )
    planned = run("plan", path)
    assert planned.code == 5 and "this would be refused:" in planned.out
    assert "is baked into this base already" in planned.out
    assert "is baked into this base already" in run.refused(5, "run", path).err
