"""Pickles give tensors and plain containers, or are refused; nothing in them runs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.errors import CorruptFile, FileError, MissingFile, UnsafeFile
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.forms import is_pickle
from loramerge.files.pickled import load_pickle, pickled_tensors, tensor_from_torch

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


def test_numbers_under_names_of_data_are_tensors_of_one_value(tmp_path: Path) -> None:
    content = {
        "x.alpha": 0.1,
        "x.rank": 4,
        "x._extra_state": None,
        "epoch": 3,
        "optimizer": {"a": []},
    }
    found = pickled_tensors(save({"x.up": torch.ones(1)} | content, tmp_path / "a.pt"))
    assert set(found) == {"x.up", "x.alpha", "x.rank"}
    assert found["x.alpha"].numpy() == 0.1 and found["x.rank"].shape == ()


@pytest.mark.parametrize("more", [
    {"x.up": [[1.0]]}, {"x.up": {"weight": torch.ones(1)}}, {"x.up": "text"}, {1: torch.ones(1)},
    {"x.alpha": 10**400}
])  # fmt: skip
def test_data_that_is_not_a_tensor_is_refused(tmp_path: Path, more: dict[Any, Any]) -> None:
    path = save({"1": torch.ones(1), **more}, tmp_path / "a.pt")
    with pytest.raises(CorruptFile, match="not that of one tensor"):
        pickled_tensors(path)


def test_a_newer_protocol_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(UnsafeFile, match="newer protocol"):
        load_pickle(tmp_path / "a.pt")


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


def test_a_pickle_without_named_tensors_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a dictionary"):
        pickled_tensors(save([torch.zeros(1)], tmp_path / "list.pt"))
    with pytest.raises(MissingFile):
        load_pickle(tmp_path / "none.pt")


def test_names_tell_pickles() -> None:
    assert all(is_pickle(f"x/a.{end}") for end in ("pt", "CKPT", "bin", "pth"))
    assert not is_pickle("a.safetensors")


ODD = {
    "sparse": lambda: torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (4, 16)),
    "huge and sparse": lambda: torch.sparse_coo_tensor(
        torch.tensor([[0], [0]]), torch.ones(1), (400_000, 160_000)
    ),
    "meta": lambda: torch.empty(4, 16, device="meta"),
    "expanded": lambda: torch.zeros(1).expand(400_000, 160_000),
    "65 dimensions": lambda: torch.zeros([1] * 65),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_tensors_that_are_no_plain_numbers_are_refused(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    path = save({"odd": make()}, tmp_path / "a.pt")
    with pytest.raises(CorruptFile, match=r"a\.pt: odd: the pickle holds"):
        pickled_tensors(path)


def test_many_views_of_little_data_are_refused(tmp_path: Path) -> None:
    data = torch.zeros(1 << 10)
    views = {f"v{i}": data.expand(1 << 10, 1 << 10) for i in range(100)}
    path = save(views, tmp_path / "a.pt")
    with pytest.raises(CorruptFile, match="views of little data"):
        pickled_tensors(path)


def test_views_are_read_as_what_they_show(tmp_path: Path) -> None:
    value = torch.arange(12.0).reshape(3, 4)
    odd = {
        "permuted": value.t(), "expanded": value[:1].expand(5, 4), "part": value[1:, ::2],
        "conjugated": torch.complex(value, value).conj(), "parameter": torch.nn.Parameter(value),
        "negative": torch.complex(value, value).conj().imag,
    }  # fmt: skip
    found = pickled_tensors(save(odd, tmp_path / "a.pt"))
    for name, expected in odd.items():
        assert np.array_equal(
            found[name].numpy(), expected.detach().resolve_conj().resolve_neg().numpy()
        ), name


def test_a_compressed_pickle_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    import zipfile

    plain = save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in source.infolist():
            bomb.writestr(part.filename, source.read(part))
        bomb.writestr("archive/data/1", bytes(100 << 20))
    with pytest.raises(CorruptFile, match="compressed"):
        load_pickle(tmp_path / "bomb.pt")
