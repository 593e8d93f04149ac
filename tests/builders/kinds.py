"""Tensors of every kind on every sort of layer, and what each means, by formulas of its own.

Formulas are float64 einsums over named axes, written from the definitions (algebra.md §1 of the
design, and the papers), and share nothing with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Change = Callable[[Array], Array]  # base → ΔW, both of the layer's shape

STEMS = {
    "linear": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "conv1x1": "lora_unet_down_blocks_1_attentions_0_proj_in",
    "conv3x3": "lora_unet_down_blocks_1_resnets_0_conv1",
}
MODULES = {
    "linear": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "conv1x1": "unet.down_blocks.1.attentions.0.proj_in",
    "conv3x3": "unet.down_blocks.1.resnets.0.conv1",
}
KERNELS: dict[str, tuple[int, ...]] = {"linear": (), "conv1x1": (1, 1), "conv3x3": (3, 3)}
LAYERS = tuple(KERNELS)
METADATA = {"modelspec.architecture": "stable-diffusion-v1/lora"}


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    random = np.random.default_rng([seed, *shape])
    return (scale * random.standard_normal(shape)).astype(np.float32)


def number(value: float) -> Array:
    return np.array(value, np.float32)


@dataclass(frozen=True)
class KindSample:
    """The tensors of one module by the ends of their keys, and what they mean."""

    kind: str
    tensors: Mapping[str, Array]
    change: Change
    shape: tuple[int, ...]
    rank: int | None = None
    needs_base: bool = False
    wrong: Mapping[str, Change] = field(default_factory=dict)

    def keys(self, layer: str) -> dict[str, Array]:
        return {f"{STEMS[layer]}.{end}": value for end, value in self.tensors.items()}


def wide(array: Array) -> Array:
    return array.astype(np.float64)


# ---- the formulas


def product(up: Array, down: Array, shape: tuple[int, ...]) -> Array:
    left, right = wide(up).reshape(shape[0], -1), wide(down).reshape(len(down), -1)
    return np.asarray(np.einsum("or,rc->oc", left, right).reshape(shape))


def tucker(core: Array, left: Array, right: Array) -> Array:
    """W[o,i,h,w] = Σ_pq core[p,q,h,w] left[p,o] right[q,i]."""
    return np.asarray(np.einsum("pqhw,po,qi->oihw", wide(core), wide(left), wide(right)))


def kron(w1: Array, w2: Array) -> Array:
    """W[a·B+b, c·D+d, …] = w1[a,c] w2[b,d,…]."""
    a, c = w1.shape
    b, d, *kernel = w2.shape
    four = np.einsum("ac,bd...->abcd...", w1, w2)
    return np.asarray(four.reshape(a * b, c * d, *kernel))


def decomposed(base: Array, step: Array, magnitude: Array, axis: str, eps: float) -> Array:
    moved = base + step
    axes = tuple(i for i in range(base.ndim) if i != (0 if axis == "out" else 1))
    norm = np.sqrt((moved**2).sum(axes, keepdims=True)) + eps
    shape = [1] * base.ndim
    shape[0 if axis == "out" else 1] = -1
    return np.asarray(wide(magnitude).reshape(shape) * moved / norm - base)


def rotations(blocks: Array, constraint: float, *, transposed: bool = False) -> Array:
    q = wide(blocks) - wide(blocks).swapaxes(-1, -2)
    norm = np.sqrt((q**2).sum())
    if 0 < constraint < norm:
        q = q * constraint / norm
    eye = np.eye(q.shape[-1])
    r = np.stack([(eye + one) @ np.linalg.inv(eye - one) for one in q.reshape(-1, *eye.shape)])
    r = r.reshape(q.shape)
    return r.swapaxes(-1, -2) if transposed else r


def rotated(blocks: Array, base: Array, constraint: float, **how: bool) -> Array:
    """V[k,m] = Σ_n R[k,n,m] W[k,n]."""
    count, size, _ = blocks.shape
    parts = base.reshape(count, size, -1)
    r = rotations(blocks, constraint, **how)
    return np.asarray(np.einsum("knm,knc->kmc", r, parts).reshape(base.shape))


def butterfly(blocks: Array, base: Array, constraint: float, *, transposed: bool = False) -> Array:
    """Stage by stage, row by row: row c·2k + g·k + j of stage i goes to c·2k + 2j + g and back."""
    r = rotations(blocks, constraint, transposed=transposed)
    stages, count, size, _ = r.shape
    w = base.reshape(len(base), -1)
    for stage in range(stages):
        k = 2**stage * size // 2
        rows = np.arange(len(w))
        c, g, j = rows // (2 * k), rows // k % 2, rows % k
        place = c * 2 * k + 2 * j + g
        shuffled = np.empty_like(w)
        shuffled[place] = w
        for n in range(count):
            here = slice(n * size, (n + 1) * size)
            shuffled[here] = r[stage, n] @ shuffled[here]
        w = shuffled[place]
    return w.reshape(base.shape)


# ---- the samples

OUT, IN, R = 16, 8, 2
ALPHA = 1.0  # scale 1/2


def _shape(layer: str, out: int = OUT, inside: int = IN) -> tuple[int, ...]:
    return (out, inside, *KERNELS[layer])


def _lora(layer: str, out: int = OUT, inside: int = IN) -> tuple[dict[str, Array], Array]:
    shape = _shape(layer, out, inside)
    tail = (1, 1) if KERNELS[layer] else ()
    up, down = values(out, R, *tail), values(R, *shape[1:])
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": number(ALPHA)}
    return tensors, ALPHA / R * product(up, down, shape)


def _loha(layer: str) -> KindSample:
    shape = _shape(layer)
    columns = int(np.prod(shape[1:]))
    a1, b1, a2, b2 = (values(*s, seed=i) for i, s in enumerate([(OUT, R), (R, columns)] * 2))
    first, second = product(a1, b1, shape), product(a2, b2, shape)
    tensors = {
        "hada_w1_a": a1,
        "hada_w1_b": b1,
        "hada_w2_a": a2,
        "hada_w2_b": b2,
        "alpha": number(ALPHA),
    }
    step = ALPHA / R * first * second
    wrong = {"scale squared": lambda base: ALPHA / R * step, "a sum": lambda base: first + second}
    return KindSample("loha", tensors, lambda base: step, shape, R * R, wrong=wrong)


def _loha_tucker(layer: str) -> KindSample:
    shape = _shape(layer)
    kernel = KERNELS[layer]
    t1, t2 = values(R, R, *kernel, seed=8), values(R, R, *kernel, seed=9)
    a1, b1, a2, b2 = (values(*s, seed=i) for i, s in enumerate([(R, OUT), (R, IN)] * 2))
    tensors = {
        "hada_w1_a": a1,
        "hada_w1_b": b1,
        "hada_w2_a": a2,
        "hada_w2_b": b2,
        "hada_t1": t1,
        "hada_t2": t2,
        "alpha": number(ALPHA),
    }
    step = ALPHA / R * tucker(t1, a1, b1) * tucker(t2, a2, b2)
    flipped = ALPHA / R * tucker(t1.swapaxes(0, 1), a1, b1) * tucker(t2.swapaxes(0, 1), a2, b2)
    return KindSample(
        "loha",
        tensors,
        lambda base: step,
        shape,
        R * R,
        wrong={"core axes swapped": lambda base: flipped},
    )


def _lokr(layer: str, first: str, second: str) -> KindSample:
    """Kronecker of (4, 2) and (8, 6, …): 32 outputs, 12 inputs, whose halves differ in size."""
    kernel = KERNELS[layer]
    places = int(np.prod(kernel))
    a, c, b, d = 4, 2, 8, 6
    tensors: dict[str, Array] = {"alpha": number(ALPHA)}
    if first == "full":
        w1 = wide(values(a, c))
        tensors["lokr_w1"] = values(a, c)
    else:
        u, v = values(a, R), values(R, c)
        tensors |= {"lokr_w1_a": u, "lokr_w1_b": v}
        w1 = wide(u) @ wide(v)
    if second == "full":
        w2 = wide(values(b, d, *kernel, seed=3))
        tensors["lokr_w2"] = values(b, d, *kernel, seed=3)
    elif second == "tucker":
        t, u, v = values(R, R, *kernel, seed=4), values(R, b, seed=5), values(R, d, seed=6)
        tensors |= {"lokr_t2": t, "lokr_w2_a": u, "lokr_w2_b": v}
        w2 = tucker(t, u, v)
    else:
        u, v = values(b, R, seed=5), values(R, d * places, seed=6)
        tensors |= {"lokr_w2_a": u, "lokr_w2_b": v}
        w2 = (wide(u) @ wide(v)).reshape(b, d, *kernel)
    both = first == second == "full"
    step = (1.0 if both else ALPHA / R) * kron(w1, w2)
    shape = (a * b, c * d, *kernel)
    swapped = kron(w2.reshape(b, d, -1)[:, :, 0], w1[..., None, None] * np.ones(kernel or (1, 1)))
    wrong: dict[str, Change] = {
        "the other order": lambda base: (1.0 if both else ALPHA / R) * swapped.reshape(shape),
        "scale": lambda base: ALPHA / R * step,
    }
    rank = None if both else (2 if first == "full" else R) * (R if second != "full" else 0)
    if first == "factored" and second == "full":
        rank = R * min(b, d * places)
    # a form as large as ΔW is none
    rank = None if rank is not None and rank >= min(a * b, c * d * places) else rank
    return KindSample("lokr", tensors, lambda base: step, shape, rank, wrong=wrong)


def _sparse(layer: str) -> KindSample:
    tensors, step = _lora(layer)
    shape = step.shape
    flat = np.array([[0, 3, 3, 15], [1, 0, 5, 7]])
    rest = np.zeros((OUT, int(np.prod(shape[1:]))))
    rest[flat[0], flat[1]] = [1.0, -2.0, 0.5, 3.0]
    tensors |= {
        "bias_indices": flat.astype(np.int64),
        "bias_values": np.array([1.0, -2.0, 0.5, 3.0], np.float32),
        "bias_size": np.array([OUT, rest.shape[1]], np.int64),
    }
    total = step + ALPHA / R * rest.reshape(shape)
    wrong = {"outside of the scale": lambda base: step + rest.reshape(shape)}
    return KindSample("sparse-bias", tensors, lambda base: total, shape, wrong=wrong)


def _scale(layer: str) -> KindSample:
    tensors, step = _lora(layer)
    total = step * (0.75 / (ALPHA / R))
    tensors["scale"] = number(0.75)
    return KindSample(
        "lora",
        tensors,
        lambda base: total,
        step.shape,
        R,
        wrong={"alpha counts": lambda base: step},
    )


def _ia3(layer: str, on_input: bool) -> KindSample:
    shape = _shape(layer, 16, 16)  # square: nothing but the flag tells the axis
    x = values(16) if not KERNELS[layer] else values(1, 16, 1, 1)
    flat = wide(x).reshape(-1)

    def along(base: Array, axis: int) -> Array:
        where = [1] * base.ndim
        where[axis] = -1
        return base * flat.reshape(where)

    right, other = (1, 0) if on_input else (0, 1)
    return KindSample(
        "ia3",
        {"weight": x, "on_input": np.array(int(on_input), np.int64)},
        lambda base: along(base, right),
        shape,
        needs_base=True,
        wrong={"the other axis": lambda base: along(base, other)},
    )


def _dora(layer: str, axis: str, inner: str = "lora") -> KindSample:
    """Square, so that only the magnitudes' shape tells the axis."""
    if inner == "lora":
        tensors, step = _lora(layer, 16, 16)
    else:
        of = _loha(layer) if inner == "loha" else _lokr(layer, "full", "factored")
        tensors, step = dict(of.tensors), of.change(np.zeros(1))
    size = step.shape[0 if axis == "out" else 1]
    ones = (1,) * (step.ndim - 2)
    magnitude = np.abs(values(size, 1, *ones)) if axis == "out" else np.abs(values(1, size, *ones))
    tensors["dora_scale"] = magnitude
    eps = float(np.finfo(np.float32).eps)
    other = "in" if axis == "out" else "out"
    wrong: dict[str, Change] = {
        "scale twice": lambda base: decomposed(base, ALPHA / R * step, magnitude, axis, eps),
        "no norm": lambda base: decomposed(base, step, np.ones(size), axis, eps),
    }
    if step.shape[0] == step.shape[1]:
        wrong["the other axis"] = lambda base: decomposed(base, step, magnitude, other, eps)
    return KindSample(
        "dora",
        tensors,
        lambda base: decomposed(base, step, magnitude, axis, eps),
        step.shape,
        needs_base=True,
        wrong=wrong,
    )


