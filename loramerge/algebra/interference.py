"""Describe how the inputs of a mix relate: directions, shared spaces, and the norm of the result.

These figures describe weights. They do not predict how much of each input an image shows: measured on
pairs of adapters, no score of the weights alone does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from loramerge.adapter import Adapter, Delta, Site
from loramerge.algebra.compare import block_of, delta_product, in_order
from loramerge.algebra.svd import decompose
from loramerge.algebra.terms import Term
from loramerge.algebra.workers import ordered
from loramerge.events import Notify, ignore

if TYPE_CHECKING:
    from loramerge.adapter.delta import Array

__all__ = ["BlockNorms", "Figures", "Interference", "Relation", "interference"]


@dataclass(frozen=True)
class Relation:
    """Two inputs, over the modules that both change; weights are applied.

    Args:
        a, b: positions of the inputs.
        modules: how many both change.
        cosine: of the two changes; None where one of them is zero.
        outputs, inputs: share of the energy ‖ΔW‖² of both that lies in the other's output or input
            space, 0 to 1; None where no module has factors.
        outputs_by_chance, inputs_by_chance: the expected shares for random spaces of the same ranks.
    """

    a: int
    b: int
    modules: int
    cosine: float | None
    outputs: float | None
    inputs: float | None
    outputs_by_chance: float | None
    inputs_by_chance: float | None


@dataclass(frozen=True)
class BlockNorms:
    """A part of the network.

    Args:
        name: of the block, or `all modules`.
        inputs: norm of ΔW of every input, weighted.
        result: norm of the result.
    """

    name: str
    inputs: tuple[float, ...]
    result: float

    @property
    def ratio(self) -> float | None:
        """Norm of the result over that of independent inputs; None where they change nothing.

        1 means that the inputs neither help nor hinder each other; two equal inputs give √2, two
        opposite ones 0.
        """
        alone = math.sqrt(math.fsum(norm * norm for norm in self.inputs))
        return self.result / alone if alone > 0 else None

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {"inputs": list(self.inputs), "result": self.result, "ratio": self.ratio}


@dataclass(frozen=True)
class Interference:
    """Relations of the inputs of a mix.

    Args:
        skipped: modules that could not be compared, because they need a base or are opaque.
    """

    pairs: tuple[Relation, ...]
    blocks: tuple[BlockNorms, ...]
    total: BlockNorms
    skipped: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "pairs": [asdict(pair) for pair in self.pairs],
            "blocks": {part.name: part.json() for part in self.blocks},
            "total": self.total.json(),
            "not_compared": list(self.skipped),
        }


@dataclass(frozen=True)
class _Space:
    """Singular vectors `(m, k)` and `(n, k)` and values `(k,)` of a delta."""

    left: Array
    values: Array
    right: Array


@dataclass(frozen=True)
class _Spaces:
    """The energies ‖ΔW‖² of two deltas, and their parts in the other's output and input space.

    Args:
        ranks: of a and b.
        shape: rows and columns.
    """

    energies: tuple[float, float]
    outputs: tuple[float, float]
    inputs: tuple[float, float]
    ranks: tuple[int, int]
    shape: tuple[int, int]


@dataclass(frozen=True)
class _Unweighted:
    """Two deltas of one module without their weights.

    Args:
        product: ⟨ΔW_a, ΔW_b⟩.
        spaces: None where one of them has no factors, or where only the product was needed.
    """

    product: float
    spaces: _Spaces | None = None

    def turned(self) -> _Unweighted:
        """Return the figures of b and a."""
        found = self.spaces
        if found is None:
            return self
        both = (found.energies, found.outputs, found.inputs)
        energies, outputs, inputs = ((b, a) for a, b in both)
        return _Unweighted(
            self.product, _Spaces(energies, outputs, inputs, found.ranks[::-1], found.shape)
        )


# delta → another or itself → their figures, which no weight changes
Figures = MutableMapping[Delta, MutableMapping[Delta, _Unweighted]]


@dataclass
class _PairSums:
    """Sums over modules for one pair."""

    modules: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    energy: float = 0.0
    outputs: float = 0.0
    inputs: float = 0.0
    outputs_by_chance: float = 0.0
    inputs_by_chance: float = 0.0

    def add(self, a: float, b: float, aa: float, bb: float, pair: _Unweighted) -> None:
        """Add a module.

        Args:
            a, b: the weights.
            aa, bb: the energies with their weights.
        """
        self.modules += 1
        self.aa += aa
        self.bb += bb
        self.ab += a * b * pair.product
        if pair.spaces is not None:
            self._add_spaces(a * a, b * b, pair.spaces)

    def _add_spaces(self, a: float, b: float, spaces: _Spaces) -> None:
        """Add the energy of each delta in the other's spaces; a, b: the squares of the weights."""
        first, second = a * spaces.energies[0], b * spaces.energies[1]
        self.energy += first + second
        self.outputs += a * spaces.outputs[0] + b * spaces.outputs[1]
        self.inputs += a * spaces.inputs[0] + b * spaces.inputs[1]
        by_chance = first * spaces.ranks[1] + second * spaces.ranks[0]
        self.outputs_by_chance += by_chance / spaces.shape[0]
        self.inputs_by_chance += by_chance / spaces.shape[1]

    def relation(self, a: int, b: int) -> Relation:
        size, energy = math.sqrt(self.aa * self.bb), self.energy
        sums = (self.outputs, self.inputs, self.outputs_by_chance, self.inputs_by_chance)
        shares = (min(1.0, one / energy) if energy else None for one in sums)
        cosine = max(-1.0, min(1.0, self.ab / size)) if size > 0 else None
        return Relation(a, b, self.modules, cosine, *shares)


