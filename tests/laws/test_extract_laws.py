"""Extraction is the inverse of baking, within rounding; wrong ways to extract break that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter, Delta, LowRank, Site
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.dialects import DIALECTS
from loramerge.stream.bake import bake
from loramerge.stream.extract import extract
from loramerge.stream.pairing import paired
from loramerge.stream.plan import plan_bake
from tests.builders.bases import Array, Base, adapter_for, folder, modules, sharded, single
from tests.tail import crossed, tail

RANK = 3
Deltas = Mapping[Site, Delta]
Extract = Callable[[Path, Path, int], Deltas]
LAYOUTS: dict[str, Callable[..., Base]] = {"single": single, "folder": folder, "sharded": sharded}


def extracted(tuned: Path, base: Path, rank: int, target: str = "diffusers", **more: Any) -> Deltas:
    sites = paired(open_checkpoint(tuned), open_checkpoint(base), DIALECTS[target])
    return extract(sites.groups, RankRule(rank=rank), more.pop("sorts", ()), **more).deltas


def apart(deltas: Deltas) -> dict[str, Array]:
    """ΔW of every single module in float64, flattened."""
    found = {}
    for site, delta in deltas.items():
        value = delta.dense().reshape(delta.flat_shape)
        bounds = site.bounds(len(value))
        for index, module in enumerate(site.modules):
            found[module] = value[bounds[index] : bounds[index + 1]]
    return found


def an_adapter(family: str, scale: float = 0.2) -> Adapter:
    """A LoRA of linear layers and convolutions of every component."""
    wanted = (
        "attn1.to_q",
        "attn2.to_k",
        "ff.net.2",
        "conv1",
        "conv_in",
        "proj_in",
        "q_proj",
        "fc1",
    )
    return adapter_for(family, seed=1, rank=RANK, only=lambda n: n.endswith(wanted), scale=scale)


def weights_in(path: Path) -> dict[str, Array]:
    """Every weight of a checkpoint by its module, in float64."""
    from loramerge.stream.reading import weights_of

    slots = open_checkpoint(path).slots
    return {
        m: weights_of(places[0], "float64") for (m, p), places in slots.items() if p == "weight"
    }


def extraction_is_the_inverse_of_baking(
    run: Extract, base: Path, tuned: Path, adapter: Adapter
) -> None:
    """‖a' − a‖_F ≤ 2 √(2k) ‖E‖₂ in every module, E being what rounding changed."""
    before, after = weights_in(base), weights_in(tuned)
    asked = apart(adapter.deltas)
    found = apart(run(tuned, base, RANK))
    assert found.keys() <= asked.keys()
    for module, change in asked.items():
        rounding = after[module] - before[module] - change
        size = float(np.linalg.norm(rounding, 2)) + 1e-6 * float(np.linalg.norm(change))
        got = found.get(module, np.zeros_like(change))
        assert np.linalg.norm(got - change) <= 2 * math.sqrt(2 * RANK) * size, module


def baked(base: Base, adapter: Adapter, output: Path, **more: Any) -> Path:
    bake(plan_bake(open_checkpoint(base.path), [(adapter, Weight())], **more), output)
    return output


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize(
    ("dtype", "where"),
    crossed(["F64", "F32", "F16", "BF16", "F8_E4M3"], [("sdxl", "single"), ("sd21", "folder")]),
)
def test_extraction_is_the_inverse_of_baking(
    tmp_path: Path, where: tuple[str, str], dtype: str
) -> None:
    family, layout = where
    base = LAYOUTS[layout](tmp_path / f"base{'.safetensors' * (layout == 'single')}", family, dtype)
    adapter = an_adapter(family)
    tuned = baked(base, adapter, tmp_path / f"tuned{base.path.suffix}")
    extraction_is_the_inverse_of_baking(extracted, base.path, tuned, adapter)


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("scale", [1e-3, 1e-5])
def test_a_weak_adapter_kept_in_a_wide_type_is_found(tmp_path: Path, scale: float) -> None:
    """The change is far below the rounding of the base's type, but its own type is wide enough."""
    base = single(tmp_path / "base.safetensors", "sd21", "BF16")
    adapter = an_adapter("sd21", scale=scale)
    tuned = baked(base, adapter, tmp_path / "tuned.safetensors", dtype="F32")
    extraction_is_the_inverse_of_baking(extracted, base.path, tuned, adapter)
    found = apart(extracted(tuned, base.path, RANK))
    narrow = [m for m in apart(adapter.deltas) if min(found.get(m, np.zeros((0, 0))).shape) == 0]
    assert not narrow