def _oft(layer: str, alpha: float, rescaled: bool) -> KindSample:
    alpha = float(np.float32(alpha))
    shape = _shape(layer, 12, IN)
    blocks = values(3, 4, 4, scale=0.5)
    tensors = {"oft_blocks": blocks, "alpha": number(alpha)}
    s = np.ones((12,) + (1,) * (len(shape) - 1))
    if rescaled:
        s = np.abs(values(12, *(1,) * (len(shape) - 1)))
        tensors["rescale"] = s
    return KindSample(
        "oft",
        tensors,
        lambda base: wide(s) * rotated(blocks, base, alpha * 12) - base,
        shape,
        needs_base=True,
        wrong={
            "transposed": lambda base: (
                wide(s) * rotated(blocks, base, alpha * 12, transposed=True) - base
            ),
            "no identity": lambda base: wide(s) * rotated(blocks, base, alpha * 12),
        },
    )


def _oft_in_parts(layer: str) -> KindSample:
    """Two parts of 8 outputs, each with a constraint on its own blocks."""
    shape = _shape(layer, 16, IN)
    parts = [values(2, 4, 4, scale=0.5), values(4, 2, 2, scale=0.5)]
    alpha = float(np.float32(0.05))

    def change(base: Array, constraint: float = alpha * 8, **how: bool) -> Array:
        halves = zip(parts, np.split(base, 2), strict=True)
        return np.concatenate([rotated(p, b, constraint, **how) for p, b in halves]) - base

    return KindSample(
        "oft",
        {**{f"oft_blocks.{i}": part for i, part in enumerate(parts)}, "alpha": number(alpha)},
        change,
        shape,
        needs_base=True,
        wrong={
            "transposed": lambda base: change(base, transposed=True),
            "the constraint of all outputs": lambda base: change(base, alpha * 16),
        },
    )


