"""Pickles give tensors and plain containers, or are refused; nothing in them runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.errors import CorruptFile, FileError, MissingFile, UnsafeFile
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.pickled import is_pickle, load_pickle, pickled_tensors, tensor_from_torch

torch: Any = pytest.importorskip("torch")


class Trap:
    """A pickle that would make a file if it were ever loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_a_state_dict_gives_its_tensors(tmp_path: Path) -> None:
    content = {"a": torch.arange(6.0).reshape(2, 3), "step": 3, "h": torch.ones(2).half()}
    found = pickled_tensors(save(content, tmp_path / "a.ckpt"))
    assert set(found) == {"a", "h"}
    assert np.array_equal(found["a"].numpy(), np.arange(6.0).reshape(2, 3))
    assert found["h"].dtype == "F16"


def test_a_nested_state_dict_is_found(tmp_path: Path) -> None:
    content = {"epoch": 1, "state_dict": {"a": torch.zeros(2)}}
    assert set(pickled_tensors(save(content, tmp_path / "a.ckpt"))) == {"a"}


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "bool"])
def test_values_come_bit_for_bit(name: str, tmp_path: Path) -> None:
    value = torch.tensor([[0.0, 1.0], [-1.5, 1.0]]).to(getattr(torch, name)).T
    found = pickled_tensors(save({"a": value}, tmp_path / "a.pt"))["a"]
    assert found.numpy().dtype == numpy_dtype(found.dtype)
    expected = value.to(torch.float64).numpy()
    assert np.array_equal(found.numpy().astype(np.float64), expected)


def test_parameters_and_views_are_tensors_too() -> None:
    value = torch.nn.Parameter(torch.arange(4.0))[::2]
    assert tensor_from_torch(value).numpy().tolist() == [0.0, 2.0]


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, old: bool) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / "evil.pt"
    if old:
        path.write_bytes(pickle.dumps({"a": Trap(trap)}, protocol=2))
    else:
        save({"a": torch.zeros(1), "b": Trap(trap)}, path)
    with pytest.raises(UnsafeFile) as caught:
        load_pickle(path)
    assert caught.value.exit_code == 3
    assert caught.value.file == str(path)
    assert "mkdir" in str(caught.value.found)
    assert "weights_only" not in str(caught.value)
    assert not trap.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile, match="Linear"):
        load_pickle(save(torch.nn.Linear(2, 2), tmp_path / "module.pt"))


def test_broken_pickles_are_corrupt(tmp_path: Path) -> None:
    whole = save({"a": torch.zeros(300)}, tmp_path / "whole.pt").read_bytes()
    for name, raw in {
        "empty": b"", "garbage": b"hello, this is no pickle", "cut": whole[: len(whole) // 2],
        "half an opcode": b"\x80\x02}q\x00(X\x01\x00",
    }.items():  # fmt: skip
        path = tmp_path / f"{name}.pt"
        path.write_bytes(raw)
        with pytest.raises(CorruptFile, match="torch cannot read the file"):
            load_pickle(path)


def test_what_holds_no_tensors_by_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a dictionary"):
        pickled_tensors(save([torch.zeros(1)], tmp_path / "list.pt"))
    with pytest.raises(MissingFile):
        load_pickle(tmp_path / "none.pt")


def test_names_tell_pickles() -> None:
    assert all(is_pickle(f"x/a.{end}") for end in ("pt", "CKPT", "bin", "pth"))
    assert not is_pickle("a.safetensors")