@pytest.mark.parametrize("target", ["kohya", tail("diffusers")])
def test_layouts_may_differ(tmp_path: Path, target: str) -> None:
    """The base is a folder, what was tuned a single file, and both ways round."""
    one, other = (
        make(tmp_path / name, "sd21", "F32")
        for make, name in ((single, "one.safetensors"), (folder, "other"))
    )
    adapter = an_adapter("sd21")
    for base, alike in ((one, other), (other, one)):
        tuned = baked(alike, adapter, tmp_path / f"tuned-{base.path.name}{alike.path.suffix}")
        extraction_is_the_inverse_of_baking(
            lambda t, b, r: extracted(t, b, r, target), base.path, tuned, adapter
        )


# ---- wrong ones


def _clamped(tuned: Path, base: Path, rank: int) -> Deltas:
    """Clip factors at the 0.99 quantile, as the scripts after svd_distill do."""
    found = {}
    for site, delta in extracted(tuned, base, rank).items():
        up, down = delta.factors("float64")
        top = np.quantile(np.concatenate([up.ravel(), down.ravel()]), 0.99)
        found[site] = LowRank.from_arrays(up.clip(-top, top), down.clip(-top, top), delta.shape)
    return found


def _turned(tuned: Path, base: Path, rank: int) -> Deltas:
    """Base minus tuned."""
    return {site: delta.scaled(-1.0) for site, delta in extracted(tuned, base, rank).items()}


def _one_short(tuned: Path, base: Path, rank: int) -> Deltas:
    return extracted(tuned, base, rank - 1)


def _kernel_last(tuned: Path, base: Path, rank: int) -> Deltas:
    """Flatten a kernel as (kh, kw, in)."""
    found = {}
    for site, delta in extracted(tuned, base, rank).items():
        if len(delta.shape) == 4 and delta.shape[2] > 1:
            up, down = delta.factors("float64")
            inside, height, width = delta.shape[1:]
            down = (
                down.reshape(-1, height, width, inside).transpose(0, 3, 1, 2).reshape(len(down), -1)
            )
            delta = LowRank.from_arrays(up, down, delta.shape)
        found[site] = delta
    return found


def _two_scales(tuned: Path, base: Path, rank: int) -> Deltas:
    """All of the singular values in both factors."""
    found: dict[Site, Delta] = {}
    for site, delta in extracted(tuned, base, rank).items():
        up, down = delta.factors("float64")
        found[site] = LowRank.from_arrays(up * np.linalg.norm(up, axis=0), down, delta.shape)
    return found


WRONG: dict[str, Extract] = {
    "clamped": _clamped, "turned": _turned, "one rank short": _one_short,
    "kernel last": _kernel_last, "scaled twice": _two_scales,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Path]:
    place = tmp_path_factory.mktemp("pair")
    base = single(place / "base.safetensors", "sd21", "F16")
    return base, baked(base, an_adapter("sd21"), place / "tuned.safetensors")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_ways_break_the_law(name: str, pair: tuple[Base, Path]) -> None:
    base, tuned = pair
    with pytest.raises(AssertionError):
        extraction_is_the_inverse_of_baking(WRONG[name], base.path, tuned, an_adapter("sd21"))


# ---- the whole difference


@pytest.mark.parametrize("dtype", ["F16", tail("BF16")])
def test_the_whole_difference_baked_gives_the_tuned_checkpoint(tmp_path: Path, dtype: str) -> None:
    """Biases, norms and embeddings included; and added to a third, it is A + B − C.

    To the last bit in float16; numbers of bfloat16 may be too far apart for a float32 to hold both.
    """
    base = single(tmp_path / "base.safetensors", "sd21", dtype)
    other = single(tmp_path / "other.safetensors", "sd21", dtype, seed=7)
    sites = paired(open_checkpoint(other.path), open_checkpoint(base.path), DIALECTS["kohya"])
    sorts = ("bias", "norm", "embedding", "table")
    found = extract(sites.groups, RankRule(), sorts, whole=True)
    assert found.captured == 1.0 and not found.energies and not found.rounding
    whole = Adapter(found.deltas).with_deltas(
        found.deltas, detection=sites.detection, dialects={"kohya": 1}
    )
    again = baked(base, whole, tmp_path / "again.safetensors")
    ours, theirs, before = (weights_in(path) for path in (again, other.path, base.path))
    slack = 0.0 if dtype == "F16" else 2.0**-23
    for name, wanted in theirs.items():
        assert (np.abs(ours[name] - wanted) <= slack * np.abs(before[name])).all(), name
    third = single(tmp_path / "third.safetensors", "sd21", "F32", seed=9)
    summed = weights_in(baked(third, whole, tmp_path / "sum.safetensors"))
    one, two, three = (weights_in(b.path) for b in (third, other, base))
    for name in one:
        expected = one[name] + two[name] - three[name]
        assert np.allclose(summed[name], expected, rtol=1e-6, atol=1e-6), name


def test_every_kind_of_layer_is_among_them() -> None:
    asked = an_adapter("sdxl").deltas
    assert {len(delta.shape) for delta in asked.values()} == {2, 4}
    assert {site.component for site in asked} == {"unet", "text_encoder", "text_encoder_2"}
    assert len(modules("sdxl")) > len(asked)
