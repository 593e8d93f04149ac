"""Every recipe in recipes/ says what it is for, runs as it says, and makes what it says."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loramerge as lm
from loramerge.library.shipped import SHIPPED_ADAPTERS, SHIPPED_BASES, shipped
from loramerge.recipe.recipe import load_recipe
from tests.builders.commands import Runner
from tests.builders.sampler import few_steps
from tests.builders.unmeasured import unmeasured
from tests.shipped_recipes.conftest import RECIPES, ROOT
from tests.tail import tail

NAMES = sorted(path.stem for path in RECIPES.iterdir())
TRAINING = ("report-2022",)  # recipes whose files no header predicts
UNPREDICTED = "depends on a step that has not run yet"
HALF = 2e-3  # relative rounding of float16 files
Dense = dict[str, np.ndarray]


def header(name: str) -> list[str]:
    """The comment that a recipe begins with, by line."""
    lines = (RECIPES / f"{name}.yaml").read_text("utf-8").splitlines()
    found = []
    for line in lines:
        if not line.startswith("#"):
            break
        found.append(line)
    return found


def commands(name: str) -> list[list[str]]:
    """The command lines of that comment, in words."""
    return [shlex.split(line[1:])[1:] for line in header(name) if line.startswith("#   loramerge ")]


def dense(path: str | Path) -> Dense:
    """ΔW of every module of a file, in float64."""
    return {
        name: np.asarray(delta.dense(), "float64") for name, delta in lm.load(str(path)).modules()
    }


def total(*terms: tuple[Dense, Any]) -> Dense:
    """The weighted sum; a weight is a number or a function of the module's name."""
    found: Dense = {}
    for changes, weight in terms:
        for name, delta in changes.items():
            of = weight(name) if callable(weight) else weight
            if of:
                found[name] = found.get(name, 0.0) + of * delta
    return found


def norm(changes: Dense) -> float:
    return math.sqrt(sum(float((delta**2).sum()) for delta in changes.values()))


def same(path: str | Path, expected: Dense) -> bool:
    """Whether a file holds these changes, up to the rounding of its type, and no others."""
    found = dense(path)
    missing = {name: delta for name, delta in expected.items() if name not in found}
    assert not norm(missing), sorted(missing)
    apart = norm({n: found[n] - expected.get(n, 0.0) for n in found})
    return apart <= HALF * norm(expected)


def cosine(a: Dense, b: Dense) -> float:
    shared = a.keys() & b.keys()
    one, two = ({n: x[n] for n in shared} for x in (a, b))
    product = sum(float((one[n] * two[n]).sum()) for n in shared)
    return product / (norm(one) * norm(two))


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text("utf-8"))


