"""Verbs that look: at one adapter, at two, at many, and at what a file should hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any

from loramerge.adapter import Adapter
from loramerge.api.running import (
    Given,
    Named,
    Weighted,
)
from loramerge.errors import UsageError
from loramerge.events import Notify, ignore
from loramerge.steps import engine
from loramerge.steps.given import listed_adapters, not_one_adapter, one_adapter, references_to
from loramerge.steps.inputs import adapter_of, weighted
from loramerge.steps.parameters import Context
from loramerge.verbs.compare import CompareResult, compare_adapters
from loramerge.verbs.diff import Diff, DiffResult
from loramerge.verbs.diff import diff as _diff
from loramerge.verbs.inspect import Inspect, Inspected, inspect_adapter
from loramerge.verbs.inspect import inspect as _inspect
from loramerge.verbs.verify import Verify, VerifyResult
from loramerge.verbs.verify import verify as _verify

__all__ = ["compare", "diff", "inspect", "verify"]


def inspect(
    adapter: Given,
    *,
    deep: bool = False,
    modules: bool = False,
    spectrum: bool = False,
    hash: bool = False,  # the word of the command line
    base: Named | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> Inspected:
    """Describe an adapter or a checkpoint; the result's fields are those of `inspect --json`.

    Args:
        adapter: in memory, or the path or name of an adapter or a checkpoint.
        deep: read the weights: true norms and findings.
        modules, spectrum: list every module, with its singular values.
        hash: compute digests of the file.
        base: say whether the adapter works with this base.
    """
    if not isinstance(adapter, (str, PathLike, Adapter)):
        raise not_one_adapter("inspect", adapter)
    files = () if isinstance(adapter, Adapter) else (fspath(adapter),)
    asked = {"deep": deep, "modules": modules, "spectrum": spectrum, "hash": hash, "base": base}
    parameters = engine.parameters_from(Inspect, {"files": files, **asked})
    context = Context(threads, None, notify)
    if isinstance(adapter, Adapter):
        return inspect_adapter(adapter, parameters, context)
    found = _inspect(parameters, context).files
    if len(found) != 1:
        raise UsageError(
            "inspect describes one file",
            file=fspath(adapter),
            found=f"{len(found)} files",
            hint="call it for each of them",
        )
    return found[0]


def diff(a: Given, b: Given, *, threads: int | None = None, notify: Notify = ignore) -> DiffResult:
    """Compare the changes (ΔW) of two adapters, or two checkpoints, which are given by their names."""
    pair = [one_adapter("diff", a), one_adapter("diff", b)]
    (one, two), context = references_to(pair, Context(threads, None, notify))
    return _diff(Diff(a=one, b=two), context)


def compare(
    adapters: Iterable[Weighted],
    *,
    ingredients: Weighted | None = None,
    alike: float = 0.5,
    threads: int | None = None,
    notify: Notify = ignore,
) -> CompareResult:
    """Find copies and relatives among adapters, by their changes (ΔW).

    Args:
        ingredients: an adapter to explain as a weighted sum of the others.
        alike: cosine from which adapters belong to one cluster.
    """
    given = listed_adapters(adapters)
    every = [*given, *([] if ingredients is None else [one_adapter("compare", ingredients)])]
    references, context = references_to(every, Context(threads, None, notify))
    found = [weighted(adapter_of(one, context), one.weight) for one in references]
    mystery = found.pop() if ingredients is not None else None
    if not found:
        raise UsageError("there is nothing to compare", expected="at least one adapter")
    return compare_adapters(found, mystery, alike=alike, context=context)


def verify(
    file: Named,
    *,
    base: Named | None = None,
    adapters: Weighted | Iterable[Weighted] = (),
    inputs: Mapping[str, Named] | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> VerifyResult:
    """Check whether a file holds what its recipe says, or the adapters that are given.

    Args:
        base: checkpoint that the adapters were added to; without it the recipe in the header counts.
        adapters: those that should be in it; one without a weight is looked for at any strength.
        inputs: input of the recipe → path, for inputs that are not found by name and digest.
    """
    references, context = references_to(listed_adapters(adapters), Context(threads, None, notify))
    own: dict[str, Any] = {
        "file": file,
        "base": base,
        "lora": references,
        "input": [f"{name}={fspath(path)}" for name, path in (inputs or {}).items()],
    }
    return _verify(engine.parameters_from(Verify, own), context)
