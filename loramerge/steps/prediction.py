"""The prediction of a step from headers: modules, ranks, bytes, memory, time.

Ranks are the largest that the criteria and the operator allow; a file is never larger than predicted.
Times are those of one core of 2024 and good to a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.kinds.full import without_values
from loramerge.adapter.widths import widest
from loramerge.algebra.combine import SUM
from loramerge.algebra.method import Method
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.terms import Term
from loramerge.steps.adapters import size_of_file
from loramerge.steps.outputs import Output
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import Made, header_entries, placeholder
from loramerge.steps.sizes import stand_in

__all__ = [
    "Prediction",
    "predict_adapter",
    "predict_checkpoint",
    "predict_reading",
    "predict_report",
]

_START = 45_000_000  # bytes of an interpreter with numpy
_BLOCKS = 12_000_000  # bytes of a bake's buffers for each thread
_FLOPS = 1.2e10  # of float64 products and decompositions of these sizes, for each second
_BYTES = 1.0e9  # that are read, computed or copied, and written, for each second
_SITE = 2.5e-4  # seconds for each site beside its arithmetic


@dataclass
class Prediction:
    """The predicted result of a step.

    Args:
        adapter: stands for the result where its shapes are asked for; holds no values.
        at_most: whether ranks and size are upper bounds only.
        size: bytes of the file.
        memory: peak bytes of the process while the step runs alone.
        seconds: on one thread.
        remarks: sentences on what is unusual about the step.
        size_with: function of the computed adapter that gives the exact bytes of its file.
    """

    modules: int | None = None
    ranks: dict[int, int] = field(default_factory=dict)
    at_most: bool = False
    size: int | None = None
    memory: int = _START
    seconds: float = 0.0
    adapter: Adapter | None = None
    remarks: list[str] = field(default_factory=list)
    size_with: Callable[[Adapter], int] | None = None

    def json(self) -> dict[str, Any]:
        """Return the object that `plan --json` prints."""
        return {
            "modules": self.modules,
            "ranks": self.ranks,
            "at_most": self.at_most,
            "size": self.size,
            "memory": self.memory,
            "seconds": round(self.seconds, 3),
            "remarks": self.remarks,
        }


def predict_adapter(
    frame: Adapter,
    terms: Mapping[Site, Sequence[Term]],
    rule: RankRule,
    output: Output,
    made: Made | None,
    context: Context,
    *,
    method: Method = SUM,
    keeps_types: bool = False,
) -> Prediction:
    """Predict terms combined by a method and cut by a rule.

    Args:
        frame: what the result holds beside its deltas.
        terms: site → terms.
        keeps_types: whether each tensor keeps its type where `output` has none, as in `convert`.
    """
    dtype = output.dtype or (frame.info.dtype if keeps_types else frame.dtype)
    shapes = {
        site: _combined(found, rule, method, dtype or _own_type(found))
        for site, found in terms.items()
    }
    shadow = frame.with_deltas(shapes, made=made, dtype=dtype, path=None, files=(), size=None)
    size_with = partial(size_of_file, output=replace(output, dtype=dtype), context=context)
    size = size_with(shadow)
    # a decomposed result may turn out to have fewer directions than its terms together
    computed = any(_is_computed(found, rule, method) for found in terms.values())
    if rule.max_size is not None:
        size = min(size, rule.max_size)
    flops = sum(_flops(found, shapes[site], rule, method) for site, found in terms.items())
    elements = sum(t.size for d in shapes.values() for t in d.stored().values())
    largest = max((_working_set(found, method) for found in terms.values()), default=0)
    return Prediction(
        modules=len(shapes),
        ranks=shadow.ranks(),
        at_most=computed,
        size=size,
        memory=_START + 8 * elements + (context.threads or 1) * 6 * 8 * largest,
        seconds=_SITE * len(terms) + flops / _FLOPS + size / _BYTES,
        adapter=shadow,
        size_with=size_with,
    )


def _own_type(terms: Sequence[Term]) -> str:
    return widest({t.dtype for term in terms for t in term.delta.stored().values()})


def _is_computed(terms: Sequence[Term], rule: RankRule, method: Method) -> bool:
    """Return whether a result is decomposed instead of taken over from one delta."""
    alone = len(terms) == 1 and (method.is_sum or not method.operator.alone)
    return not alone or rule.truncates


def _combined(terms: Sequence[Term], rule: RankRule, method: Method, dtype: str) -> Delta:
    """Return a stand-in for the result under the criteria that need no spectrum."""
    first = terms[0].weighted
    if any(term.delta.rank is None for term in terms):
        whole = next(term.weighted for term in terms if term.delta.rank is None)
        # its values may have to be computed, and only their number matters
        return without_values(whole)
    if not _is_computed(terms, rule, method):
        return first
    ranks = [term.delta.rank or 0 for term in terms]
    if len(terms) == 1 and not method.operator.alone:
        rank = min(ranks[0], *first.flat_shape)
    else:
        rank = method.operator.highest_rank(ranks, first.flat_shape, chosen=rule.truncates)
    kernel = math.prod(first.shape[2:])
    cap = rule.cap(kernel)
    return stand_in(first.shape, rank if cap is None else min(rank, cap), dtype)


def _elements(delta: Delta) -> int:
    return sum(tensor.size for tensor in delta.stored().values())


def _working_set(terms: Sequence[Term], method: Method) -> int:
    """Return the numbers that are held while the terms of a site are combined."""
    stored = sum(_elements(term.delta) for term in terms)
    dense = method.operator.space == "elements" and len(terms) > 1
    return stored + math.prod(terms[0].delta.flat_shape) if dense else stored


def _flops(terms: Sequence[Term], result: Delta, rule: RankRule, method: Method) -> float:
    """Return the operations of a decomposition: through Gram matrices, or of a dense matrix."""
    if not _is_computed(terms, rule, method):
        return 0.0
    shape = terms[0].delta.flat_shape
    inner = sum(term.delta.rank or min(shape) for term in terms)
    if method.operator.space == "elements" and len(terms) > 1:
        return 2.0 * math.prod(shape) * (inner + 6 * min(shape))
    outer = sum(shape)
    return 2.0 * outer * inner**2 + 2.0 * outer * inner * (result.rank or inner) + 60.0 * inner**3


def predict_checkpoint(
    modules: int,
    size_with: Callable[[Mapping[str, str]], int],
    made: Made | None,
    context: Context,
    *,
    inputs: int = 1,
) -> Prediction:
    """Predict a checkpoint, its size to the byte.

    Args:
        modules: number of those that change.
        size_with: function of the entries that headers get, which gives the bytes of the files.
        inputs: checkpoints that are read.
    """
    entries = {} if context.strip else header_entries(made, {}, placeholder)
    size = size_with(entries)
    memory = _START + (context.threads or 1) * inputs * _BLOCKS
    seconds = inputs * size / _BYTES
    return Prediction(modules=modules, size=size, memory=memory, seconds=seconds)


def predict_report(adapters: Sequence[Adapter]) -> Prediction:
    """Predict a step that only reads."""
    total = sum(_elements(delta) for adapter in adapters for delta in adapter.deltas.values())
    sites = sum(len(adapter.deltas) for adapter in adapters)
    return Prediction(modules=sites, seconds=_SITE * sites + 8 * total / _BYTES)


def predict_reading(found: Prediction, sizes: Sequence[int]) -> Prediction:
    """Return a prediction with the reading of checkpoints added.

    Args:
        sizes: bytes of each.
    """
    if not sizes:
        return found
    return replace(
        found,
        modules=found.modules or None,
        memory=found.memory + len(sizes) * _BLOCKS,
        seconds=found.seconds + sum(sizes) / _BYTES,
    )
