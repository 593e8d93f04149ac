"""Sweeps: which tasks there are, what they gather, and the table that comes out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import loramerge as lm
from loramerge.errors import RecipeError
from loramerge.recipe.recipe import Recipe, load_recipe, recipe_of

CHAIN = """
version: 1
sweep: {w: [0.25, 0.5], r: [1, 2, 3]}
steps:
  half: {mix: {adapters: [a.safetensors, "b.safetensors:0.5"]}}
  blend: {mix: {adapters: ["a.safetensors:${w}", half]}}
  small: {resize: {adapter: blend, rank: "${r}"}, save: "out/${w}-${r}.safetensors"}
"""


def of(content: dict[str, Any], **more: Any) -> Recipe:
    return recipe_of({"version": 1, **content}, Path(), **more)


def names(recipe: Recipe, step: str) -> list[str]:
    return [name for name, task in recipe.tasks.items() if task.step == step]


def test_steps_run_once_for_what_they_depend_on(recipe, work) -> None:
    found = load_recipe(recipe(CHAIN))
    assert names(found, "half") == ["half"]
    assert names(found, "blend") == ["blend[w=0.25]", "blend[w=0.5]"]
    assert len(names(found, "small")) == 6
    assert found.tasks["small[w=0.5,r=3]"].needs == ("blend[w=0.5]",)
    assert found.tasks["small[w=0.5,r=3]"].parameters.rank == 3
    assert found.tasks["blend[w=0.25]"].needs == ("half",)


def test_every_case_gives_what_its_own_recipe_gives(recipe, work) -> None:
    lm.run(recipe(CHAIN), threads=1)
    for w, r in ((0.25, 1), (0.5, 3)):
        plain = CHAIN.replace("sweep: {w: [0.25, 0.5], r: [1, 2, 3]}", f"vars: {{w: {w}, r: {r}}}")
        lm.run(recipe(plain.replace("out/", "plain/"), "plain.yaml"), threads=1, force=True)
        name = f"{w}-{r}.safetensors"
        assert Path("out", name).read_bytes() == Path("plain", name).read_bytes()


def test_a_list_of_cases(work) -> None:
    content = {
        "sweep": [{"n": "x", "r": 1}, {"n": "y", "r": 2}],
        "steps": {"s": {"resize": {"adapter": "a.safetensors", "rank": "${r}"},
                        "save": "${n}.safetensors"}},
    }  # fmt: skip
    found = of(content)
    assert [(t.parameters.rank, t.save.name) for t in found.tasks.values() if t.save] == [
        (1, "x.safetensors"), (2, "y.safetensors"),
    ]  # fmt: skip


@settings(max_examples=40,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(
    sweep=st.dictionaries(st.sampled_from("pqr"), st.lists(st.integers(1, 4), min_size=1, max_size=3,
                          unique=True), min_size=1),
    uses=st.lists(st.sets(st.sampled_from("pqr")), min_size=3, max_size=3),
)  # fmt: skip
def test_tasks_are_the_distinct_projections(work, sweep, uses) -> None:
    """A chain of steps: each has a task for every value of what it and those before it use."""
    steps: dict[str, Any] = {}
    for index, used in enumerate(uses):
        ref = f"s{index - 1}" if index else "a.safetensors"
        match = {f"{v}${{{v}}}": 0.5 for v in sorted(used & sweep.keys())}
        steps[f"s{index}"] = {
            "mix": {"adapters": [{"adapter": ref, "weight": {"default": 1, "match": match}}]}
        }
    seen: set[str] = set().union(*uses) & sweep.keys()
    steps["s2"]["save"] = "".join(f"${{{v}}}-" for v in sorted(seen)) + ".safetensors"
    found = of({"sweep": sweep, "steps": steps})
    depends: set[str] = set()
    for index, used in enumerate(uses):
        depends |= used & sweep.keys()
        tasks = [task for task in found.tasks.values() if task.step == f"s{index}"]
        count = 1
        for name in depends:
            count *= len(sweep[name])
        assert len(tasks) == count
        assert all(set(task.case) == depends for task in tasks)
        for task in tasks:
            for needed in task.needs:
                assert found.tasks[needed].case.items() <= task.case.items()


# ---- gathering


def test_each_gathers_all_cases(recipe, work) -> None:
    text = """
    version: 1
    sweep: {w: [0.25, 0.5, 1]}
    steps:
      blend: {mix: {adapters: ["a.safetensors:${w}"]}}
      sum: {mix: {adapters: [{each: blend}, b.safetensors]}, save: sum.safetensors}
      look: {inspect: {files: [{each: blend}]}, save: look.json}
    """
    found = load_recipe(recipe(text))
    assert names(found, "sum") == ["sum"]
    assert found.tasks["sum"].needs == ("blend[w=0.25]", "blend[w=0.5]", "blend[w=1]")
    assert [r.name for r in found.tasks["sum"].parameters.adapters] == [
        *found.tasks["sum"].needs, "b.safetensors",
    ]  # fmt: skip
    lm.run("recipe.yaml")
    lm.save(1.75 * lm.load("a.safetensors") + lm.load("b.safetensors"), "plain.safetensors")
    assert (
        lm.diff(lm.load("sum.safetensors"), lm.load("plain.safetensors")).comparison.total.distance
        < 1e-3
    )
    assert len(json.loads(Path("look.json").read_text("utf-8"))) == 3


def test_each_with_a_weight(work) -> None:
    found = of(
        {
            "sweep": {"w": [1, 2]},
            "steps": {
                "x": {"mix": {"adapters": ["a.safetensors:${w}"]}},
                "s": {"mix": {"adapters": [{"each": "x", "weight": 0.5}]}, "save": "s.safetensors"},
            },
        }
    )
    assert [r.weight.default for r in found.tasks["s"].parameters.adapters] == [0.5, 0.5]


def test_each_with_a_variable_of_its_own_takes_the_cases_that_agree(work) -> None:
    found = of(
        {
            "sweep": {"w": [1, 2], "r": [1, 2, 3]},
            "steps": {
                "x": {"mix": {"adapters": ["a.safetensors:${w}"]}},
                "y": {"resize": {"adapter": "x", "rank": "${r}"}},
                "s": {
                    "mix": {"adapters": [{"each": "y", "weight": "${w}"}]},
                    "save": "s${w}.safetensors",
                },
            },
        }
    )
    for w in (1, 2):
        assert found.tasks[f"s[w={w}]"].needs == tuple(f"y[w={w},r={r}]" for r in (1, 2, 3))
    assert "s" not in found.tasks


def test_each_of_a_list_of_cases_takes_only_real_cases(work) -> None:
    found = of(
        {
            "sweep": [{"w": 1, "r": 1}, {"w": 2, "r": 3}],
            "steps": {
                "y": {"resize": {"adapter": "a.safetensors:${w}", "rank": "${r}"}},
                "s": {"mix": {"adapters": [{"each": "y"}]}, "save": "s.safetensors"},
            },
        }
    )
    assert found.tasks["s"].needs == ("y[w=1,r=1]", "y[w=2,r=3]")


def test_each_without_a_sweep_is_the_step(work) -> None:
    found = of(
        {
            "steps": {
                "y": {"mix": {"adapters": ["a.safetensors"]}},
                "s": {"mix": {"adapters": [{"each": "y"}]}, "save": "s.safetensors"},
            }
        }
    )
    assert found.tasks["s"].needs == ("y",)


def test_a_step_after_a_gathering_does_not_depend_on_the_sweep(work) -> None:
    found = of(
        {
            "sweep": {"w": [1, 2]},
            "steps": {
                "x": {"mix": {"adapters": ["a.safetensors:${w}"]}},
                "s": {"mix": {"adapters": [{"each": "x"}]}},
                "t": {"resize": {"adapter": "s", "rank": 1}, "save": "t.safetensors"},
                "u": {"mix": {"adapters": ["s", "x"]}, "save": "u${w}.safetensors"},
            },
        }
    )
    assert names(found, "t") == ["t"]
    assert found.tasks["u[w=2]"].needs == ("s", "x[w=2]")


# ---- files, overrides


def test_a_sweep_over_files(recipe, run) -> None:
    Path("loras").mkdir()
    for name in ("a", "b"):
        Path(f"{name}.safetensors").rename(f"loras/{name} v1.safetensors")
    recipe("""
    version: 1
    sweep: {f: {files: "loras/*.safetensors"}}
    steps:
      small: {resize: {adapter: "${f}", rank: 1}, save: "small/${f.stem}.safetensors"}
    """)
    run.ok("run", "recipe.yaml")
    assert sorted(p.name for p in Path("small").iterdir()) == [
        "a v1.safetensors",
        "b v1.safetensors",
    ]
    run.ok("resize", "loras", "--rank", "1", "--out-dir", "plain")
    for path in Path("small").iterdir():
        assert path.read_bytes() == Path("plain", path.name).read_bytes()


def test_set_replaces_a_range(recipe, run) -> None:
    recipe(CHAIN)
    out = run.ok("run", "recipe.yaml", "--set", "w=0.75", "--set", "r=[2, 4]", "--json").json
    assert [Path(p).name for p in out["outputs"]] == ["0.75-2.safetensors", "0.75-4.safetensors"]
    assert out["tasks"]["small[w=0.75,r=4]"]["case"] == {"w": 0.75, "r": 4}


def test_a_variable_of_vars_beside_a_sweep(work) -> None:
    content = {
        "vars": {"d": "out"},
        "sweep": {"w": [1, 2]},
        "steps": {
            "x": {"mix": {"adapters": ["a.safetensors:${w}"]}, "save": "${d}/${w}.safetensors"}
        },
    }
    found = of(content, set={"d": "other"})
    assert [t.save for t in found.tasks.values()] == [
        Path("other/1.safetensors"), Path("other/2.safetensors"),
    ]  # fmt: skip


def test_a_mistake_of_one_case_is_told_once(recipe, work) -> None:
    text = CHAIN.replace("r: [1, 2, 3]", "r: [1, 0, high]")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(text))
    assert len(caught.value.mistakes) == 2
    assert any("found 0" in line for line in caught.value.mistakes)
    assert any("found 'high'" in line for line in caught.value.mistakes)


# ---- the table


def test_a_row_for_each_case(recipe, run) -> None:
    recipe("""
    version: 1
    sweep: {w: [0.25, 0.5], r: [1, 2]}
    steps:
      blend: {mix: {adapters: ["a.safetensors:${w}", b.safetensors]}}
      small: {resize: {adapter: blend, rank: "${r}"}, save: "${w}-${r}.safetensors"}
      all: {mix: {adapters: [{each: small}]}, save: all.safetensors}
      far: {diff: {a: blend, b: small}}
    """)
    for _ in range(2):  # figures of what is up to date are in the table, too
        run.ok("run", "recipe.yaml", "--results", "table.csv")
        with Path("table.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["w"], row["r"]) for row in rows] == [
            ("0.25", "1"), ("0.25", "2"), ("0.5", "1"), ("0.5", "2"),
        ]  # fmt: skip
        for row in rows:
            path = Path(row["small.output"])
            assert path.name == f"{row['w']}-{row['r']}.safetensors"
            assert int(row["small.size_after"]) == path.stat().st_size
            assert 0 < float(row["small.norm_kept"]) < 1
            assert float(row["far.total.relative_distance"]) == pytest.approx(
                float(row["small.relative_error"]), rel=0.02
            )
            assert row["all.output"].endswith("all.safetensors")
        assert len({row["small.norm_kept"] for row in rows}) == 4


def test_the_table_of_a_recipe_without_a_sweep_has_one_row(recipe, run) -> None:
    recipe("version: 1\nsteps: {x: {mix: {adapters: [a.safetensors]}, save: x.safetensors}}\n")
    run.ok("run", "recipe.yaml", "--results", "table.csv")
    with Path("table.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["x.output"] == "x.safetensors"


def test_a_table_replaces_only_a_table(recipe, run) -> None:
    recipe("version: 1\nsteps: {x: {mix: {adapters: [a.safetensors]}, save: x.safetensors}}\n")
    Path("table.csv").write_text("dear diary", "utf-8")
    run.refused(3, "run", "recipe.yaml", "--results", "table.csv", says="not a table of results")
