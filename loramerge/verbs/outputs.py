"""Default output names, and what predicts and describes what will be written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from loramerge import __version__
from loramerge.adapter import Adapter, Delta, LowRank, Scale, Site
from loramerge.adapter.save import encode
from loramerge.algebra.combine import SizeModel
from loramerge.algebra.weights import Weight
from loramerge.dialects import Dialect
from loramerge.events import Notify, Warn
from loramerge.files.dtypes import DTYPES
from loramerge.files.header import build_header
from loramerge.files.tensors import RawTensor

__all__ = ["default_name", "file_size", "size_model", "sum_name", "warn_of_unknown"]

_LONGEST = 120
_HEADER_ENTRY = 66  # bytes of a tensor's entry in the header beside its name, about


def default_name(stem: str, suffix: str) -> Path:
    """Return an output name in the current folder, cut to 120 characters with a hash of the rest."""
    clean = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in stem).strip(". ")
    if len(clean) + len(suffix) > _LONGEST:
        digest = hashlib.sha256(clean.encode()).hexdigest()[:8]
        clean = f"{clean[: _LONGEST - len(suffix) - 9]}-{digest}"
    return Path(clean + suffix)


def sum_name(parts: Sequence[tuple[str, Weight]]) -> str:
    """Return `a@0.7+b@0.3`; a weight of 1 is left out."""
    return "+".join(
        label if weight.text() == "1" else f"{label}@{weight.text()}".replace(":", "@")
        for label, weight in parts
    )


def file_size(adapter: Adapter, target: Dialect, dtype: str | None) -> int:
    """Return the exact bytes of the file an adapter would be written to."""
    encoded = encode(adapter, target, dtype)
    head, _ = build_header(((k, t.dtype, t.shape) for k, t in encoded.tensors), encoded.metadata)
    return len(head) + sum(tensor.nbytes for _, tensor in encoded.tensors)


class _Unread(RawTensor):
    """Stands for a tensor of which only type and shape matter."""

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        super().__init__(b"", dtype, shape)


def size_model(
    frame: Adapter, shapes: Mapping[Site, Delta], target: Dialect, dtype: str
) -> SizeModel:
    """Return what files of given ranks weigh, by encoding adapters of those ranks without data.

    Args:
        frame: the adapter whose metadata and embeddings will be written.
        shapes: a delta of every site, for shapes; sites not asked for by rank are written whole.
        dtype: safetensors name of the type that will be written.
    """

    def delta(site: Site, rank: int) -> LowRank:
        shape = shapes[site].shape
        tail = (1, 1) if len(shape) == 4 else ()
        return LowRank(
            _Unread(dtype, (shape[0], rank, *tail)),
            _Unread(dtype, (rank, *shape[1:])),
            shape,
            Scale(float(rank)),
        )

    def exact(ranks: Mapping[Site, int]) -> int:
        deltas: dict[Site, Delta] = {}
        for site, whole in shapes.items():
            if site not in ranks:
                deltas[site] = whole
            elif ranks[site]:
                deltas[site] = delta(site, ranks[site])
        return file_size(frame.with_deltas(deltas, dtype=dtype), target, dtype)

    def first(site: Site) -> int:
        return 3 * (len(site.name) + _HEADER_ENTRY) + 4

    return SizeModel(exact, DTYPES[dtype].bits // 8, first)


def warn_of_unknown(adapter: Adapter, notify: Notify) -> None:
    """Warn of tensors that are not used, so that none is dropped silently, and of warnings."""
    unknown = adapter.info.account.unknown
    if unknown:
        key, close = next(iter(unknown.items()))
        tail = f" (nearest known: {close})" if close else ""
        notify(
            Warn(f"{adapter.label}: {len(unknown)} tensors are not known and not used: {key}{tail}")
        )
    seen: dict[str, int] = {}
    for problem in adapter.info.problems:
        if problem.severity == "warning":
            seen[problem.message] = seen.get(problem.message, 0) + 1
    for message, count in seen.items():
        notify(Warn(f"{adapter.label}: {message}" + (f" ({count} modules)" if count > 1 else "")))


def version_entry() -> dict[str, str]:
    """Return the metadata entry that says what wrote a file."""
    return {"loramerge.version": __version__}
