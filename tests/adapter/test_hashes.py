"""The hashes in kohya files are those that sd-scripts would write."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from loramerge.adapter.formats.kohya_hashes import kohya_hashes
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.files.reader import TensorFile
from loramerge.files.tensors import ArrayTensor, Tensor

numpy_format = pytest.importorskip("safetensors.numpy")


def as_kohya_does(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> tuple[str, str]:
    """Write with the safetensors library and the `ss_*` entries, and hash that."""
    training = {k: v for k, v in metadata.items() if k.startswith("ss_")}
    raw = numpy_format.save(arrays, training)
    start = 8 + int.from_bytes(raw[:8], "little")
    whole = hashlib.sha256(raw[start:]).hexdigest()
    return whole, hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]


def both(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> tuple[str, str]:
    tensors: list[tuple[str, Tensor]] = [(n, ArrayTensor(a)) for n, a in arrays.items()]
    found = kohya_hashes(tensors, metadata)
    return found["sshs_model_hash"], found["sshs_legacy_hash"]


@pytest.mark.parametrize("rows", [3, 500, 2100, 4000])
def test_hashes_equal_those_of_the_librarys_layout(rows: int) -> None:
    """Of several types, and of sizes that end before, in and after the window at 1 MiB."""
    random = np.random.default_rng(rows)
    arrays = {
        "b.up": random.standard_normal((rows, 128)).astype(np.float16),
        "a.up": random.standard_normal((rows, 128)).astype(np.float32),
        "a.alpha": np.array(3, np.float32),
        "c": random.standard_normal((7, 9)).astype(ml_dtypes.bfloat16),
        "d": np.arange(5, dtype=np.int64),
    }
    metadata = {"ss_tag": "ü", "ss_x": "1", "modelspec.title": "not counted"}
    assert both(arrays, metadata) == as_kohya_does(arrays, metadata)
    assert both(arrays, metadata) == both(arrays, metadata | {"modelspec.title": "changed"})


def test_files_carry_their_own(tmp_path: Path) -> None:
    arrays = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": np.ones((1280, 4), np.float16),
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": np.ones((4, 1280), np.float16),
    }
    source = tmp_path / "in.safetensors"
    source.write_bytes(numpy_format.save(arrays, {"sshs_model_hash": "of something else"}))
    save(load(source), tmp_path / "out.safetensors", dtype="F32")
    file = TensorFile(tmp_path / "out.safetensors")
    written = {name: tensor.numpy() for name, tensor in file.tensors.items()}
    whole, legacy = as_kohya_does(written, file.metadata)
    assert file.metadata["sshs_model_hash"] == whole
    assert file.metadata["sshs_legacy_hash"] == legacy
