"""The Python interface: the same verbs on adapters in memory.

    import loramerge as lm

    a, b = lm.load("a.safetensors"), lm.load("b.safetensors")
    small = lm.resize(lm.mix([(a, 0.7), (b, 0.3)]), rank=8)
    lm.save(small, "ab-r8.safetensors")
    lm.bake("sd21-custom", [(small, 1.0)], "out.safetensors")

Errors, names and defaults are those of the command line; docs/python.md has runnable examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from loramerge.adapter import Adapter
from loramerge.adapter.load import load as _load
from loramerge.adapter.save import choose_dialect
from loramerge.adapter.save import save as _save
from loramerge.algebra.arrays import check_device
from loramerge.algebra.mix import mix as _mix
from loramerge.algebra.mix import mixed_frame
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize as _resize
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.events import Notify, ignore
from loramerge.files.dtypes import FLOATS
from loramerge.library.lookup import find
from loramerge.stream.bake import Survival, plan_bake
from loramerge.stream.bake import bake as _bake
from loramerge.verbs.diff import DiffResult, diff_adapters
from loramerge.verbs.inspect import Inspect, Inspected, inspect_adapter
from loramerge.verbs.outputs import (
    adapter_output,
    checkpoint_output,
    size_model,
    weighted_shapes,
)
from loramerge.verbs.parameters import Context
from loramerge.verbs.writing import ADAPTER_FLOATS, float_type, size_in_bytes

__all__ = ["bake", "diff", "inspect", "load", "mix", "resize", "save"]


def load(path: str | PathLike[str]) -> Adapter:
    """Read an adapter of any dialect; factors are read when needed.

    Args:
        path: a file, a PEFT folder, or a name in the library.

    Raises:
        LoramergeError: if there is no such adapter or it cannot be read.
    """
    return _load(find(fspath(path), "adapters"))


def save(
    adapter: Adapter,
    path: str | PathLike[str],
    *,
    dialect: str | None = None,
    dtype: str | None = None,
    force: bool = False,
) -> int:
    """Write an adapter atomically and return the bytes written.

    Args:
        dialect: a dialect or program; None keeps the adapter's own.
        dtype: `float32`, `float16`, `bfloat16`; None keeps the adapter's.
        force: replace an existing file.

    Raises:
        NotExpressible: if the dialect cannot say what the adapter holds.
    """
    kind = float_type(dtype, ADAPTER_FLOATS)
    adapter_output(Path(path), choose_dialect(dialect, [adapter]), force=force)
    return _save(adapter, path, to=dialect, dtype=kind, force=force)


def mix(
    adapters: Iterable[tuple[Adapter, float | Weight]],
    *,
    embeddings: str = "all",
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **criteria: Any,
) -> Adapter:
    """Return the exact weighted sum; see `algebra.mix.mix`.

    Args:
        adapters: (adapter, weight) pairs.
        criteria: fields of `RankRule` that lower ranks (`rank=8`, `max_error=0.1`, …).
    """
    inputs = [(a, w if isinstance(w, Weight) else Weight(float(w))) for a, w in adapters]
    whole = sum(a.info.size or 0 for a, _ in inputs)
    rule = _rule(criteria, whole)
    sizes = None
    if rule.max_size is not None:
        frame = mixed_frame([a for a, _ in inputs], embeddings)
        shapes = weighted_shapes(inputs)
        target = choose_dialect(None, [a for a, _ in inputs])
        sizes = size_model(frame, shapes, target, frame.dtype)
    mixed, _ = _mix(
        inputs,
        rule,
        embeddings=embeddings,
        sizes=sizes,
        device=check_device(device),
        threads=threads,
        notify=notify,
    )
    return mixed


def resize(
    adapter: Adapter,
    *,
    device: str | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
    **criteria: Any,
) -> Adapter:
    """Return the adapter at lower ranks; see `algebra.resize.resize`.

    Args:
        criteria: fields of `RankRule`: `rank`, `conv_rank`, `energy`, `ratio`, `cumulative`,
            `max_size` (bytes, or text such as `"20MB"`), `max_error`, `max_module_error`.
    """
    rule = _rule(criteria, adapter.info.size or 0)
    sizes = None
    if rule.max_size is not None:
        target = choose_dialect(None, [adapter])
        sizes = size_model(adapter.with_deltas({}), adapter.deltas, target, adapter.dtype)
    small, _ = _resize(
        adapter,
        rule,
        sizes=sizes,
        device=check_device(device),
        threads=threads,
        notify=notify,
    )
    return small


def _rule(criteria: dict[str, Any], whole: int) -> RankRule:
    if isinstance(criteria.get("max_size"), str):
        criteria = criteria | {"max_size": size_in_bytes(criteria["max_size"], whole)}
    return RankRule(**criteria)


def bake(
    base: str | PathLike[str],
    adapters: Sequence[tuple[Adapter, float | Weight]],
    path: str | PathLike[str],
    *,
    skip_missing: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
    force: bool = False,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Survival]:
    """Bake adapters into a checkpoint and return what survived rounding, per module.

    Args:
        base: a path, or a registered name.
        adapters: (adapter, weight) pairs.
        path: file, or folder where the base is one.
        seed: round stochastically with this seed; None rounds to nearest.
    """
    plan = plan_bake(
        open_checkpoint(find(fspath(base), "bases")),
        [(a, w if isinstance(w, Weight) else Weight(float(w))) for a, w in adapters],
        skip_missing=skip_missing,
        dtype=float_type(dtype, FLOATS),
    )
    folder = plan.checkpoint.files.root is not None
    checkpoint_output(Path(path), folder=folder, force=force)
    return _bake(plan, Path(path), force=force, seed=seed, threads=threads, notify=notify)


def inspect(
    adapter: Adapter, *, deep: bool = False, base: str | PathLike[str] | None = None
) -> Inspected:
    """Say what an adapter is; the result's fields are those of `inspect --json`."""
    name = None if base is None else fspath(base)
    return inspect_adapter(adapter, Inspect(files=(), deep=deep, base=name))


def diff(a: Adapter, b: Adapter) -> DiffResult:
    """Compare two adapters by what they change."""
    return diff_adapters(a, b, Context())
