"""The 4 bits of bitsandbytes as bitsandbytes makes and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.checkpoint.storages import as_weights, held
from loramerge.files.reader import TensorFile
from tests.builders.bases import write_safetensors

torch: Any = pytest.importorskip("torch")
functional: Any = pytest.importorskip(
    "bitsandbytes.functional", reason="needs the package bitsandbytes: pip install bitsandbytes"
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_weights_and_codes_are_theirs(tmp_path: Path, kind: str, nested: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 96) * 0.05
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    parts = {f"w.{key}": value.numpy() for key, value in state.as_dict(packed=True).items()}
    write_safetensors(tmp_path / "x.safetensors", {"w": codes.numpy(), **parts})
    tensors = TensorFile(tmp_path / "x.safetensors").tensors
    assert as_weights(tensors)["w"].shape == (24, 96)
    found = held(tensors, "w")
    assert found is not None and found.packing is not None
    ours = found.packing.weights(0, 24)
    state.shape = torch.Size([24 * 96])  # in one row: 0.50.2 misreads rows that end within a block
    theirs = functional.dequantize_4bit(codes, state).numpy().reshape(24, 96)
    assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    raw = found.packing.raw(0, 24)
    assert found.packing.pack(raw, ours, np.zeros_like(ours), 0, None).tobytes() == raw.tobytes()
    change = (weight.numpy() - ours) / 2  # nearer to what was quantised, so that its codes stay
    again = found.packing.pack(raw, ours, change, 0, None)
    assert np.mean(again.reshape(-1) != codes.numpy().reshape(-1)) < 0.02
