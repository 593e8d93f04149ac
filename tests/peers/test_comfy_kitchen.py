"""The quantisers of ComfyUI, comfy-kitchen's for the processor: the same codes, scales and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramerge.checkpoint import micro
from loramerge.checkpoint.rotated import rotation
from loramerge.checkpoint.storages import encodings
from loramerge.files.header import TensorInfo
from loramerge.files.tensors import RawTensor, StoredTensor

torch: Any = pytest.importorskip("torch")
reason = "needs the package comfy-kitchen: pip install comfy-kitchen"
theirs: Any = pytest.importorskip("comfy_kitchen.backends.eager.quantization", reason=reason)
int8: Any = pytest.importorskip("comfy_kitchen.tensor.int8_utils", reason=reason)

ROWS, COLUMNS = 150, 160


class Memory:
    """A file in memory."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def handle(self) -> Any:
        return self

    def read_into(self, offset: int, buffer: Any) -> None:
        buffer[:] = np.frombuffer(self.raw, np.uint8)[offset : offset + len(buffer)]


def rows(kind: micro.Format, codes: Any, scales: Any, whole: Any) -> micro.GroupRows:
    raw, beside = (x.view(torch.uint8).numpy().tobytes() for x in (codes, scales))
    info = TensorInfo("w", "U8", (ROWS, COLUMNS), 0, len(raw))
    found = ("s", RawTensor(beside, "U8", (len(beside),)))
    two = None
    if whole is not None:
        two = ("t", RawTensor(whole.numpy().tobytes(), "F32", ()))
    return micro.GroupRows(StoredTensor(Memory(raw), info), kind, found, two)


@pytest.mark.parametrize("name", ["mxfp8", "nvfp4"])
def test_micro_scaled_formats_agree_bit_for_bit(name: str) -> None:
    random = np.random.default_rng(0)
    spread = np.exp(random.standard_normal((ROWS, COLUMNS)))
    values = (random.standard_normal((ROWS, COLUMNS)) * spread * 0.05).astype("float32")
    values[3], values[5, :32] = 0, 0
    whole = None
    if name == "mxfp8":
        kind, (codes, scales) = micro.MX, theirs.quantize_mxfp8(torch.from_numpy(values))
        wanted = theirs.dequantize_mxfp8(codes, scales, torch.float32)
    else:
        whole = torch.tensor(np.abs(values).max() / (448 * 6))
        kind, (codes, scales) = micro.NV, theirs.quantize_nvfp4(torch.from_numpy(values), whole)
        wanted = theirs.dequantize_nvfp4(codes, whole, scales, torch.float32)
    ours = rows(kind, codes, scales, whole)
    assert np.array_equal(ours.weights(0, ROWS), wanted.numpy())
    assert ours.beside()["s"] == scales.view(torch.uint8).numpy().tobytes()
    empty = rows(kind, torch.zeros_like(codes), torch.zeros_like(scales), whole)
    blank = np.zeros_like(values)
    made = empty.pack(empty.raw(0, ROWS), blank, values, 0, None)
    assert made.tobytes() == codes.view(torch.uint8).numpy().tobytes()
    assert empty.beside()["s"] == scales.view(torch.uint8).numpy().tobytes()
    same = ours.pack(ours.raw(0, ROWS), ours.weights(0, ROWS), blank, 0, None)
    assert same.tobytes() == codes.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("size", [4, 16, 256])
def test_the_rotation_is_theirs(size: int) -> None:
    ours = rotation(size)
    assert np.array_equal(ours, int8._build_hadamard(size).numpy())
    assert np.array_equal(ours, ours.T) and np.allclose(ours @ ours, np.eye(size), atol=1e-5)


def stored_by_us(name: str, values: Any) -> tuple[Any, dict[str, Any]]:
    """The bytes of a weight in one of our forms, and those of its scales by their endings."""
    writer = encodings()[name].writer("l.weight", values.shape)
    if writer.looks:
        writer.look(values)
    raw, _ = writer.store(values, 0, None)
    return raw, {key.removeprefix("l."): data for key, data in writer.beside().items()}


@pytest.mark.parametrize("name", ["float8-scaled", "int8", "int8-rotated", "mxfp8", "nvfp4"])
def test_weights_stored_anew_have_their_codes_and_scales(name: str) -> None:
    random = np.random.default_rng(0)
    spread = np.exp(random.standard_normal((128, 1))) * 0.05
    values = (random.standard_normal((128, 512)) * spread).astype("float32")
    values[3] = 0
    tensor = torch.from_numpy(values)
    raw, beside = stored_by_us(name, values)
    scale = np.frombuffer(beside["weight_scale"], np.uint8)
    if name == "float8-scaled":
        scales = (tensor.abs().max() / 448).reshape(1)
        codes = theirs.quantize_per_tensor_fp8(tensor, scales[0])
    elif name == "int8":
        codes, scales = theirs.quantize_int8_rowwise(tensor)
    elif name == "int8-rotated":
        codes, scales = theirs.quantize_int8_convrot_weight(tensor, 256)
        near = scale.view("f4").reshape(-1, 1)  # sums of a rotation depend on their order
        assert np.allclose(scales.numpy(), near, rtol=1e-6)
        assert (codes.view(torch.uint8).numpy() != raw).mean() < 1e-4
        return
    elif name == "mxfp8":
        codes, scales = theirs.quantize_mxfp8(tensor)
    else:
        whole = tensor.abs().max() / (448 * 6)
        assert np.frombuffer(beside["weight_scale_2"], "f4")[0] == float(whole)
        codes, scales = theirs.quantize_nvfp4(tensor, whole)
    assert np.array_equal(codes.view(torch.uint8).numpy(), raw)
    assert scales.view(torch.uint8).numpy().tobytes() == scale.tobytes()
