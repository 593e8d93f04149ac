"""Computed tensors beyond some megabytes lie in a file until they are written, and nothing is left."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from loramerge.files import spool
from loramerge.files.dtypes import dtype_name
from loramerge.files.positioned import PositionedFile
from loramerge.files.spool import Spool, SpooledTensor, in_memory, spool_for
from loramerge.files.tensors import ArrayTensor, RawTensor
from loramerge.files.writer import write_tensors


def array(dtype: Any, *shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ml_dtypes.bfloat16])
def test_a_held_tensor_keeps_type_shape_and_bytes(dtype: Any, tmp_path: Path) -> None:
    whole = array(dtype, 3, 4, 1, 1)
    kept = Spool(tmp_path / "out.safetensors", room=0).keep(ArrayTensor(whole))
    assert isinstance(kept, SpooledTensor)
    assert (kept.dtype, kept.shape) == (dtype_name(whole.dtype), (3, 4, 1, 1))
    assert bytes(kept.raw()) == whole.tobytes()
    assert np.array_equal(kept.reshaped((12,)).numpy(), whole.reshape(-1))


def test_small_results_and_tensors_of_files_stay_where_they_are(tmp_path: Path) -> None:
    hold = Spool(tmp_path / "out.safetensors", room=100)
    first, second = (ArrayTensor(array("float32", 20)) for _ in range(2))
    assert hold.keep(first) is first
    assert isinstance(hold.keep(second), SpooledTensor)
    third = ArrayTensor(array("float32", 5))
    assert hold.keep(third) is third  # it fits what is left
    alpha = RawTensor(b"\0" * 4, "F32", ())
    assert hold.keep(alpha) is alpha
    empty = ArrayTensor(array("float32", 0))
    assert hold.keep(empty) is empty
    assert spool_for(None) is in_memory


def test_the_file_is_gone_with_its_last_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    hold = Spool(folder / "out.safetensors", room=0)
    kept = [hold.keep(ArrayTensor(array("float32", 8))) for _ in range(3)]
    del hold
    assert np.array_equal(kept[2].numpy(), np.arange(8))
    kept.clear()
    gc.collect()
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_results_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise spool.FileError("the disk is full")

    monkeypatch.setattr(PositionedFile, "write", full)
    tensor = ArrayTensor(array("float32", 8))
    assert Spool(tmp_path / "out.safetensors", room=0).keep(tensor) is tensor


def test_files_of_held_tensors_have_the_same_bytes(tmp_path: Path) -> None:
    pairs = [(f"t{n}", ArrayTensor(array("float16", n + 1, 3))) for n in range(5)]
    hold = Spool(tmp_path / "held.safetensors", room=20)
    write_tensors(tmp_path / "memory.safetensors", pairs, {})
    write_tensors(tmp_path / "held.safetensors", [(k, hold.keep(t)) for k, t in pairs], {})
    assert (tmp_path / "held.safetensors").read_bytes() == (
        tmp_path / "memory.safetensors"
    ).read_bytes()
