"""What a step will give, foretold from headers: modules, ranks, bytes, memory, time.

Ranks are the largest that the criteria allow; a file is never larger than foretold. Times are those of
one core of 2024 and good to a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.encode import encode
from loramerge.adapter.kinds.full import without_values
from loramerge.algebra.ranks import RankRule
from loramerge.steps.adapters import header_of
from loramerge.steps.outputs import Output
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import Made, header_entries, placeholder
from loramerge.steps.sizes import encoded_size, stand_in
from loramerge.stream.bake import output_size
from loramerge.stream.plan import BakePlan

__all__ = ["Prediction", "predict_adapter", "predict_checkpoint", "predict_report"]

_START = 45_000_000  # bytes of an interpreter with numpy
_BLOCKS = 12_000_000  # bytes of a bake's buffers for each thread
_FLOPS = 1.2e10  # of float64 products and decompositions of these sizes, for each second
_BYTES = 1.0e9  # that are read, computed or copied, and written, for each second
_SITE = 2.5e-4  # seconds for each site beside its arithmetic


@dataclass
class Prediction:
    """What a step will give.

    Args:
        adapter: stands for the result where its shapes are asked for; holds no values.
        at_most: whether ranks and size are upper bounds only.
        size: bytes of the file.
        memory: peak bytes of the process while the step runs alone.
        seconds: on one thread.
    """

    modules: int | None = None
    ranks: dict[int, int] = field(default_factory=dict)
    at_most: bool = False
    size: int | None = None
    memory: int = _START
    seconds: float = 0.0
    adapter: Adapter | None = None

    def json(self) -> dict[str, Any]:
        """Return the object that `plan --json` prints."""
        return {
            "modules": self.modules,
            "ranks": self.ranks,
            "at_most": self.at_most,
            "size": self.size,
            "memory": self.memory,
            "seconds": round(self.seconds, 3),
        }


def predict_adapter(
    frame: Adapter,
    terms: Mapping[Site, Sequence[Delta]],
    rule: RankRule,
    output: Output,
    made: Made | None,
    context: Context,
) -> Prediction:
    """Foretell the sum of terms, cut by a rule.

    Args:
        frame: what the result holds beside its deltas.
        terms: site → deltas to add.
    """
    dtype = output.dtype or frame.dtype
    shapes = {site: _summed(deltas, rule, dtype) for site, deltas in terms.items()}
    shadow = frame.with_deltas(shapes, made=made, dtype=dtype, path=None, files=(), size=None)
    encoded = encode(shadow, output.dialect, dtype)
    encoded.metadata |= header_of(shadow, replace(output, dtype=dtype), context, exact=False)
    size = encoded_size(encoded)
    # what is decomposed may turn out to have fewer directions than its terms together
    computed = any(shapes[site] is not deltas[0] for site, deltas in terms.items())
    if rule.max_size is not None:
        size = min(size, rule.max_size)
    flops = sum(_flops(deltas, shapes[site]) for site, deltas in terms.items())
    elements = sum(t.size for d in shapes.values() for t in d.stored().values())
    largest = max((sum(_elements(d) for d in deltas) for deltas in terms.values()), default=0)
    return Prediction(
        modules=len(shapes),
        ranks=shadow.ranks(),
        at_most=computed,
        size=size,
        memory=_START + 8 * elements + (context.threads or 1) * 6 * 8 * largest,
        seconds=_SITE * len(terms) + flops / _FLOPS + size / _BYTES,
        adapter=shadow,
    )


def _summed(deltas: Sequence[Delta], rule: RankRule, dtype: str) -> Delta:
    """Return a stand-in for the sum of deltas under the criteria that need no spectrum."""
    first = deltas[0]
    if any(delta.rank is None for delta in deltas):
        whole = next(delta for delta in deltas if delta.rank is None)
        # its values may have to be computed, and only their number matters
        return without_values(whole)
    if len(deltas) == 1 and not rule.truncates:
        return first
    rank = min(sum(delta.rank or 0 for delta in deltas), *first.flat_shape)
    kernel = math.prod(first.shape[2:])
    cap = rule.conv_rank if kernel > 1 and rule.conv_rank is not None else rule.rank
    return stand_in(first.shape, rank if cap is None else min(rank, cap), dtype)


def _elements(delta: Delta) -> int:
    return sum(tensor.size for tensor in delta.stored().values())


def _flops(deltas: Sequence[Delta], result: Delta) -> float:
    """Return the operations of a decomposition through Gram matrices."""
    if len(deltas) == 1 and result is deltas[0]:
        return 0.0
    inner = sum(delta.rank or min(delta.flat_shape) for delta in deltas)
    outer = sum(deltas[0].flat_shape)
    return 2.0 * outer * inner**2 + 2.0 * outer * inner * (result.rank or inner) + 60.0 * inner**3


def predict_checkpoint(plan: BakePlan, made: Made | None, context: Context) -> Prediction:
    """Foretell a bake: its weight files to the byte; folders have further files, copied as they are."""
    entries = {} if context.strip else header_entries(made, {}, placeholder)
    size = output_size(plan, entries)
    memory = _START + (context.threads or 1) * _BLOCKS
    return Prediction(modules=len(plan.modules), size=size, memory=memory, seconds=size / _BYTES)


def predict_report(adapters: Sequence[Adapter]) -> Prediction:
    """Foretell a step that only looks."""
    total = sum(_elements(delta) for adapter in adapters for delta in adapter.deltas.values())
    sites = sum(len(adapter.deltas) for adapter in adapters)
    return Prediction(modules=sites, seconds=_SITE * sites + 8 * total / _BYTES)