def _boft(layer: str, rescaled: bool) -> KindSample:
    shape = _shape(layer, 16, IN)
    blocks = values(3, 4, 4, 4, scale=0.5)
    tensors = {"oft_blocks": blocks, "alpha": number(0.0)}
    s = np.ones((16,) + (1,) * (len(shape) - 1))
    if rescaled:
        s = np.abs(values(16, *(1,) * (len(shape) - 1)))
        tensors["rescale"] = s
    return KindSample(
        "boft",
        tensors,
        lambda base: wide(s) * butterfly(blocks, base, 0.0) - base,
        shape,
        needs_base=True,
        wrong={
            "transposed": lambda base: (
                wide(s) * butterfly(blocks, base, 0.0, transposed=True) - base
            ),
            "stages reversed": lambda base: wide(s) * butterfly(blocks[::-1], base, 0.0) - base,
        },
    )


def _glora(layer: str) -> KindSample:
    shape = _shape(layer, OUT, IN)
    tail = (1, 1) if KERNELS[layer] else ()
    a1, a2 = values(IN, R, *tail), values(R, IN, *tail)
    b1, b2 = values(OUT, R, *tail), values(R, *shape[1:], seed=4)
    tensors = {
        "a1.weight": a1,
        "a2.weight": a2,
        "b1.weight": b1,
        "b2.weight": b2,
        "alpha": number(ALPHA),
    }
    mix = wide(a1).reshape(IN, R) @ wide(a2).reshape(R, IN)

    def change(base: Array, matrix: Array = mix) -> Array:
        mixed = np.einsum("oi...,ij->oj...", base, matrix)
        return np.asarray(ALPHA / R * (mixed + product(b1, b2, shape)))

    return KindSample(
        "glora",
        tensors,
        change,
        shape,
        needs_base=True,
        wrong={"a transposed": lambda base: change(base, mix.T)},
    )


