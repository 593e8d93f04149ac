from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter, Full, LowRank
from loramerge.adapter.kinds.oft_diag import Foreign
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import (
    AdapterError,
    FamilyError,
    FileError,
    FormatError,
    LoramergeError,
    NumericsError,
    OutputExists,
    ShapeError,
    UnsupportedKind,
    UsageError,
)
from loramerge.events import Progress
from loramerge.stream import rows as stream_rows
from loramerge.stream import walk as walk_module
from loramerge.stream.bake import bake, survey
from loramerge.stream.plan import plan_bake
from loramerge.stream.survival import Survival
from tests.builders.bases import (
    STORAGE,
    UNET_FILE,
    Array,
    Base,
    Files,
    adapter_for,
    asked,
    exact,
    folder,
    magnitudes,
    modules,
    read_safetensors,
    sharded,
    single,
    ulp,
    unet_alone,
    write_safetensors,
)
from tests.builders.deltas import adapter, full, low_rank, replacement, site, tensor
from tests.tail import crossed, tail

Inputs = list[tuple[Adapter, float]]


def run(base: Base | Path, inputs: Inputs, output: Path, **options: Any) -> list[Survival]:
    path = base if isinstance(base, Path) else base.path
    planned = {k: options.pop(k) for k in ("skip_missing", "dtype") if k in options}
    plan = plan_bake(open_checkpoint(path), [(a, Weight(w)) for a, w in inputs], **planned)
    options.setdefault("threads", 2)
    return bake(plan, output, **options)


def read_all(root: Path) -> Files:
    if root.is_file():
        return {"": read_safetensors(root)[0]}
    return {
        p.relative_to(root).as_posix(): read_safetensors(p)[0]
        for p in sorted(root.rglob("*.safetensors"))
    }


