"""Comparison of a file with its repetition: by bytes, by tensors, by the change of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from loramerge.adapter.load import load
from loramerge.adapter.source import open_source
from loramerge.checkpoint.files import find_files
from loramerge.errors import LoramergeError
from loramerge.events import Warn
from loramerge.files.digest import tensors_sha256
from loramerge.files.tensors import Tensor
from loramerge.library.known import digest_at
from loramerge.steps.parameters import Context
from loramerge.verbs.diff import diff_adapters

__all__ = ["compare_files"]

_MEMORY = 1 << 22  # elements compared at a time


def compare_files(then: Path, now: Path, context: Context) -> tuple[str, float]:
    """Return a verdict in words, and the relative distance of the changes of two files.

    The distance is ‖now − then‖ / ‖then‖, 0.0 only for the same tensors.
    """
    if digest_at(then) == digest_at(now):
        return "same file", 0.0
    old, new = _tensors(then), _tensors(now)
    if tensors_sha256(old) == tensors_sha256(new):
        return "same tensors; the headers differ", 0.0
    distance = _distance(then, now, old, new, context)
    if distance == 0.0:
        distance = math.ulp(0.0)  # other tensors that make the same change
    return f"same weights to {distance:.2g}" if distance < 1 else "different weights", distance


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """Return all tensors of an adapter or a checkpoint, by name (and file, in folders)."""
    if path.is_dir():
        with suppress(LoramergeError):
            return {
                f"{file.relative}:{name}": tensor
                for file in find_files(path).weights
                for name, tensor in file.open()[0].items()
            }
    return open_source(path).tensors


def _distance(
    then: Path,
    now: Path,
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    context: Context,
) -> float:
    """Return the relative distance: of ΔW for adapters, of the tensors otherwise."""
    try:
        a, b = load(then), load(now)
        if a.deltas and b.deltas:
            return diff_adapters(a, b, context).comparison.total.distance
    except LoramergeError as error:
        context.notify(Warn(f"compared tensor by tensor: {error.problem}"))
    if old.keys() != new.keys() or any(old[n].shape != new[n].shape for n in old):
        return math.inf
    apart = whole = 0.0
    for name, tensor in old.items():
        one, other = (t.numpy().reshape(-1) for t in (tensor, new[name]))
        for start in range(0, one.size, _MEMORY):
            x = one[start : start + _MEMORY].astype("float64")
            y = other[start : start + _MEMORY].astype("float64")
            apart += float(((x - y) ** 2).sum())
            whole += float((x**2).sum())
    return math.sqrt(apart / whole) if whole else math.inf