def samples() -> dict[str, tuple[str, KindSample]]:
    """Every kind in every form on every layer: name → (layer, sample)."""
    found: dict[str, tuple[str, KindSample]] = {}
    for layer in LAYERS:
        made = {
            "loha": _loha(layer),
            "lokr-full-full": _lokr(layer, "full", "full"),
            "lokr-full-factored": _lokr(layer, "full", "factored"),
            "lokr-factored-full": _lokr(layer, "factored", "full"),
            "lokr-factored-factored": _lokr(layer, "factored", "factored"),
            "sparse-bias": _sparse(layer),
            "scale": _scale(layer),
            "ia3-out": _ia3(layer, False),
            "ia3-in": _ia3(layer, True),
            "dora-out": _dora(layer, "out"),
            "dora-in": _dora(layer, "in"),
            "dora-loha": _dora(layer, "out", "loha"),
            "dora-lokr-in": _dora(layer, "in", "lokr"),
            "oft": _oft(layer, 0.0, False),
            "oft-rescaled": _oft(layer, 0.0, True),
            "oft-constrained": _oft(layer, 0.05, False),
            "boft": _boft(layer, False),
            "boft-rescaled": _boft(layer, True),
            "glora": _glora(layer),
        }
        if layer == "conv3x3":
            made["loha-tucker"] = _loha_tucker(layer)
            made["lokr-full-tucker"] = _lokr(layer, "full", "tucker")
            made["lokr-factored-tucker"] = _lokr(layer, "factored", "tucker")
        if layer == "linear":
            made["oft-in-parts"] = _oft_in_parts(layer)
        found |= {f"{name}-{layer}": (layer, sample) for name, sample in made.items()}
    return found