def same_bytes(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_baked(base: Base, inputs: Inputs, output: Path, dtype: str) -> int:
    """Compare every tensor with the float64 oracle; return how many changed.

    Rounding to nearest gives at most half a unit in the last place, and the float32 sum before it
    a few of its own units.
    """
    change = asked(base.weights, inputs)
    expected = base.tensors(exact(base.weights, inputs))
    before, room = base.tensors(base.weights), base.tensors(magnitudes(base.weights, inputs))
    touched = base.tensors(
        {k: np.full(v.shape, float(k in change)) for k, v in base.weights.items()}
    )
    after = read_all(output)
    assert after.keys() == before.keys()
    changed = 0
    for file, tensors in before.items():
        assert list(after[file]) == list(tensors)
        for name, old in tensors.items():
            new, want = after[file][name], expected[file][name]
            mask = touched[file][name]
            if want is old or same_bytes(want, old) or not (mask == 1.0).any():
                assert same_bytes(new, old), name
                continue
            changed += 1
            assert new.dtype == STORAGE[dtype]
            untouched = mask == 0.0
            assert same_bytes(new[untouched], old[untouched]), name
            gap = np.abs(new.astype("float64") - want)
            assert (gap <= 0.5 * ulp(want, dtype) + 2.0**-22 * room[file][name]).all(), name
    return changed


def everything(family: str) -> Adapter:
    """A LoRA on all layers, differences on biases and norms, a dense difference."""
    a = adapter_for(family, seed=1)
    own, deltas = modules(family), dict(a.deltas)
    for name, module in own.items():
        if module.layer == "norm":
            deltas[site(name)] = full(module.shape, 5, "w_norm").scaled(0.3)
        if module.bias:
            role = "b_norm" if module.layer == "norm" else "diff_b"
            deltas[site(f"{name}:bias")] = full(module.shape[:1], 6, role).scaled(0.3)
    first = next(name for name, m in own.items() if m.layer == "conv")
    deltas[site(first)] = full(own[first].shape, 7).scaled(0.3)
    return a.with_deltas(deltas)


LAYOUTS: dict[str, tuple[str, Callable[[Path, str], Base]]] = {
    "sd15": ("sd15", lambda p, d: single(p, "sd15", d)),
    "sd15 short": ("sd15", lambda p, d: single(p, "sd15", d, short=True)),
    "sd21": ("sd21", lambda p, d: single(p, "sd21", d)),
    "sdxl": ("sdxl", lambda p, d: single(p, "sdxl", d)),
    "refiner": ("sdxl-refiner", lambda p, d: single(p, "sdxl-refiner", d)),
    "sd15 folder": ("sd15", lambda p, d: folder(p, "sd15", d)),
    "sd21 folder, transformers 5": ("sd21", lambda p, d: folder(p, "sd21", d, short=True)),
    "sdxl folder": ("sdxl", lambda p, d: folder(p, "sdxl", d)),
    "sd21 sharded": ("sd21", lambda p, d: sharded(p, "sd21", d, count=3)),
}


@pytest.mark.parametrize(("layout", "dtype"), crossed(LAYOUTS, ["F32", "F16", "BF16"]))
def test_every_parameter_of_every_layout(tmp_path: Path, layout: str, dtype: str) -> None:
    family, make = LAYOUTS[layout]
    base = make(tmp_path / "base.safetensors", dtype)
    inputs = [(everything(family), 0.8)]
    survivals = run(base, inputs, tmp_path / "out")
    assert assert_baked(base, inputs, tmp_path / "out", dtype) > 300
    assert len(survivals) == len(inputs[0][0].deltas)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_several_adapters_are_summed_before_rounding(tmp_path: Path, dtype: str) -> None:
    base = single(tmp_path / "base.safetensors", "sd21", dtype)
    inputs = [
        (adapter_for("sd21", seed=s, rank=1 + s), w) for s, w in ((1, 0.6), (2, -0.8), (3, 1.0))
    ]
    run(base, inputs, tmp_path / "out.safetensors")
    assert_baked(base, inputs, tmp_path / "out.safetensors", dtype)


def test_small_blocks_cut_fused_tensors_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block borders that fall inside queries, keys or values."""
    base = single(tmp_path / "base.safetensors", "sd21")
    inputs: Inputs = [(everything("sd21"), 1.0), (adapter_for("sd21", seed=4), -0.5)]
    for elements in (7, 100):
        monkeypatch.setattr(stream_rows, "BLOCK_ELEMENTS", elements)
        output = tmp_path / f"out{elements}.safetensors"
        run(base, inputs, output)
        assert_baked(base, inputs, output, "F32")


@pytest.mark.parametrize("which", ["q", "k", "v", "qv"])
@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_rows_of_a_fused_tensor(tmp_path: Path, which: str, parameter: str) -> None:
    base = single(tmp_path / "base.safetensors", "sd21")
    layer = "text_encoder.text_model.encoder.layers.5.self_attn"
    role, shape = ("diff", (14, 14)) if parameter == "weight" else ("diff_b", (14,))
    a = adapter(
        {
            f"{layer}.{x}_proj" + (":bias" if parameter == "bias" else ""): full(shape, i, role)
            for i, x in enumerate(which)
        },
        families=["sd21"],
    )
    run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert assert_baked(base, [(a, 1.0)], tmp_path / "out.safetensors", "F32") == 1
    name = f"cond_stage_model.model.transformer.resblocks.5.attn.in_proj_{parameter}"
    before, after = (
        read_safetensors(p)[0][name] for p in (base.path, tmp_path / "out.safetensors")
    )
    for i, x in enumerate("qkv"):
        rows = slice(14 * i, 14 * (i + 1))
        assert same_bytes(before[rows], after[rows]) == (x not in which)


def test_the_transposed_projection(tmp_path: Path) -> None:
    """Square on big models, so that a forgotten transposition would not be noticed by shapes."""
    base = single(tmp_path / "base.safetensors", "sdxl")
    delta = low_rank((8, 8), 2, 3)
    a = adapter({"text_encoder_2.text_projection": delta}, families=["sdxl"])
    run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    name = "conditioner.embedders.1.model.text_projection"
    before, after = (
        read_safetensors(p)[0][name] for p in (base.path, tmp_path / "out.safetensors")
    )
    assert np.allclose(after - before, delta.dense().T, atol=1e-6)
    assert not np.allclose(after - before, delta.dense(), atol=1e-2)


def test_a_projection_that_is_not_square(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sdxl-refiner")
    deltas = {"text_encoder_2.text_projection": low_rank((6, 8), 2, 3)}
    inputs = [(adapter(deltas, families=["sdxl-refiner"]), 1.0)] * 2
    run(base, inputs, tmp_path / "out.safetensors")
    assert_baked(base, inputs, tmp_path / "out.safetensors", "F32")


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model.", "diffusers"])
def test_the_unet_alone(tmp_path: Path, prefix: str) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", prefix)
    a = adapter_for("sd15", only=lambda name: name.startswith("unet."))
    run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert_baked(base, [(a, 1.0)], tmp_path / "out.safetensors", "F32")


# ---- what stays


def test_untouched_tensors_order_and_metadata(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "F16")
    base.metadata = {"format": "pt", "title": "ünï ☃", "modelspec.hash_sha256": "0x00"}
    base.write()
    a = adapter_for("sd15", only=lambda name: name.endswith("attn1.to_q"))
    run(base, [(a, 1.0)], tmp_path / "out.safetensors", metadata={"recipe": "x"})
    assert assert_baked(base, [(a, 1.0)], tmp_path / "out.safetensors", "F16") == 16
    _, metadata = read_safetensors(tmp_path / "out.safetensors")
    # the digest of the old content would be wrong
    assert metadata == {"format": "pt", "title": "ünï ☃", "recipe": "x"}


def test_files_without_a_change_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sdxl")
    base.metadata = {"z": "1", "modelspec.hash_sha256": "0x00", "a": "2"}
    base.write()
    a = adapter_for("sdxl", only=lambda name: name.startswith("text_encoder."))
    run(base, [(a, 1.0)], tmp_path / "out", metadata={"recipe": "x"})
    for path in base.path.rglob("*"):
        if path.is_file():
            relative = path.relative_to(base.path)
            equal = path.read_bytes() == (tmp_path / "out" / relative).read_bytes()
            assert equal == (relative.parts[0] != "text_encoder"), relative
    names = {p.relative_to(base.path) for p in base.path.rglob("*")}
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")} == names
    assert not list(tmp_path.glob("*.partial"))


def test_the_base_is_not_written_to(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    raw, stamp = base.path.read_bytes(), base.path.stat().st_mtime_ns
    run(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out.safetensors")
    assert (base.path.read_bytes(), base.path.stat().st_mtime_ns) == (raw, stamp)


def test_the_bytes_do_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_rows, "BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(walk_module, "_COPY_TASK", 333)
    base = single(tmp_path / "base.safetensors", "sd21", "BF16")
    inputs: Inputs = [(everything("sd21"), 0.7), (adapter_for("sd21", seed=8), -0.2)]
    for seed in (None, 7):
        found = set()
        for threads in (1, 2, 3, 3):
            output = tmp_path / "out.safetensors"
            run(base, inputs, output, threads=threads, seed=seed, force=True)
            found.add(output.read_bytes())
        assert len(found) == 1


# ---- laws of weights


def test_weight_zero_and_negative_weights(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    a, b = adapter_for("sd15", seed=1), adapter_for("sd15", seed=2)
    run(base, [(a, -0.7), (b, 0.0)], tmp_path / "a.safetensors")
    run(base, [(a, -0.7)], tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert_baked(base, [(a, -0.7)], tmp_path / "a.safetensors", "F32")
    with pytest.raises(UsageError, match="nothing would change"):
        run(base, [(a, 0.0)], tmp_path / "c.safetensors")


def test_weights_per_component(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sdxl")
    a = adapter_for("sdxl")
    weight = Weight(0.5, {"text_encoder": 0.0, "text_encoder_2": -1.0})
    plan = plan_bake(open_checkpoint(base.path), [(a, weight)])
    bake(plan, tmp_path / "out", threads=2)
    scaled = a.with_deltas({s: d.scaled(weight.of(s)) for s, d in a.deltas.items() if weight.of(s)})
    assert_baked(base, [(scaled, 1.0)], tmp_path / "out", "F32")


def test_an_opposite_takes_it_back(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    a = adapter_for("sd15")
    run(base, [(a, 1.0)], tmp_path / "there.safetensors")
    run(tmp_path / "there.safetensors", [(a, -1.0)], tmp_path / "back.safetensors")
    before, after = (read_safetensors(p)[0] for p in (base.path, tmp_path / "back.safetensors"))
    for name, old in before.items():
        assert np.allclose(old.astype("float64"), after[name].astype("float64"), atol=1e-6), name


def test_replacements(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    shape = modules("sd15")["unet.conv_in"].shape
    whole = adapter({"unet.conv_in": replacement(shape, 3)}, families=["sd15"])
    run(base, [(whole, 1.0)], tmp_path / "whole.safetensors")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    after = read_safetensors(tmp_path / "whole.safetensors")[0][name]
    value = whole.deltas[site("unet.conv_in")].stored()["set_weight"].numpy()
    assert np.allclose(after, value, atol=1e-6)
    # halfway, beside a LoRA: both are evaluated at the unmodified weight
    inputs: Inputs = [(adapter_for("sd15"), 1.0), (whole, 0.5)]
    run(base, inputs, tmp_path / "half.safetensors")
    assert_baked(base, inputs, tmp_path / "half.safetensors", "F32")


def test_a_replaced_projection_is_refused_by_name(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sdxl")
    name = "text_encoder_2.text_projection"
    a = adapter({name: replacement((8, 8), 3)}, families=["sdxl"])
    with pytest.raises(AdapterError) as caught:
        run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert caught.value.module == name
    assert not (tmp_path / "out.safetensors").exists()


def test_kinds_that_cannot_be_computed_with(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    loha = Foreign({"w1a": tensor(np.ones((2, 2)))}, "loha")  # its shape is not known
    a = adapter({"unet.conv_out": loha}, families=["sd15"], path="a.safetensors")
    checkpoint = open_checkpoint(base.path)
    for w in (1.0, 0.5):
        with pytest.raises(UnsupportedKind) as caught:
            plan_bake(checkpoint, [(a, Weight(w))])
        assert (caught.value.file, caught.value.module) == ("a.safetensors", "unet.conv_out")
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


# ---- survival


def check_survival(base: Base, inputs: Inputs, output: Path, found: list[Survival]) -> None:
    change, expected = asked(base.weights, inputs), base.weights
    before, after = base.tensors(expected), read_all(output)
    # which parameter each element of each file is
    owners = base.tensors(
        {k: np.full(v.shape, -1 - i) for i, (k, v) in enumerate(expected.items())}
    )
    keys, written = list(expected), {}
    for file, tensors in after.items():
        for name, array in tensors.items():
            owner = owners[file][name]
            for i in np.unique(owner[owner < 0]).astype(int):
                mask = owner == i
                gap = array[mask].astype("float64") - before[file][name][mask].astype("float64")
                written[keys[-1 - i]] = gap
    by_name = {s.module: s for s in found}
    for key, value in change.items():
        module = key.removesuffix(".weight")
        one = by_name[module]
        w = expected[key].astype("float64")
        shape = value.shape
        got = written[key]
        flat = value.T.reshape(-1) if module.endswith("text_projection") else value.reshape(-1)
        assert got.size == np.prod(shape)
        assert one.asked == pytest.approx(float((value**2).sum()), rel=1e-4)
        assert one.along == pytest.approx(float((got * flat).sum()), rel=1e-3, abs=1e-4 * one.asked)
        assert one.error == pytest.approx(
            float(((got - flat) ** 2).sum()), rel=1e-3, abs=1e-9 * float((w**2).sum())
        )
        assert one.base == pytest.approx(float((w**2).sum()), rel=1e-4)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
@pytest.mark.parametrize("size", [0.2, 0.002])
def test_survival_is_the_dense_one(tmp_path: Path, dtype: str, size: float) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "", dtype)
    a = adapter_for("sd15", only=lambda n: n.startswith("unet.mid_block"), scale=size)
    output = tmp_path / "out.safetensors"
    found = run(base, [(a, 1.0)], output)
    check_survival(base, [(a, 1.0)], output, found)
    total = sum(s.along for s in found) / sum(s.asked for s in found)
    if dtype == "F32":
        assert total == pytest.approx(1.0, abs=1e-4)
    elif size == 0.002:
        assert total < 0.75 if dtype == "BF16" else total < 0.1
    if dtype == "F8_E4M3" and size == 0.002:
        # in expectation everything survives stochastic rounding
        lucky = run(base, [(a, 1.0)], tmp_path / "lucky.safetensors", seed=1)
        check_survival(base, [(a, 1.0)], tmp_path / "lucky.safetensors", lucky)
        assert sum(s.along for s in lucky) / sum(s.asked for s in lucky) == pytest.approx(
            1, abs=0.3
        )


def test_survival_of_fused_rows_and_transposed(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sdxl", "BF16")
    names = ("layers.3.self_attn.q_proj", "layers.3.self_attn.v_proj", "text_projection")
    a = adapter_for("sdxl", only=lambda n: n.startswith("text_encoder_2") and n.endswith(names))
    assert len(a.deltas) == 3
    found = run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    check_survival(base, [(a, 1.0)], tmp_path / "out.safetensors", found)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_survey_finds_what_a_bake_does_and_writes_nothing(
    tmp_path: Path, seed: int | None
) -> None:
    base = folder(tmp_path / "base", "sdxl", "BF16")
    a = everything("sdxl")
    found = survey(plan_bake(open_checkpoint(base.path), [(a, Weight())]), seed=seed, threads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert found == run(base, [(a, 1.0)], tmp_path / "out", seed=seed)


def test_survival_of_nothing() -> None:
    nothing = Survival("m", "t", 0.0, 0.0, 0.0, 1.0)
    assert (nothing.survived, nothing.relative_error) == (1.0, 0.0)
    half = Survival("m", "t", 4.0, 2.0, 1.0, 1.0)
    assert (half.survived, half.relative_error) == (0.5, 0.5)


# ---- another type


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F8_E4M3"])
def test_conversion_of_all_floats(tmp_path: Path, dtype: str) -> None:
    base = sharded(tmp_path / "base", "sd15", "F32")
    a = adapter_for("sd15", only=lambda n: "attn1" in n)
    run(base, [(a, 1.0)], tmp_path / "out", dtype=dtype)
    change = asked(base.weights, [(a, 1.0)])
    wanted = base.tensors(exact(base.weights, [(a, 1.0)]))
    plain = base.tensors(base.weights)
    total = 0
    for file, tensors in read_all(tmp_path / "out").items():
        for name, array in tensors.items():
            assert array.dtype == STORAGE[dtype]
            want = wanted[file][name]
            total += array.nbytes if file.startswith("unet") else 0
            gap = np.abs(array.astype("float64") - want)
            assert (gap <= 0.5 * ulp(want, dtype) + 1e-7).all()
            if want.dtype == np.float32 or np.array_equal(want, plain[file][name]):
                assert same_bytes(array, plain[file][name].astype(STORAGE[dtype]))
    assert change
    index = json.loads(
        (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert index["metadata"]["total_size"] == total
    open_checkpoint(tmp_path / "out")


def test_conversion_leaves_integers_alone(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "F32")
    run(base, [], tmp_path / "out.safetensors", dtype="BF16")
    before, after = (read_safetensors(p)[0] for p in (base.path, tmp_path / "out.safetensors"))
    assert list(before) == list(after)
    for name, old in before.items():
        kind = old.dtype if old.dtype.kind == "i" else STORAGE["BF16"]
        assert same_bytes(after[name], old.astype(kind)), name


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "F16")
    shape = modules("sd15")["unet.conv_out"].shape
    huge = Full.of(tensor(np.full(shape, 1e5)), "diff")
    a = adapter({"unet.conv_out": huge}, families=["sd15"])
    with pytest.raises(NumericsError, match="do not fit float16") as caught:
        run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert caught.value.module == "model.diffusion_model.out.2.weight"
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("seed", [None, 1])
def test_adapters_that_are_not_finite_are_refused(
    tmp_path: Path, bad: float, seed: int | None
) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "BF16")
    shape = modules("sd15")["unet.conv_out"].shape
    up = np.ones((shape[0], 2, 1, 1))
    up[1, 0] = bad
    down = np.ones((2, *shape[1:]))
    down[0, 0] = 0.0
    a = adapter({"unet.conv_out": LowRank(tensor(up), tensor(down), shape)}, families=["sd15"])
    with pytest.raises(NumericsError, match="NaN or infinity"):
        run(base, [(a, 1.0)], tmp_path / "out.safetensors", seed=seed)
    assert not (tmp_path / "out.safetensors").exists()


def test_quantised_bases_are_refused(tmp_path: Path) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "")
    weights = {k: (100 * v).astype("int8") for k, v in base.weights.items()}
    (tensors,) = base.tensors(weights).values()
    write_safetensors(base.path, tensors)
    a = adapter_for("sd15", only=lambda n: n == "unet.conv_in")
    with pytest.raises(FormatError, match="quantised"):
        run(base, [(a, 1.0)], tmp_path / "out.safetensors")


# ---- what is refused


def test_missing_modules_are_listed(tmp_path: Path) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "diffusers")
    a = adapter_for("sd15")
    count = sum(s.component == "text_encoder" for s in a.deltas)
    with pytest.raises(AdapterError) as caught:
        run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert f"lacks {count} modules" in str(caught.value)
    assert f"… and {count - 6} more" in str(caught.value)
    assert "skip_missing='text_encoder'" in str(caught.value)
    for skip in ("text_encoder", "all"):
        plan = plan_bake(open_checkpoint(base.path), [(a, Weight())], skip_missing=[skip])
        assert len(plan.skipped) == count
    with pytest.raises(AdapterError):
        run(base, [(a, 1.0)], tmp_path / "out.safetensors", skip_missing=["unet"])
    run(base, [(a, 1.0)], tmp_path / "out.safetensors", skip_missing=["text_encoder"])
    assert_baked(base, [(a, 1.0)], tmp_path / "out.safetensors", "F32")
    text = a.with_deltas({s: d for s, d in a.deltas.items() if s.component != "unet"})
    with pytest.raises(UsageError, match="nothing would change"):
        run(base, [(text, 1.0)], tmp_path / "o.safetensors", skip_missing=["all"])


def test_other_families_are_refused(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd21")
    for family in ("sd15", "sdxl"):
        with pytest.raises(FamilyError) as caught:
            run(base, [(adapter_for(family), 1.0)], tmp_path / "out.safetensors")
        assert f"{family}-0" in str(caught.value)
        assert "sd21" in str(caught.value)
    unknown = adapter({"unet.conv_in": low_rank((8, 4, 3, 3), 1)})
    with pytest.raises(FamilyError, match="unknown family"):
        run(base, [(unknown, 1.0)], tmp_path / "out.safetensors")
    either = adapter_for("sd21", ambiguous=["sd15"])
    assert run(base, [(either, 1.0)], tmp_path / "out.safetensors")


def test_other_shapes_are_listed(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    a = adapter_for("sd15", only=lambda n: n.startswith("unet.mid"))
    wrong = {
        site("unet.conv_in"): low_rank((9, 4, 3, 3), 1),
        site("unet.conv_out:bias"): full((5,), 1, "diff_b"),
    }
    a = a.with_deltas({**a.deltas, **wrong})
    with pytest.raises(ShapeError) as caught:
        run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert "2 modules" in str(caught.value)
    assert "unet.conv_in: base [8, 4, 3, 3], adapter [9, 4, 3, 3]" in str(caught.value)


def test_linear_adapters_fit_1x1_convolutions(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    name = "unet.mid_block.attentions.0.proj_in"
    assert modules("sd15")[name].shape == (16, 16, 1, 1)
    inputs = [(adapter({name: low_rank((16, 16), 2)}, families=["sd15"]), 1.0)]
    run(base, inputs, tmp_path / "out.safetensors")
    assert assert_baked(base, inputs, tmp_path / "out.safetensors", "F32") == 1


def test_existing_outputs(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        run(base, [(adapter_for("sd15"), 1.0)], output)
    assert output.read_bytes() == b"mine"
    run(base, [(adapter_for("sd15"), 1.0)], output, force=True)
    assert_baked(base, [(adapter_for("sd15"), 1.0)], output, "F32")


def test_the_output_may_be_the_base(tmp_path: Path) -> None:
    base, a = single(tmp_path / "base.safetensors", "sd15"), adapter_for("sd15")
    run(base, [(a, 1.0)], base.path, force=True)
    assert_baked(base, [(a, 1.0)], base.path, "F32")
    tree = folder(tmp_path / "tree", "sd15")
    run(tree, [(a, 1.0)], tree.path, force=True)
    assert_baked(tree, [(a, 1.0)], tree.path, "F32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.safetensors", "tree"]


# ---- variants and pickles


def test_variants_beside_each_other_are_both_baked(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    half = {k: v.astype("float16") for k, v in base.weights.items()}
    variant = UNET_FILE.replace(".safetensors", ".fp16.safetensors")
    write_safetensors(base.path / variant, base.tensors(half)[UNET_FILE])
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    found = run(base, [(a, 1.0)], tmp_path / "out")
    assert len(found) == 2 * len(a.deltas)
    whole = read_safetensors(tmp_path / "out" / UNET_FILE)[0]
    small = read_safetensors(tmp_path / "out" / variant)[0]
    for name, want in base.tensors(exact(base.weights, [(a, 1.0)]))[UNET_FILE].items():
        assert np.allclose(whole[name], want, atol=1e-6)
        assert small[name].dtype == np.float16
        assert (np.abs(small[name] - want) <= 2 * ulp(want, "F16") + 1e-4).all()


def test_sharded_variants_are_both_baked(tmp_path: Path) -> None:
    base = sharded(tmp_path / "base", "sd15")
    for path in sorted((base.path / "unet").glob("*-of-*.safetensors")):
        name = path.name.replace(".safetensors", ".fp16.safetensors")
        path.with_name(name).write_bytes(path.read_bytes())
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    run(base, [(a, 1.0)], tmp_path / "out")
    for path in sorted((tmp_path / "out" / "unet").glob("*0000?-of-00002.safetensors")):
        twin = path.with_name(path.name.replace(".safetensors", ".fp16.safetensors"))
        assert path.read_bytes() == twin.read_bytes()


def test_pickles_become_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = single(tmp_path / "base.safetensors", "sd15", "F16")
    (tensors,) = base.tensors(base.weights).values()
    tensors = {k: v for k, v in tensors.items() if v.size}
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": {n: torch.tensor(t) for n, t in tensors.items()}}, path)
    a = everything("sd15")
    run(path, [(a, 0.5)], tmp_path / "pickled.safetensors")
    run(base, [(a, 0.5)], tmp_path / "plain.safetensors")
    pickled, plain = (
        read_safetensors(tmp_path / f"{n}.safetensors")[0] for n in ("pickled", "plain")
    )
    assert list(pickled) == [n for n in plain if n != "empty"]
    assert all(same_bytes(array, plain[name]) for name, array in pickled.items())


def test_a_pickled_text_encoder(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = folder(tmp_path / "base", "sd15")
    file = base.path / "text_encoder" / "model.safetensors"
    tensors = read_safetensors(file)[0]
    torch.save(
        {n: torch.tensor(t) for n, t in tensors.items()}, file.with_name("pytorch_model.bin")
    )
    file.unlink()
    run(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out")
    assert_baked(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out", "F32")
    assert not (tmp_path / "out" / "text_encoder" / "pytorch_model.bin").exists()


# ---- mix and bake


@pytest.mark.parametrize("dtype", ["F16", tail("F32"), tail("BF16")])
def test_baking_a_mix_is_baking_one_after_the_other(tmp_path: Path, dtype: str) -> None:
    base = single(tmp_path / "base.safetensors", "sd21", dtype)
    a, b = adapter_for("sd21", seed=1), everything("sd21")
    both, _ = mix([(a, Weight(0.7)), (b, Weight(-0.4))], threads=2)
    run(base, [(both, 1.0)], tmp_path / "mixed.safetensors")
    run(base, [(a, 0.7)], tmp_path / "once.safetensors")
    run(tmp_path / "once.safetensors", [(b, -0.4)], tmp_path / "twice.safetensors")
    run(base, [(a, 0.7), (b, -0.4)], tmp_path / "together.safetensors")
    mixed, twice, together = (
        read_safetensors(tmp_path / f"{n}.safetensors")[0] for n in ("mixed", "twice", "together")
    )
    once = read_safetensors(tmp_path / "once.safetensors")[0]
    for name, array in mixed.items():
        x, y, z = (t.astype("float64") for t in (array, twice[name], together[name]))
        if dtype == "F32":
            assert np.allclose(x, y, atol=1e-6), name
            assert np.allclose(x, z, atol=1e-6), name
        else:
            # what the first baking rounded may have been larger than what is left
            scale = np.maximum(np.abs(x), np.abs(once[name].astype("float64")))
            assert (np.abs(x - y) <= 2 * ulp(scale, dtype)).all(), name
            assert (np.abs(x - z) <= ulp(x, dtype)).all(), name


# ---- plan, progress, late entries


def test_the_plan_says_what_will_change(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd21")
    a = adapter_for("sd21", only=lambda n: "layers.0.self_attn" in n)
    plan = plan_bake(open_checkpoint(base.path), [(a, Weight()), (a, Weight(0.5))])
    assert plan.modules == [s.name for s in a.deltas]
    assert plan.tensors == 2  # in_proj_weight and out_proj


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    events: list[Any] = []
    run(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out", notify=events.append)
    assert all(isinstance(e, Progress) and e.unit == "bytes" for e in events)
    done = [e.done for e in events]
    assert done == sorted(done)
    data = sum(a.nbytes for f in read_all(tmp_path / "out").values() for a in f.values())
    assert done[-1] == data == events[-1].total


def test_late_entries(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    late: Future[dict[str, str]] = Future()
    late.set_result({"digest": "f" * 64})
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    run(base, [(a, 1.0)], tmp_path / "out", metadata={"digest": "0" * 64}, late=late)
    assert read_safetensors(tmp_path / "out" / UNET_FILE)[1]["digest"] == "f" * 64
    assert_baked(base, [(a, 1.0)], tmp_path / "out", "F32")


def test_a_late_entry_that_fails_leaves_nothing(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    late: Future[dict[str, str]] = Future()
    late.set_exception(LoramergeError("no digest"))
    with pytest.raises(LoramergeError, match="no digest"):
        run(base, [(adapter_for("sd15"), 1.0)], tmp_path / "o.safetensors", late=late)
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


# ---- interrupted


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("kind", [single, folder])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, error: type[BaseException], kind: Any, threads: int
) -> None:
    base = kind(tmp_path / "base.safetensors", "sd15")
    calls = 0

    def notify(event: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise error

    with pytest.raises(error):
        run(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out", notify=notify, threads=threads)
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_base_cut_short_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    plan = plan_bake(open_checkpoint(base.path), [(adapter_for("sd15"), Weight())])
    with base.path.open("r+b") as file:
        file.truncate(base.path.stat().st_size // 2)
    with pytest.raises(LoramergeError, match="shorter"):
        bake(plan, tmp_path / "out.safetensors", threads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_a_file_edited_while_it_is_baked_leaves_nothing(tmp_path: Path, which: str) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    save(adapter_for("sd15"), tmp_path / "a.safetensors", to="kohya")
    changed = tmp_path / ("base.safetensors" if which == "base" else "a.safetensors")
    before = changed.stat().st_mtime_ns

    def edit(_: object) -> None:
        with changed.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        os.utime(changed, ns=(before + 1, before + 1))

    with pytest.raises(FileError, match="changed while it was read"):
        run(base, [(load(tmp_path / "a.safetensors"), 1.0)], tmp_path / "out", notify=edit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "base.safetensors"]


def test_float64_bases_are_computed_in_float64(tmp_path: Path) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "", "F64")
    assert base.weights["unet.conv_in.weight"].dtype == np.float64
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    after = read_safetensors(tmp_path / "out.safetensors")[0]
    for name, want in base.tensors(exact(base.weights, [(a, 1.0)]))[""].items():
        assert np.allclose(after[name], want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("ending", [".weight_scale_inv", ".scale", ".weight_scale_2"])
def test_scales_of_unknown_conventions_are_refused(tmp_path: Path, ending: str) -> None:
    """Without its scale a quantised value means nothing; adding to it would be noise."""
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "", "F8_E4M3")
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    tensors = read_safetensors(base.path)[0]
    touched = next(name for name in tensors if name.endswith("attn1.to_q.weight"))
    scale = touched.removesuffix(".weight") + ending
    write_safetensors(base.path, tensors | {scale: np.ones((), np.float32)})
    with pytest.raises(FormatError, match="unknown way"):
        plan_bake(open_checkpoint(base.path), [(a, Weight())])


def test_pickled_shards_are_refused(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    encoder = base.path / "text_encoder"
    for name in ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"):
        (encoder / name).write_bytes(b"{}")
    with pytest.raises(FormatError, match="shards of pickled"):
        open_checkpoint(base.path)


def test_rows_without_a_delta_keep_their_bits(tmp_path: Path) -> None:
    """Zeros keep their sign in the rows of a fused tensor that no delta touches."""
    base = single(tmp_path / "base.safetensors", "sd21")
    tensors = read_safetensors(base.path)[0]
    fused = next(name for name in tensors if name.endswith("in_proj_weight"))
    tensors[fused] = np.full_like(tensors[fused], -0.0)
    write_safetensors(base.path, tensors)
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    a = adapter_for("sd21", only=lambda n: n == name)
    run(base, [(a, 1.0)], tmp_path / "out.safetensors")
    after = read_safetensors(tmp_path / "out.safetensors")[0][fused]
    third = len(after) // 3
    assert after[:third].any() and np.signbit(after[third:]).all()
