"""Pickled tensors (`.pt`, `.bin`, `.ckpt`), only through torch's restricted loader."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from loramerge.errors import (
    CorruptFile,
    FileError,
    ForeignFile,
    MissingExtra,
    MissingFile,
    UnsafeFile,
    listed,
)
from loramerge.files.positioned import refuse_irregular
from loramerge.files.signatures import HEAD, foreign, safetensors_named_otherwise
from loramerge.files.tensors import ArrayTensor, Tensor

__all__ = [
    "load_pickle", "pickled_tensors", "refuse_foreign",
    "tensor_from_torch", "tensors_from_torch",
]  # fmt: skip

_NOT_OF_TORCH = "Invalid magic number"  # torch's word for pickles that it has not written
_ZIP = b"PK"
_NEWER = 0x8C  # the first instruction that protocol 4 added
_PICKLES = (b"PK\x03\x04", b"\x80")  # a zip of one, or one of protocol 2 or later


def load_pickle(path: str | PathLike[str]) -> Any:
    """Load a pickle that may hold tensors and plain containers, and nothing else.

    Raises:
        ForeignFile: if this is a file of another format.
        MissingExtra: if torch is not installed.
        UnsafeFile: if the file asks for anything else to be created.
        CorruptFile: if it is not a whole pickle.
    """
    refuse_irregular(path)
    if not os.path.isfile(path):
        raise MissingFile("no such file", file=path)
    refuse_foreign(path)
    _refuse_compressed(path)
    try:
        import torch
    except ImportError:
        raise MissingExtra(
            "reading pickled files needs torch",
            file=path,
            hint="pip install 'loramerge[train]', or convert the file to safetensors elsewhere",
        ) from None
    import pickle

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols and of classes that torch retires
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if (frame := re.search(r"Unsupported operand (\d+)", text)) and int(frame[1]) >= _NEWER:
            raise UnsafeFile(
                "the pickle is of a newer protocol than torch's restricted loader reads, so nobody can "
                "tell whether loading it would run code",
                file=path,
                expected="protocol 2 or 3; torch.save writes 2",
                hint="get the file as safetensors, or save it again without pickle_protocol",
            ) from None
        named = re.search(r"GLOBAL \S+", text) or re.search(r"Unsupported [^\n]+", text)
        raise UnsafeFile(
            "the pickle holds more than tensors, and loading it could run code, so it is refused",
            file=path,
            found=named[0] if named else "an object of unknown type",
            hint="get the file as safetensors, or convert it in a place you trust",
        ) from None
    except Exception as error:  # a broken byte may make torch raise anything at all
        reason = str(error).split(". ")[0]
        if reason.startswith(_NOT_OF_TORCH):
            raise ForeignFile(
                "this is a pickle, but not one of PyTorch",
                file=path,
                hint="save a dictionary of tensors with torch.save, or with safetensors",
            ) from None
        if len(reason) < 8:  # torch may say no more than a number
            reason = f"{type(error).__name__} {reason}".strip()
        raise CorruptFile(
            f"torch cannot read the file ({reason})",
            file=path,
            hint="download or export the file again",
        ) from None


def _refuse_compressed(path: str | PathLike[str]) -> None:
    """Refuse a zip whose parts would be far larger than the file: torch stores them as they are.

    Raises:
        CorruptFile: naming both sizes.
    """
    whole = sum(part.file_size for part in _parts(path) or ())
    size = os.path.getsize(path)
    if whole > max(_FREE_COPIES, 4 * size):
        raise CorruptFile(
            "the pickle is compressed, and would take far more memory than the file",
            file=path,
            expected=f"about {size:,} bytes",
            found=f"{whole:,} bytes",
        )


def _parts(path: str | PathLike[str]) -> list[Any] | None:
    """Return the entries of a zip archive; None for other files, older pickles among them."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as file:
            return file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # torch says what is wrong


def refuse_foreign(path: str | PathLike[str]) -> None:
    """Refuse a file named as a pickle that is certainly of another format.

    Raises:
        ForeignFile: naming its format.
    """
    with Path(path).open("rb") as file:
        head = file.read(HEAD)
    if not head.startswith(_PICKLES):
        error = foreign(head, path, "a pickle of PyTorch") or safetensors_named_otherwise(
            head, path
        )
        if error is not None:
            raise error
    parts = _parts(path) if head.startswith(_ZIP) else None
    if parts is not None and not any(part.filename.endswith("data.pkl") for part in parts):
        raise ForeignFile(
            "this is a zip archive, not a pickle of PyTorch",
            file=path,
            found=listed([part.filename for part in parts], 3) or "nothing in it",
            hint="extract it, and give the file of tensors in it",
        )


