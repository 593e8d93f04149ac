"""Verbs on checkpoints: adapters in and out, merges, differences."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from os import PathLike
from typing import Any, Unpack

from loramerge.adapter import Adapter
from loramerge.api.running import (
    Named,
    Weighted,
    adapter_from,
    perform,
    with_parameters,
)
from loramerge.errors import UsageError
from loramerge.events import Notify, ignore
from loramerge.signatures import (
    BakeParameters,
    ExtractParameters,
    MergeParameters,
    UnbakeParameters,
)
from loramerge.steps.given import listed_adapters, references_to
from loramerge.steps.parameters import Context
from loramerge.verbs.bake import Bake, BakeResult
from loramerge.verbs.extract import Extract
from loramerge.verbs.merge import Merge, MergeResult
from loramerge.verbs.unbake import Unbake, UnbakeResult

__all__ = ["bake", "extract", "merge", "unbake"]


@with_parameters(Bake, BakeParameters)
def bake(
    base: Named,
    adapters: Weighted | Iterable[Weighted],
    path: Named,
    *,
    seed: int | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    notify: Notify = ignore,
    strip: bool = False,
    **parameters: Unpack[BakeParameters],
) -> BakeResult:
    """Bake adapters into a checkpoint and return what survived rounding, as `bake --json` says it.

    Args:
        base: a path, or a registered name.
        adapters: one or several, as for `mix`.
        path: file, or folder where the base is one.
        seed: round stochastically with this seed; None rounds to nearest.
        executor: computes parts of the checkpoint in other processes that see the same files, such as
            that of a Dask client; None computes them here.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError("bake takes the path of its output last", found=repr(path))
    references, context = references_to(
        listed_adapters(adapters), Context(threads, None, notify, strip, executor=executor)
    )
    own: dict[str, Any] = {"base": base, "adapters": references, "output": path}
    if seed is not None:
        own |= {"rounding": "stochastic", "seed": seed}
    found: BakeResult = perform("bake", parameters, own, BakeParameters, context, save=True)
    return found


@with_parameters(Unbake, UnbakeParameters)
def unbake(
    checkpoint: Named,
    adapters: Weighted | Iterable[Weighted],
    path: Named,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
    strip: bool = False,
    **parameters: Unpack[UnbakeParameters],
) -> UnbakeResult:
    """Take adapters out of a checkpoint, and return how exact the result is, as `unbake --json` says it.

    Args:
        checkpoint: a path, or a registered name.
        adapters: one or several, with the weights at which they were baked.
        path: file, or folder where the checkpoint is one.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError("unbake takes the path of its output last", found=repr(path))
    references, context = references_to(
        listed_adapters(adapters), Context(threads, None, notify, strip)
    )
    own: dict[str, Any] = {"checkpoint": checkpoint, "lora": references, "output": path}
    found: UnbakeResult = perform("unbake", parameters, own, UnbakeParameters, context, save=True)
    return found


@with_parameters(Merge, MergeParameters)
def merge(
    models: Iterable[Weighted],
    path: Named,
    *,
    threads: int | None = None,
    executor: Executor | None = None,
    notify: Notify = ignore,
    strip: bool = False,
    **parameters: Unpack[MergeParameters],
) -> MergeResult:
    """Merge checkpoints of one family, and return how far each part moved, as `merge --json` says it.

    Args:
        models: paths or names of checkpoints, each alone, with a weight behind it (`"tiny:0.7"`), or in
            a pair with its weight; the first decides the layout of the result. Adapters, as for `bake`,
            are added to what the checkpoints make.
        path: file, or folder where the first is one.
        executor: computes parts of the checkpoint in other processes that see the same files, such as
            that of a Dask client; None computes them here.
    """
    if not isinstance(path, (str, PathLike)):
        raise UsageError("merge takes the path of its output last", found=repr(path))
    references, context = references_to(
        listed_adapters(models), Context(threads, None, notify, strip, executor=executor)
    )
    own = {"models": references, "output": path}
    found: MergeResult = perform("merge", parameters, own, MergeParameters, context, save=True)
    return found


@with_parameters(Extract, ExtractParameters)
def extract(
    tuned: Named,
    base: Named,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
    **parameters: Unpack[ExtractParameters],
) -> Adapter:
    """Return the difference of two checkpoints, `tuned − base`, as an adapter.

    One of `rank`, `energy`, `ratio`, `cumulative`, `max_size` and `max_error` says what to keep, or
    `full` keeps all of it.

    Args:
        tuned, base: paths, or registered names; layouts and types may differ.
    """
    own = {"tuned": tuned, "base": base}
    return adapter_from(
        "extract", parameters, own, ExtractParameters, Context(threads, None, notify)
    )