def read_csv(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- what they say ----------------------------------------------------------------------------------


def test_there_are_recipes():
    assert len(NAMES) >= 8 and all(path.suffix == ".yaml" for path in RECIPES.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_the_comment_says_what_it_is_for_and_how_to_run_it(name):
    lines = header(name)
    assert lines and re.fullmatch(r"# [A-Z].{20,130}\.", lines[0]), "a first line of one sentence"
    assert lines[1] == "#" and len(lines) > 3
    runs = [words for words in commands(name) if words[0] == "run"]
    assert runs and all(words[1] == f"{name}.yaml" for words in commands(name))
    options = {"--set", "--input", "--lock"}
    assert any(options & set(words) for words in runs), "how to give it one's own"
    text = (RECIPES / f"{name}.yaml").read_text("utf-8")
    assert text.splitlines()[len(lines)] == "version: 1" and text.endswith("\n")
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented(name):
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert f"[`{name}`](../recipes/{name}.yaml)" in text


@pytest.mark.parametrize("name", NAMES)
def test_its_inputs_are_plain_relative_paths(kitchen, name):
    if name in TRAINING:
        prepare_report()
    recipe = load_recipe(f"{name}.yaml")
    for one in recipe.inputs.values():
        assert not one.path.is_absolute() and one.path.parts[0] in (
            "adapters",
            "models",
            "pictures",
        )
    for task in recipe.tasks.values():
        assert all(not path.is_absolute() or _comes_along(path) for path in task.files.values())
        assert task.save is None or task.save.parts[0] in ("out", "small")


def _comes_along(path: Path) -> bool:
    """Whether this is one of the bases and adapters of loramerge itself."""
    return path in {shipped(name) for name in (*SHIPPED_BASES, *SHIPPED_ADAPTERS)}


# --- that they run ----------------------------------------------------------------------------------


# of those that train, the run is done below
@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize(
    "name",
    [
        n if n in ("bake-for-another-base", "style-and-character", "weight-sweep") else tail(n)
        for n in NAMES
    ],
)
def test_every_command_of_the_comment_runs_and_leaves_nothing_to_do(kitchen, name):
    if name == "shrink-folder":
        only("style", "character")
    if name in TRAINING:
        prepare_report()
    first = next(words for words in commands(name) if words[0] == "run")
    for words in commands(name):
        planned = kitchen.ok("plan", *_for_plan(words), "--json").json["tasks"]
        untold = {UNPREDICTED} if name in TRAINING else set()
        assert {task["reason"] for task in planned.values()} - untold == {None}
        if words[0] == "plan":
            continue
        done = kitchen.ok(*words, "--json").json
        assert set(planned) == set(done["tasks"])
        for key, task in done["tasks"].items():
            assert task["error"] is None and task["status"] != "failed"
            if planned[key]["state"] == "will run":
                assert task["status"] == "done", key
            assert task["output"] is None or Path(task["output"]).exists()
        if words is first:
            assert_nothing_is_left_to_do(kitchen, *words)


def assert_nothing_is_left_to_do(kitchen: Runner, *words: str) -> None:
    written = kitchen.state()
    again = kitchen.ok(*words, "--json").json["tasks"]
    assert {task["status"] for task in again.values()} <= {"up to date", "not needed"}
    assert "up to date" in {task["status"] for task in again.values()}
    assert {k: v for k, v in kitchen.state().items() if "out/" in k or "small/" in k} == {
        k: v for k, v in written.items() if "out/" in k or "small/" in k
    }


def _for_plan(words: list[str]) -> list[str]:
    """The recipe, with the options of a run that a plan has, too."""
    kept = [words[1]]
    for option, value in zip(words, [*words[1:], ""], strict=True):
        if option in ("--set", "--input"):
            kept += [option, value]
    return kept


# --- what they make ---------------------------------------------------------------------------------


def test_style_and_character(kitchen):
    a, b = dense("adapters/style.safetensors"), dense("adapters/character.safetensors")
    kitchen.ok("run", "style-and-character.yaml")
    assert same("out/character-and-style.safetensors", total((b, 0.8), (a, 0.5)))
    assert not same("out/character-and-style.safetensors", total((b, 0.8), (a, 0.49)))
    kitchen.ok("run", "style-and-character.yaml", "--set", "character_weight=0.9")
    assert same("out/character-and-style.safetensors", total((b, 0.9), (a, 0.5)))


def only(*names: str) -> None:
    """Leave these adapters alone in the folder."""
    for path in Path("adapters").iterdir():
        if path.stem not in names:
            path.unlink()


def prepare_report() -> None:
    """Write the pictures that it is run with, and make it as short as it can be."""
    for module in ("torch", "diffusers", "PIL"):
        pytest.importorskip(module)
    from loramerge.tiny.__main__ import main

    assert main(["pictures", "pictures"]) == 0
    recipe = Path("report-2022.yaml")
    text = recipe.read_text("utf-8")
    for word, value in {"steps": 4, "batch": 2, "drawing_steps": 2}.items():
        text, count = re.subn(rf"(?m)^  {word}: \d+$", f"  {word}: {value}", text)
        assert count == 1, word
    recipe.write_text(text, "utf-8")


@pytest.mark.long_tail
def test_report_2022(kitchen, monkeypatch):
    prepare_report()
    few_steps(monkeypatch)
    unmeasured(monkeypatch)
    command = ["run", "report-2022.yaml", "--results", "report.csv"]
    assert command in commands("report-2022")
    kitchen.ok(*command)
    assert_nothing_is_left_to_do(kitchen, *command)
    made = {n: lm.load(f"out/{n}.safetensors") for n in ("rank4", "rank64", "up-blocks", "full")}
    assert made["rank4"].ranks() == {4: 63} and made["rank64"].ranks() == {64: 63}
    blocks = {site.name.split(".")[1] for site in made["up-blocks"].deltas}
    assert blocks == {"up_blocks"} and len(made["full"].deltas) > len(made["up-blocks"].deltas) > 63
    rank64, polka = dense("out/rank64.safetensors"), dense(shipped("polka"))
    assert same("out/rank64+polka.safetensors", total((rank64, 1.0), (polka, 1.0)))
    (row,) = read_csv("report.csv")
    sizes = {n: int(row[f"{n}.size"]) for n in ("rank4", "rank64", "slow", "full")}
    assert sizes["rank4"] < sizes["rank64"] < sizes["full"]
    assert 15 < (sizes["rank64"] - 40_000) / (sizes["rank4"] - 40_000) < 17  # 40 kB are no factors
    found = {Path(one["path"]).stem: one for one in read_json("out/inspected.json")}
    assert len(found) == 8
    assert not [p for one in found.values() for p in one["findings"] if p["code"] == "untrained"]


def test_shrink_folder(kitchen):
    only("style", "new")
    files = sorted(path.name for path in Path("adapters").iterdir())
    kitchen.ok("run", "shrink-folder.yaml", "--set", "size=100KB", "--results", "small.csv")
    assert sorted(path.name for path in Path("small").iterdir()) == files
    rows = {Path(row["file"]).name: row for row in read_csv("small.csv")}
    assert sorted(rows) == files
    for name in files:
        before, after = (Path(folder, name).stat().st_size for folder in ("adapters", "small"))
        row = rows[name]
        assert 70_000 < after <= 100_000 < before
        assert (int(row["small.size_before"]), int(row["small.size_after"])) == (before, after)
        old, new = dense(f"adapters/{name}"), dense(f"small/{name}")
        lost = norm({n: old[n] - new.get(n, 0.0) for n in old}) / norm(old)
        assert float(row["small.relative_error"]) == pytest.approx(lost, rel=1e-2)
        assert float(row["small.norm_kept"]) == pytest.approx(math.sqrt(1 - lost**2), rel=1e-2)
    one = "adapters/style.safetensors"
    kitchen.ok("run", "shrink-folder.yaml", "--set", "size=50%", "--set", f"file={one}")
    assert Path("small/style.safetensors").stat().st_size <= Path(one).stat().st_size / 2


def test_shrink_folder_names_what_fails_and_makes_the_rest(kitchen):
    only("style", "first")
    whole = Path("adapters/style.safetensors").read_bytes()
    Path("adapters/broken.safetensors").write_bytes(whole[:1000])
    result = kitchen("run", "shrink-folder.yaml", "--keep-going", "--results", "small.csv")
    assert result.code == 3
    rows = {row["file"]: row["small.status"] for row in read_csv("small.csv")}
    assert rows.pop("adapters/broken.safetensors") == "failed"
    assert set(rows.values()) == {"done"} and "broken" not in str(list(Path("small").iterdir()))


def test_bake_for_another_base(kitchen):
    result = kitchen.ok("run", "bake-for-another-base.yaml", "--json").json["tasks"]
    figures = result["baked"]["figures"]
    assert figures["modules"] == len(dense("adapters/character.safetensors"))
    assert figures["survived"] > 0.999
    (fits,) = read_json("out/fits.json")
    assert fits["base"]["works"] is True


def test_weight_sweep(kitchen):
    a, b = dense("adapters/style.safetensors"), dense("adapters/character.safetensors")
    kitchen.ok("run", "weight-sweep.yaml", "--set", "style_weight=[0.2,0.6]", "--results", "t.csv")
    rows = read_csv("t.csv")
    pairs = [(float(row["character_weight"]), float(row["style_weight"])) for row in rows]
    assert pairs == [(c, s) for c in (0.8, 1.0) for s in (0.2, 0.6)]
    for (c, s), row in zip(pairs, rows, strict=True):
        expected = total((b, c), (a, s))
        assert row["blend.output"] == f"out/sweep/character-{c:g}-style-{s:g}.safetensors"
        assert same(row["blend.output"], expected)
        assert float(row["apart.shared.cosine"]) == pytest.approx(cosine(b, expected), abs=1e-3)
    gathered = read_json("out/sweep/all.json")
    assert [one["path"] for one in gathered] == [row["blend.output"] for row in rows]


BLOCKS = {f"up_blocks.{i}": w for i, w in ((1, (0.3,) * 3), (2, (0.6,) * 3), (3, (1.0,) * 3))}


def fine_style(name: str) -> float:
    """The style's weight as the recipe's comment says it, by the names of diffusers."""
    found = re.match(r"unet\.(up_blocks\.\d)\.attentions\.(\d)\.", name)
    return BLOCKS[found[1]][int(found[2])] if found else 0.0


def test_block_weights(kitchen):
    a, b = dense("adapters/style.safetensors"), dense("adapters/character.safetensors")
    kitchen.ok("run", "block-weights.yaml")
    for half in (0.5, 1.0):
        expected = total((b, lambda n, half=half: half if "attn2" in n else 1.0), (a, fine_style))
        assert sum(fine_style(name) > 0 for name in a) > 20
        assert same("out/character-with-fine-style.safetensors", expected) == (half == 0.5)
    kitchen.ok("run", "block-weights.yaml", "--set", "cross_attention=1")
    assert same("out/character-with-fine-style.safetensors", expected)


def test_subtract_style(kitchen):
    a, b = dense("adapters/style.safetensors"), dense("adapters/character.safetensors")
    for strength in (-0.5, -0.3):
        kitchen.ok("run", "subtract-style.yaml", "--set", f"strength={strength}")
        expected = total((b, 1.0), (a, strength))
        assert same("out/character-without-style.safetensors", expected)
        left = read_json("out/style-left.json")["shared"]["cosine"]
        assert left == pytest.approx(cosine(expected, a), abs=1e-3) and left < 0


def factors(path: str) -> dict[str, tuple[np.ndarray, np.ndarray, float, int]]:
    """Up and down as stored, alpha and rank of every module."""
    return {
        name: (
            d.up.numpy().astype("float64").reshape(-1, d.rank),
            d.down.numpy().astype("float64").reshape(d.rank, -1),
            d.scale.value(d.rank) * d.rank,
            d.rank,
        )
        for name, d in lm.load(path).modules()
    }


def test_old_kohya_results(kitchen):
    kitchen.ok("run", "old-kohya-results.yaml")
    files = [factors(f"adapters/{name}.safetensors") for name in ("first", "second")]
    expected: Dense = {}
    for name in files[0].keys() | files[1].keys():
        up = down = 0.0
        for content, ratio in zip(files, (0.7, 0.3), strict=True):
            if name in content:
                one_up, one_down, alpha, rank = content[name]
                up = up + abs(ratio) * math.sqrt(alpha) * one_up
                down = down + ratio * math.sqrt(alpha) * one_down
        expected[name] = up @ down / rank
    shapes = dense("out/as-kohya-made-it.safetensors")
    expected = {n: delta.reshape(shapes[n].shape) for n, delta in expected.items()}
    assert same("out/as-kohya-made-it.safetensors", expected)
    apart = read_json("out/exact-against-kohya.json")
    exact = total(
        *(
            (dense(f"adapters/{n}.safetensors"), w)
            for n, w in (("first", 0.7), ("second", 0.3))
        )
    )  # fmt: skip
    most = max(norm(expected), norm(exact))
    distance = norm(total((expected, 1.0), (exact, -1.0))) / most
    assert apart["differs"] and distance > 0.5
    assert apart["total"]["relative_distance"] == pytest.approx(distance, rel=0.01)


def test_old_kohya_results_say_why_ranks_must_agree(kitchen):
    shutil.copy("adapters/character.safetensors", "adapters/second.safetensors")  # of rank 6
    result = kitchen("run", "old-kohya-results.yaml")
    assert result.code and "kohya refuses adapters of different ranks" in result.err


def test_full_pipeline(kitchen):
    a, b = dense("adapters/style.safetensors"), dense("adapters/character.safetensors")
    kitchen.ok("run", "full-pipeline.yaml")
    small = "out/blend-r32.safetensors"
    assert same(small, total((b, 0.8), (a, lambda name: 0.5 * name.startswith("unet."))))
    (look,) = read_json("out/blend.json")
    assert look["path"] == small and look["base"]["works"] is True
    assert look["norm"] == pytest.approx(norm(dense(small)), rel=1e-3)
    size = Path("models/base.safetensors").stat().st_size
    assert abs(Path("out/base-with-blend.safetensors").stat().st_size - size) < 10_000
    kitchen.ok("run", "full-pipeline.yaml", "--set", "rank=3")
    assert max(lm.load("out/blend-r3.safetensors").ranks()) == 3
    refused = kitchen(
        "run", "full-pipeline.yaml", "--set", "rank=1", "--set", "most_lost=0.1"
    )  # fmt: skip
    assert refused.code == 7 and not Path("out/blend-r1.safetensors").exists()


def test_rank_ladder(kitchen):
    whole = dense("adapters/character.safetensors")
    kitchen.ok("run", "rank-ladder.yaml", "--set", "rank=[4,2,1]", "--results", "ranks.csv")
    rows = read_csv("ranks.csv")
    assert [row["rank"] for row in rows] == ["4", "2", "1"]
    values = {
        name: np.linalg.svd(delta.reshape(len(delta), -1), compute_uv=False)
        for name, delta in whole.items()
    }
    for row in rows:
        rank = int(row["rank"])
        assert set(lm.load(f"out/ranks/adapter-r{rank}.safetensors").ranks()) == {rank}
        tail = math.sqrt(sum(float((s[rank:] ** 2).sum()) for s in values.values()))
        assert float(row["small.relative_error"]) == pytest.approx(tail / norm(whole), rel=1e-3)
        assert int(row["small.size_after"]) == Path(row["small.output"]).stat().st_size


def test_rank_ladder_makes_no_ranks_up(kitchen):
    kitchen.ok("run", "rank-ladder.yaml")
    for rank in (64, 32, 16, 8):
        assert set(lm.load(f"out/ranks/adapter-r{rank}.safetensors").ranks()) == {6}


def test_compare_versions(kitchen):
    kitchen.ok("run", "compare-versions.yaml")
    old, new = (dense(f"adapters/{name}.safetensors") for name in ("old", "new"))
    change = dense("out/new-minus-old.safetensors")
    apart = norm(total((old, 1.0), (change, 1.0), (new, -1.0)))
    assert apart <= HALF * norm(new)
    found = read_json("out/difference.json")
    assert found["differs"] and found["verdict"]
    assert found["shared"]["cosine"] == pytest.approx(cosine(old, new), abs=1e-3)
    assert [one["path"] for one in read_json("out/versions.json")] == [
        "adapters/old.safetensors",
        "adapters/new.safetensors",
    ]


def test_locked(kitchen):
    kitchen.ok("run", "locked.yaml", "--lock")
    assert set(read_json("locked.lock.json")["inputs"]) == {"character", "style"}
    kitchen.ok("run", "locked.yaml")
    shutil.copy("adapters/style.safetensors", "kept.safetensors")
    shutil.copy("adapters/old.safetensors", "adapters/style.safetensors")
    refused = kitchen("run", "locked.yaml")
    assert refused.code == 6 and "the recipe is locked" in refused.err
    shutil.copy("kept.safetensors", "adapters/style.safetensors")
    kitchen.ok("run", "locked.yaml")
    library = kitchen.ok("library", "add", "adapters")
    assert library.code == 0
    repeated = kitchen.ok("run", "out/release.safetensors", "--json").json
    assert repeated["verdict"] == "same file"


def test_a_pin_as_the_comment_of_locked_shows_it(kitchen):
    digest = kitchen.ok("inspect", "--hash", "adapters/character.safetensors", "--json").json
    sha256 = digest[0]["hashes"]["sha256"]
    place = "character: adapters/character.safetensors"
    pinned = Path("locked.yaml").read_text("utf-8")
    assert place in pinned
    entry = f"character: {{path: adapters/character.safetensors, sha256: {sha256}}}"
    Path("pinned.yaml").write_text(pinned.replace(place, entry), "utf-8")
    kitchen.ok("run", "pinned.yaml")
    Path("pinned.yaml").write_text(pinned.replace(place, entry.replace(sha256, "f" * 64)), "utf-8")
    refused = kitchen("run", "pinned.yaml")
    assert refused.code == 6 and "has changed" in refused.err
