"""mix: against dense float64 sums of raw tensors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.builders.samples import (
    Sample,
    encoder_order,
    oracle,
    positional_order,
    read_safetensors,
    relative,
    scale_of,
    stem_of,
    suffixes_of,
)
from tests.builders.world import ADAPTED, rewrite, weights

REAL = ("analog_svd_rank4", "lora_disney")
KEYS = {
    "outputs", "size", "dialect", "dtype", "family", "modules", "ranks", "inputs", "relative_error",
    "norm_kept", "scale_applied", "worst", "left_out", "method", "scale", "unknown_keys",
}  # fmt: skip


@pytest.fixture
def real(run, shared_data):
    for name in REAL:
        shutil.copy(shared_data / "adapters" / f"{name}.safetensors", run.folder)
    return run


def _positional(path):
    arrays, metadata = read_safetensors(path)
    return Sample("sd15", "lora_diffusion", arrays, metadata)


def _factors(sample, name):
    """Up (scale folded in) and down in float64, from raw keys and arrays."""
    stem, suffix = stem_of(sample.dialect, sample.family, name), suffixes_of(sample.dialect, name)
    if stem + suffix["up"] not in sample.tensors:
        return np.zeros((1, 0)), np.zeros((0, 1))
    up, down = (sample.tensors[stem + suffix[r]].astype(np.float64) for r in ("up", "down"))
    up, down = up.reshape(len(up), -1), down.reshape(len(down), -1)
    return up * scale_of(sample, name, stem, len(down)), down


def _norm(parts):
    """‖Σ w·up·down‖ by QR of the stacked factors, without forming the sum."""
    parts = [(w, up, down) for w, (up, down) in parts if up.size]
    left = np.linalg.qr(np.hstack([w * up for w, up, _ in parts]), mode="r")
    right = np.linalg.qr(np.vstack([down for _, _, down in parts]).T, mode="r")
    return np.linalg.norm(left @ right.T)


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize(
    ("options", "dialect", "most"),
    [
        (("--dtype", "float16"), "lora_diffusion", 1e-3),
        (("--dtype", "float32"), "lora_diffusion", 1e-6),
        (("--dtype", "float16", "--to", "kohya"), "kohya", 1e-3),
        (("--dtype", "float32", "--to", "kohya"), "kohya", 1e-6),
        (("--dtype", "float32", "--to", "diffusers", "--embeddings", "none"), "diffusers", 1e-6),
        ((), "lora_diffusion", 1e-6),
    ],
)
def test_real_files_equal_the_sum(real, options, dialect, most):
    """Rank 4 with rank 1, float16 with float32: 0.7·ΔW + 0.3·ΔW of raw arrays in float64."""
    names = [*positional_order("sd15"), *encoder_order("sd15")]
    one, two = (_positional(real.folder / f"{n}.safetensors") for n in REAL)
    real.ok("mix", f"{REAL[0]}:0.7", f"{REAL[1]}:0.3", "-o", "out.safetensors", *options)
    arrays, metadata = read_safetensors(real.folder / "out.safetensors")
    out = Sample("sd15", dialect, arrays, metadata)
    errors, norms = [], []
    for name in names:
        expected = [(0.7, _factors(one, name)), (0.3, _factors(two, name))]
        errors.append(_norm([*expected, (-1.0, _factors(out, name))]))
        norms.append(_norm(expected))
    assert min(norms) > 0 and max(e / n for e, n in zip(errors, norms, strict=True)) <= most
    assert np.linalg.norm(errors) <= most * np.linalg.norm(norms)
    few = names[::48]  # and densely
    dense, first, second = (oracle(sample, few) for sample in (out, one, two))
    for name in few:
        expected = 0.7 * first[name] + 0.3 * second.get(name, 0.0)
        assert relative(dense[name], expected) <= most


def test_the_order_of_inputs_does_not_matter(real):
    real.ok("mix", f"{REAL[0]}:0.7", f"{REAL[1]}:0.3", "-o", "one.safetensors")
    real.ok("mix", f"{REAL[1]}:0.3", f"{REAL[0]}:0.7", "-o", "two.safetensors")
    one, two = (read_safetensors(real.folder / f"{n}.safetensors") for n in ("one", "two"))
    recipes = [json.loads(metadata.pop("loramerge.recipe")) for _, metadata in (one, two)]
    assert one[1] == two[1] and one[0].keys() == two[0].keys()
    first, second = (r["steps"]["result"]["mix"].pop("adapters") for r in recipes)
    assert first == second[::-1] and recipes[0]["steps"] == recipes[1]["steps"]
    assert run_diff(real) <= 1e-6


def run_diff(run):
    return run.ok("diff", "one", "two", "--json").json["total"]["relative_distance"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_half_is_exactly_half(run, name):
    # halves of the smallest float16 numbers need one more bit; an alpha has room for it
    dtype = () if name == "a" else ("--dtype", "float32")
    run.ok("mix", f"{name}:0.5", "-o", "half.safetensors", *dtype)
    whole, half = (
        weights(run.folder / f"{name}.safetensors"),
        weights(run.folder / "half.safetensors"),
    )
    assert whole.keys() == half.keys()
    for stem, value in whole.items():
        assert np.array_equal(half[stem], 0.5 * value)


def test_half_of_a_real_file_is_exactly_half(real):
    real.ok("mix", f"{REAL[0]}:0.5", "-o", "half.safetensors")
    whole, half = (_positional(real.folder / f"{n}.safetensors").tensors for n in (REAL[0], "half"))
    assert whole.keys() == half.keys()
    for key in whole:
        factor = 0.5 if key.endswith(":up") else 1.0
        assert np.array_equal(half[key], (factor * whole[key]).astype(half[key].dtype))


def test_json_says_everything(run):
    found = run.ok("mix", "a:0.5", "b", "-o", "out.safetensors", "--json").json
    assert set(found) == KEYS
    assert found["outputs"] == ["out.safetensors"] and found["relative_error"] == 0.0
    assert found["size"] == (run.folder / "out.safetensors").stat().st_size
    assert found["norm_kept"] == 1.0 and found["worst"] is None and found["scale_applied"] == 1.0
    assert found["modules"] == sum(found["ranks"].values()) == sum(ADAPTED.values())
    assert [i["trigger_words"] for i in found["inputs"]] == [["flat"], ["zuzu"]]
    cut = run.ok("mix", "a:0.5", "b", "--rank", "4", "-o", "cut.safetensors", "--json").json
    assert set(cut) == KEYS and 0 < cut["relative_error"] < 1
    assert cut["norm_kept"] == pytest.approx((1 - cut["relative_error"] ** 2) ** 0.5)
    assert set(cut["worst"]) == {"module", "relative_error"}


def test_an_explanation_changes_no_byte(run):
    run.ok("mix", "a:0.7", "b:0.3", "-o", "plain.safetensors")
    shown = run.ok("mix", "a:0.7", "b:0.3", "--explain", "-o", "explained.safetensors").out
    plain, explained = (
        (run.folder / f"{n}.safetensors").read_bytes() for n in ("plain", "explained")
    )
    assert plain == explained
    assert "a and b" in shown and "all modules" in shown and "unet.mid_block" in shown
    found = run.ok("mix", "a:0.7", "b:0.3", "--explain", "-f", "-o", "plain.safetensors", "--json")
    (pair,) = found.json["interference"]["pairs"]
    assert abs(pair["cosine"]) < 0.1 and 0 < pair["outputs"] < 1
    assert found.json["interference"]["total"]["ratio"] == pytest.approx(1, abs=0.05)


def test_the_result_of_a_mix_is_shown(run):
    result = run.ok("mix", "a:0.5", "b:0.3", "-o", "out.safetensors")
    for words in ("out.safetensors", "rank", "a at weight 0.5; trigger words: flat", "zuzu"):
        assert words in result.out
    assert "Load this file at strength 1" in result.err
    words = run.ok("inspect", "out", "--json").json[0]["trigger_words"]
    assert sorted(words) == ["flat", "zuzu"]  # their union is kept


@pytest.mark.parametrize("to", ["kohya", "diffusers", "diffusers-legacy", "lora_diffusion"])
def test_dialects(run, to):
    run.ok(
        "mix", "a:unet=1", "--to", to, "-o", "out.safetensors"
    ) if to != "lora_diffusion" else None
    if to == "lora_diffusion":
        run.refused(4, "mix", "a", "--to", to, "-o", "out.safetensors", says="lora_diffusion")
        return
    assert run.ok("inspect", "out", "--json").json[0]["dialect"] == to
    assert run.ok("diff", "a", "out", "--exit-code").code == 0


@pytest.mark.parametrize(
    ("program", "dialect"),
    [("comfyui", "kohya"), ("a1111", "kohya"), ("forge", "kohya"), ("kohya", "kohya"),
     ("invokeai", "kohya"), ("diffusers", "diffusers"), ("peft", "peft")],
)  # fmt: skip
def test_programs(run, program, dialect):
    assert run.ok("mix", "a", "b", "--for", program, "--json").json["dialect"] == dialect


def test_bad_options(run):
    run.refused(2, "mix", "a", "--to", "koyha", says=("'koyha'", "did you mean kohya?"))
    run.refused(
        2,
        "mix",
        "a",
        "--to",
        "kohya",
        "--for",
        "diffusers",
        says="only one of them can choose the dialect",
    )
    run.refused(2, "mix", "a", "--dtype", "float17", says=("float17", "float16"))
    for word in ("int8", "float8_e4m3", "bool"):
        run.refused(2, "mix", "a", "--dtype", word, says="bfloat16")
    run.refused(2, "mix", "a:0", "b:0", says="all weights are 0")
    run.refused(2, "mix", "a", "--max-size", "20MiX", says="20MB")


def test_max_error_is_kept_or_refused(run):
    found = run.ok("mix", "a", "b", "--max-error", "0.3", "-o", "out.safetensors", "--json").json
    assert 0 < found["relative_error"] <= 0.3
    run.refused(7, "mix", "a", "b", "--rank", "1", "--max-error", "0.01", says=("0.01", "hint"))
    run.refused(7, "mix", "a", "b", "--rank", "1", "--max-module-error", "0.01", says="unet.")


def test_different_families(run, shared_data):
    shutil.copy(shared_data / "adapters" / "hf_timoha.safetensors", run.folder)
    run.refused(4, "mix", "a", "hf_timoha", says=("different families", "sd21", "sd15"))


def test_peft_folders_mix_with_files(run):
    run.ok("mix", "b", "--to", "peft", "-o", "folder.v1")
    run.ok("mix", "folder.v1:0.5", "a:0.5", "-o", "one.safetensors", "--to", "kohya")
    run.ok("mix", "b:0.5", "a:0.5", "-o", "two.safetensors", "--to", "kohya")
    assert run_diff(run) <= 1e-3


def test_nan_is_refused(run):
    def spoil(arrays, metadata):
        key = next(k for k in arrays if k.endswith("lora_up.weight"))
        arrays[key][0, 0] = np.nan

    rewrite(run.folder / "a.safetensors", run.folder / "nan.safetensors", spoil)
    run.refused(7, "mix", "nan:0.5", "b", "-o", "out.safetensors", says="NaN")


def test_unknown_tensors_are_named(run):
    def add(arrays, metadata):
        arrays["lora_unet_down_blocks_0_attentions_9_nothing.lora_up.weight"] = np.ones(
            (2, 2), "float16"
        )

    rewrite(run.folder / "a.safetensors", run.folder / "more.safetensors", add)
    says = ("1 tensor is not known and would be left out", "attentions_9_nothing", "--skip-unknown")
    run.refused(5, "mix", "more:0.5", "-o", "out.safetensors", says=says)
    result = run.ok("mix", "more:0.5", "-o", "out.safetensors", "--json", "--skip-unknown")
    assert "attentions_9_nothing" in result.err and "warning" in result.err
    assert run.ok("run", "out.safetensors").out.count("same file")
    assert len(result.json["unknown_keys"]["more.safetensors"]) == 1


@pytest.mark.parametrize(
    "command",
    ["resize more --rank 1", "convert more --to diffusers", "bake --base base.safetensors more"],
)
def test_unknown_tensors_are_refused_by_other_verbs_too(command, run):
    def add(arrays, metadata):
        arrays["lora_unet_nothing.lora_up.weight"] = np.ones((2, 2), "float16")

    rewrite(run.folder / "a.safetensors", run.folder / "more.safetensors", add)
    words = (*command.split(), "-o", "out.safetensors")
    run.refused(5, *words, says=("1 tensor is not known", "--skip-unknown"))
    assert "lora_unet_nothing" in run.ok(*words, "--skip-unknown").err


def test_inputs_of_one_name(run):
    """Their digests decide whether the header's recipe has one input or two."""
    import shutil

    for folder, source in (("x", "a"), ("y", "b"), ("z", "a")):
        (run.folder / folder).mkdir()
        shutil.copy(run.folder / f"{source}.safetensors", run.folder / folder / "n.safetensors")
    for i, (one, other) in enumerate((("x", "y"), ("x", "z"), ("x", "x"))):
        names = f"{one}/n.safetensors", f"{other}/n.safetensors:0.5"
        run.ok("mix", *names, "-o", f"{i}.safetensors")
        places = [f"--input=n={run.folder / one / 'n.safetensors'}"]
        places += [f"--input=n-2={run.folder / other / 'n.safetensors'}"] if i == 0 else []
        assert "same file" in run.ok("run", f"{i}.safetensors", *places).out


def test_the_result_of_another_tool_is_not_called_exact(run):
    found = run.ok(
        "mix", "a", "a:0.5", "--compat", "kohya", "--threads", "2", "-o", "o.safetensors"
    )
    assert "as merged by kohya, rounded to float16" in found.out
    assert "exact sum" not in found.out
