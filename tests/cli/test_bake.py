"""bake: the command. What it computes is tested beside the code."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.checkpoint import open_checkpoint
from loramerge.files.digest import sha256_of_file
from loramerge.steps import loss
from tests.builders.samples import data_section, read_safetensors
from tests.builders.world import ADAPTED, rewrite, write_folder

KEYS = {
    "outputs", "output", "dry_run", "base", "family", "layouts", "modules", "tensors", "adapters",
    "skipped", "notes", "size", "survived", "relative_error", "norm_kept", "scale_applied", "change",
    "worst", "drift", "drift_total", "storage", "touched",
}  # fmt: skip


@pytest.fixture
def unet_only(run):
    """The base without its text encoder."""

    def cut(arrays, metadata):
        for key in [k for k in arrays if k.startswith("cond_stage_model")]:
            del arrays[key]

    return rewrite(run.folder / "base.safetensors", run.folder / "unet.safetensors", cut)


def test_json_says_everything(run):
    found = run.ok(
        "bake", "--base", "base.safetensors", "a:0.8", "-o", "o.safetensors", "--json"
    ).json
    assert set(found) == KEYS and found["outputs"] == ["o.safetensors"]
    assert found["size"] == (run.folder / "o.safetensors").stat().st_size
    assert found["survived"] > 0.99 and found["family"] == "sd21"
    assert found["modules"] == len(found["touched"]) == ADAPTED["unet"]
    assert [a["weight"] for a in found["adapters"]] == ["0.8"]
    before, after = (
        read_safetensors(run.folder / n)[0] for n in ("base.safetensors", "o.safetensors")
    )
    touched = {entry["tensor"] for entry in found["touched"]}
    assert before.keys() == after.keys()
    for key in before:
        assert (before[key].tobytes() == after[key].tobytes()) == (key not in touched)


def test_a_dry_run_writes_nothing(run):
    before = run.state()
    result = run.ok("bake", "--base", "base.safetensors", "a", "b:0.5", "--dry-run")
    for words in ("would write", "base+a+b@0.5.safetensors", "float16", "model.diffusion_model"):
        assert words in result.out
    found = run.ok("bake", "--base", "base.safetensors", "a", "--dry-run", "--json").json
    assert set(found) == KEYS | {"estimated", "refused"}
    assert found["estimated"] is None and found["refused"] is None
    assert found["outputs"] == [] and len(found["touched"]) == ADAPTED["unet"]
    assert run.state() == before
    done = run.ok("bake", "--base", "base.safetensors", "a", "--json").json
    forecast = ("size", "survived", "relative_error", "norm_kept", "change", "worst")
    assert {name: found[name] for name in forecast} == {name: done[name] for name in forecast}
    run.refused(2, "bake", "--base", "base.safetensors", "a", "-o", "o.ckpt", "--dry-run")


def test_a_dry_run_refuses_what_the_bake_refuses(run):
    run.ok("bake", "-b", "base.safetensors", "a", "-o", "with.safetensors")
    for code, *options in (
        (5, "-b", "with.safetensors", "a", "-o", "new.safetensors"),
        (3, "-b", "base.safetensors", "b", "-o", "with.safetensors"),
        (3, "-b", "with.safetensors", "b", "-o", "with.safetensors"),
    ):
        real = run.refused(code, "bake", *options)
        assert run.refused(code, "bake", *options, "--dry-run").err == real.err
    run.ok("bake", "-b", "base.safetensors", "b", "-o", "with.safetensors", "--force", "--dry-run")
    twice = ("bake", "-b", "with.safetensors", "a", "--allow-again", "--dry-run")
    assert "is baked into this base already" in run.ok(*twice).err
    out = ("unbake", "with.safetensors", "-l", "a", "-o", "base.safetensors")
    assert run.refused(3, *out, "--dry-run").err == run.refused(3, *out).err


def test_a_dry_run_foresees_that_too_little_is_kept(run, monkeypatch):
    """It shows its report all the same."""
    command = ("bake", "-b", "base.safetensors", "a:0.001", "-o", "new.safetensors")
    real, dry = run(*command), run(*command, "--dry-run")
    assert real.code == dry.code == 7 and "would write" in dry.out
    told = real.err.removeprefix("error: ").split("hint")[0]
    assert f"warning: the bake will refuse this: {told}" in dry.err
    found = run(*command, "--dry-run", "--json").json
    assert found["refused"] == 7 and "only" in found["notes"][-1] and not found["outputs"]
    lossy = run.ok(*command, "--dry-run", "--allow-loss")
    assert "only" in lossy.err and "will refuse" not in lossy.err
    monkeypatch.setattr(loss, "WHOLE", 0)
    monkeypatch.setattr(loss, "_FORECAST", 3)
    some = run(*command, "--dry-run")
    assert some.code == 7 and "will refuse this, estimated from 3 of" in some.err
    monkeypatch.setattr(loss, "_SURE", 0.0)  # where a few tensors do not make it sure
    assert "will refuse" not in run.ok(*command, "--dry-run").err


def test_an_error_larger_than_the_change_is_told_of(run):
    command = ("bake", "-b", "base.safetensors", "a:0.01", "--dtype", "float8")
    for options in (("--dry-run",), ()):
        result = run.ok(*command, "-o", "f8.safetensors", "--json", "--allow-loss", *options)
        assert result.json["relative_error"] > 1 and "as large as the whole change" in result.err
        assert "--dtype float32" in result.err and "whole change" in result.json["notes"][-1]
    plain = run.ok("bake", "-b", "base.safetensors", "a", "-o", "plain.safetensors")
    assert "whole change" not in plain.err


def test_a_dry_run_lists_the_types_that_are_written(run):
    for options, word in (((), "float16"), (("--dtype", "float8"), "float8_e4m3")):
        command = ("bake", "-b", "base.safetensors", "a", "--dry-run", "--allow-loss", "--json")
        touched = run.ok(*command, *options).json["touched"]
        assert {one["dtype"] for one in touched} == {word}


def test_adapters_either_way(run):
    run.ok("bake", "--base", "base.safetensors", "a:0.5", "b:0.3", "-o", "one.safetensors")
    run.ok(
        "bake", "-b", "base.safetensors", "-l", "a:0.5", "--lora", "b:0.3", "-o", "two.safetensors"
    )
    assert (run.folder / "one.safetensors").read_bytes() == (
        run.folder / "two.safetensors"
    ).read_bytes()


def test_missing_components_are_named_and_may_be_left_out(run, unet_only):
    command = ("bake", "--base", "unet.safetensors", "b", "-o", "out.safetensors")
    run.refused(5, *command, says=("text_encoder", "--skip-missing"))
    for word in ("text_encoder", "te", "te1", "all"):
        result = run.ok(*command, "--skip-missing", word, "--force", "--json")
        assert len(result.json["skipped"]) == ADAPTED["text"] and "left out" in result.err
    run.refused(5, *command, "--skip-missing", "unet", "--force", says="text_encoder")
    run.refused(2, *command, "--skip-missing", "text_encode", says="did you mean text_encoder?")


def test_no_option_is_advised_where_nothing_would_be_left(run, unet_only):
    run.ok("convert", "b", "--keep", "te", "-o", "te.safetensors")
    command = ("bake", "--base", "unet.safetensors", "te.safetensors", "-o", "out.safetensors")
    result = run.refused(5, *command, says="choose the base that the adapter was trained on")
    assert "--skip-missing" not in result.err


def test_the_distance_of_the_bases_is_shown(run):
    def move(arrays, metadata):
        random = np.random.default_rng(5)
        for key, value in arrays.items():
            if key.endswith("attn2.to_v.weight"):
                value += (0.05 * random.standard_normal(value.shape)).astype(value.dtype)

    rewrite(run.folder / "base.safetensors", run.folder / "other.safetensors", move)
    command = ("bake", "--base", "other.safetensors", "a", "--trained-on", "base.safetensors")
    result = run.ok(*command)
    assert (
        "Distance from the base that the adapter was trained on" in result.out
        and "unet.down_blocks.0" in result.out
    )
    found = run.ok(*command, "--force", "--json").json
    assert found["drift_total"][0] > 0 and "unet.mid_block" in found["drift"]
    same = run.ok(
        "bake", "--base", "base.safetensors", "a", "--trained-on", "base.safetensors", "--json"
    )
    assert same.json["drift_total"][0] == 0
    run.refused(3, *command[:-1], "nothing", "--force", says="no base 'nothing'")


def test_stochastic_rounding_is_seeded(run):
    def bake(name, *options):
        run.ok(
            "bake", "--base", "base.safetensors", "a:0.05", "-o", f"{name}.safetensors", *options
        )
        return data_section(run.folder / f"{name}.safetensors")

    one = bake("one", "--rounding", "stochastic", "--seed", "3")
    assert one == bake("two", "--rounding", "stochastic", "--seed", "3", "--threads", "1")
    assert one != bake("three", "--rounding", "stochastic", "--seed", "4")
    assert one != bake("four")
    run.refused(2, "bake", "--base", "base.safetensors", "a", "--rounding", "random")
    run.refused(2, "bake", "--base", "base.safetensors", "a", "--seed", "-1")


def test_dtype(run):
    run.ok("bake", "--base", "base.safetensors", "a", "--dtype", "float32", "-o", "out.safetensors")
    assert {a.dtype.name for a in read_safetensors(run.folder / "out.safetensors")[0].values()} == {
        "float32"
    }
    run.ok("bake", "--base", "base.safetensors", "--dtype", "bfloat16")  # no adapter: only the type
    assert (run.folder / "base-bfloat16.safetensors").is_file()
    for word in ("int8", "float17"):
        run.refused(2, "bake", "--base", "base.safetensors", "a", "--dtype", word, says="float16")


def test_weak_adapters_are_told_of(run):
    command = ("bake", "--base", "base.safetensors", "a:0.001", "-o", "out.safetensors")
    result = run.refused(7, *command, says=("would be kept", "--rounding stochastic keeps"))
    assert "--keep-touched float32 keeps 100 %" in result.err and "--allow-loss" in result.err
    result = run.ok(*command, "--allow-loss")
    assert "warning: only" in result.err
    assert "--rounding stochastic" in result.err and "--keep-touched float32" in result.err


def test_pickled_bases(run):
    torch = pytest.importorskip("torch")
    arrays, _ = read_safetensors(run.folder / "base.safetensors")
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
    torch.save({"state_dict": tensors, "global_step": 7}, run.folder / "old.ckpt")
    result = run.ok("bake", "--base", "old.ckpt", "a:0.8", "--json")
    assert result.json["outputs"] == ["old+a@0.8.safetensors"]
    run.ok("bake", "--base", "base.safetensors", "a:0.8", "-o", "out.safetensors")
    one, _ = read_safetensors(run.folder / "old+a@0.8.safetensors")
    two, _ = read_safetensors(run.folder / "out.safetensors")
    assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def test_the_header_contains_the_recipe(run):
    run.ok("bake", "--base", "base.safetensors", "a:0.8", "-o", "once.safetensors")
    _, metadata = read_safetensors(run.folder / "once.safetensors")
    recipe = json.loads(metadata["loramerge.recipe"])
    inputs = {
        name: (entry["path"], entry["sha256"]) for name, entry in recipe.pop("inputs").items()
    }
    assert inputs == {
        n: (f"{n}.safetensors", sha256_of_file(run.folder / f"{n}.safetensors"))
        for n in ("a", "base")
    }
    bake = {"base": "base", "adapters": [{"adapter": "a", "weight": 0.8}]}
    assert recipe == {"version": 1, "steps": {"result": {"bake": bake}}}
    assert str(run.folder) not in metadata["loramerge.recipe"]
    again = ("bake", "--base", "once.safetensors", "a:0.8", "-o", "twice.safetensors")
    run.refused(5, *again, says=("baked into this base already", "unbake", "--allow-again"))
    twice = run.ok(*again, "--allow-again")
    assert "baked into this base already" in twice.err
    assert "same file" in run.ok("run", "twice.safetensors").out


def test_what_was_taken_out_or_mixed_in_may_be_baked_again(run):
    run.ok("bake", "--base", "base.safetensors", "a:0.8", "-o", "once.safetensors")
    run.ok("unbake", "once.safetensors", "--lora", "a:0.8", "-o", "out.safetensors")
    again = run.ok("bake", "--base", "out.safetensors", "a:0.5", "-o", "again.safetensors")
    assert "already" not in again.err
    run.ok("mix", "a", "b", "-o", "mixed.safetensors")
    run.ok("bake", "--base", "base.safetensors", "mixed", "-o", "both.safetensors")
    run.refused(5, "bake", "--base", "both.safetensors", "mixed", says="already")
    part = run.ok("bake", "--base", "both.safetensors", "a", "-o", "more.safetensors")
    assert "a part of what is baked into this base already" in part.err


def test_named_bases(run):
    run.ok("base", "add", "sd2.1", "base.safetensors")
    assert run.ok("bake", "--base", "sd2.1", "a", "--json").json["outputs"] == [
        "sd2.1+a.safetensors"
    ]
    run.refused(3, "bake", "--base", "sd2.2", "a", says=("did you mean sd2.1?", "registered bases"))
    (run.folder / "base.safetensors").rename(run.folder / "moved.safetensors")
    run.refused(3, "bake", "--base", "sd2.1", "a", says=("gone", "--force"))


def test_other_families_and_no_adapter(run, shared_data):
    real = shared_data / "adapters" / "analog_svd_rank4.safetensors"
    run.refused(4, "bake", "--base", "base.safetensors", real, says=("sd15", "sd21", "hint"))
    run.refused(2, "bake", "--base", "base.safetensors", says="give adapters")
    run.refused(2, "bake", "a", says="--base")
    run.refused(2, "bake", "--base", "base.safetensors", "a:0", says="nothing would change")


def test_folders(run):
    """A diffusers folder in, a diffusers folder out."""
    write_folder(run.folder / "base.safetensors", run.folder / "model")
    found = run.ok("bake", "--base", "model", "a:0.8", "--json").json
    assert found["outputs"] == ["model+a@0.8"] and found["layouts"]["unet"] == "diffusers"
    assert (run.folder / "model+a@0.8" / "model_index.json").is_file()
    run.refused(2, "bake", "--base", "model", "a", "-o", "x.safetensors", says="--output x")
    (run.folder / "mine").mkdir()
    (run.folder / "mine" / "thesis.txt").write_text("years of work")
    run.refused(3, "bake", "--base", "model", "a", "-o", "mine", "--force", says="would remove")
    run.ok("bake", "--base", "model", "a", "-o", "model+a@0.8", "--force")


def test_a_float8_base_with_scales(run):
    """Dequantised, added, requantised with the stored scale: within half a step of float64."""
    scales, stored = {}, {}

    def quantised(arrays, metadata):
        for name in [k for k in arrays if k.endswith(".weight") and arrays[k].ndim > 1]:
            wide = arrays[name].astype("float64")
            scale = np.float32(max(np.abs(wide).max(), 1e-6) / 240.0)  # room for what is added
            arrays[name] = (wide / scale).astype(ml_dtypes.float8_e4m3fn)
            arrays[name.removesuffix("weight") + "scale_weight"] = np.array(scale)
            scales[name], stored[name] = float(scale), arrays[name]

    rewrite(run.folder / "base.safetensors", run.folder / "q.safetensors", quantised)
    found = run.ok("bake", "--base", "q.safetensors", "a:0.8", "-o", "o.safetensors", "--json").json
    before, after = (read_safetensors(run.folder / f"{n}.safetensors")[0] for n in "qo")
    touched = {entry["tensor"] for entry in found["touched"]}
    assert before.keys() == after.keys() and touched <= scales.keys()
    assert found["survived"] > 0 and found["relative_error"] > 0
    for name, array in before.items():
        if name not in touched:
            assert after[name].tobytes() == array.tobytes(), name
    slots = open_checkpoint(run.folder / "q.safetensors").slots
    plain = 0
    for site, delta in load(run.folder / "a.safetensors").deltas.items():
        (place,) = slots[site.modules[0], "weight"]
        asked = 0.8 * delta.dense().reshape(place.shape)
        scale, base = scales[place.name], stored[place.name].astype("float64")
        want = base + asked / scale
        got = after[place.name].astype("float64")
        step = 2.0 ** np.maximum(np.floor(np.log2(np.abs(want) + 1e-30)) - 3, -9)
        assert (np.abs(got - want) <= 0.5001 * step + 1e-5 * np.abs(want)).all(), place.name
        plain += (np.abs(got - (base + asked)) > 0.6 * step).any()  # as if there were no scale
    assert plain > 0.9 * len(touched)


def test_a_base_with_nan_is_refused_unless_told(run):
    def spoil(arrays, metadata):
        arrays["extra.weight"] = np.full((2, 2), np.nan, "float16")

    rewrite(run.folder / "base.safetensors", run.folder / "bad.safetensors", spoil)
    command = ("bake", "--base", "bad.safetensors", "a", "-o", "out.safetensors")
    run.refused(7, *command, says=("extra.weight", "--allow-nonfinite"))
    recipe = run.folder / "r.yaml"
    step = "{base: bad.safetensors, adapters: [a.safetensors]%s}, save: out.safetensors"
    recipe.write_text("version: 1\nsteps:\n  s: {bake: %s}\n" % (step % ""), "utf-8")
    run.refused(7, "run", "r.yaml", says="extra.weight")
    recipe.write_text(
        "version: 1\nsteps:\n  s: {bake: %s}\n" % (step % ", allow_nonfinite: true"), "utf-8"
    )
    run.ok("run", "r.yaml")
    run.ok(*command, "--allow-nonfinite", "--force")
    run.ok("run", "out.safetensors")  # as files from before there was the option
    found, _ = read_safetensors(run.folder / "out.safetensors")
    assert np.isnan(found["extra.weight"]).all()
