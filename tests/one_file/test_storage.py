"""A storage is one file: a made-up one from outside the package is baked into by the definition."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.storages import STORAGES
from loramerge.errors import FormatError
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.bases import (
    Array,
    adapter_for,
    exact,
    read_safetensors,
    single,
    write_safetensors,
)

STORAGE = '''
"""Signed bytes, one scale for each row: `W = bytes · NAME.step`."""

from loramerge.checkpoint.scaled import ScaledTensor


class Bytes:
    name = "bytes"
    order = 5

    def recognise(self, tensors, name):
        scale = tensors.get(f"{name}.step")
        return None if scale is None else ScaledTensor(f"{name}.step", scale, tensors[name])

    def fixes_types(self, tensors):
        return any(name.endswith(".step") for name in tensors)

    def partners(self, tensor, name):
        return (f"{name}.step",) if tensor.dtype == "I8" else ()


STORAGE = Bytes()
'''


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[None]:
    path = tmp_path / "made_up_storage.py"
    path.write_text(STORAGE, "utf-8")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with STORAGES.adding(module.STORAGE):
        yield


def base(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Write an SD2.1 single file in bytes; return its tensors, and its weights in float64."""
    single(path, "sd21")
    stored: dict[str, Array] = {}
    weights: dict[str, Array] = {}
    for name, array in read_safetensors(path)[0].items():
        wide = array.astype("float64")
        if not name.endswith("weight") or array.ndim < 2 or "first_stage" in name:
            stored[name], weights[name] = array, wide
            continue
        top = np.abs(wide).max(axis=tuple(range(1, wide.ndim)))
        step = (top / 100).astype("float32")
        by_row = step.astype("float64").reshape(-1, *[1] * (wide.ndim - 1))
        stored[name] = np.rint(wide / by_row).astype("int8")
        stored[f"{name}.step"] = step
        weights[name] = stored[name] * by_row
    write_safetensors(path, stored)
    return stored, weights


def asked(path: Path, adapter: Any) -> dict[str, Array]:
    """ΔW of every tensor of the layout in float64."""
    whole = single(path, "sd21")
    zero = {name: np.zeros(array.shape) for name, array in whole.weights.items()}
    (tensors,) = whole.tensors(exact(zero, [(adapter, 1.0)])).values()
    return {name: np.asarray(array, "float64") for name, array in tensors.items()}


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize("size", [0.02, 3.0], ids=["within the scale", "beyond it"])
def test_bake_equals_the_definition(tmp_path: Path, size: float) -> None:
    path, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    whole = adapter_for("sd21", seed=3, only=lambda name: name.endswith(("attn1.to_q", "v_proj")))
    adapter = whole.with_deltas({site: d.scaled(size) for site, d in whole.deltas.items()})
    want = asked(tmp_path / "zero.safetensors", adapter)
    stored, weights = base(path)
    plan = plan_bake(open_checkpoint(path), [(adapter, Weight())])
    survivals = bake(plan, out, threads=1)
    changed, grown = {s.tensor for s in survivals}, {s.tensor for s in survivals if s.rescaled}
    assert changed and bool(grown) == (size > 1)
    after = read_safetensors(out)[0]
    for name, array in stored.items():
        if name.removesuffix(".step") not in changed:
            assert after[name].tobytes() == array.tobytes(), name
    for name in changed:
        step = after[f"{name}.step"].astype("float64").reshape(-1, *[1] * (weights[name].ndim - 1))
        if name not in grown:
            assert (after[f"{name}.step"] == stored[f"{name}.step"]).all()
        exactly = (weights[name] + want[name]) / step
        error = np.abs(after[name] - exactly)
        assert error.max() <= 0.5 + 1e-3, name


def test_without_the_storage_the_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    base(path)
    adapter = adapter_for("sd21", only=lambda name: name.endswith("attn1.to_q"))
    with pytest.raises(FormatError, match="are quantised"):
        plan_bake(open_checkpoint(path), [(adapter, Weight())])


@pytest.mark.usefixtures("storage")
def test_its_type_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    base(path)
    adapter = adapter_for("sd21", only=lambda name: name.endswith("attn1.to_q"))
    with pytest.raises(FormatError, match="cannot be given another type"):
        plan_bake(open_checkpoint(path), [(adapter, Weight())], dtype="F16")
