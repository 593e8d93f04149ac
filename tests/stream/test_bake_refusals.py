"""Bakes that are refused before anything is written, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.kinds.oft_diag import Foreign
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import (
    AdapterError,
    FamilyError,
    FormatError,
    ShapeError,
    UnsupportedKind,
    UsageError,
)
from loramerge.stream.plan import plan_bake
from tests.builders.baking import assert_baked, bake_into
from tests.builders.bases import (
    adapter_for,
    folder,
    read_safetensors,
    single,
    unet_alone,
    write_safetensors,
)
from tests.builders.deltas import adapter, full, low_rank, replacement, site, tensor


def test_a_replaced_projection_is_refused_by_name(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sdxl")
    name = "text_encoder_2.text_projection"
    a = adapter({name: replacement((8, 8), 3)}, families=["sdxl"])
    with pytest.raises(AdapterError) as caught:
        bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
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


def test_quantised_bases_are_refused(tmp_path: Path) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "")
    weights = {k: (100 * v).astype("int8") for k, v in base.weights.items()}
    (tensors,) = base.tensors(weights).values()
    write_safetensors(base.path, tensors)
    a = adapter_for("sd15", only=lambda n: n == "unet.conv_in")
    with pytest.raises(FormatError, match="quantised"):
        bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")


def test_missing_modules_are_listed(tmp_path: Path) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "diffusers")
    a = adapter_for("sd15")
    count = sum(s.component == "text_encoder" for s in a.deltas)
    with pytest.raises(AdapterError) as caught:
        bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert f"lacks {count} modules" in str(caught.value)
    assert f"… and {count - 6} more" in str(caught.value)
    assert "skip_missing='text_encoder'" in str(caught.value)
    for skip in ("text_encoder", "all"):
        plan = plan_bake(open_checkpoint(base.path), [(a, Weight())], skip_missing=[skip])
        assert len(plan.skipped) == count
    with pytest.raises(AdapterError):
        bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors", skip_missing=["unet"])
    bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors", skip_missing=["text_encoder"])
    assert_baked(base, [(a, 1.0)], tmp_path / "out.safetensors", "F32")
    text = a.with_deltas({s: d for s, d in a.deltas.items() if s.component != "unet"})
    with pytest.raises(UsageError, match="nothing would change"):
        bake_into(base, [(text, 1.0)], tmp_path / "o.safetensors", skip_missing=["all"])


def test_other_families_are_refused(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd21")
    for family in ("sd15", "sdxl"):
        with pytest.raises(FamilyError) as caught:
            bake_into(base, [(adapter_for(family), 1.0)], tmp_path / "out.safetensors")
        assert f"{family}-0" in str(caught.value)
        assert "sd21" in str(caught.value)
    for name, inputs in (("unet.conv_in", 5), ("unet.conv_within", 4)):
        unknown = adapter({name: low_rank((8, inputs, 3, 3), 1)})
        with pytest.raises(FamilyError, match="unknown family"):
            bake_into(base, [(unknown, 1.0)], tmp_path / "out.safetensors")
    fits = adapter({"unet.conv_in": low_rank((8, 4, 3, 3), 1)})
    assert bake_into(base, [(fits, 1.0)], tmp_path / "fits.safetensors")
    either = adapter_for("sd21", ambiguous=["sd15"])
    assert bake_into(base, [(either, 1.0)], tmp_path / "out.safetensors")


def test_other_shapes_are_listed(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    a = adapter_for("sd15", only=lambda n: n.startswith("unet.mid"))
    wrong = {
        site("unet.conv_in"): low_rank((9, 4, 3, 3), 1),
        site("unet.conv_out:bias"): full((5,), 1, "diff_b"),
    }
    a = a.with_deltas({**a.deltas, **wrong})
    with pytest.raises(ShapeError) as caught:
        bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert "2 modules" in str(caught.value)
    assert "unet.conv_in: base [8, 4, 3, 3], adapter [9, 4, 3, 3]" in str(caught.value)


@pytest.mark.parametrize("ending", [".weight_scale_2", ".scale"])
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
