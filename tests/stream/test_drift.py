from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.checkpoint import open_checkpoint
from loramerge.errors import FamilyError, ShapeError
from loramerge.stream.drift import Drift, drift
from tests.builders.bases import adapter_for, folder, modules, single, unet_alone
from tests.builders.deltas import adapter, full, low_rank, site, tensor


def projector(columns: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return columns @ np.linalg.pinv(columns)


def test_drift_is_the_dense_one(tmp_path: Path) -> None:
    """Also between layouts: a single file with fused and transposed tensors, and a folder."""
    a = single(tmp_path / "a.safetensors", "sdxl", "F32", seed=1)
    b = folder(tmp_path / "b", "sdxl", "BF16", seed=2)
    lora = adapter_for("sdxl")
    bias = {site("unet.conv_in:bias"): full((8,), 1, "diff_b")}
    lora = lora.with_deltas({**lora.deltas, **bias})
    found = drift([lora], open_checkpoint(a.path), open_checkpoint(b.path), threads=1)
    assert set(found) == {s for s in lora.deltas if s.parameter == "weight"}
    for place, one in found.items():
        key = f"{place.name}.weight"
        x, y = (w.weights[key].astype("float64") for w in (a, b))
        x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
        up, down = lora.deltas[place].factors("float64")
        left, right = projector(up), projector(down.T)
        expected = [
            np.linalg.norm(v) ** 2 for v in (x, y - x, left @ x @ right, left @ (y - x) @ right)
        ]
        got = (one.base, one.moved, one.inside, one.inside_moved)
        assert got == pytest.approx(expected, rel=1e-6)
        assert one.distance == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))


def test_equal_bases_have_not_moved(tmp_path: Path) -> None:
    a = unet_alone(tmp_path / "a.safetensors", "sd15", "")
    b = unet_alone(tmp_path / "b.safetensors", "sd15", "diffusers")
    found = drift([adapter_for("sd15")], open_checkpoint(a.path), open_checkpoint(b.path))
    assert all(one.moved == one.inside_moved == 0.0 for one in found.values())
    # modules that a base lacks are left out
    assert all(s.component == "unet" for s in found)


def test_several_adapters_add_up_and_dead_factors_see_nothing(tmp_path: Path) -> None:
    a, b = (unet_alone(tmp_path / f"{n}.safetensors", "sd15", "") for n in "ab")
    shape = modules("sd15")["unet.conv_in"].shape
    one = adapter({"unet.conv_in": low_rank(shape, 2, 1)}, families=["sd15"])
    dead = low_rank(shape, 2, 1).scaled(1.0)
    dead = type(dead)(tensor(np.zeros((8, 2, 1, 1))), dead.down, dead.shape)
    none = adapter({"unet.conv_in": dead}, families=["sd15"])
    bases = open_checkpoint(a.path), open_checkpoint(b.path)
    (alone,) = drift([one], *bases).values()
    (both,) = drift([one, one], *bases).values()
    (nothing,) = drift([none], *bases).values()
    assert both.inside == pytest.approx(2 * alone.inside)
    assert (nothing.inside, nothing.subspace) == (0.0, 0.0)


def test_figures() -> None:
    total = Drift(4.0, 1.0, 1.0, 0.25) + Drift(0.0, 0.0, 0.0, 0.0)
    assert (total.distance, total.subspace) == (0.5, 0.5)
    assert (Drift(0.0, 0.0, 0.0, 0.0).distance, Drift(0.0, 0.0, 0.0, 0.0).subspace) == (0.0, 0.0)


def test_other_families_and_shapes_are_refused(tmp_path: Path) -> None:
    a = open_checkpoint(unet_alone(tmp_path / "a.safetensors", "sd15", "").path)
    b = open_checkpoint(unet_alone(tmp_path / "b.safetensors", "sd21", "").path)
    with pytest.raises(FamilyError, match="different families"):
        drift([adapter_for("sd15")], a, b)
    wide = adapter({"unet.conv_in": low_rank((9, 4, 3, 3), 1)}, families=["sd15"])
    with pytest.raises(ShapeError) as caught:
        drift([wide], a, a)
    assert caught.value.module == "unet.conv_in"
