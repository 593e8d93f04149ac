"""Bake adapters into a checkpoint: the layout is kept, and unchanged tensors byte for byte.

`plan` says which tensors change, `rows` computes them in blocks of rows, and `walk` writes the files.
Memory is a few blocks per thread, whatever the size of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path

from loramerge.checkpoint import CheckpointFile, Place
from loramerge.events import Notify, ignore
from loramerge.files.atomic import check_target
from loramerge.files.dtypes import DTYPES
from loramerge.files.header import TensorInfo
from loramerge.stream.edits import BakePlan
from loramerge.stream.joining import (
    compute_join,
    config_with_rank,
    joins_of,
    level_of,
    shapes_of,
    with_rank,
)
from loramerge.stream.rows import compute_tensor
from loramerge.stream.stored_anew import compute_anew, forms_in, superfluous, without_layers
from loramerge.stream.survival import Survival
from loramerge.stream.walk import Layout, compute
from loramerge.stream.writing import (
    bytes_of_others,
    config_with,
    dtype_of,
    index_of,
    unchanged,
    write_checkpoint,
)

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
    executor: Executor | None = None,
    notify: Notify = ignore,
    accept: Callable[[list[Survival]], None] | None = None,
) -> list[Survival]:
    """Carry out a plan.

    Args:
        output: file, or folder for a base that is a folder.
        seed: rounds stochastically with this seed; None rounds to nearest.
        allow_nonfinite: copy NaN and infinity of tensors to which nothing is added.
        metadata: entries to add to the header of every file that changes.
        late: replacements for entries of `metadata`, of the same lengths, ready before the files
            get their names (digests that are computed meanwhile).
        executor: computes the tensors in other processes, see `parts`; None computes them here.
        accept: is given the part kept before the files get their names, and may refuse it.

    Returns:
        The part kept after rounding, per module and place, in file order.

    Raises:
        OutputExists, DiskFull, NumericsError.
    """
    files = plan.checkpoint.files
    check_target(output, force=force)
    layouts = [
        (file, _layout(file, plan, metadata or {}, seed, finite=not allow_nonfinite))
        for file in files.weights
    ]
    return write_checkpoint(
        files,
        [(file, layout, _changes(file, plan)) for file, layout in layouts],
        output,
        task="baking",
        other=partial(_other, plan=plan, infos={file: layout.infos for file, layout in layouts}),
        force=force,
        late=late,
        threads=threads,
        executor=executor,
        notify=notify,
        accept=accept,
    )


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
    """Return the exact bytes of all files that a plan writes."""
    files = plan.checkpoint.files
    layouts = {file: _layout(file, plan, metadata) for file in files.weights}
    infos = {file: layout.infos for file, layout in layouts.items()}
    weights = sum(layout.size for layout in layouts.values())
    return weights + bytes_of_others(files, partial(_other, plan=plan, infos=infos))


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
        return unchanged(file, finite=finite)
    if not _changes(file, plan):
        extra = {}
    merged = {k: v for k, v in metadata.items() if k != "modelspec.hash_sha256"} | dict(extra)
    anew, joins = forms_in(plan, file), joins_of(plan, file)
    merged, gone = with_rank(without_layers(merged, anew), joins), superfluous(file, anew)
    grown = shapes_of(joins)
    new = plan.conversion
    if new is not None:
        merged = new.entries_of(file, merged) | dict(extra)
    rebuilt = file.rebuilt if new is None else new.rebuilt(file)
    names = {
        name: name if new is None else new.renamed(name) for name in tensors if name not in gone
    }
    weights, edits = file.weights(), plan.edits.get(file, {})
    entries = [
        entry
        for name, other in names.items()
        for entry in (
            anew[name].entries(other, weights[name].shape)
            if name in anew
            else (
                (
                    other,
                    dtype_of(tensors[name], plan.dtype, gguf=file.gguf),
                    grown.get(name, tensors[name].shape),
                ),
            )
        )
    ]
    alignment = file.alignment if new is None else new.alignment(file)
    if new is not None and alignment == 1:  # as safetensors orders them, so that all are aligned
        entries.sort(key=lambda entry: -DTYPES[entry[1]].bits)
    head, infos = rebuilt(entries, merged)
    written = {other: tensors[name] for name, other in names.items()}
    if new is not None:
        written = {name: written[name] for name in infos if name in written}
    old = {other: name for name, other in names.items()}
    computed = {
        other: partial(compute_anew, name, other, Place(file, weights[name], name), infos,
                       edits.get(name, ()), anew[name], seed)
        if name in anew
        else partial(compute_tensor, name, tensors, infos, edits.get(name, ()), seed, finite,
                     onto=plan.onto)
        for other, name in ((other, old[other]) for other in written)
        if name not in joins
        and (name in edits or name in anew or infos[other].dtype != tensors[name].dtype)
    } | {name: partial(compute_join, join, infos) for name, join in joins.items()}  # fmt: skip
    held = {name: e[0].place.require_held() for name, e in edits.items() if name not in anew}
    beside = {name for one in held.values() for name in one.beside} | (grown.keys() - joins.keys())
    return Layout(head, infos, written, merged, computed, beside, finite, rebuilt, alignment)


def _changes(file: CheckpointFile, plan: BakePlan) -> bool:
    """Return whether the bake changes a file, by edits or by another type."""
    anew = plan.conversion is not None and (plan.conversion.forms.get(file) or plan.conversion.gguf)
    return bool(plan.edits.get(file) or file.given or anew) or plan.dtype is not None


def _other(
    source: Path, plan: BakePlan, infos: Mapping[CheckpointFile, Mapping[str, TensorInfo]]
) -> bytes | None:
    """Return the content of a file without weights whose facts the bake changes, None to copy it.

    Args:
        infos: the tensors of each file after the bake.
    """
    given = any(file.given for file in plan.checkpoint.files.weights)
    changes = plan.dtype is not None or plan.wider is not None or given
    changes = changes or plan.conversion is not None
    if source.name.endswith(".index.json"):
        return index_of(source, infos) if changes else None
    if source.name != "config.json":
        return None
    if source.parent == plan.checkpoint.files.root and plan.config:
        return config_with(source, plan.config)
    rank = _rank_beside(source, plan)
    return config_with_rank(source, rank) if rank else None


def _rank_beside(config: Path, plan: BakePlan) -> int:
    """Return the rank that all layers of the files beside a configuration get; 0 where it stays."""
    files = [file for file in plan.checkpoint.files.weights if file.path.parent == config.parent]
    return max((level_of(joins_of(plan, file)) for file in files), default=0)
