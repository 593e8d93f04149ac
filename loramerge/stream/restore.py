"""Give tensors of a checkpoint back the bytes that they had before adapters were baked into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from loramerge.algebra.workers import ordered
from loramerge.checkpoint import CheckpointFile
from loramerge.events import Notify, ignore
from loramerge.files.positioned import PositionedFile
from loramerge.files.tensors import StoredTensor, Tensor
from loramerge.stream.differences import equal_bytes
from loramerge.stream.edits import BakePlan, Edit
from loramerge.stream.rows import compute_tensor
from loramerge.stream.walk import Buffers, Nowhere

__all__ = ["restored"]


class _ByteCheck(Nowhere):
    """Takes what a bake would write, and compares it with the bytes that are there.

    What is written twice at a place, because scales had to grow, counts as it is written last.
    """

    def __init__(self, source: PositionedFile) -> None:
        self._source = source
        self._found: dict[int, bool] = {}

    @property
    def same(self) -> bool:
        """True if all bytes are those that are there."""
        return all(self._found.values())

    def write(self, offset: int, data: Any) -> None:
        """Compare the data with the bytes at its place."""
        import numpy as np

        wanted = np.frombuffer(data, np.uint8)
        found = np.empty(wanted.size, np.uint8)
        self._source.read_into(offset, found)
        self._found[offset] = equal_bytes(wanted, found)


def restored(
    back: BakePlan, forth: BakePlan, *, threads: int | None = None, notify: Notify = ignore
) -> tuple[BakePlan, int]:
    """Return a plan that takes tensors from the base where baking them again gives what is there.

    Args:
        back: takes adapters out of a checkpoint. forth: bakes them into its base, at the same weights.

    Returns:
        The plan, and the number of its tensors that get the bytes of the base.
    """
    pairs = _pairs(back, forth)
    work = [
        (file, name, other)
        for file, other in pairs.items()
        for name in back.edits.get(file, {})
        if name in forth.edits.get(other, {}) and _alike(file, other, name)
    ]
    check = partial(_is_baked, edits=forth.edits, buffers=Buffers())
    same = ordered(check, work, threads=threads, task="baking again", notify=notify)
    given: dict[CheckpointFile, dict[str, Tensor]] = {}
    for (file, name, other), found in zip(work, same, strict=True):
        if found:
            tensors = other.open()[0]
            held = forth.edits[other][name][0].place.require_held()
            for each in (name, *held.beside):
                given.setdefault(file, {})[each] = tensors[each]
    files = {file: replace(file, given=given[file], _opened=None, _weights=None)
             if file in given else file for file in back.checkpoint.files.weights}  # fmt: skip
    edits = {
        files[file]: {n: e for n, e in tensors.items() if n not in given.get(file, {})}
        for file, tensors in back.edits.items()
    }
    weights = replace(back.checkpoint.files, weights=list(files.values()))
    checkpoint = replace(back.checkpoint, files=weights)
    count = sum(n in given.get(file, {}) for file, tensors in back.edits.items() for n in tensors)
    return replace(back, checkpoint=checkpoint, edits=edits), count


def _pairs(back: BakePlan, forth: BakePlan) -> dict[CheckpointFile, CheckpointFile]:
    """Return file of the checkpoint → file of the base that holds tensors of the same names."""
    found = {}
    bases = forth.checkpoint.files.weights
    for file in back.checkpoint.files.weights:
        names = back.edits.get(file, {}).keys()
        those = [other for other in bases if names & other.open()[0].keys()
                 and other.component == file.component]  # fmt: skip
        if len(those) == 1:
            found[file] = those[0]
    return found


def _alike(file: CheckpointFile, other: CheckpointFile, name: str) -> bool:
    """Return whether both store a tensor in the same form."""
    one, two = file.open()[0].get(name), other.open()[0].get(name)
    stored = isinstance(one, StoredTensor) and isinstance(two, StoredTensor)
    return stored and (one.dtype, one.shape) == (two.dtype, two.shape)  # type: ignore[union-attr]


def _is_baked(
    item: tuple[CheckpointFile, str, CheckpointFile],
    edits: Mapping[CheckpointFile, Mapping[str, Sequence[Edit]]],
    buffers: Buffers,
) -> bool:
    """Return whether the base with the adapters has the bytes of the checkpoint."""
    file, name, other = item
    there = file.open()[0]
    infos = {n: t.info for n, t in there.items() if isinstance(t, StoredTensor)}
    tensor = there[name]
    assert isinstance(tensor, StoredTensor)
    held = edits[other][name][0].place.require_held()
    if any(beside not in infos for beside in held.beside):
        return False
    out = _ByteCheck(tensor.source)
    compute_tensor(name, other.open()[0], infos, edits[other][name], None, False, out).run(buffers)
    return out.same
