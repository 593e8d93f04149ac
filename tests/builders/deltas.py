"""Small adapters in memory, and the dense float64 oracle they are measured against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from loramerge.adapter import Adapter, Delta, Full, Info, LowRank, Scale, Site
from loramerge.adapter.kinds.replacement import Replacement
from loramerge.adapter.kinds.tucker import Tucker
from loramerge.adapter.save import save
from loramerge.dialects.detection import Detection
from loramerge.families import FAMILIES
from loramerge.files.tensors import ArrayTensor

Array = np.ndarray[Any, Any]
Dense = dict[Site, Array]

FLOATS = {
    "float64": np.dtype("float64"),
    "float32": np.dtype("float32"),
    "float16": np.dtype("float16"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(array: Array, dtype: str = "float32") -> ArrayTensor:
    return ArrayTensor(np.asarray(array).astype(FLOATS[dtype]))


def low_rank(
    shape: tuple[int, ...],
    rank: int,
    seed: int = 0,
    *,
    dtype: str = "float32",
    alpha: float | None = None,
    weight: float = 1.0,
) -> LowRank:
    """A random LoRA of a layer of `shape`."""
    random = rng(seed)
    tail = (1, 1) if len(shape) == 4 else ()
    up = random.standard_normal((shape[0], rank, *tail))
    down = random.standard_normal((rank, *shape[1:])) / math.sqrt(math.prod(shape[1:]))
    return LowRank(tensor(up, dtype), tensor(down, dtype), shape, Scale(alpha, weight=weight))


def of_spectrum(shape: tuple[int, ...], singular_values: Sequence[float], seed: int = 0) -> LowRank:
    """A float64 LoRA whose ΔW has these singular values."""
    random, rank = rng(seed), len(singular_values)
    columns = math.prod(shape[1:])
    left = np.linalg.qr(random.standard_normal((shape[0], rank)))[0]
    right = np.linalg.qr(random.standard_normal((columns, rank)))[0]
    root = np.sqrt(np.asarray(singular_values, "float64"))
    return LowRank.from_arrays(left * root, (right * root).T, shape)


def tucker(
    shape: tuple[int, ...], rank: int, seed: int = 0, *, alpha: float | None = None
) -> Tucker:
    random = rng(seed)
    out, inside, height, width = shape
    return Tucker(
        tensor(random.standard_normal((out, rank, 1, 1))),
        tensor(random.standard_normal((rank, inside, 1, 1))),
        tensor(random.standard_normal((rank, rank, height, width)) / rank),
        shape,
        Scale(alpha),
    )


def full(shape: tuple[int, ...], seed: int = 0, role: str = "diff") -> Full:
    return Full.of(tensor(0.1 * rng(seed).standard_normal(shape)), role)


def replacement(shape: tuple[int, ...], seed: int = 0) -> Replacement:
    return Replacement.of(tensor(rng(seed).standard_normal(shape)), "set_weight")


def site(name: str) -> Site:
    """`unet.a` is its weight, `unet.a:bias` its bias."""
    module, _, parameter = name.partition(":")
    return Site((module,), "bias" if parameter == "bias" else "weight")


def adapter(
    deltas: Mapping[str, Delta], *, path: str | None = None, families: Sequence[str] = ()
) -> Adapter:
    found = Detection(tuple(FAMILIES[name] for name in families), "made by a test")
    return Adapter(
        {site(name): delta for name, delta in deltas.items()},
        info=Info(path=path, dialects={"kohya": len(deltas)}, detection=found),
    )


def dense(a: Adapter) -> Dense:
    """ΔW of every site in float64, through the class's own `dense`, flattened to two axes."""
    return {s: d.dense(dtype="float64").reshape(d.flat_shape) for s, d in a.deltas.items()}


def oracle(a: Adapter) -> Dense:
    """ΔW of every site in float64 from the stored tensors, by the definition."""
    found: Dense = {}
    for s, d in a.deltas.items():
        stored = {role: t.numpy().astype("float64") for role, t in d.stored().items()}
        if isinstance(d, (LowRank, Tucker)):
            rank = stored["up"].shape[1]
            alpha = rank if d.scale.alpha is None else d.scale.alpha
            up = stored["up"].reshape(stored["up"].shape[0], rank)
            if isinstance(d, Tucker):
                value = np.einsum("op,pqhw,qi->oihw", up, stored["mid"], stored["down"][:, :, 0, 0])
            else:
                value = np.tensordot(up, stored["down"], 1)
            value = value * (d.scale.weight * alpha / (rank**0.5 if d.scale.root else rank))
        else:
            (value,) = stored.values()
            value = value * d.weight  # type: ignore[attr-defined]
        found[s] = value.reshape(d.flat_shape)
    return found


def weighted(inputs: Sequence[tuple[Adapter, float]]) -> Dense:
    """Σ wᵢ ΔWᵢ of every site, dense."""
    total: Dense = {}
    for a, w in inputs:
        for s, value in oracle(a).items():
            total[s] = total.get(s, np.zeros_like(value)) + w * value
    return total


def norm(values: Dense) -> float:
    return math.sqrt(math.fsum(float((v**2).sum()) for v in values.values()))


def distance(a: Dense, b: Dense) -> float:
    """‖a − b‖ over all sites; a site that one lacks is zero there."""
    total = 0.0
    for s in a.keys() | b.keys():
        left, right = a.get(s), b.get(s)
        gap = left if right is None else -right if left is None else left - right
        assert gap is not None
        total += float((gap**2).sum())
    return math.sqrt(total)


def written(a: Adapter, path: Any, dtype: str | None = None) -> bytes:
    """The bytes of the adapter's file."""
    save(a, path, to="kohya", dtype=dtype, force=True)
    return bytes(path.read_bytes())
