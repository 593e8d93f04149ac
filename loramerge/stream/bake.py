"""Bake adapters into a checkpoint: the same layout out, everything untouched byte for byte.

`plan` says which tensors change, `rows` computes them in blocks of rows, and `walk` writes the files.
Memory is a few blocks per thread, whatever the size of the checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from loramerge.checkpoint import CheckpointFile
from loramerge.events import Notify, ignore
from loramerge.files.atomic import AtomicFolder, check_space, check_target
from loramerge.files.dtypes import DTYPES, is_float
from loramerge.files.header import build_header
from loramerge.files.tensors import StoredTensor, Tensor
from loramerge.stream.edits import BakePlan
from loramerge.stream.rows import compute_tensor
from loramerge.stream.survival import Survival
from loramerge.stream.walk import Layout, Written, compute, write

__all__ = ["bake", "output_size", "survey"]


def bake(
    plan: BakePlan,
    output: Path,
    *,
    force: bool = False,
    seed: int | None = None,
    allow_nonfinite: bool = False,
    metadata: Mapping[str, str] | None = None,
    late: Future[Mapping[str, str]] | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Survival]:
    """Carry out a plan.

    Args:
        output: file, or folder for a base that is a folder.
        seed: rounds stochastically with this seed; None rounds to nearest.
        allow_nonfinite: copy NaN and infinity of tensors to which nothing is added.
        metadata: entries to add to the header of every file that changes.
        late: gives replacements for entries of `metadata`, of the same lengths, before the files
            get their names (digests that are computed meanwhile).

    Returns:
        What survived rounding, per module and place, in file order.

    Raises:
        OutputExists, DiskFull, NumericsError.
    """
    files = plan.checkpoint.files
    check_target(output, force=force)
    layouts = [
        (file, _layout(file, plan, metadata or {}, seed, finite=not allow_nonfinite))
        for file in files.weights
    ]
    check_space(output, sum(layout.size for _, layout in layouts))
    written = Written((layout for _, layout in layouts), "baking", notify)
    if files.root is None:
        ((file, layout),) = layouts
        entries = late if _changes(file, plan) else None
        return write(layout, output, written, force=force, late=entries, threads=threads)
    survivals: list[Survival] = []
    with AtomicFolder(output, force=force, contents=files.contents()) as folder:
        for relative in files.others:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            _copy_other(files.root / relative, folder / relative, plan)
        for file, layout in layouts:
            entries = late if _changes(file, plan) else None
            target = folder / file.relative
            survivals += write(layout, target, written, late=entries, threads=threads)
    return survivals


def survey(
    plan: BakePlan,
    *,
    seed: int | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Survival]:
    """Return the result of `bake` without writing anything."""
    layouts = [_layout(file, plan, {}, seed) for file in plan.checkpoint.files.weights
               if plan.edits.get(file)]  # fmt: skip
    return compute(layouts, task="surveying", threads=threads, notify=notify)


def output_size(plan: BakePlan, metadata: Mapping[str, str]) -> int:
    """Return the exact bytes of the weight files that a plan writes."""
    return sum(_layout(file, plan, metadata).size for file in plan.checkpoint.files.weights)


def _layout(
    file: CheckpointFile,
    plan: BakePlan,
    extra: Mapping[str, str],
    seed: int | None = None,
    *,
    finite: bool = True,
) -> Layout[Survival]:
    """Return the layout of a file after the bake.

    Args:
        extra: entries to add to the header, if anything in the file changes.
        finite: refuse NaN and infinity where nothing is added.
    """
    tensors, metadata = file.open()
    if not _changes(file, plan) and not file.pickled:
        return _unchanged(file, finite=finite)
    if not _changes(file, plan):
        extra = {}
    merged = {k: v for k, v in metadata.items() if k != "modelspec.hash_sha256"} | dict(extra)
    entries = [(name, _dtype_of(t, plan), t.shape) for name, t in tensors.items()]
    head, infos = build_header(entries, merged)
    edits = plan.edits.get(file, {})
    computed = {
        name: partial(compute_tensor, name, tensors, infos, edits.get(name, ()), seed, finite)
        for name, tensor in tensors.items()
        if name in edits or infos[name].dtype != tensor.dtype
    }
    beside = {name for e in edits.values() for name in e[0].place.require_held().beside}
    return Layout(head, infos, tensors, merged, computed, beside, finite)


def _changes(file: CheckpointFile, plan: BakePlan) -> bool:
    """Return whether the bake changes a file, by edits or by another type."""
    return bool(plan.edits.get(file)) or bool(file.given) or plan.dtype is not None


def _unchanged(file: CheckpointFile, *, finite: bool) -> Layout[Survival]:
    """Return the layout of a file that is copied unchanged, its header included."""
    tensors, metadata = file.open()
    stored = [tensor for tensor in tensors.values() if isinstance(tensor, StoredTensor)]
    head = file.path.read_bytes() if not stored else stored[0].source.read(0, stored[0].info.start)
    infos = {tensor.info.name: tensor.info for tensor in stored}
    return Layout(head, infos, tensors, metadata, finite=finite)


def _copy_other(source: Path, target: Path, plan: BakePlan) -> None:
    """Copy a file that holds no weights; one that says what the bake changes is written anew."""
    given = any(file.given for file in plan.checkpoint.files.weights)
    if source.name.endswith(".index.json") and (plan.dtype is not None or given):
        _write_index(source, target, plan)
    elif (
        source.name == "config.json" and source.parent == plan.checkpoint.files.root and plan.config
    ):
        _write_config(source, target, plan.config)
    else:
        shutil.copyfile(source, target)


def _write_index(source: Path, target: Path, plan: BakePlan) -> None:
    """Write an index of shards with the tensors that were added, and their total size."""
    index = json.loads(source.read_text("utf-8"))
    shards = index.setdefault("weight_map", {})
    known, total = set(shards.values()), 0
    for file in plan.checkpoint.files.weights:
        if file.path.parent == source.parent and file.path.name in known:
            shards |= dict.fromkeys(file.given, file.path.name)
            total += sum(
                tensor.size * DTYPES[_dtype_of(tensor, plan)].bits // 8
                for tensor in file.open()[0].values()
            )
    index.setdefault("metadata", {})["total_size"] = total
    target.write_text(json.dumps(index, indent=2), "utf-8")


def _dtype_of(tensor: Tensor, plan: BakePlan) -> str:
    """Return the type in which a tensor is written."""
    return plan.dtype if plan.dtype and is_float(tensor.dtype) else tensor.dtype


def _write_config(source: Path, target: Path, changes: Mapping[str, Any]) -> None:
    """Write a model's configuration with other values, in every part that states them."""
    config = json.loads(source.read_text("utf-8"))
    text = config.get("text_config")
    for name, value in changes.items():
        inside = isinstance(text, dict) and name in text
        if inside:
            text[name] = value
        if name in config or not inside:
            config[name] = value
    target.write_text(json.dumps(config, indent=2), "utf-8")
