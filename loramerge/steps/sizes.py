"""The sizes of adapter files, computed before they are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from loramerge.adapter import Adapter, Delta, LowRank, Scale, Site
from loramerge.adapter.encode import Encoded, encode
from loramerge.algebra.outcome import SizeModel
from loramerge.algebra.terms import terms_of
from loramerge.algebra.weights import Weight
from loramerge.dialects import Dialect
from loramerge.files.dtypes import DTYPES
from loramerge.files.header import build_header
from loramerge.files.tensors import RawTensor, Tensor

__all__ = ["Unread", "encoded_size", "size_model", "stand_in", "weighted_shapes"]

_HEADER_ENTRY = 66  # bytes of a tensor's entry in the header beside its name, about


def encoded_size(encoded: Encoded) -> int:
    """Return the exact bytes that writing an encoded adapter takes."""
    if not encoded.dialect.folder:
        return _tensor_file_size(encoded.tensors, encoded.metadata)
    total = 0
    single = len(encoded.configs) == 1 and {*encoded.configs} <= {"", *encoded.dialect.alone}
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
    """A placeholder for a tensor: only type and shape."""

    unread = True

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        super().__init__(b"", dtype, shape)


def stand_in(shape: tuple[int, ...], rank: int, dtype: str) -> LowRank:
    """Return a delta without values, of a shape and rank."""
    tail = (1, 1) if len(shape) == 4 else ()
    return LowRank(
        Unread(dtype, (shape[0], rank, *tail)),
        Unread(dtype, (rank, *shape[1:])),
        shape,
        Scale(float(rank)),
    )


def weighted_shapes(inputs: Sequence[tuple[Adapter, Weight]], target: Dialect) -> dict[Site, Delta]:
    """Return a delta of every site that a mix in a dialect will have, for its shape."""
    return {site: terms[-1].weighted for site, terms in terms_of(inputs, target).items()}


def size_model(
    frame: Adapter,
    shapes: Mapping[Site, Delta],
    target: Dialect,
    dtype: str,
    entries: Mapping[str, str],
    *,
    stays: bool = False,
) -> SizeModel:
    """Return the model of file sizes for given ranks, from encoding adapters without data.

    Args:
        frame: the adapter whose metadata and embeddings will be written.
        shapes: a delta of every site, for shapes; sites not asked for by rank are written whole.
        dtype: safetensors name of the type that will be written.
        entries: that are added to the header.
        stays: whether a site keeps its kind where its rank is not lowered, as in `resize`.
    """

    def exact(ranks: Mapping[Site, int]) -> int:
        deltas: dict[Site, Delta] = {}
        for site, whole in shapes.items():
            if site not in ranks or (stays and _stays(whole, ranks[site])):
                deltas[site] = whole
            elif ranks[site]:
                deltas[site] = stand_in(shapes[site].shape, ranks[site], dtype)
        encoded = encode(frame.with_deltas(deltas, dtype=dtype), target, dtype)
        encoded.metadata |= entries
        return encoded_size(encoded)

    def first(site: Site) -> int:
        return 3 * (len(site.name) + _HEADER_ENTRY) + 4

    return SizeModel(exact, DTYPES[dtype].bits // 8, first)


def _stays(delta: Delta, rank: int) -> bool:
    """Return whether a delta of another kind than LoRA has no more than a rank: it is often smaller."""
    return not delta.facts.plain and delta.rank is not None and delta.rank <= rank