def interference(
    terms: Mapping[Site, Sequence[Term]],
    result: Adapter | float,
    count: int,
    *,
    known: Figures | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> Interference:
    """Compare the weighted inputs of a mix with each other and with its result.

    Args:
        terms: of every module, as the mix combined them.
        result: the result of the mix. A number says that it is the exact sum times it, whose norm
            follows from the inner products of the inputs.
        count: of inputs.
        known: keeps what no weight changes, for later calls with the same deltas.
    """
    usable = {
        site: those
        for site, those in terms.items()
        if all(t.delta.facts.computable and not t.delta.needs_base for t in those)
    }
    known = WeakKeyDictionary() if known is None else known
    _learn([[term.delta for term in those] for those in usable.values()], known, threads, notify)
    sums = {pair: _PairSums() for pair in combinations(range(count), 2)}
    energies: dict[str, list[float]] = {}
    results: dict[str, float] = {}
    for site, those in usable.items():
        block = block_of(site)
        row = energies.setdefault(block, [0.0] * count)
        results.setdefault(block, 0.0)
        own = {t.position: t.weight**2 * known[t.delta][t.delta].product for t in those}
        for position, energy in own.items():
            row[position] += energy
        total = math.fsum(own.values())
        for a, b in combinations(sorted(those, key=lambda term: term.position), 2):
            pair = known[a.delta][b.delta]
            energy_a, energy_b = own[a.position], own[b.position]
            sums[a.position, b.position].add(a.weight, b.weight, energy_a, energy_b, pair)
            total += 2 * a.weight * b.weight * pair.product
        if not isinstance(result, Adapter):
            results[block] += result**2 * total
    if isinstance(result, Adapter):
        for site, delta in result.deltas.items():
            if site in usable and delta.facts.computable and not delta.needs_base:
                results[block_of(site)] += delta_product(delta, delta)
    blocks = tuple(_part(name, energies[name], results[name]) for name in in_order(energies))
    whole = [math.fsum(column) for column in zip(*energies.values(), strict=True)] or [0.0] * count
    return Interference(
        tuple(one.relation(*pair) for pair, one in sums.items()),
        blocks,
        _part("all modules", whole, math.fsum(results.values())),
        tuple(site.name for site in terms if site not in usable),
    )


def _part(name: str, energies: Sequence[float], result: float) -> BlockNorms:
    return BlockNorms(
        name, tuple(math.sqrt(max(0.0, e)) for e in energies), math.sqrt(max(0.0, result))
    )


def _learn(
    modules: Sequence[Sequence[Delta]], known: Figures, threads: int | None, notify: Notify
) -> None:
    """Compute the figures of all pairs of deltas of each module that are not known yet."""
    missing = []
    for deltas in modules:
        products = {(delta, delta): False for delta in deltas}
        wanted = products | dict.fromkeys(combinations(deltas, 2), True)
        if new := [pair for pair, spaces in wanted.items() if not _has(known, *pair, spaces)]:
            missing.append([(a, b, wanted[a, b]) for a, b in new])
    found = ordered(_compared, missing, threads=threads, task="comparing inputs", notify=notify)
    for pairs, figures in zip(missing, found, strict=True):
        for (a, b, _), one in zip(pairs, figures, strict=True):
            known.setdefault(a, WeakKeyDictionary())[b] = one
            known.setdefault(b, WeakKeyDictionary())[a] = one.turned()


def _has(known: Figures, a: Delta, b: Delta, spaces: bool) -> bool:
    found = known.get(a, {}).get(b)
    if found is None or not spaces or found.spaces is not None:
        return found is not None
    return a.rank is None or b.rank is None


def _compared(pairs: Sequence[tuple[Delta, Delta, bool]]) -> list[_Unweighted]:
    """Return the figures of pairs of deltas of one module, those of their spaces where wanted."""
    apart = {delta for a, b, spaces in pairs if spaces for delta in (a, b)}
    known = {delta: _space(delta) for delta in apart}
    return [
        _Unweighted(delta_product(a, b), _shared(known[a], known[b]) if spaces else None)
        for a, b, spaces in pairs
    ]


def _shared(a: _Space | None, b: _Space | None) -> _Spaces | None:
    """Return the energy of each delta in the other's spaces."""
    if a is None or b is None:
        return None
    energy_a, energy_b = a.values**2, b.values**2

    def parts(x: Array, y: Array) -> tuple[float, float]:
        squares = (x.T @ y) ** 2
        return float(energy_a @ squares.sum(axis=1)), float(energy_b @ squares.sum(axis=0))

    return _Spaces(
        (float(energy_a.sum()), float(energy_b.sum())),
        parts(a.left, b.left),
        parts(a.right, b.right),
        (len(a.values), len(b.values)),
        (len(a.left), len(a.right)),
    )


def _space(delta: Delta) -> _Space | None:
    """Return the singular vectors and values of a delta; None where it has no factors."""
    if delta.rank is None:
        return None
    found = decompose(*delta.factors("float64"))
    values = found.singular_values[: found.rank]
    left, right = found.truncate(found.rank)
    root = values**0.5
    return _Space(left / root, values, right.T / root)
