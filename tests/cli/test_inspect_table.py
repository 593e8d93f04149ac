"""inspect of several files: one table, sorted, as CSV, readable at 80 columns."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest

from loramerge.cli import show
from loramerge.verbs.inspect import Inspect, inspect
from loramerge.verbs.inspect.table import COLUMNS, rows_of
from tests.builders.samples import read_safetensors, safetensors_bytes
from tests.builders.world import rewrite


@pytest.fixture
def loras(run):
    """A folder of adapters of all sorts; some of its files are one thing."""
    folder = run.folder / "loras"
    folder.mkdir()
    for name in "ab":
        shutil.copy(run.folder / f"{name}.safetensors", folder)
    run.ok("mix", "b", "--to", "peft", "-o", "loras/folder")
    shards = folder / "big"
    shards.mkdir()
    arrays, _ = read_safetensors(run.folder / "base.safetensors")
    names = list(arrays)
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    index = {"weight_map": {}, "metadata": {}}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        (shards / file).write_bytes(safetensors_bytes({n: arrays[n] for n in part}, {}))
        index["weight_map"] |= dict.fromkeys(part, file)
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    _wan(folder)
    return folder


def _wan(folder):
    """The two files of an adapter of Wan 2.2."""
    for which, factor in (("high", 1.0), ("low", 2.0)):
        arrays = {
            f"diffusion_model.blocks.{b}.self_attn.q.lora_{end}.weight": np.full(
                shape, factor, "f4"
            )
            for b in range(40)
            for end, shape in (("down", (2, 5120)), ("up", (5120, 2)))
        }
        path = folder / f"style_{which}_noise.safetensors"
        path.write_bytes(safetensors_bytes(arrays, {}))


def test_what_is_one_thing_is_one_row(run, loras):
    result = inspect(Inspect(files=(str(loras),)))
    rows = {row.name: row for row in rows_of(result)}
    assert set(rows) == {
        "a.safetensors", "b.safetensors", "folder", "style (high + low noise)",
        "model.safetensors.index.json",
    }  # fmt: skip
    pair = rows["style (high + low noise)"]
    assert pair.size == sum(os.path.getsize(f.path) for f in pair.files) and len(pair.files) == 2
    assert "one-network" not in pair.problems
    assert rows["model.safetensors.index.json"].kind == "checkpoint"
    assert rows["folder"].kind == "lora" and rows["folder"].first.dialect == "peft"


def test_a_lone_expert_stays_alone(run, loras):
    (loras / "style_low_noise.safetensors").unlink()
    result = inspect(Inspect(files=(str(loras),)))
    (row,) = (row for row in rows_of(result) if "noise" in row.name)
    assert row.name == "style_high_noise.safetensors" and "one-network" in row.problems


def test_a_pipeline_is_one_row(run, loras):
    place = loras / "pipeline"
    (place / "unet").mkdir(parents=True)
    (place / "model_index.json").write_text("{}")
    shutil.copy(
        run.folder / "a.safetensors", place / "unet" / "diffusion_pytorch_model.safetensors"
    )
    names = [str(thing) for thing in _things(loras)]
    assert str(place) in names and not any("diffusion_pytorch" in name for name in names)


def _things(folder):
    from loramerge.steps.parameters import Context
    from loramerge.verbs.inspect.run import things

    return things([str(folder)], Context())


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts(run, loras, column):
    result = inspect(Inspect(files=(str(loras),), sort=column))
    keys = [COLUMNS[column][1](row) for row in rows_of(result)]
    assert keys == sorted(keys) and len(keys) == 5
    sizes = [row.size for row in rows_of(inspect(Inspect(files=(str(loras),), sort="size")))]
    assert sizes == sorted(sizes, reverse=True)


def test_problems_come_first(run, loras):
    def spoil(arrays, metadata):
        del arrays[next(key for key in arrays if key.endswith(".lora_up.weight"))]

    rewrite(loras / "a.safetensors", loras / "z.safetensors", spoil)
    (loras / "broken.safetensors").write_bytes(b"nothing")
    rows = rows_of(inspect(Inspect(files=(str(loras),), sort="problems")))
    assert {row.name for row in rows[:2]} == {"z.safetensors", "broken.safetensors"}
    by_name = {row.name: row.problems for row in rows}
    assert "1 error" in by_name["z.safetensors"] and "missing-partner" in by_name["z.safetensors"]
    assert by_name["broken.safetensors"].startswith("cannot be read")
    shown = run("inspect", "loras").out
    assert "missing-partner" in shown and "cannot be read" in shown


def test_csv(run, loras):
    run.ok("inspect", "loras", "--csv", "table.csv", "--sort", "name")
    with (run.folder / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and rows[0]["file"].endswith("a.safetensors")
    assert rows[0]["family"] == "sd21" and int(rows[0]["size"]) > 0
    assert " + " in next(row["file"] for row in rows if "noise" in row["file"])
    run.ok("inspect", "loras", "--csv", "table.csv")  # a table may be replaced
    before = (run.folder / "a.safetensors").read_bytes()
    run.refused(3, "inspect", "loras", "--csv", "a.safetensors", says="--csv")
    assert (run.folder / "a.safetensors").read_bytes() == before


def test_words_of_strangers_are_no_formulas(run, loras):
    """A file's name and its trigger words, in every table that is written."""

    def name(arrays, metadata):
        metadata["modelspec.trigger_phrase"] = "=1+cmd|' /C calc'!A0"

    rewrite(loras / "a.safetensors", run.folder / "=HYPERLINK(1).safetensors", name)
    shutil.copy(run.folder / "a.safetensors", run.folder / "-x.safetensors")
    run.ok("inspect", "./=HYPERLINK(1).safetensors", "./-x.safetensors", "--csv", "table.csv")
    run.ok("resize", "=HYPERLINK(1).safetensors", "./-x.safetensors", "--rank", "1", "--out-dir",
           "out", "--results", "sizes.csv")  # fmt: skip
    for table in ("table.csv", "sizes.csv"):
        cells = _cells(run.folder / table)
        assert any("HYPERLINK" in cell for cell in cells), table
        assert not [c for c in cells if c[:1] in ("=", "+", "-", "@")], table
    assert any(cell.startswith("'=1+cmd") for cell in _cells(run.folder / "table.csv"))


