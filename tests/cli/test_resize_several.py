"""resize: several results of one file, the curve, sizes relative to a base, and fair results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.save import save
from loramerge.library.shipped import shipped
from tests.builders.deltas import adapter, of_spectrum
from tests.builders.samples import read_safetensors, safetensors_bytes

LAYERS = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (32, 32),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": (32, 128),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v": (128, 64),
}


def small(path, seed, loud=1.0):
    """Write a kohya adapter of three modules of the base, of rank 6."""
    deltas = {
        name: of_spectrum(shape, [loud * (i + 1) ** -0.8 for i in range(6)], seed + place)
        for place, (name, shape) in enumerate(LAYERS.items())
    }
    save(adapter(deltas, families=["sd21"]), path, to="kohya", dtype="F32")


@pytest.fixture
def pair(run):
    small(run.folder / "loud.safetensors", 10, 20.0)
    small(run.folder / "quiet.safetensors", 20)
    return run


# ---- several results


def test_each_is_what_its_own_command_writes(pair):
    pair.ok("resize", "loud", "--rank", "1,2", "-o", "out.safetensors")
    pair.ok(
        "resize", "loud", "--max-size", "5KB,50%", "--to", "kohya", "-o", "s-{size}.safetensors"
    )
    pair.ok("resize", "loud", "--rank", "1, 3", "--max-size", "6KB")
    for made, options in (
        ("out-r1", ("--rank", "1")),
        ("out-r2", ("--rank", "2")),
        ("s-5KB", ("--max-size", "5KB", "--to", "kohya")),
        ("s-50pct", ("--max-size", "50%", "--to", "kohya")),
        ("loud-r1-6KB", ("--rank", "1", "--max-size", "6KB")),
        ("loud-r3-6KB", ("--rank", "3", "--max-size", "6KB")),
    ):
        pair.ok("resize", "loud", *options, "-o", "alone.safetensors", "--force")
        assert Path(f"{made}.safetensors").read_bytes() == Path("alone.safetensors").read_bytes()


def test_sites_are_decomposed_as_often_as_for_one(pair, monkeypatch):
    from loramerge.algebra import merged

    calls = []
    decompose = merged.decompose
    monkeypatch.setattr(
        merged, "decompose", lambda *a, **k: (calls.append(1), decompose(*a, **k))[1]
    )
    counts = []
    for ranks in ("2", "1,2,3"):
        calls.clear()
        pair.ok("resize", "loud", "--rank", ranks, "--force", "--threads", "1")
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_json_lists_a_file_for_each(pair):
    found = pair.ok("resize", "loud", "--rank", "1,2", "--json").json
    assert found["outputs"] == ["loud-r1.safetensors", "loud-r2.safetensors"]
    assert [file["ranks_after"] for file in found["files"]] == [{"1": 3}, {"2": 3}]
    assert "relative_error" not in found  # there is no single one


def test_of_several_files(pair):
    Path("in").mkdir()
    shutil.copy("loud.safetensors", "in/loud.safetensors")
    pair.ok("resize", "in", "--rank", "1,2", "--out-dir", "small")
    assert sorted(p.name for p in Path("small").iterdir()) == [
        "loud-r1.safetensors",
        "loud-r2.safetensors",
    ]
    Path("small/loud-r2.safetensors").unlink()
    before = Path("small/loud-r1.safetensors").stat().st_mtime_ns
    again = pair.ok("resize", "in", "--rank", "1,2", "--out-dir", "small", "--json").json
    assert [file["status"] for file in again["files"]] == ["kept", "done"]
    assert Path("small/loud-r1.safetensors").stat().st_mtime_ns == before


@pytest.mark.long_tail
def test_the_recipe_of_the_command_writes_the_same(pair):
    pair.ok("resize", "loud", "--rank", "1,2", "-o", "o.safetensors", "--save-recipe", "r.yaml")
    before = [Path(f"o-r{rank}.safetensors").read_bytes() for rank in (1, 2)]
    pair.ok("run", "r.yaml", "--force", "--fresh")
    assert [Path(f"o-r{rank}.safetensors").read_bytes() for rank in (1, 2)] == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--rank", "2,2"), "several results have rank 2"),
        (("--rank", "1,2", "--max-size", "5KB,9KB", "-o", "x-{rank}.safetensors"), "x-1.safetensors"),
        (("--rank", "2", "-o", "x-{size}.safetensors"), "no max_size is given"),
        (("--rank", "2,"), "''"),
        (("--rank", "2,0"), "0"),
        (("--max-size", "5KB,x"), "'x' is not a size"),
    ],
)  # fmt: skip
def test_names_and_values_that_cannot_be(pair, options, says):
    pair.refused(2, "resize", "loud", *options, says=says)


def test_an_output_that_exists_is_found_before_any_is_written(pair):
    Path("o-r2.safetensors").write_bytes(b"x")
    pair.refused(
        3, "resize", "loud", "--rank", "1,2", "-o", "o.safetensors", says="o-r2.safetensors"
    )


def test_a_list_in_a_recipe_is_a_sweep(pair):
    Path("r.yaml").write_text(
        "version: 1\ninputs: {a: loud.safetensors}\nsteps:\n  small:\n"
        "    resize: {adapter: a, rank: [1, 2]}\n    save: out/r${rank}.safetensors\n",
        "utf-8",
    )
    planned = pair.ok("plan", "r.yaml", "--json").json["tasks"]
    assert [one["ranks"] for one in planned.values()] == [{"1": 3}, {"2": 3}]
    pair.ok("run", "r.yaml")
    pair.ok("resize", "loud", "--rank", "1,2", "-o", "o.safetensors")
    for rank in (1, 2):
        written = Path(f"out/r{rank}.safetensors").read_bytes()
        assert written == Path(f"o-r{rank}.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("head", "save", "says"),
    [
        ("", "out.safetensors", "save to the same file"),
        ("vars: {rank: 3}\n", "r${rank}.safetensors", "a variable of the recipe, too"),
    ],
)
def test_lists_in_recipes_that_cannot_be(pair, head, save, says):
    Path("r.yaml").write_text(
        f"version: 1\n{head}inputs: {{a: loud.safetensors}}\nsteps:\n  small:\n"
        f"    resize: {{adapter: a, rank: [1, 2]}}\n    save: {save}\n",
        "utf-8",
    )
    pair.refused(6, "run", "r.yaml", says=says)


def test_from_python(pair):
    several = lm.resize_each("loud.safetensors", ranks=[1, 2])
    assert [one.ranks() for one in several] == [{1: 3}, {2: 3}]
    for one, rank in zip(several, (1, 2), strict=True):
        assert not lm.diff(one, lm.resize("loud.safetensors", rank=rank)).differs
    with pytest.raises(lm.UsageError, match="several values of rank"):
        lm.resize("loud.safetensors", rank=[1, 2])  # type: ignore[arg-type]


# ---- the curve


def test_points_of_the_curve_are_those_of_the_commands(pair):
    before = pair.state()
    found = pair.ok(
        "resize", "loud", "--curve", "--rank", "1,2", "--max-size", "6KB", "--json"
    ).json
    assert pair.state() == before
    for point in found["uniform"]:
        one = pair.ok("resize", "loud", "--rank", str(point["rank"]), "--json", "--force").json
        (file,) = one["files"]
        assert point["size"] == file["size_after"]
        assert point["relative_error"] == pytest.approx(one["relative_error"], rel=1e-9)
    assert [point["max_size"] for point in found["uniform"]] == [None, None]
    for point, even in zip(found["best"], found["uniform"], strict=False):
        assert even["size"] <= point["max_size"] < even["size"] + 100  # the header's words
    assert found["best"][-1]["max_size"] == 6_000
    for point in found["best"]:
        size = point["max_size"]
        one = pair.ok("resize", "loud", "--max-size", str(size), "--json", "--force").json
        assert point["size"] == one["files"][0]["size_after"] <= size
        kept = {rank: count for rank, count in point["ranks"].items() if rank != "0"}
        assert kept == one["files"][0]["ranks_after"]
        assert point["relative_error"] == pytest.approx(one["relative_error"], rel=1e-9)
    errors = [point["relative_error"] for point in found["uniform"]]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", ["loud", "zuzu", "polka", "padded"])
def test_at_full_size_nothing_is_lost(pair, name):
    """And with room for the same tensors, the best ranks of many modules are better than one rank."""
    if name == "padded":  # ranks that are exactly zero, which the curve does not count
        deltas = {
            layer: of_spectrum(shape, [1.0, 0.5, 0.25, 0.0, 0.0], place)
            for place, (layer, shape) in enumerate(LAYERS.items())
        }
        save(adapter(deltas, families=["sd21"]), pair.folder / "padded.safetensors", to="kohya")
    found = pair.ok("resize", name, "--curve", "--json").json
    if name in ("zuzu", "polka"):
        for even, best in zip(found["uniform"][:-1], found["best"], strict=False):
            assert best["relative_error"] < even["relative_error"]
    assert found["uniform"][-1]["relative_error"] == found["best"][-1]["relative_error"] == 0
    assert found["best"][0]["relative_error"] > 0


def _loha(path, rank=3):
    """Write a LoHa on the layers of zuzu: of rank 9, in the bytes of LoRA of rank 6."""
    source, _ = read_safetensors(shipped("zuzu"))
    random, found = np.random.default_rng(0), {}
    for key in source:
        stem = key.removesuffix(".lora_up.weight")
        if stem == key or source[key].ndim != 2:
            continue
        for number in "12":
            for end, shape in (
                ("a", (len(source[key]), rank)),
                ("b", (rank, source[f"{stem}.lora_down.weight"].shape[1])),
            ):
                values = 0.1 * random.normal(size=shape)
                found[f"{stem}.hada_w{number}_{end}"] = values.astype("float16")
        found[f"{stem}.alpha"] = np.array(float(rank), "float16")
    path.write_bytes(safetensors_bytes(found, {}))


@pytest.mark.parametrize("right", [True, False])
def test_a_kind_that_is_smaller_whole_than_cut_stays_whole_where_it_fits(pair, monkeypatch, right):
    """Counting all ranks as LoRA, a limit above the file's own size cut a fifth of its norm."""
    _loha(pair.folder / "loha.safetensors")
    size = (pair.folder / "loha.safetensors").stat().st_size
    if not right:
        monkeypatch.setattr("loramerge.steps.sizes._stays", lambda delta, rank: False)
    done = pair.ok(
        "resize", "loha", "--max-size", str(size + 1000), "--json", "-o", "o.safetensors"
    )
    assert done.json["files"][0]["size_after"] <= size + 1000
    found = pair.ok("resize", "loha", "--curve", "--json").json
    at_own_size = min(found["best"], key=lambda point: abs(point["size"] - size))
    assert (done.json["relative_error"] == 0) is right
    assert (at_own_size["relative_error"] == 0) is right
    for limit in (0.9, 0.5):
        most = int(limit * size)
        less = pair.ok("resize", "loha", "--max-size", str(most), "--json", "--force").json
        assert less["files"][0]["size_after"] <= most and 0 < less["relative_error"] < 1


