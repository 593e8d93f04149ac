"""compare: copies, clusters and ingredients on the command line and in a recipe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from loramerge.files.names import short_names
from loramerge.library.shipped import shipped, shipped_name
from tests.builders.world import rewrite


@pytest.fixture
def family(run):
    """A folder with an adapter, three copies of it, and another one."""
    (run.folder / "lib").mkdir()
    run.ok("mix", "a", "-o", "lib/a.safetensors")
    run.ok("mix", "a:0.7", "--to", "diffusers", "-o", "lib/quiet.safetensors")
    run.ok("resize", "--rank", "1", "a", "-o", "lib/small.safetensors")
    run.ok("mix", "b", "-o", "lib/b.safetensors")
    return run


def test_copies_are_told_in_words(family):
    found = family.ok("compare", "lib", "--json").json
    words = {one["words"] for one in found["copies"]}
    assert any("quiet.safetensors is a.safetensors times 0.7, converted" in one for one in words)
    assert any("small.safetensors is a.safetensors resized to rank 1: " in one for one in words)
    kept = {key.rpartition("/")[2]: one.rpartition("/")[2] for key, one in found["keep"].items()}
    assert set(kept) == {"quiet.safetensors", "small.safetensors"} or "a.safetensors" in kept
    assert "b.safetensors" not in kept
    assert [len(those) for those in found["clusters"]] == [3]
    assert [found["cosines"][n][n] for n in range(4)] == pytest.approx([1.0] * 4)
    shown = family.ok("compare", "lib").out
    assert "4 adapters: 2 copies of others, 1 cluster." in shown and "cosine" in shown


@pytest.mark.long_tail
def test_ingredients(family):
    family.ok("mix", "a:0.6", "b:0.3", "--dtype", "float32", "-o", "x.safetensors")
    found = family.ok("compare", "lib/a.safetensors", "b", "--ingredients", "x", "--json").json
    weights = {key.rpartition("/")[2]: one for key, one in found["ingredients"]["weights"].items()}
    assert sorted(weights.values()) == pytest.approx([0.3, 0.6], abs=1e-3)
    assert found["ingredients"]["remainder"] < 1e-2
    family.ok("resize", "--rank", "1", "x", "-o", "x1.safetensors")
    shown = family.ok("compare", "a", "b", "x1", "--ingredients", "x1").out
    assert "ingredients of" in shown and "would be unexplained" in shown


def test_it_is_a_step(run):
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {one: a.safetensors, two: b.safetensors}\nsteps:\n"
        "  half: {mix: {adapters: ['one:0.5']}}\n"
        "  pairs: {compare: {files: [one, two, half], ingredients: half}, save: pairs.json}\n",
        "utf-8",
    )
    assert run.ok("plan", "r.yaml").code == 0
    run.ok("run", "r.yaml")
    assert '"rescaled"' in (run.folder / "pairs.json").read_text("utf-8")


def test_refusals(run):
    run.refused(2, "compare", "a", says="nothing to compare")
    run.refused(3, "compare", "a", "missing", says="missing")
    run.refused(2, "compare", "a", "b", "--alike", "2", says="alike")
    (run.folder / "mixed").mkdir()
    (run.folder / "mixed" / "bad.safetensors").write_bytes(b"no")
    for name in ("a", "b"):
        (run.folder / "mixed" / f"{name}.safetensors").write_bytes(
            (run.folder / f"{name}.safetensors").read_bytes()
        )
    assert "left out" in run.ok("compare", "mixed").out


def test_files_of_one_name_are_told_apart(run):
    for folder in ("x", "y"):
        (run.folder / folder).mkdir()
        run.ok("mix", "a", "-o", f"{folder}/same.safetensors")
    shown = run.ok("compare", "x", "y", "b", "--html", "page.html").out
    assert "y/same.safetensors is the same adapter as x/same.safetensors" in shown.replace(
        "\n", " "
    )
    assert "y/same.safetensors" in Path("page.html").read_text("utf-8")
    assert short_names(["p/x/a", "q/x/a", "q/b", "q/b"]) == ["p/x/a", "q/x/a", "b", "b"]


def test_a_damaged_file_does_not_stop_the_others(run):
    def damage(arrays, metadata):
        max(arrays.values(), key=lambda one: one.size).flat[0] = math.nan

    rewrite(run.folder / "a.safetensors", run.folder / "bad.safetensors", damage)
    result = run.ok("compare", "a", "bad", "b")
    assert "2 adapters" in result.out and "left out: " in result.out and "NaN" in result.err
    run.refused(7, "compare", "a", "bad", says="bad.safetensors")


def test_what_comes_with_loramerge_has_its_name():
    names = ("tiny", "tiny-outlined", "zuzu")
    assert [shipped_name(shipped(name)) for name in names] == [*names]
    assert shipped_name("elsewhere/zuzu.safetensors") is None


def test_weights_of_a_file_are_called_by_it(run):
    Path("late.yaml").write_text("depth: [0, 1]\n")
    shown = run.ok("mix", "a", "b", "--weights", "a=late.yaml", "-o", "x.safetensors").out
    assert "a with the weights of late.yaml" in shown and "b at weight 1" in shown


def test_checkpoints_in_a_folder_are_counted(run):
    """Pipelines of several files and single files; an adapter that lies in a pipeline is compared."""
    place = run.folder / "mixed"
    place.mkdir()
    for name in ("one", "two"):
        run.ok("bake", "--base", "tiny", "--lora", "zuzu", "-o", f"mixed/{name}")
    rewrite(run.folder / "base.safetensors", place / "single.safetensors", lambda *_: None)
    for name in ("zuzu", "polka"):
        run.ok("mix", name, "-o", f"mixed/one/{name}.safetensors")
    found = run.ok("compare", "mixed")
    assert "2 adapters: no copies" in found.out and "3 checkpoints are left out." in found.out
    assert (
        found.out.count("left out") == 1 and "left out" not in found.err and not found.err.strip()
    )
    (place / "one" / "broken.safetensors").write_bytes(b"no")
    found = run.ok("compare", "mixed", "--json")
    assert "broken" in found.err
    reasons = {Path(path).name: why for path, why in found.json["unreadable"].items()}
    assert set(reasons) == {"one", "two", "single.safetensors", "broken.safetensors"}
    assert reasons["one"] == reasons["single.safetensors"] == "this is a checkpoint, not an adapter"
