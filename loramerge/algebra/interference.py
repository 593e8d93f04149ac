"""Describe how the inputs of a mix relate: directions, shared spaces, and the norm of the result.

These figures describe weights. They do not predict how much of each input an image shows: measured on
pairs of adapters, no score of the weights alone does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from loramerge.adapter import Adapter, Delta, Site
from loramerge.algebra.compare import block_of, delta_product, in_order
from loramerge.algebra.svd import decompose
from loramerge.algebra.terms import Term
from loramerge.algebra.workers import ordered
from loramerge.events import Notify, ignore

if TYPE_CHECKING:
    from loramerge.adapter.delta import Array

__all__ = ["BlockNorms", "Interference", "Relation", "interference"]


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

    def add(self, other: _PairSums) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def pair(self, a: int, b: int) -> Relation:
        size, energy = math.sqrt(self.aa * self.bb), self.energy
        sums = (self.outputs, self.inputs, self.outputs_by_chance, self.inputs_by_chance)
        shares = (min(1.0, one / energy) if energy else None for one in sums)
        cosine = max(-1.0, min(1.0, self.ab / size)) if size > 0 else None
        return Relation(a, b, self.modules, cosine, *shares)


def interference(
    terms: Mapping[Site, Sequence[Term]],
    result: Adapter,
    count: int,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
) -> Interference:
    """Compare the weighted inputs of a mix with each other and with its result.

    Args:
        terms: of every module, as the mix combined them.
        result: the result of the mix.
        count: of inputs.
    """
    usable = {
        site: {term.position: term.weighted for term in those}
        for site, those in terms.items()
        if all(t.delta.facts.computable and not t.delta.needs_base for t in those)
    }

    def work(site: Site) -> dict[tuple[int, int], _PairSums]:
        return _module(usable[site])

    found = ordered(work, usable, threads=threads, task="comparing inputs", notify=notify)
    sums = {pair: _PairSums() for pair in combinations(range(count), 2)}
    energies: dict[str, list[float]] = {}
    for site, those in zip(usable, found, strict=True):
        row = energies.setdefault(block_of(site), [0.0] * count)
        for (a, b), one in those.items():
            if a == b:
                row[a] += one.aa
            else:
                sums[a, b].add(one)
    results = dict.fromkeys(energies, 0.0)
    for site, delta in result.deltas.items():
        if site in usable and delta.facts.computable and not delta.needs_base:
            results[block_of(site)] += delta_product(delta, delta)
    blocks = tuple(_part(name, energies[name], results[name]) for name in in_order(energies))
    whole = [math.fsum(column) for column in zip(*energies.values(), strict=True)] or [0.0] * count
    return Interference(
        tuple(one.pair(*pair) for pair, one in sums.items()),
        blocks,
        _part("all modules", whole, math.fsum(results.values())),
        tuple(site.name for site in terms if site not in usable),
    )


def _part(name: str, energies: Sequence[float], result: float) -> BlockNorms:
    return BlockNorms(
        name, tuple(math.sqrt(max(0.0, e)) for e in energies), math.sqrt(max(0.0, result))
    )


def _module(deltas: Mapping[int, Delta]) -> dict[tuple[int, int], _PairSums]:
    """Return the energies of one module's deltas, as pairs of a position with itself, and its pairs."""
    spaces = {position: _space(delta) for position, delta in deltas.items()}
    energies = {position: delta_product(delta, delta) for position, delta in deltas.items()}
    found = {(p, p): _PairSums(aa=energy) for p, energy in energies.items()}
    for a, b in combinations(sorted(deltas), 2):
        one = _PairSums(1, energies[a], energies[b], delta_product(deltas[a], deltas[b]))
        first, second = spaces[a], spaces[b]
        if first is not None and second is not None:
            _add_spaces(one, first, second)
        found[a, b] = one
    return found


def _add_spaces(one: _PairSums, a: _Space, b: _Space) -> None:
    """Add the energy of each delta in the other's spaces."""
    energy_a, energy_b = a.values**2, b.values**2
    one.energy += float(energy_a.sum() + energy_b.sum())

    def shared(x: Array, y: Array) -> float:
        squares = (x.T @ y) ** 2
        return float(energy_a @ squares.sum(axis=1) + energy_b @ squares.sum(axis=0))

    one.outputs += shared(a.left, b.left)
    one.inputs += shared(a.right, b.right)
    by_chance = float(energy_a.sum() * len(b.values) + energy_b.sum() * len(a.values))
    one.outputs_by_chance += by_chance / len(a.left)
    one.inputs_by_chance += by_chance / len(a.right)


def _space(delta: Delta) -> _Space | None:
    """Return the singular vectors and values of a delta; None where it has no factors."""
    if delta.rank is None:
        return None
    found = decompose(*delta.factors("float64"))
    values = found.singular_values[: found.rank]
    left, right = found.truncate(found.rank)
    root = values**0.5
    return _Space(left / root, values, right.T / root)