def test_the_size_of_one_rank_has_no_room_for_the_words_of_a_limit(pair):
    """Sizes as the curve had them: the last directions did not fit, and full size lost something."""
    found = pair.ok("resize", "zuzu", "--curve", "--json").json
    size = str(found["uniform"][-1]["size"])
    without = pair.ok("resize", "zuzu", "--max-size", size, "-o", "cut.safetensors", "--json").json
    assert without["relative_error"] > 0
    size = str(found["best"][-1]["max_size"])
    with_room = pair.ok("resize", "zuzu", "--max-size", size, "-o", "whole.safetensors", "--json")
    assert with_room.json["relative_error"] == 0


def test_the_curve_is_drawn(pair):
    image = pytest.importorskip("PIL.Image")
    shown = pair.ok("resize", "loud", "--curve", "--plot", "curve.png")
    assert "rank of all modules" in shown.out and "curve.png" in shown.out
    with image.open("curve.png") as picture:
        assert picture.size[0] > 1200 and len(picture.getcolors(1 << 20)) > 4
        picture.save("mine.png")  # as another program would
    first = Path("curve.png").read_bytes()
    again = pair.ok("resize", "loud", "--curve", "--plot", "curve.png", "--json")
    assert again.json["outputs"] == ["curve.png"] and Path("curve.png").read_bytes() == first
    pair.refused(
        3, "resize", "loud", "--curve", "--plot", "mine.png", says="not a plot of loramerge"
    )
    pair.refused(2, "resize", "loud", "--curve", "--plot", "c.jpg", says="PNG")
    pair.refused(2, "resize", "loud", "--curve", "--fair", says="a curve has no fair")
    pair.refused(2, "resize", "loud", "quiet", "--curve", says="2 files")


