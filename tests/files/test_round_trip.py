"""What is written is read again, bit for bit, and as the safetensors library reads it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramerge.errors import UsageError
from loramerge.files.dtypes import DTYPES, dtype_name, dtype_of, numpy_dtype, scalar
from loramerge.files.reader import TensorFile
from loramerge.files.tensors import ArrayTensor, RawTensor, Tensor
from loramerge.files.writer import write_tensors
from tests.builders.samples import safetensors_bytes

COMPUTABLE = [name for name, dtype in DTYPES.items() if dtype.numpy is not None]
SHAPES = [(), (0,), (3,), (2, 0, 4), (1, 1), (5, 3), (2, 3, 1, 2)]
NAMES = st.text(min_size=1, max_size=12).filter(
    lambda s: s != "__metadata__" and not any(0xD800 <= ord(c) < 0xE000 for c in s)
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, RawTensor]:
    names = draw(st.lists(NAMES, max_size=5, unique=True))
    made = {}
    for name in names:
        dtype = draw(st.sampled_from(COMPUTABLE))
        shape = draw(st.sampled_from(SHAPES))
        size = math.prod(shape) * DTYPES[dtype].bits // 8
        raw = draw(st.binary(min_size=size, max_size=size))
        if dtype == "BOOL":
            raw = bytes(byte & 1 for byte in raw)
        made[name] = RawTensor(raw, dtype, shape)
    return made


@settings(max_examples=60)
@given(tensors(), st.dictionaries(NAMES, NAMES, max_size=3))
def test_every_dtype_and_shape_survives(
    tmp_path_factory: pytest.TempPathFactory,
    given_tensors: dict[str, RawTensor],
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("round") / "file.safetensors"
    size = write_tensors(path, given_tensors.items(), metadata)
    assert path.stat().st_size == size
    file = TensorFile(path)
    assert file.metadata == metadata
    assert list(file.tensors) == list(given_tensors) or any(
        t.nbytes == 0 for t in given_tensors.values()
    )
    for name, tensor in given_tensors.items():
        found = file.tensors[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert bytes(found.raw()) == tensor.raw()
        array = found.numpy()
        assert array.shape == tensor.shape
        assert array.tobytes() == tensor.raw()
        assert ArrayTensor(array).raw().tobytes() == tensor.raw()


def of_every_dtype() -> dict[str, Tensor]:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 2, 6).reshape(2, 3)
    return {
        name: ArrayTensor(values.astype(numpy_dtype(name)))
        for name in COMPUTABLE
        if name not in ("F8_E8M0", "C64")
    }


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "ours.safetensors"
    ours = of_every_dtype() | {
        "scalar": RawTensor(b"\0\0\x80?", "F32", ()),
        "ünï — 名": RawTensor(b"", "F16", (0, 4)),
    }
    write_tensors(path, ours.items(), {"a": "b — ü"})
    theirs = safetensors.load_file(path)
    assert set(theirs) == set(ours)
    for name, tensor in ours.items():
        raw = (
            theirs[name].contiguous().flatten().view(torch.uint8) if theirs[name].numel() else None
        )
        assert tuple(theirs[name].shape) == tensor.shape
        assert (b"" if raw is None else raw.numpy().tobytes()) == bytes(tensor.raw())
    with pytest.importorskip("safetensors").safe_open(path, "pt") as file:
        assert file.metadata() == {"a": "b — ü"}


def test_files_of_the_safetensors_library_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "theirs.safetensors"
    theirs = {
        "b": torch.randn(3, 4).to(torch.bfloat16),
        "f": torch.randn(4, 2, 3, 3),
        "h": torch.randn(7).half(),
        "8": torch.randn(5).to(torch.float8_e4m3fn),
        "i": torch.arange(6),
        "t": torch.tensor([True, False]),
        "s": torch.tensor(2.5),
        "e": torch.zeros(0, 3),
    }
    safetensors.save_file(theirs, path, {"format": "pt"})
    file = TensorFile(path)
    assert set(file.tensors) == set(theirs)
    for name, value in theirs.items():
        found = file.tensors[name]
        assert found.shape == tuple(value.shape)
        if value.numel():
            assert bytes(found.raw()) == value.flatten().view(torch.uint8).numpy().tobytes()
    assert np.array_equal(file.tensors["f"].numpy(), theirs["f"].numpy())
    assert file.tensors["s"].item() == 2.5


def test_an_independent_layout_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {"x": np.arange(6, dtype=np.float16).reshape(2, 3), "y": np.array(3.5)}
    path.write_bytes(safetensors_bytes(arrays))
    file = TensorFile(path)
    assert np.array_equal(file.tensors["x"].numpy(), arrays["x"])
    assert file.tensors["y"].numpy().shape == ()


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    tensors_ = of_every_dtype()
    write_tensors(tmp_path / "1", tensors_.items(), {"b": "2", "a": "1"})
    write_tensors(tmp_path / "2", tensors_.items(), {"a": "1", "b": "2"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_data_starts_aligned(tmp_path: Path) -> None:
    for length in range(1, 10):
        path = tmp_path / str(length)
        write_tensors(path, [("n" * length, RawTensor(bytes(8), "F64", (1,)))], {})
        assert TensorFile(path).header.data_start % 8 == 0


def test_big_endian_and_strided_arrays_are_written_in_order(tmp_path: Path) -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4)
    path = tmp_path / "a"
    write_tensors(path, [("big", ArrayTensor(array)), ("T", ArrayTensor(array.T))], {})
    file = TensorFile(path)
    assert np.array_equal(file.tensors["big"].numpy(), array)
    assert np.array_equal(file.tensors["T"].numpy(), array.T)


def test_types_below_a_byte_are_copied_but_not_computed_with(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_tensors(path, [("x", RawTensor(b"\x12\x34", "F4", (4,)))], {})
    found = TensorFile(path).tensors["x"]
    assert found.raw() == b"\x12\x34"
    with pytest.raises(UsageError, match="can be copied but not computed with"):
        found.numpy()


@pytest.mark.parametrize(
    "dtype", ["F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3"]
)
def test_a_scalar_is_decoded_without_numpy_as_with(dtype: str) -> None:
    array = np.ones((), numpy_dtype(dtype))
    assert scalar(array.tobytes(), dtype) == float(array) == 1.0


def test_words_for_dtypes() -> None:
    words = {"float16": "F16", "fp16": "F16", "F16": "F16", "bf16": "BF16", "BFloat16": "BF16"}
    assert {word: dtype_of(word) for word in words} == words
    assert all(dtype_name(numpy_dtype(name)) == name for name in COMPUTABLE)
    with pytest.raises(UsageError, match="unknown dtype 'float17'"):
        dtype_of("float17")
