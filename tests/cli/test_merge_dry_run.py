"""merge --dry-run: it says what the merge then reports, refuses what that refuses, writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
from loramerge.files.dtypes import DTYPES
from loramerge.steps import merge_forecast
from loramerge.stream import merge_survey
from loramerge.stream.merge_plan import MergePlan
from loramerge.verbs.merge import run as merge_run
from tests.builders import small_models
from tests.builders.layered_models import layered
from tests.tail import first

# a dry run does not know these, or has them alone
OF_ONE = {"outputs", "dry_run", "factors", "blocks", "cosines", "estimated", "touched"}

MERGES: dict[str, tuple[str, ...]] = {
    "a file with an adapter": ("base.safetensors", "tuned.safetensors:0.3", "lora:b:0.5"),
    "a folder from a base": ("models/a", "models/b", "--base", "c", "--method", "ties"),
    "scaled float8": ("scaled.safetensors", "tuned.safetensors:0.3"),
    "another type": ("base.safetensors", "tuned.safetensors:0.3", "--dtype", "bfloat16"),
    "a folder in shards": ("sharded", "models/b:0.25", "--dtype", "float16"),
    "a weak change": ("base.safetensors", "tuned.safetensors:0.001"),
    "without a record": ("base.safetensors", "tuned.safetensors:0.3", "--strip"),
    "one module": ("base.safetensors", "tuned.safetensors", "--take", "unet.*attn1.to_q=tuned"),
    "no change": ("base.safetensors", "base.safetensors:0.5"),
    "layers": ("x", "--layers", "x=0-1", "--layers", "x=1-2"),
}


@pytest.fixture
def models(run: Any) -> Path:
    """A base and two models of it as folders, in shards too, and files: tuned, scaled float8."""
    folder = small_models.write_tuned(run.folder)
    small_models.write(folder / "sharded", small_models.weights(3, "F32"), shards=2)
    layered(folder / "x", 3, 1)
    run.ok("bake", "-b", "base.safetensors", "a", "-o", "tuned.safetensors")
    lm.bake("base.safetensors", [], "scaled.safetensors", storage=["float8-scaled"])
    return folder


def words_of(name: str) -> tuple[str, ...]:
    output = "out.safetensors" if MERGES[name][0].endswith(".safetensors") else "out"
    return ("merge", *MERGES[name], "-o", output)


def types_in(output: Path) -> dict[str, str]:
    """Tensor → type, of a checkpoint that was written."""
    files = [output] if output.is_file() else output.rglob("*.safetensors")
    return {
        name: DTYPES[entry["dtype"]].word for path in files for name, entry in header(path).items()
    }


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found.pop("__metadata__", None)
    return found


def check(name: str, run: Any) -> Any:
    """The law: a dry run writes nothing, and says what the merge then says."""
    words, before = words_of(name), run.state()
    dry = run.ok(*words, "--dry-run", "--json")
    assert run.state() == before
    done = run.ok(*words, "--json")
    found, want = dry.json, done.json
    assert set(found) - set(want) == {"estimated", "touched"}
    assert (found["outputs"], found["dry_run"], found["estimated"]) == ([], True, None)
    assert want["outputs"] == [want["output"]] and want["dry_run"] is False
    assert {n: v for n, v in found.items() if n not in OF_ONE} == {
        n: v for n, v in want.items() if n not in OF_ONE
    }
    assert dry.err == done.err
    assert ("warning: only" in dry.err) == ((found["survived"] or 1) < 0.9)
    touched = {one["tensor"]: one["dtype"] for one in found["touched"]}
    assert len(touched) == found["merged"]
    assert touched.items() <= types_in(Path(want["output"])).items()
    return found


@pytest.mark.parametrize("name", first(5, MERGES))
def test_a_dry_run_says_what_the_merge_reports(name: str, run: Any, models: Path) -> None:
    found = check(name, run)
    kept = found["survived"]
    assert kept is not None or name in ("no change", "layers")
    assert (kept is not None and kept < 0.9) == (name in ("a weak change", "scaled float8"))


PLANTED: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "the size without the record": (
        "a folder from a base",
        lambda patch: patch.setattr(
            merge_run, "output_size",
            lambda plan, entries, own=merge_run.output_size: own(plan, {}),
        ),
    ),
    "the size without the lineage": (
        "a weak change",
        lambda patch: patch.setattr(
            merge_run, "output_size",
            lambda plan, entries, own=merge_run.output_size: own(
                plan, {n: v for n, v in entries.items() if not n.startswith("modelspec")}
            ),
        ),
    ),
    "rounded to the type of the first": (
        "another type",
        lambda patch: patch.setattr(
            merge_survey, "layouts_of",
            lambda plan, whole, own=merge_survey.layouts_of: own(replace(plan, dtype=None), whole),
        ),
    ),
    "types of the first": (
        "another type",
        lambda patch: patch.setattr(
            merge_run, "changes_of",
            lambda plan, own=merge_run.changes_of: own(replace(plan, dtype=None)),
        ),
    ),
    "some of the tensors": (
        "a weak change", lambda patch: patch.setattr(merge_forecast, "WHOLE", 0),
    ),
    "what is only copied": (
        "one module",
        lambda patch: patch.setattr(
            MergePlan, "changes",
            lambda plan: (
                one for some in plan.blends.values() for parts in some.values() for one in parts
            ),
        ),
    ),
    "written": ("a folder from a base", lambda patch: patch.setattr(
        merge_run, "add_survivals", lambda result, found: Path("out").touch()
    )),
}  # fmt: skip


@pytest.mark.parametrize("fault", first(4, PLANTED))
def test_a_wrong_dry_run_is_found(
    fault: str, run: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, plant = PLANTED[fault]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(name, run)


def test_it_is_shown(run: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of("a weak change")
    shown = run.ok(*words, "--dry-run").out
    figures = ("size ", "accuracy ", "size of change ")
    for label in (
        "would write     out.safetensors",
        "would merge  ",
        "module ",
        "float16",
        "more;",
    ):
        assert label in shown, label
    assert "merged " not in shown and "written " not in shown and "estimated" not in shown
    lines = [line for line in shown.splitlines() if line.startswith(figures)]
    monkeypatch.setattr(merge_forecast, "WHOLE", 0)
    assert "32 of" in (some := run.ok(*words, "--dry-run").out) and "; a merge measures all" in some
    done = run.ok(*words).out
    assert "would" not in done and "float16" in done
    assert lines == [line for line in done.splitlines() if line.startswith(figures)]


def test_what_nobody_can_say_is_said(run: Any, models: Path) -> None:
    """An operator that compares all weights first gives no figures before it has."""
    words = ("merge", "models/a", "models/b:0.5", "--method", "cosine-adaptive", "-o", "out")
    before = run.state()
    dry = run.ok(*words, "--dry-run", "--json")
    assert run.state() == before and "No estimate of what rounding keeps" in dry.err
    assert dry.json["survived"] is None and dry.json["moved"] is None
    assert dry.json["notes"][-1].startswith("No estimate")
    assert dry.json["size"] == run.ok(*words, "--json").json["size"]


def test_it_refuses_what_the_merge_refuses(run: Any, models: Path) -> None:
    two = ("merge", "models/a", "models/b:0.5", "-o")
    for code, *words in (
        (3, *two, "c"),
        (3, "merge", "base.safetensors", "tuned.safetensors:0.5", "-o", "tuned.safetensors"),
        (2, *two, "out.safetensors"),
        (2, "merge", "models/a", "-o", "out"),
        (2, *two, "out", "--dtype", "float7"),
        (2, *two, "out", "--method", "ties"),
        (4, "merge", "models/a", "base.safetensors:0.5", "-o", "out"),
        (4, "merge", "base.safetensors", "scaled.safetensors:0.5", "lora:lost:0.5", "-o", "out"),
    ):  # fmt: skip
        real = run.refused(code if "lora:lost:0.5" not in words else 3, *words)
        assert run.refused(real.code, *words, "--dry-run").err == real.err
    run.ok(*two, "c", "--force", "--dry-run")


def test_recipes_and_pages_of_a_dry_run(run: Any, models: Path) -> None:
    """A dry run writes the recipe and the page that are asked for. The recipe then merges."""
    words, before = words_of("a folder from a base"), set(run.state())
    made = ("--save-recipe", "r.yaml", "--html", "page.html", "--plot", "plot.svg")
    result = run.ok(*words, "--dry-run", *made, "--json")
    assert set(run.state()) - before == {"r.yaml", "page.html"}
    assert result.json["outputs"] == ["page.html"] and "no plot was written" in result.err
    page = (models / "page.html").read_text("utf-8")
    assert "A dry run: nothing was merged." in page and "tensors to merge" in page
    assert "dry" not in (models / "r.yaml").read_text()
    run.ok("run", "r.yaml")
    assert result.json["size"] == small_models.size_of(models / "out")
    run.refused(6, "run", recipe_with_dry_run(models), says="dry_run")


def recipe_with_dry_run(models: Path) -> str:
    step = "merge: {models: [models/a, 'models/b:0.5'], dry_run: true}, save: other"
    (models / "dry.yaml").write_text(f"version: 1\nsteps: {{x: {{{step}}}}}\n", "utf-8")
    return "dry.yaml"


def test_python_has_it(run: Any, models: Path) -> None:
    two: list[Any] = ["models/a", ("models/b", 0.5)]
    before = run.state()
    found = lm.merge(two, "out", base="c", dry_run=True)
    assert run.state() == before and found.dry_run and not found.json()["outputs"]
    done = lm.merge(two, "out", base="c")
    assert not done.dry_run and (found.size, found.merged) == (done.size, done.merged)
    assert (found.survived, found.moved, found.worst) == (done.survived, done.moved, done.worst)
    with pytest.raises(lm.LoramergeError, match="exists"):
        lm.merge(two, "out", base="c", dry_run=True)