def tensor_from_torch(value: Any) -> ArrayTensor:
    """Return a plain torch tensor (on the CPU) as a `Tensor`, bit for bit."""
    import numpy as np
    import torch

    value = value.detach().resolve_conj().resolve_neg().contiguous()
    views = {
        torch.bfloat16: ("bfloat16", torch.int16),
        torch.float8_e4m3fn: ("float8_e4m3fn", torch.int8),
        torch.float8_e5m2: ("float8_e5m2", torch.int8),
    }
    if value.dtype in views:
        import ml_dtypes

        name, integer = views[value.dtype]
        return ArrayTensor(value.view(integer).numpy().view(np.dtype(getattr(ml_dtypes, name))))
    return ArrayTensor(value.numpy())


def tensors_from_torch(values: Mapping[str, Any], path: str | PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a pickle by name.

    Raises:
        CorruptFile: if one is sparse, quantised or without values, or if views of little data ask
            for much memory.
    """
    left = max(_FREE_COPIES, 4 * os.path.getsize(path))
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        if (sort := _unusual(value)) is not None:
            raise CorruptFile(
                "the pickle holds a tensor that cannot be used",
                file=path,
                module=name,
                expected="a plain tensor",
                found=sort,
                hint=_SAVE_AGAIN,
            )
        if not value.is_contiguous():
            left -= value.numel() * value.element_size()
        if left < 0:
            raise CorruptFile(
                "the pickle holds views of little data that ask for much memory",
                file=path,
                module=name,
                found=f"{value.numel() * value.element_size():,} bytes for a view of "
                f"{value.untyped_storage().nbytes():,}",
                hint=_SAVE_AGAIN,
            )
        try:
            found[name] = tensor_from_torch(value)
        except (TypeError, RuntimeError) as error:
            raise CorruptFile(
                f"the tensor cannot be used ({str(error).splitlines()[0][:200]})",
                file=path,
                module=name,
                hint=_SAVE_AGAIN,
            ) from None
    return found


_TOO_LARGE = 2**1024  # for a float
_FREE_COPIES = 64 << 20  # bytes that views in a file of any size may ask for
_MOST_DIMENSIONS = 64  # of a NumPy array
_SAVE_AGAIN = "save it again as a plain tensor: tensor.to_dense().contiguous().clone()"


def _unusual(value: Any) -> str | None:
    """Return the special form of a tensor (sparse, quantised, …); None for plain numbers in memory."""
    import torch

    if value.is_nested or value.layout != torch.strided:
        return "a sparse or nested tensor"
    if value.is_quantized:
        return "a quantised tensor"
    if value.device.type != "cpu":
        return f"a tensor on the device {value.device.type}, without values"
    return f"{value.dim()} dimensions" if value.dim() > _MOST_DIMENSIONS else None


def pickled_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Return the named tensors of a pickled state dict (also one nested under `state_dict`)."""
    content = load_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise FileError("expected a dictionary of tensors", file=path, found=type(content).__name__)
    return tensors_from_torch(_named(content, path), path)


def _named(content: Mapping[Any, Any], path: str | PathLike[str]) -> dict[str, Any]:
    """Return the tensors of a dictionary, and plain numbers (`x.alpha: 4.0`) as tensors of one value.

    A name without a dot (`epoch`, `optimizer`) is the trainer's own unless it names a tensor; anything
    else is data, and nothing of it is left out.

    Raises:
        CorruptFile: if the value of a data name is neither, or two keys give one name.
    """
    import torch

    found: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key)
        if isinstance(value, bool | int | float) and "." in name and abs(value) < _TOO_LARGE:
            value = torch.tensor(float(value), dtype=torch.float64)
        if not hasattr(value, "detach") and ("." not in name or value is None):
            continue
        if not hasattr(value, "detach") or name in found:
            raise CorruptFile(
                "the pickle holds a name that is not that of one tensor",
                file=path,
                module=name,
                expected="a tensor or a number",
                found="the name twice"
                if name in found
                else f"a value of type {type(value).__name__}",
                hint=_SAVE_AGAIN,
            )
        found[name] = value
    return found