# ---- relative to a base


def test_sizes_are_relative_to_the_weights_of_the_base(pair):
    """By hand: σ > ‖W‖ / ratio, in each module, for both norms."""
    base, _ = read_safetensors(Path("base.safetensors"))
    names = [
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.2.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight",
    ]
    small(Path("weak.safetensors"), 30, 0.5)
    sizes = [0.5 * (i + 1) ** -0.8 for i in range(6)]
    for norm, order in (("frobenius", "fro"), ("spectral", 2)):
        norms = [np.linalg.norm(base[name].astype("float64"), order) for name in names]
        ratio = norms[0] / 0.2
        pair.ok("resize", "weak", "--ratio", str(ratio), "--relative-to", "base.safetensors",
                      "--norm", norm, "-o", f"{norm}.safetensors")  # fmt: skip
        found = lm.load(f"{norm}.safetensors")
        for (name, _), size in zip(LAYERS.items(), norms, strict=True):
            expected = sum(value > size / ratio for value in sizes)
            assert (found[name].rank if name in found else 0) == expected, name
        assert "same file" in pair.ok("run", f"{norm}.safetensors").out


def test_a_budget_relative_to_a_base_counts_errors_in_parts_of_it(pair):
    """Weights of a layer made huge: its change no longer matters, and it gets no rank."""
    tensors, metadata = read_safetensors(Path("base.safetensors"))
    name = next(key for key in tensors if "middle_block.1" in key and "attn2.to_v" in key)
    tensors[name] = (tensors[name].astype("float32") * 1e4).astype("float16")
    Path("huge.safetensors").write_bytes(safetensors_bytes(tensors, metadata))
    for base, there in (("base.safetensors", True), ("huge.safetensors", False)):
        pair.ok(
            "resize",
            "loud",
            "--max-size",
            "70%",
            "--relative-to",
            base,
            "-o",
            "o.safetensors",
            "-f",
        )
        assert (list(LAYERS)[2] in lm.load("o.safetensors")) == there


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--rank", "2", "--relative-to", "base.safetensors"), 2, "changes nothing"),
        (("--energy", "0.9", "--relative-to", "base.safetensors"), 2, "changes nothing"),
        (("--rank", "2", "--norm", "spectral"), 2, "--relative-to"),
        (("--ratio", "9", "--relative-to", "a.safetensors"), 4, "must be a checkpoint"),
        (("--rank", "2", "--ingredient", "a"), 2, "--fair"),
    ],
)
def test_options_that_mean_nothing(run, options, code, says):
    run.refused(code, "resize", "a", *options, says=says)


