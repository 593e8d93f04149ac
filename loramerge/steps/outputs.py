"""Default output names, and what predicts and describes what will be written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loramerge.adapter import Adapter, Delta, LowRank, Scale, Site
from loramerge.adapter.encode import Encoded, encode
from loramerge.algebra.outcome import SizeModel
from loramerge.algebra.terms import terms_of
from loramerge.algebra.weights import Weight
from loramerge.checkpoint.generic import is_transformers
from loramerge.dialects import Dialect
from loramerge.dialects.tables import PEFT_ALONE
from loramerge.errors import FileError, OutputExists, UsageError
from loramerge.files.dtypes import DTYPES
from loramerge.files.header import build_header
from loramerge.files.tensors import RawTensor, Tensor
from loramerge.files.writer import check_target
from loramerge.library.lookup import is_adapter_folder
from loramerge.steps.references import Reference

__all__ = [
    "adapter_output",
    "checkpoint_output",
    "default_name",
    "encoded_size",
    "size_model",
    "stand_in",
    "sum_name",
    "weighted_shapes",
]

_LONGEST = 120
_MOST_BYTES = 200  # file systems allow 255 for a name, and a temporary one is longer
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_HEADER_ENTRY = 66  # bytes of a tensor's entry in the header beside its name, about


def default_name(stem: str, suffix: str) -> Path:
    """Return an output name in the current folder, cut to 120 characters with a hash of the rest."""
    stem = stem.encode("utf-8", "replace").decode()
    clean = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in stem).strip(". ")
    if len(clean) + len(suffix) > _LONGEST or len(clean.encode()) > _MOST_BYTES:
        digest = hashlib.sha256(clean.encode()).hexdigest()[:8]
        clean = clean[: _LONGEST - len(suffix) - 9]
        while len(clean.encode()) > _MOST_BYTES:
            clean = clean[:-1]
        clean = f"{clean}-{digest}"
    return Path(clean + suffix)


def sum_name(references: Sequence[Reference]) -> str:
    """Return `a@0.7+b@0.3`; a weight of 1 is left out."""
    return "+".join(
        r.label if r.written == "1" else f"{r.label}@{r.written}".replace(":", "@")
        for r in references
    )


def adapter_output(path: Path, target: Dialect, *, force: bool) -> Path:
    """Return where an adapter will be written, or refuse it before any work is done.

    Raises:
        UsageError: if the name is not that of what will be written.
        OutputExists: if it exists and may not be replaced.
    """
    if target.folder:
        if path.suffix.lower() in (".safetensors", *_PICKLES):
            raise UsageError(
                "a PEFT adapter is a folder", file=path, hint=f"-o {path.with_suffix('')}"
            )
        return _checked_folder(path, "an adapter", _holds_only_adapter, force=force)
    if target.name == "lora_diffusion" and path.suffix.lower() == ".pt":
        return _checked(path, force=force)
    return _checked_file(path, "adapters are written as safetensors files", force=force)


def checkpoint_output(path: Path, *, folder: bool, force: bool) -> Path:
    """Return where a checkpoint will be written, or refuse it; see `adapter_output`."""
    if not folder:
        return _checked_file(path, "checkpoints are written as safetensors files", force=force)
    if path.suffix.lower() in (".safetensors", *_PICKLES):
        raise UsageError(
            "the base is a folder, and so is the result",
            file=path,
            hint=f"-o {path.with_suffix('')}",
        )
    return _checked_folder(path, "a checkpoint", _is_checkpoint_folder, force=force)


def _is_nameless(path: Path) -> bool:
    return path.name in ("", "..")


def _checked(path: Path, *, force: bool) -> Path:
    if _is_nameless(path):
        raise UsageError("this cannot be an output", found=str(path), hint="give -o a name")
    above = next((p for p in path.parents if p.exists()), Path())
    if not above.is_dir():
        raise FileError("a file is where the folder of the output should be", file=above)
    return check_target(path, force=force)


def _checked_file(path: Path, problem: str, *, force: bool) -> Path:
    if not _is_nameless(path) and path.suffix.lower() != ".safetensors":
        stem = path.with_suffix("") if path.suffix.lower() in _PICKLES else path
        raise UsageError(problem, file=path, hint=f"-o {stem}.safetensors")
    if force and path.is_dir() and not _is_nameless(path):
        raise FileError("the output is an existing folder", file=path, hint="give another -o")
    return _checked(path, force=force)


def _checked_folder(
    path: Path, what: str, replaceable: Callable[[Path], bool], *, force: bool
) -> Path:
    """Check a folder: replacing one removes all that is in it, so it must be of the same sort."""
    _checked(path, force=force)
    if path.is_dir() and any(path.iterdir()) and not replaceable(path):
        raise OutputExists(
            f"the folder holds other things than {what}, and replacing it would remove them",
            file=path,
            hint="give another -o",
        )
    return path


def _holds_only_adapter(folder: Path) -> bool:
    files = [path.name for path in folder.rglob("*") if not path.is_dir()]
    return is_adapter_folder(folder) and all(name in _ADAPTER_FILES for name in files)


def _is_checkpoint_folder(folder: Path) -> bool:
    configs = ("model_index.json", "unet/config.json", "transformer/config.json")
    pipeline = any((folder / name).is_file() for name in configs)
    return pipeline or (is_transformers(folder) and any(folder.glob("*.safetensors")))


def encoded_size(encoded: Encoded) -> int:
    """Return the exact bytes that writing an encoded adapter takes."""
    if not encoded.dialect.folder:
        return _tensor_file_size(encoded.tensors, encoded.metadata)
    total = 0
    single = len(encoded.configs) == 1 and {*encoded.configs} <= {"", *PEFT_ALONE}
    for component, config in encoded.configs.items():
        own = [
            (key.removeprefix(f"{component}/"), tensor)
            for key, tensor in encoded.tensors
            if single or encoded.components[key] == component
        ]
        total += _tensor_file_size(own, encoded.metadata)
        total += len(json.dumps(config, indent=2, sort_keys=True).encode())
    return total


def _tensor_file_size(tensors: Sequence[tuple[str, Tensor]], metadata: Mapping[str, str]) -> int:
    head, _ = build_header(((k, t.dtype, t.shape) for k, t in tensors), metadata)
    return len(head) + sum(tensor.nbytes for _, tensor in tensors)


class Unread(RawTensor):
    """Stands for a tensor of which only type and shape matter."""

    unread = True

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        super().__init__(b"", dtype, shape)


def stand_in(shape: tuple[int, ...], rank: int, dtype: str) -> LowRank:
    """Return a delta of a shape and rank that has no values."""
    tail = (1, 1) if len(shape) == 4 else ()
    return LowRank(
        Unread(dtype, (shape[0], rank, *tail)),
        Unread(dtype, (rank, *shape[1:])),
        shape,
        Scale(float(rank)),
    )


def weighted_shapes(inputs: Sequence[tuple[Adapter, Weight]], target: Dialect) -> dict[Site, Delta]:
    """Return a delta of every site that a mix in a dialect will have, for its shape."""
    return {site: deltas[-1] for site, deltas in terms_of(inputs, target).items()}


def size_model(
    frame: Adapter,
    shapes: Mapping[Site, Delta],
    target: Dialect,
    dtype: str,
    entries: Mapping[str, str],
) -> SizeModel:
    """Return what files of given ranks weigh, by encoding adapters of those ranks without data.

    Args:
        frame: the adapter whose metadata and embeddings will be written.
        shapes: a delta of every site, for shapes; sites not asked for by rank are written whole.
        dtype: safetensors name of the type that will be written.
        entries: that are added to the header.
    """

    def exact(ranks: Mapping[Site, int]) -> int:
        deltas: dict[Site, Delta] = {}
        for site, whole in shapes.items():
            if site not in ranks:
                deltas[site] = whole
            elif ranks[site]:
                deltas[site] = stand_in(shapes[site].shape, ranks[site], dtype)
        encoded = encode(frame.with_deltas(deltas, dtype=dtype), target, dtype)
        encoded.metadata |= entries
        return encoded_size(encoded)

    def first(site: Site) -> int:
        return 3 * (len(site.name) + _HEADER_ENTRY) + 4

    return SizeModel(exact, DTYPES[dtype].bits // 8, first)
