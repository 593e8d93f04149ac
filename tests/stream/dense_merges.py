"""Definitions of the merge methods, from the papers: dense and in float64.

Nothing of `loramerge.algebra` is used here. A function takes the changes of all inputs from the base,
one matrix each, and their weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Changes = Sequence[Array]
Weights = Sequence[float]


def largest(change: Array, share: float) -> Array:
    """A mask of the share of the entries that are largest in size."""
    count = int(share * change.size + 1e-9)
    if count == 0:
        return np.zeros(change.shape, bool)
    return np.asarray(np.abs(change) >= np.sort(np.abs(change), axis=None)[-count])


def elected(changes: Changes) -> Array:
    """The mean of the changes that have the sign of their sum; a sum of 0 counts as +."""
    signs = np.where(np.sum(changes, axis=0) >= 0, 1, -1)
    agree = [np.sign(one) == signs for one in changes]
    total = sum(np.where(yes, one, 0.0) for yes, one in zip(agree, changes, strict=True))
    return np.asarray(total / np.maximum(np.sum(agree, axis=0), 1))


def linear(changes: Changes, weights: Weights, name: str = "") -> Array:
    return np.asarray(sum(w * one for w, one in zip(weights, changes, strict=True)))


def ties(changes: Changes, weights: Weights, name: str, density: float = 0.2) -> Array:
    kept = [np.where(largest(one, density), one, 0.0) for one in changes]
    return elected([w * one for w, one in zip(weights, kept, strict=True)])


def magnitude_prune(changes: Changes, weights: Weights, name: str, density: float = 0.5) -> Array:
    return linear([np.where(largest(one, density), one, 0.0) for one in changes], weights)


def breadcrumbs(
    changes: Changes, weights: Weights, name: str, density: float = 0.9, gamma: float = 0.01
) -> Array:
    kept = [
        np.where(largest(c, min(1, density + gamma)) & ~largest(c, gamma), c, 0.0) for c in changes
    ]
    return linear(kept, weights)


def draws(shape: tuple[int, int], position: int, name: str, seed: int = 0) -> Array:
    """The random numbers of one input, drawn as a whole; a row begins at a multiple of four."""
    digest = hashlib.sha256(f"{seed}/{position}/{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    rows, columns = shape
    wide = (columns + 3) // 4 * 4
    drawn = np.random.Generator(np.random.Philox(key=key)).random((rows, wide))
    return np.asarray(drawn[:, :columns])


def dropped(changes: Changes, name: str, keep: Sequence[Array | float]) -> list[Array]:
    return [
        np.where(draws(one.shape, i, name) < chance, one / chance, 0.0)
        for i, (one, chance) in enumerate(zip(changes, keep, strict=True))
    ]


def dare(changes: Changes, weights: Weights, name: str, density: float = 0.5) -> Array:
    return linear(dropped(changes, name, [density] * len(changes)), weights)


def dare_ties(changes: Changes, weights: Weights, name: str, density: float = 0.5) -> Array:
    kept = dropped(changes, name, [density] * len(changes))
    return elected([w * one for w, one in zip(weights, kept, strict=True)])


def della(changes: Changes, weights: Weights, name: str, density: float = 0.5) -> Array:
    chances = []
    for one in changes:
        chance = np.empty(one.shape)
        for row, values in enumerate(np.abs(one)):
            for rank, column in enumerate(np.argsort(values, kind="stable")):
                place = rank / max(1, len(values) - 1)
                chance[row, column] = density + 0.15 * (place - 0.5)
        chances.append(np.clip(chance, 1e-3, 1))
    kept = dropped(changes, name, chances)
    return elected([w * one for w, one in zip(weights, kept, strict=True)])


def sce(changes: Changes, weights: Weights, name: str, select: float = 1.0) -> Array:
    varies = largest(np.var(changes, axis=0), select)
    scaled = [w * one for w, one in zip(weights, changes, strict=True)]
    scaled = [np.where(varies, one, 0.0) for one in scaled]  # first select, then calculate
    energies = [float((one**2).sum()) for one in scaled]
    shares = np.array(energies) / sum(energies)
    signs = np.where(sum(scaled) >= 0, 1, -1)
    agree = [np.sign(one) == signs for one in scaled]
    above = sum(c * np.where(y, o, 0.0) for c, y, o in zip(shares, agree, scaled, strict=True))
    below = sum(c * y for c, y in zip(shares, agree, strict=True))
    return np.asarray(above / np.where(below == 0, 1, below))


def arc(a: Array, b: Array, share: float) -> Array:
    """The point on the arc between two vectors whose norms are kept apart."""
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    angle = np.arccos(np.clip(cosine, -1, 1))
    return np.asarray((np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle))


def slerp(changes: Changes, weights: Weights, name: str = "") -> Array:
    total = sum(weights)
    return total * arc(changes[0], changes[1], weights[1] / total)


def nuslerp(changes: Changes, weights: Weights, name: str = "") -> Array:
    total = sum(weights)
    rows = [arc(a, b, weights[1] / total) for a, b in zip(*changes, strict=True)]
    return total * np.stack(rows)


def karcher(changes: Changes, weights: Weights, name: str = "") -> Array:
    """The mean on the sphere, by steps along tangents of whole vectors."""
    norms = [np.linalg.norm(one) for one in changes]
    units = [one / norm for one, norm in zip(changes, norms, strict=True)]
    shares = np.array(weights) / sum(weights)
    mean = linear(units, shares)
    mean = mean / np.linalg.norm(mean)
    for _ in range(200):
        step = np.zeros(mean.shape)
        for unit, share in zip(units, shares, strict=True):
            angle = np.arccos(np.clip((unit * mean).sum(), -1, 1))
            if angle > 1e-12:
                step += share * angle / np.sin(angle) * (unit - np.cos(angle) * mean)
        length = np.linalg.norm(step)
        if length < 1e-14:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
    return np.asarray(mean * sum(w * norm for w, norm in zip(weights, norms, strict=True)))


def geometric_median(changes: Changes, weights: Weights, name: str = "") -> Array:
    """The best of the changes and of the limit of Weiszfeld's steps, by the sum of distances."""
    points = [np.sign(w) * one for w, one in zip(weights, changes, strict=True)]
    sizes = [abs(w) for w in weights]

    def apart(where: Array) -> list[float]:
        return [float(np.linalg.norm(where - one)) for one in points]

    where = linear(points, [size / sum(sizes) for size in sizes])
    for _ in range(3000):
        pulls = [size / max(far, 1e-30) for size, far in zip(sizes, apart(where), strict=True)]
        where = linear(points, [pull / sum(pulls) for pull in pulls])
    return sum(sizes) * min(
        [where, *points],
        key=lambda one: sum(s * far for s, far in zip(sizes, apart(one), strict=True)),
    )