# ---- fair


def lost(path, ingredient):
    """The share of an ingredient's norm outside of the outputs, or the inputs, of a file."""
    made, own = lm.load(path), lm.load(ingredient)
    total = energy = 0.0
    for name in LAYERS:
        value, kept = (one[name].dense(dtype="float64") for one in (own, made))
        parts = []
        for a, b in ((value, kept), (value.T, kept.T)):
            left, sizes, _ = np.linalg.svd(b, full_matrices=False)
            left = left[:, sizes > 1e-6 * sizes[0]]
            parts.append(((a - left @ (left.T @ a)) ** 2).sum())
        total, energy = total + min(parts), energy + (value**2).sum()
    return (total / energy) ** 0.5


def test_a_quiet_ingredient_is_kept_at_equal_bytes(pair):
    pair.ok("mix", "loud", "quiet", "-o", "both.safetensors")
    pair.ok("resize", "both", "--max-size", "55%", "-o", "plain.safetensors")
    fair = pair.ok(
        "resize", "both", "--max-size", "55%", "--fair", "-o", "fair.safetensors", "--json"
    )
    worst = {
        name: max(lost(f"{name}.safetensors", f"{one}.safetensors") for one in ("loud", "quiet"))
        for name in ("plain", "fair")
    }
    assert worst["fair"] <= 0.5 * worst["plain"]
    (file,) = fair.json["files"]
    said = {one["adapter"]: one["relative_error"] for one in file["ingredients"]}
    assert max(said.values()) == pytest.approx(worst["fair"], rel=0.1)
    assert Path("fair.safetensors").stat().st_size <= 0.55 * Path("both.safetensors").stat().st_size


