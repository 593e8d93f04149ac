"""The quantisers of ComfyUI, comfy-kitchen's for the processor: the same codes, scales and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramerge.checkpoint import micro
from loramerge.checkpoint.relative import Relative, RelativeRows
from loramerge.checkpoint.rotated import RotatedRows, rotation
from loramerge.checkpoint.storages import encodings
from loramerge.checkpoint.zero_points import ByRows, ZeroPointRows, ZeroPointTensor
from loramerge.files.header import TensorInfo
from loramerge.files.tensors import RawTensor, StoredTensor

torch: Any = pytest.importorskip("torch")
reason = "needs the package comfy-kitchen: pip install comfy-kitchen"
theirs: Any = pytest.importorskip("comfy_kitchen.backends.eager.quantization", reason=reason)
convrot: Any = pytest.importorskip("comfy_kitchen.backends.eager.convrot_w4a4", reason=reason)
w4a8: Any = pytest.importorskip("comfy_kitchen.backends.eager.w4a8_int8", reason=reason)
awq: Any = pytest.importorskip("comfy_kitchen.backends.eager.awq", reason=reason)
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

    def read(self, offset: int, count: int) -> bytes:
        return self.raw[offset : offset + count]


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


def stored(raw: Any, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    data = raw.contiguous().view(torch.uint8).numpy().tobytes()
    return StoredTensor(Memory(data), TensorInfo("w", dtype, shape, 0, len(data)))


def test_rotated_4_bit_rows_agree() -> None:
    random = np.random.default_rng(1)
    values = torch.from_numpy(random.standard_normal((ROWS, 512)).astype("float32"))
    codes, scales = convrot.quantize_convrot_w4a4_weight(values, 256)
    wanted = convrot.dequantize_convrot_w4a4_weight(codes, scales, 256)
    scale = RawTensor(scales.numpy().tobytes(), "F32", (ROWS,))
    ours = RotatedRows(stored(codes, "I4", (ROWS, 512)), "s", scale, 256, bits=4)
    np.testing.assert_allclose(ours.weights(0, ROWS), wanted.numpy(), rtol=0, atol=1e-5)
    empty = RawTensor(np.full(ROWS, 1e-30, "float32").tobytes(), "F32", (ROWS,))
    blank = RotatedRows(stored(torch.zeros_like(codes), "I4", (ROWS, 512)), "s", empty, 256, bits=4)
    raw = blank.raw(0, ROWS)
    made = blank.pack(raw, np.zeros((ROWS, 512), "float32"), values.numpy(), 0, None)
    found = np.frombuffer(blank.beside()["s"], "float32")
    np.testing.assert_allclose(found, scales.numpy(), rtol=1e-6)
    assert (made != codes.numpy()).mean() < 1e-4  # sums of products may end in other bits


def test_zero_points_agree() -> None:
    random = np.random.default_rng(2)
    codes = torch.from_numpy(random.integers(-128, 128, (ROWS, 64), dtype=np.int8))
    scales, zeros = (
        torch.from_numpy(random.uniform(0.1, 1, (2, ROWS)).astype("float32")) for _ in "ab"
    )
    wanted = awq.gemv_awq_w4a16(torch.eye(128), codes, scales, zeros, None, 64).T
    parts = (
        stored(codes, "I4", (ROWS, 128)),
        stored(scales, "F32", (2, ROWS)),
        stored(zeros, "F32", (2, ROWS)),
    )
    rows = ZeroPointRows(ZeroPointTensor(("w", "s", "z"), parts, ByRows((ROWS, 128)), 64))
    np.testing.assert_allclose(rows.weights(0, ROWS), wanted.numpy(), rtol=1e-5, atol=1e-6)
    assert rows.beside()["w"] == codes.numpy().tobytes()


@pytest.mark.parametrize("form", ["table", "whole", "six"])
def test_relative_scales_agree(form: str) -> None:
    random = np.random.default_rng(3)
    values = torch.from_numpy((0.05 * random.standard_normal((64, 512))).astype("float32"))
    bits = 6 if form == "six" else 4
    codes, relative, rows, _, table = w4a8.quantize_w4a8_int8_weight(
        values, codebook=form == "table", bits=bits, scale_search=False
    )
    wanted = w4a8.dequantize_w4a8_int8_weight(
        codes, relative, rows, table, output_dtype=torch.float32
    )
    kept = None if table is None else stored(table, "F32", (16,))
    names = ("r", stored(relative, "F8_E4M3", (64, 32))), ("c", stored(rows, "F32", (64,)))
    parts = Relative(stored(codes, "I4", (64, 512)), *names, kept, bits, 16, 256)
    ours = RelativeRows(parts)
    np.testing.assert_allclose(ours.weights(0, 64), wanted.numpy(), rtol=0, atol=1e-6)
    zero = stored(torch.full((64,), 1e-8), "F32", (64,))
    blank = RelativeRows(Relative(stored(torch.zeros_like(codes), "I4", (64, 512)), names[0],
                                  ("c", zero), kept, bits, 16, 256))  # fmt: skip
    raw = blank.raw(0, 64)
    made = blank.pack(raw, blank.unpack(raw, 0), values.numpy() - blank.unpack(raw, 0), 0, None)
    beside = blank.beside()
    got = np.frombuffer(beside["c"], "float32")
    if form != "whole":  # which the quantiser fits in another way
        np.testing.assert_allclose(got, rows.numpy(), rtol=1e-5)
        other = np.frombuffer(beside["r"], np.uint8) != relative.view(torch.uint8).numpy().reshape(
            -1
        )
        assert other.mean() < 2e-3
        assert (made != codes.view(torch.uint8).numpy()).mean() < 5e-3
    error = np.abs(blank.unpack(made, 0) - values.numpy())
    theirs = np.abs(wanted.numpy() - values.numpy())
    assert np.linalg.norm(error) < 1.02 * np.linalg.norm(theirs)
