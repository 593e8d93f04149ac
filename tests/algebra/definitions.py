"""The definitions of operators on dense float64 matrices, each written out from its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tests.stream import dense_merges

Array = np.ndarray[Any, Any]
Terms = Sequence[tuple[float, Array]]


def largest(values: Array, share: float) -> Array:
    """The largest entries, one by one."""
    order = np.argsort(-np.abs(values).ravel(), kind="stable")[: int(share * values.size)]
    kept = np.zeros(values.size)
    kept[order] = values.ravel()[order]
    return kept.reshape(values.shape)


# ---- definitions on dense matrices


def norm_equalised(ts: Terms) -> Array:
    norms = [np.linalg.norm(v) for _, v in ts]
    mean = math.prod(norms) ** (1 / len(norms))
    return sum(w * mean / n * v for (w, v), n in zip(ts, norms, strict=True))


def subtract(ts: Terms) -> Array:
    return ts[0][0] * ts[0][1] - sum(w * v for w, v in ts[1:])


def cosine_adaptive(kind: str, ts: Terms) -> Array:
    (u, a), (v, b) = ts
    found = dense_merges.cosine_adaptive({"x": a}, {"x": b}, v / (u + v), kind)
    return (u + v) * found["x"]


def train_difference(ts: Terms) -> Array:
    return dense_merges.train_difference([v for _, v in ts], [w for w, _ in ts])


def on_the_arc(a: Array, b: Array, u: float, v: float) -> Array:
    t = v / (u + v)
    angle = math.acos(float(a.ravel() @ b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b))
    return (u + v) * (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def slerp(ts: Terms) -> Array:
    (u, a), (v, b) = ts
    return on_the_arc(a, b, u, v)


def nuslerp(ts: Terms) -> Array:
    (u, a), (v, b) = ts
    return np.array([on_the_arc(x, y, u, v) for x, y in zip(a, b, strict=True)])


def karcher(ts: Terms) -> Array:
    """By many small steps towards the vectors."""
    units = [v / np.linalg.norm(v) for _, v in ts]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(3000):
        step = np.zeros_like(mean)
        for (w, _), unit in zip(ts, units, strict=True):
            near = float((mean * unit).sum())
            across = unit - near * mean
            step += w * math.acos(near) * across / np.linalg.norm(across)
        mean = mean + 0.1 * step
        mean /= np.linalg.norm(mean)
    return mean * sum(w * np.linalg.norm(v) for w, v in ts)


def model_stock(ts: Terms) -> Array:
    count = len(ts)
    cosines = [
        float((a * b).sum()) / np.linalg.norm(a) / np.linalg.norm(b)
        for i, (_, a) in enumerate(ts)
        for _, b in ts[:i]
    ]
    mean = sum(cosines) / len(cosines)
    ratio = min(1.0, max(0.0, count * mean / (1 + (count - 1) * mean)))
    return ratio * sum(w * v for w, v in ts) / count


def agreeing(kept: Sequence[tuple[float, Array]], by_weight: bool = False) -> Array:
    """The mean of entries whose sign is that of their sum, entry by entry."""
    result = np.zeros(kept[0][1].shape)
    for place in np.ndindex(result.shape):
        entries = [(w * v[place], abs(w) if by_weight else 1.0) for w, v in kept]
        sign = -1.0 if sum(e for e, _ in entries) < 0 else 1.0
        agree = [(e, share) for e, share in entries if e * sign > 0]
        if agree:
            result[place] = sum(e for e, _ in agree) / sum(share for _, share in agree)
    return result


def ties(ts: Terms) -> Array:
    return agreeing([(w, largest(v, 0.2)) for w, v in ts])


def ties_by_weight(ts: Terms) -> Array:
    return agreeing([(w, largest(v, 0.2)) for w, v in ts], by_weight=True)


def on_shared_directions(ts: Terms, merge: Callable[[Terms], Array], *, sized: bool) -> Array:
    """KnOTS: the SVD of all adapters side by side, and a merge of the parts of its right factor."""
    u, s, v = svd(np.hstack([v for _, v in ts]))
    inside = s[:, None] * v if sized else v
    parts = np.hsplit(inside, len(ts))
    found = merge([(w, part) for (w, _), part in zip(ts, parts, strict=True)])
    return u @ found if sized else (u * s) @ found


def ties_knots(ts: Terms) -> Array:
    return on_shared_directions(ts, ties, sized=False)


def ties_knots_sized(ts: Terms) -> Array:
    return on_shared_directions(ts, ties, sized=True)


def magnitude_prune(ts: Terms) -> Array:
    return sum(w * largest(v, 0.5) for w, v in ts)


def breadcrumbs(ts: Terms) -> Array:
    return sum(w * (largest(v, 0.91) - largest(v, 0.01)) for w, v in ts)


def sce(ts: Terms) -> Array:
    energies = np.array([np.linalg.norm(w * v) ** 2 for w, v in ts])
    shares = energies / energies.sum()
    result = np.zeros(ts[0][1].shape)
    for place in np.ndindex(result.shape):
        entries = [w * v[place] for w, v in ts]
        sign = -1.0 if sum(entries) < 0 else 1.0
        agree = [(e, c) for e, c in zip(entries, shares, strict=True) if e * sign > 0]
        if agree:
            result[place] = sum(e * c for e, c in agree) / sum(c for _, c in agree)
    return result


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    kept = s > 1e-9 * s[0]
    return u[:, kept], s[kept], v[kept]


def polar(matrix: Array) -> Array:
    u, _, v = svd(matrix)
    return u @ v


def tsv_m(ts: Terms) -> Array:
    parts = [svd(w * v) for w, v in ts]
    u, v = polar(np.hstack([p[0] for p in parts])), polar(np.vstack([p[2] for p in parts]))
    return u @ np.diag(np.concatenate([p[1] for p in parts])) @ v


def iso_c(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    return s.mean() * u @ v


def iso_cts(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    each = (len(s) - round(0.8 * len(s))) // len(ts)
    shared = len(s) - each * len(ts)
    us, ss, vs = [u[:, :shared]], [s[:shared]], [v[:shared]]
    for weight, values in ts:
        left, sizes, right = svd(weight * values - us[0] @ us[0].T @ (weight * values))
        us.append(left[:, :each])
        ss.append(sizes[:each])
        vs.append(right[:each])
    return np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.vstack(vs))


def cart(ts: Terms) -> Array:
    mean = sum(w * v for w, v in ts) / len(ts)
    result = mean.copy()
    for w, v in ts:
        left, sizes, right = svd(w * v - mean)
        result = result + left[:, :4] @ np.diag(sizes[:4]) @ right[:4]
    return result


def svc(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    result = np.zeros(ts[0][1].shape)
    for r in range(len(s)):
        whole = s[r] * v[r]
        times = [
            whole @ (u[:, r] @ (w * x)) / np.linalg.norm(u[:, r] @ (w * x)) ** 2 for w, x in ts
        ]
        result += len(ts) / sum(max(1.0, t) for t in times) * s[r] * np.outer(u[:, r], v[r])
    return result


def pico(ts: Terms) -> Array:
    """On the stacked canonical factors, as in the paper."""
    ups = []
    for _, values in ts:
        u, s, _ = svd(values)
        ups.append(u * np.sqrt(s))
    u, s, _ = svd(np.hstack(ups))
    factors = 1 / (1 + (len(ts) - 1) * s**2 / (s**2).sum())
    calibrated = [up + u @ np.diag(factors - 1) @ u.T @ up for up in ups]
    result = np.zeros(ts[0][1].shape)
    for (w, values), up in zip(ts, calibrated, strict=True):
        _, s, v = svd(values)
        result += w * up @ (np.sqrt(s)[:, None] * v)
    return result


def regmean_proxy(ts: Terms) -> Array:
    rows = svd(np.vstack([v for _, v in ts]))[2]
    ridge = 0.1 / len(rows) * rows.T @ rows
    grams = [v.T @ v / np.linalg.norm(v) ** 2 + ridge for _, v in ts]
    asked = sum(w * v @ g for (w, v), g in zip(ts, grams, strict=True))
    return asked @ np.linalg.pinv(sum(grams), rcond=1e-10)


def protect(ts: Terms) -> Array:
    result = ts[0][0] * ts[0][1]
    seen = ts[0][1]
    for w, v in ts[1:]:
        rows = svd(seen)[2]
        result = result + w * (v - v @ rows.T @ rows)
        seen = np.vstack([seen, v])
    return result


def compress_then_merge(ts: Terms) -> Array:
    rank = 4
    left = np.linalg.eigh(sum(v @ v.T / np.linalg.norm(v) ** 2 for _, v in ts))[1][:, -rank:]
    right = np.linalg.eigh(sum(v.T @ v / np.linalg.norm(v) ** 2 for _, v in ts))[1][:, -rank:]
    return left @ left.T @ sum(w * v for w, v in ts) @ right @ right.T


def spectral_clamp(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    return u @ np.diag(np.minimum(s, 1.5 * np.median(s))) @ v


def geometric_median(ts: Terms) -> Array:
    return dense_merges.geometric_median([v for _, v in ts], [w for w, _ in ts])


def spectral_power(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    return u @ np.diag(np.sqrt(s) * np.linalg.norm(s) / np.linalg.norm(np.sqrt(s))) @ v


DEFINITIONS: list[tuple[str, Callable[[Terms], Array], int, dict[str, Any]]] = [
    ("norm-equalised", norm_equalised, 3, {}),
    ("subtract", subtract, 3, {}),
    ("slerp", slerp, 2, {}),
    ("nuslerp", nuslerp, 2, {}),
    ("karcher", karcher, 3, {}),
    ("geometric-median", geometric_median, 3, {}),
    ("model-stock", model_stock, 3, {}),
    ("ties", ties, 3, {}),
    ("ties", ties_by_weight, 3, {"divide_by": "weights"}),
    ("ties-knots", ties_knots, 3, {}),
    ("ties-knots", ties_knots_sized, 3, {"entries": "sized"}),
    ("magnitude-prune", magnitude_prune, 3, {}),
    ("breadcrumbs", breadcrumbs, 3, {}),
    ("sce", sce, 3, {}),
    ("tsv-m", tsv_m, 3, {}),
    ("iso-c", iso_c, 3, {}),
    ("cosine-adaptive", partial(cosine_adaptive, "A"), 2, {}),
    ("cosine-adaptive", partial(cosine_adaptive, "B"), 2, {"likeness": "both"}),
    ("train-difference", train_difference, 2, {}),
    ("iso-cts", iso_cts, 3, {}),
    ("cart", cart, 3, {}),
    ("svc", svc, 3, {}),
    ("pico", pico, 3, {}),
    ("regmean-proxy", regmean_proxy, 3, {}),
    ("protect", protect, 3, {}),
    ("compress-then-merge", compress_then_merge, 3, {"shared_rank": 4}),
    ("spectral-clamp", spectral_clamp, 3, {"limit": 1.5}),
    ("spectral-power", spectral_power, 3, {}),
]