def test_mixing_fairly_is_resizing_the_mix_fairly(pair):
    pair.ok("mix", "loud", "quiet:0.5", "-o", "both.safetensors", "--dtype", "float32")
    direct = pair.ok(
        "mix", "loud", "quiet:0.5", "--rank", "6", "--fair", "-o", "m.safetensors", "--json"
    )
    pair.ok("resize", "both", "--rank", "6", "--fair", "-o", "r.safetensors")
    assert lm.diff("m.safetensors", "r.safetensors").json()["total"]["relative_distance"] < 1e-5
    assert all(0.0 < one["relative_error"] < 1.0 for one in direct.json["inputs"])
    in_memory = lm.resize(lm.mix(["loud", ("quiet", 0.5)]), rank=6, fair=True)
    assert lm.diff(in_memory, "r.safetensors").json()["total"]["relative_distance"] < 1e-5
    for name in ("m", "r"):
        assert "same file" in pair.ok("run", f"{name}.safetensors").out


def test_ingredients_are_found_where_they_are_or_asked_for(pair):
    pair.ok("mix", "loud", "quiet", "-o", "both.safetensors")
    pair.ok(
        "resize", "both", "--rank", "8", "-o", "once.safetensors"
    )  # has the recipe inside its own
    pair.ok("resize", "both", "--rank", "6", "--fair", "-o", "expected.safetensors")
    Path("elsewhere").mkdir()
    shutil.move("quiet.safetensors", "elsewhere/other-name.safetensors")
    refused = ("quiet.safetensors", "--ingredient")
    pair.refused(3, "resize", "both", "--rank", "6", "--fair", "-o", "x.safetensors", says=refused)
    given = ("--ingredient", "loud", "--ingredient", "elsewhere/other-name.safetensors")
    pair.ok("resize", "both", "--rank", "6", "--fair", *given, "-o", "given.safetensors")
    expected = read_safetensors(Path("expected.safetensors"))[0]
    for key, value in read_safetensors(Path("given.safetensors"))[0].items():
        assert (value == expected[key]).all()
    pair.ok("library", "add", "elsewhere")
    pair.ok("resize", "once", "--rank", "6", "--fair", "-o", "again.safetensors")


def test_without_a_recipe_ingredients_must_be_named(pair):
    pair.ok("mix", "loud", "quiet", "-o", "both.safetensors", "--strip")
    for name, found in (("both", "no recipe"), ("a", "no recipe")):
        pair.refused(5, "resize", name, "--rank", "2", "--fair", says=(found, "--ingredient"))
    pair.ok("resize", "a", "--rank", "3", "-o", "resized.safetensors")
    pair.refused(5, "resize", "resized", "--rank", "2", "--fair", says="not that of a mix")
    pair.refused(2, "mix", "loud", "quiet", "--fair", says="no rank option")
    pair.refused(
        2, "mix", "loud", "quiet", "--fair", "--energy", "0.5", says="a fair result has no"
    )