def _cells(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [cell for row in csv.reader(file) for cell in row]


def test_the_long_form(run, loras):
    shown = run.ok("inspect", "loras", "-v").out
    assert shown.count("kind of file") == 6
    assert run.ok("inspect", "loras").out.count("kind of file") == 0
    assert run.ok("inspect", "a", "b", "--modules").out.count("kind of file") == 2
    assert len(run.ok("inspect", "loras", "--json").json) == 6  # an object for each file


def test_no_line_is_wider_than_the_terminal(run, loras, monkeypatch):
    monkeypatch.setattr(show, "_width", lambda stream=None: 80)
    lines = run.ok("inspect", "loras").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("a.safetensors") for line in lines)
    assert any("trigger words: flat" in line for line in lines)
    words = " ".join(lines).split()
    assert "ComfyUI," in words and "model.safetensors.index.json" in words  # whole words


def test_what_other_programs_keep_beside_a_file(run, loras):
    (loras / "b.metadata.json").write_text(
        json.dumps({"usage_tips": json.dumps({"strength": 0.8}), "base_model": "SD 2.1"})
    )
    (loras / "b.json").write_text(json.dumps({"activation text": "zuzu, cat"}))
    rows = {row.name: row.first for row in rows_of(inspect(Inspect(files=(str(loras),))))}
    found = rows["b.safetensors"]
    assert found.usual_weight == 0.8 and rows["a.safetensors"].usual_weight is None
    assert found.trigger_words  # those of the header count
    shown = run.ok("inspect", "loras").out
    assert "weight" in shown and "0.8" in shown


# --- what is in it


def test_a_baked_checkpoint_says_what_is_in_it(run):
    run.ok("bake", "--base", "base", "a:0.8", "b", "-o", "baked.safetensors")
    (found,) = run.ok("inspect", "baked", "--json").json
    assert found["merged"] == "bake of a.safetensors × 0.8, b.safetensors into base.safetensors"
    assert "a.safetensors × 0.8" in run.ok("inspect", "baked").out
    run.ok("bake", "--base", "baked", "b:0.5", "--allow-again", "-o", "twice.safetensors")
    (found,) = run.ok("inspect", "twice", "--json").json
    assert found["merged"] == (
        "bake of b.safetensors × 0.5 into baked.safetensors (bake of a.safetensors × 0.8, "
        "b.safetensors into base.safetensors)"
    )


def test_a_merged_checkpoint_and_a_mix_say_what_is_in_them(run):
    run.ok("merge", "base:0.6", "base:0.4", "-o", "merged.safetensors")
    (found,) = run.ok("inspect", "merged", "--json").json
    assert found["merged"] == "merge of base.safetensors × 0.6, base.safetensors × 0.4"
    run.ok("mix", "a:0.5", "b:te=0", "-o", "mixed.safetensors")
    (found,) = run.ok("inspect", "mixed", "--json").json
    assert found["merged"] == "mix of a.safetensors × 0.5, b.safetensors × weights per module"


def test_modelspec_says_it_too(run):
    def title(arrays, metadata):
        metadata["modelspec.merged_from"] = "one, two"

    rewrite(run.folder / "base.safetensors", run.folder / "m.safetensors", title)
    assert run.ok("inspect", "m", "--json").json[0]["merged"] == "a merge of one, two"
