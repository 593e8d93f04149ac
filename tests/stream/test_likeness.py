"""The distance of two checkpoints, against dense float64 sums, in any layouts and types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.checkpoint import open_checkpoint
from loramerge.errors import FamilyError
from loramerge.stream import likeness as module
from loramerge.stream.gaps import Likeness
from loramerge.stream.likeness import likeness
from tests.builders import small_models
from tests.builders.bases import (
    STORAGE,
    folder,
    make_weights,
    modules,
    read_safetensors,
    sharded,
    single,
    write_safetensors,
)
from tests.tail import tail


def compared(a: Path, b: Path, **options) -> Likeness:
    return likeness(open_checkpoint(a), open_checkpoint(b), **options)


def dense(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """‖A‖², ‖B‖² and ‖B − A‖² over the tensors that differ, in float64."""
    sums = np.zeros(3)
    for name, one in a.items():
        x, y = one.astype("float64"), b[name].astype("float64")
        if (x != y).any():
            sums += [(x**2).sum(), (y**2).sum(), ((y - x) ** 2).sum()]
    return tuple(sums)


@pytest.mark.parametrize("dtype", ["F16", tail("F32"), tail("BF16"), tail("F64"), tail("F8_E4M3")])
def test_sums_are_those_of_float64(dtype: str, tmp_path: Path) -> None:
    a, b = small_models.weights(0, dtype), small_models.weights(0, dtype)
    changed = small_models.weights(1, dtype, 0.3)
    for name in list(a)[1:4]:
        b[name] = (b[name].astype("float64") + changed[name].astype("float64")).astype(
            b[name].dtype
        )
    found = compared(small_models.write(tmp_path / "a", a), small_models.write(tmp_path / "b", b))
    total = found.total
    assert (total.tensors, total.differing, total.rounded) == (len(a), 3, 0)
    assert (total.a, total.b, total.moved) == pytest.approx(dense(a, b), rel=1e-5)
    assert total.distance == pytest.approx(np.sqrt(total.moved / max(total.a, total.b)), rel=1e-9)
    blocks = found.blocks
    assert blocks["model.layers.0"].differing == 3 and blocks["model.layers.1"].differing == 0
    assert found.largest is not None and found.largest.site.name.startswith("model.layers.0")


def test_a_doubled_distance_and_the_other_order(tmp_path: Path) -> None:
    """Laws: the distance is symmetric, homogeneous, and 0 for equal weights alone."""
    a = small_models.weights(0)
    step = small_models.weights(1, size=0.01)
    paths = [small_models.write(tmp_path / "0", a)]
    for n in (1, 2):
        moved = {name: (value + n * step[name]).astype("float32") for name, value in a.items()}
        paths.append(small_models.write(tmp_path / str(n), moved))
    once, twice = (compared(paths[0], path).total for path in paths[1:])
    back = compared(paths[1], paths[0]).total
    assert twice.moved == pytest.approx(4 * once.moved, rel=1e-4)
    assert back.distance == once.distance and (back.a, back.b) == (once.b, once.a)
    assert compared(paths[0], paths[0]).total.distance == 0.0
    assert once.cosine is not None and once.cosine < 1


@pytest.mark.parametrize("family", ["sd15", tail("sd21"), tail("sdxl")])
def test_layouts_make_no_difference(family: str, tmp_path: Path) -> None:
    one = single(tmp_path / "a.safetensors", family, "F16").path
    other = folder(tmp_path / "b", family, "F16").path
    shards = sharded(tmp_path / "c", family, "F16").path
    for a, b in ((one, other), (other, one), (one, shards), (shards, other)):
        found = compared(a, b)
        networks = {name: gap for name, gap in found.parts.items() if name != "vae"}
        assert sum(gap.tensors for gap in networks.values()) > 100 and "unet" in networks
        assert all(gap.differing == 0 for gap in networks.values())


def test_one_changed_weight_is_found_in_another_layout(tmp_path: Path) -> None:
    one = single(tmp_path / "a.safetensors", "sd15", "F16").path
    base = folder(tmp_path / "b", "sd15", "F16")
    file = tmp_path / "b" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, metadata = read_safetensors(file)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    changed = tensors[name].copy()
    changed[2, 3] += 1
    write_safetensors(file, tensors | {name: changed}, metadata)
    found = compared(one, base.path)
    assert found.parts["unet"].differing == 1
    (one,) = (m for m in found.measured if m.part == "unet" and m.gap.differing)
    assert one.site.name == f"unet.{name.removesuffix('.weight')}"
    assert one.gap.moved == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("narrow", ["BF16", "F16", "F8_E4M3"])
def test_rounding_alone_is_told(narrow: str, tmp_path: Path) -> None:
    weights = small_models.weights(0)
    rounded = {name: value.astype(STORAGE[narrow]) for name, value in weights.items()}
    widened = {name: value.astype("float32") for name, value in rounded.items()}
    a = small_models.write(tmp_path / "a", weights)
    for n, tensors in enumerate((rounded, widened) if narrow == "BF16" else (rounded,)):
        total = compared(a, small_models.write(tmp_path / f"b{n}", tensors)).total
        assert total.rounded == total.differing == len(weights)
    name = "model.layers.0.attn.q_proj.weight"
    rounded[name] = rounded[name].copy()
    rounded[name][0, 0] = 3.0
    total = compared(a, small_models.write(tmp_path / "c", rounded)).total
    assert total.rounded == len(weights) - 1


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    a, b = small_models.weights(0), small_models.weights(0)
    b["model.layers.1.mlp.up_proj.weight"] = np.zeros((9, 14), "float32")
    b["model.layers.2.mlp.up_proj.weight"] = np.zeros((9, 13), "float32")
    del b["model.layers.0.norm.weight"]
    b["lm_head.weight"] = np.full_like(b["lm_head.weight"], np.nan)
    found = compared(small_models.write(tmp_path / "a", a), small_models.write(tmp_path / "b", b))
    assert found.misfits == ["model.layers.1.mlp.up_proj: [9, 13] and [9, 14]"]
    assert found.only_a == {"model": ["model.layers.0.norm"]}
    assert found.only_b == {"model": ["model.layers.2.mlp.up_proj.weight"]}
    assert found.total.differing == 1 and found.total.distance == np.inf
    assert found.total.cosine is None


def test_the_vae_and_averages_count_as_parts(tmp_path: Path) -> None:
    base = single(tmp_path / "a.safetensors", "sd15", "F16")
    tensors, metadata = read_safetensors(base.path)
    vae = {"first_stage_model.decoder.conv_out.weight": np.ones((4, 3), "float16")}
    average = {"model_ema.weight": np.ones(3, "float16")}
    write_safetensors(tmp_path / "x.safetensors", tensors | vae | average, metadata)
    other = {name: 2 * value for name, value in (vae | average).items()}
    write_safetensors(tmp_path / "y.safetensors", tensors | other, metadata)
    found = compared(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert found.parts["vae"].differing == 1 and found.parts["running average"].differing == 1
    assert found.parts["unet"].differing == 0
    only = compared(base.path, tmp_path / "x.safetensors").only_b
    assert only == {"vae": [*vae], "running average": [*average]}


def test_families_do_not_mix(tmp_path: Path) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F16").path
    b = single(tmp_path / "b.safetensors", "sdxl", "F16").path
    with pytest.raises(FamilyError, match="different families"):
        compared(a, b)


def test_equal_bytes_are_not_computed_with(tmp_path: Path, monkeypatch) -> None:
    weights = small_models.weights(0, "F16")
    paths = [small_models.write(tmp_path / name, weights) for name in "ab"]

    def refuse(*_: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(module, "_gap", refuse)
    assert compared(*paths).total.differing == 0


@pytest.mark.parametrize("block", [64, tail(1000)])
def test_blocks_do_not_matter(block: int, tmp_path: Path, monkeypatch) -> None:
    a = single(tmp_path / "a.safetensors", "sd15", "F16", seed=0).path
    b = single(tmp_path / "b.safetensors", "sd15", "F16", seed=1).path
    before = compared(a, b).total
    monkeypatch.setattr(module, "_BLOCK", block)
    after = compared(a, b, threads=2).total
    assert (after.differing, after.elements) == (before.differing, before.elements)
    assert after.moved == pytest.approx(before.moved, rel=1e-5)
    assert before.cosine is not None and abs(before.cosine) < 0.2  # unrelated weights


def test_the_builders_weights_are_what_is_measured(tmp_path: Path) -> None:
    """The sums over all modules of a family are those of the canonical weights."""
    a = folder(tmp_path / "a", "sd15", "F32", seed=0)
    b = folder(tmp_path / "b", "sd15", "F32", seed=1)
    found = compared(a.path, b.path).parts["unet"]
    one, other = (make_weights(modules("sd15"), "F32", seed) for seed in (0, 1))
    keep = {n: v for n, v in one.items() if n.startswith("unet.")}
    assert (found.a, found.b, found.moved) == pytest.approx(dense(keep, other), rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda values: float(np.abs(values).sum()),  # another norm
        lambda values: float((values.reshape(-1)[1:] ** 2).sum()),  # a number left out
        lambda values: float((values.astype("float16") ** 2).sum()),  # in half precision
    ],
)
def test_wrong_sums_would_be_noticed(wrong, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_energy", wrong)
    with pytest.raises(AssertionError):
        test_sums_are_those_of_float64("F32", tmp_path)


def test_a_reader_without_heads_order_or_scale_would_be_noticed(
    tmp_path: Path, monkeypatch
) -> None:
    """Layouts that store rows fused are told apart only if the right rows are read."""
    real = module.PlacePair

    def shifted(one, other):
        return real(one._replace(part=0), other)

    monkeypatch.setattr(module, "PlacePair", shifted)
    with pytest.raises(AssertionError):
        test_layouts_make_no_difference("sd21", tmp_path)
