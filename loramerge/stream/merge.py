"""Merge checkpoints of one family into one that has the layout of the first.

`merge_plan` says how each tensor is made, `blend` computes it in blocks of rows, and `writing` writes
the files. Memory is a few blocks for each thread and input, whatever the size of the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path

from loramerge.adapter import Site
from loramerge.algebra.combine import SUM
from loramerge.checkpoint import CheckpointFile, Place
from loramerge.events import Notify, ignore
from loramerge.files.atomic import check_target
from loramerge.files.header import TensorInfo
from loramerge.files.tensors import Tensor
from loramerge.stream.blend import merge_tensor
from loramerge.stream.ingredients import Blend, Blended, Ingredient
from loramerge.stream.merge_plan import MergePlan
from loramerge.stream.pooling import pooled
from loramerge.stream.walk import Layout
from loramerge.stream.whole import Whole
from loramerge.stream.writing import (
    bytes_of_others,
    config_with,
    dtype_of,
    index_of,
    unchanged,
    write_checkpoint,
)

__all__ = ["layouts_of", "merge", "output_size"]


def merge(
    plan: MergePlan,
    output: Path,
    *,
    force: bool = False,
    allow_nonfinite: bool = False,
    metadata: Mapping[str, str] | None = None,
    late: Future[Mapping[str, str]] | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    notify: Notify = ignore,
) -> list[Blended]:
    """Carry out a plan.

    Args:
        output: file, or folder if the first checkpoint is one.
        allow_nonfinite: copy NaN and infinity of tensors that are not merged.
        metadata: entries to add to the header of every file that changes.
        late: replacements for entries of `metadata`, of the same lengths, before the files get their
            names.
        executor: computes the tensors in other processes, see `parts`; None computes them here.

    Returns:
        What became of every parameter that was merged, in file order.

    Raises:
        OutputExists, DiskFull, NumericsError.
    """
    check_target(output, force=force)
    whole = Whole(plan.blends, pooled(plan.blends, threads, notify))
    finite = not allow_nonfinite
    layouts = [
        _layout(one, plan, whole, metadata or {}, finite=finite) for one in plan.files.weights
    ]
    return write_checkpoint(
        plan.files,
        layouts,
        output,
        task="merging",
        other=partial(_other, plan=plan, infos={file: layout.infos for file, layout, _ in layouts}),
        force=force,
        late=late,
        threads=threads,
        executor=executor,
        notify=notify,
    )


def output_size(plan: MergePlan, metadata: Mapping[str, str]) -> int:
    """Return the exact bytes of all files that a plan writes."""
    whole = Whole(plan.blends)
    layouts = [_layout(file, plan, whole, metadata) for file in plan.files.weights]
    infos = {file: layout.infos for file, layout, _ in layouts}
    weights = sum(layout.size for _, layout, _ in layouts)
    return weights + bytes_of_others(plan.files, partial(_other, plan=plan, infos=infos))


def layouts_of(plan: MergePlan, whole: Whole) -> list[Layout[Blended]]:
    """Return what a plan makes of each file."""
    return [_layout(file, plan, whole, {})[1] for file in plan.files.weights]


def _layout(
    file: CheckpointFile,
    plan: MergePlan,
    whole: Whole,
    extra: Mapping[str, str],
    *,
    finite: bool = True,
) -> tuple[CheckpointFile, Layout[Blended], bool]:
    """Return a file, its layout after the merge, and whether anything in it changes."""
    opened, metadata = file.open()
    tensors = {name: one for name, one in opened.items() if name not in plan.averages}
    blends = plan.blends.get(file.relative, {})
    changes = (
        bool(blends) or bool(file.given) or len(tensors) < len(opened) or plan.dtype is not None
    )
    if not changes and not file.pickled:
        return file, unchanged(file, finite=finite), False
    merged = {k: v for k, v in metadata.items() if k != "modelspec.hash_sha256"}
    merged |= dict(extra) if changes else {}
    entries = [
        (name, dtype_of(one, plan.dtype, gguf=file.gguf), one.shape)
        for name, one in tensors.items()
    ]
    head, infos = file.rebuilt(entries, merged)
    made = {
        name: found
        for name, tensor in tensors.items()
        if (found := _made(file, name, tensor, blends, infos[name].dtype))
    }
    if not any(blend.edits for found in made.values() for blend in found):
        whole = Whole({}, whole.pooled)  # only changes of adapters ask for other tensors
    scales = {n: found[0].target.require_held().beside for n, found in made.items()}
    computed = {
        n: partial(merge_tensor, n, {one: infos[one] for one in (n, *scales[n])}, found, whole)
        for n, found in made.items()
    }
    beside = {name for names in scales.values() for name in names}
    layout = Layout(
        head, infos, tensors, merged, computed, beside, finite, file.rebuilt, file.alignment
    )
    return file, layout, True


def _made(
    file: CheckpointFile,
    name: str,
    tensor: Tensor,
    blends: Mapping[str, list[Blend]],
    dtype: str,
) -> list[Blend]:
    """Return how a tensor is computed, nothing if it is copied."""
    known = blends.get(name, [])
    if dtype == tensor.dtype and all(blend.is_copy for blend in known):
        return []
    if known:
        return known
    shaped = tensor if tensor.shape else tensor.reshaped((1,))
    place = Place(file, shaped, name)  # only its type changes
    return [Blend(Site((name,)), place, (Ingredient(place, 1.0, 0),), SUM)]


def _other(
    source: Path, plan: MergePlan, infos: Mapping[CheckpointFile, Mapping[str, TensorInfo]]
) -> bytes | None:
    """Return the content of a file without weights that would be wrong as it is, None to copy it.

    Args:
        infos: the tensors of each file after the merge.
    """
    changes = plan.dtype or plan.averages or any(file.given for file in plan.files.weights)
    if source.name.endswith(".index.json"):
        return index_of(source, infos) if changes else None
    if plan.config and source.name == "config.json" and source.parent == plan.files.root:
        return config_with(source, plan.config)
    return None