def model_stock(changes: Changes, weights: Weights, name: str = "") -> Array:
    count = len(changes)
    units = [one / np.linalg.norm(one) for one in changes]
    pairs = [(units[i] * units[j]).sum() for i in range(count) for j in range(i)]
    mean = float(np.mean(pairs))
    ratio = np.clip(count * mean / (1 + (count - 1) * mean), 0, 1)
    return ratio * linear(changes, weights) / count


def train_difference(changes: Changes, weights: Weights, name: str = "") -> Array:
    """The formula of supermerger's trainDifference: A + 1.8 α (B − C) |B − A| / (|B − C| + |B − A|)."""
    a, b = weights[0] * changes[0], changes[1]
    result = np.empty(a.shape)
    for index, (mine, other) in enumerate(zip(a.flat, b.flat, strict=True)):
        near, far = abs(other), abs(other - mine)
        scale = far / (near + far) if near + far else 0.0
        result.flat[index] = mine + weights[1] * 1.8 * np.sign(other) * scale * near
    return result


def cosine_adaptive(
    first: dict[str, Array], second: dict[str, Array], share: float, kind: str
) -> dict[str, Array]:
    """The cosineA and cosineB of supermerger: whole models, tensor by tensor, each column by itself."""

    def cosine(a: Array, b: Array) -> float:
        norms = np.sqrt((a**2).sum()) * np.sqrt((b**2).sum())
        return float((a * b).sum() / norms) if norms else 0.0

    def columns(a: Array) -> list[Array]:
        return [a] if a.ndim == 1 else list(a.reshape(len(a), -1).T)

    def alike(name: str) -> tuple[list[float], list[float]]:
        pairs = list(zip(columns(first[name]), columns(second[name]), strict=True))
        each = [cosine(a, b) for a, b in pairs]
        if kind == "A":
            ones = [[x / (np.linalg.norm(x) or 1.0) for x in pair] for pair in pairs]
            one, other = (np.concatenate([pair[i] for pair in ones]) for i in (0, 1))
        else:
            one, other = first[name].reshape(-1), second[name].reshape(-1)
        both = [(value + cosine(one, other)) / 2 for value in each]
        return (each if kind == "A" else both), both

    numbers = np.array([number for name in first for number in alike(name)[0]])
    numbers = numbers[numbers >= np.percentile(numbers, 1, method="midpoint")]
    numbers = numbers[numbers <= np.percentile(numbers, 99, method="midpoint")]
    low, high = numbers.min(), numbers.max()
    result = {}
    for name, a in first.items():
        kept = np.clip((np.array(alike(name)[1]) - low) / (high - low) - share, 0, 1)
        kept = kept.reshape(a.shape[1:]) if a.ndim > 1 else kept[0]
        result[name] = kept * a + (1 - kept) * second[name]
    return result


def norm_matched(result: Array, changes: Changes, weights: Weights) -> Array:
    """A result brought to the mean norm of the weighted changes."""
    norms = [abs(w) * np.linalg.norm(one) for w, one in zip(weights, changes, strict=True)]
    return np.asarray(result * np.mean(norms) / np.linalg.norm(result))