def test_a_step_of_a_recipe_names_its_ingredients(pair):
    content = {
        "version": 1,
        "inputs": {"loud": "loud.safetensors", "quiet": "quiet.safetensors"},
        "steps": {
            "half": {"convert": {"adapter": "quiet", "rescale": 0.5}},
            "both": {"mix": {"adapters": ["loud", "half"]}},
            "small": {
                "resize": {"adapter": "both", "rank": 6, "fair": True},
                "save": "small.safetensors",
            },
        },
    }
    Path("r.yaml").write_text(json.dumps(content), "utf-8")
    pair.refused(5, "run", "r.yaml", says=("convert made in memory", "ingredient"))
    content["steps"]["small"]["resize"]["ingredient"] = ["loud", "half"]
    Path("r.yaml").write_text(json.dumps(content), "utf-8")
    planned = pair.ok("plan", "r.yaml", "--json").json["tasks"]["small"]
    pair.ok("run", "r.yaml")
    assert Path("small.safetensors").stat().st_size <= planned["size"] < 20_000
    assert lost("small.safetensors", "quiet.safetensors") < 0.5
    assert "same file" in pair.ok("run", "small.safetensors").out


def test_an_error_limits_the_loss_of_each_adapter(pair):
    words = ("mix", "loud", "quiet", "--max-error", "0.3", "-o")
    plain = pair.ok(*words, "plain.safetensors", "--json").json
    fair = pair.ok(*words, "fair.safetensors", "--fair", "--json").json
    lost = [one["relative_error"] for one in fair["inputs"]]
    assert 0.2 < max(lost) <= 0.3 and plain["relative_error"] <= 0.3
    whole = pair.ok("mix", "loud", "quiet", "-o", "both.safetensors", "--json").json
    assert plain["size"] < fair["size"] < whole["size"]
    both = ("resize", "both", "--max-error", "0.3", "--fair", "-o", "again.safetensors", "--json")
    (file,) = pair.ok(*both).json["files"]
    assert max(one["relative_error"] for one in file["ingredients"]) <= 0.3


def test_fair_results_are_those_of_their_own_commands(pair):
    """Also where a module needs no cut for one of them."""
    pair.ok("mix", "loud", "quiet", "-o", "both.safetensors")
    pair.ok("resize", "both", "--rank", "5,12,20", "--fair", "-o", "out.safetensors")
    for rank in (5, 12, 20):
        pair.ok(
            "resize", "both", "--rank", str(rank), "--fair", "-o", "alone.safetensors", "--force"
        )
        made = Path(f"out-r{rank}.safetensors").read_bytes()
        assert made == Path("alone.safetensors").read_bytes()


@pytest.mark.long_tail
def test_an_error_relative_to_a_base_is_kept_in_parts_of_it(pair):
    options = ("--relative-to", "base.safetensors", "--max-error", "0.3")
    found = pair.ok("resize", "loud", *options, "-o", "o.safetensors", "--json").json
    (file,) = found["files"]
    assert 0.0 < file["error_at_base"] <= 0.3 and file["error_at_base"] != file["relative_error"]


@pytest.mark.long_tail
def test_a_step_of_a_recipe_has_a_base_to_compare_with(pair):
    Path("r.yaml").write_text(
        "version: 1\ninputs: {loud: loud.safetensors, base: base.safetensors}\nsteps:\n  small:\n"
        "    resize: {adapter: loud, max_size: [70%, 60%], relative_to: base, norm: spectral}\n"
        "    save: ${max_size}.safetensors\n",
        "utf-8",
    )
    planned = pair.ok("plan", "r.yaml", "--json").json["tasks"]
    pair.ok("run", "r.yaml")
    for size, one in zip(("70%", "60%"), planned.values(), strict=True):
        assert Path(f"{size}.safetensors").stat().st_size <= one["size"]
        assert "same file" in pair.ok("run", f"{size}.safetensors").out
