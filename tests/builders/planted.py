"""Small models with adapters fused into them by rules of our own, soundly or with a planted fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders import small_models
from tests.builders.bases import STORAGE, write_safetensors

__all__ = ["FAULTS", "MODULES", "Planted", "plant", "sound"]

Array = np.ndarray[Any, Any]
RANK, ALPHA = 4, 2.0
WIDTH = 64
# q and k of one shape, so that they can be mistaken for each other; up is not square
MODULES = {
    f"model.layers.{n}.{name}": shape
    for n in range(4)
    for name, shape in (
        ("attn.q_proj", (WIDTH, WIDTH)),
        ("attn.k_proj", (WIDTH, WIDTH)),
        ("mlp.up_proj", (2 * WIDTH, WIDTH)),
    )
}
NORM = "model.norm.weight"


@dataclass
class Planted:
    """A base, adapters and weights, from which checkpoints are made.

    Args:
        changes: of each adapter at weight 1, module → ΔW in float64.
    """

    folder: Path
    base: dict[str, Array]
    adapters: list[Path]
    changes: list[dict[str, Array]]
    weights: list[float]

    def write(self, tensors: Mapping[str, Array], name: str = "out") -> Path:
        return small_models.write(self.folder / name, tensors)


def plant(
    folder: Path, seed: int, dtype: str = "F16", adapters: int = 1, size: float = 0.05
) -> Planted:
    """Write a base and adapters.

    Args:
        size: of a change, relative to the weights.
    """
    random = np.random.default_rng(seed)
    base = {}
    for name, shape in MODULES.items():
        base[f"{name}.weight"] = random.standard_normal(shape) / np.sqrt(shape[1])
    base[NORM] = 1 + 0.1 * random.standard_normal(WIDTH)
    stored = {name: value.astype("float32").astype(STORAGE[dtype]) for name, value in base.items()}
    small_models.write(folder / "base", stored)
    paths, changes = [], []
    for number in range(adapters):
        tensors, change = {}, {}
        for name, shape in MODULES.items():
            up = random.standard_normal((shape[0], RANK)).astype("float32")
            down = random.standard_normal((RANK, shape[1])).astype("float32")
            exact = up.astype("float64") @ down * (ALPHA / RANK)
            factor = np.float32(
                size * np.linalg.norm(base[f"{name}.weight"]) / np.linalg.norm(exact)
            )
            up = up * factor
            tensors[f"base_model.model.{name}.lora_B.weight"] = up
            tensors[f"base_model.model.{name}.lora_A.weight"] = down
            change[name] = up.astype("float64") @ down * (ALPHA / RANK)
        path = folder / f"lora{number}"
        path.mkdir()
        (path / "adapter_config.json").write_text(
            f'{{"peft_type": "LORA", "r": {RANK}, "lora_alpha": {ALPHA}}}'
        )
        write_safetensors(path / "adapter_model.safetensors", tensors)
        paths.append(path)
        changes.append(change)
    weights = [float(w) for w in random.choice([0.5, 0.7, 0.8, 1.0, 1.2, -0.6], adapters)]
    return Planted(folder, stored, paths, changes, weights)


def sound(planted: Planted, dtype: str | None = None, half: str | None = None) -> dict[str, Array]:
    """The base with the adapters in it.

    Args:
        dtype: of the result, that of the base by default.
        half: sum in this type, as programs do that compute in half types.
    """
    return fused(planted, {name: list(planted.weights) for name in MODULES}, dtype, half)


def fused(
    planted: Planted,
    factors: Mapping[str, list[float]],
    dtype: str | None = None,
    half: str | None = None,
    instead: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """The base with changes of other strengths in it.

    Args:
        factors: module → weight of each adapter.
        instead: module → another change.
    """
    result = {}
    kind = STORAGE[half] if half else np.dtype("float64")
    for name, value in planted.base.items():
        module = name.removesuffix(".weight")
        target = STORAGE[dtype] if dtype else value.dtype
        total = value.astype("float32").astype(kind)
        if module in factors:
            for change, factor in zip(planted.changes, factors[module], strict=True):
                total = (total + (factor * change[module]).astype(kind)).astype(kind)
        if instead and module in instead:
            total = value.astype("float64") + instead[module]
        result[name] = total.astype("float32").astype(target)
    return result


# ---- planted faults: function of a sound base and a random generator → tensors, and words of the
# verdict; a number is the factor of the changed module

Faulty = tuple[dict[str, Array], list[str | float]]


def _factors(planted: Planted, times: float = 1.0) -> dict[str, list[float]]:
    return {name: [times * w for w in planted.weights] for name in MODULES}


def _pick(random: Any, count: int = 1, square: bool = False) -> list[str]:
    names = [n for n, s in MODULES.items() if not square or s[0] == s[1]]
    return [str(one) for one in random.choice(names, count, replace=False)]


def _lost(planted: Planted, random: Any, count: int) -> Faulty:
    names = _pick(random, count)
    factors = _factors(planted) | {name: [0.0] * len(planted.weights) for name in names}
    return fused(planted, factors), ["change is lost", *names[:1]]


def layer_lost(planted: Planted, random: Any) -> Faulty:
    return _lost(planted, random, 1)


def layers_lost(planted: Planted, random: Any) -> Faulty:
    return _lost(planted, random, 3)


def baked_twice(planted: Planted, random: Any) -> Faulty:
    return fused(planted, _factors(planted, 2.0)), ["2 times the weight", "baked twice"]


def strength_8(planted: Planted, random: Any) -> Faulty:
    return fused(planted, _factors(planted, 8.0)), ["8 times the weight"]


def alpha_left_out(planted: Planted, random: Any) -> Faulty:
    return fused(planted, _factors(planted, RANK / ALPHA)), [f"{RANK / ALPHA:.3g} times the weight"]


def alpha_twice(planted: Planted, random: Any) -> Faulty:
    return fused(planted, _factors(planted, ALPHA / RANK)), [
        "0.5 times the weight",
        "applied twice",
    ]


def alpha_in_one(planted: Planted, random: Any) -> Faulty:
    (name,) = _pick(random)
    factor = float(random.choice([0.25, 0.5, 2.0, 4.0]))
    factors = _factors(planted)
    factors[name] = [factor * w for w in planted.weights]
    return fused(planted, factors), ["another strength", name, factor]


def subtracted(planted: Planted, random: Any) -> Faulty:
    return fused(planted, _factors(planted, -1.0)), ["-1 times the weight", "subtracted"]


def weight_squared(planted: Planted, random: Any) -> Faulty:
    planted.weights[0] = 0.7
    return fused(planted, _factors(planted, 0.7)), ["strength 0.49"]


def not_baked(planted: Planted, random: Any) -> Faulty:
    return fused(planted, _factors(planted, 0.0)), ["is not in it"]


def another_adapter(planted: Planted, random: Any) -> Faulty:
    other = {}
    for name, shape in MODULES.items():
        change = random.standard_normal((shape[0], RANK)) @ random.standard_normal((RANK, shape[1]))
        own = planted.changes[0][name]
        other[name] = change * np.linalg.norm(own) / np.linalg.norm(change)
    return fused(planted, {}, instead=other), ["is not in it"]


def swapped(planted: Planted, random: Any) -> Faulty:
    n = int(random.integers(4))
    q, k = (f"model.layers.{n}.attn.{one}_proj" for one in "qk")
    change, w = planted.changes[0], planted.weights[0]
    instead = {q: w * change[k], k: w * change[q]}
    return fused(planted, _factors(planted), instead=instead), ["something else", q, k]


def transposed(planted: Planted, random: Any) -> Faulty:
    (name,) = _pick(random, square=True)
    instead = {name: planted.weights[0] * planted.changes[0][name].T}
    return fused(planted, _factors(planted), instead=instead), ["something else", name]


def clamped(planted: Planted, random: Any) -> Faulty:
    instead = {}
    for name, change in planted.changes[0].items():
        limit = np.quantile(np.abs(change), 0.9)
        instead[name] = planted.weights[0] * np.clip(change, -limit, limit)
    return fused(planted, {}, instead=instead), [""]


def rows_shifted(planted: Planted, random: Any) -> Faulty:
    (name,) = _pick(random)
    instead = {name: planted.weights[0] * np.roll(planted.changes[0][name], 1, axis=0)}
    return fused(planted, _factors(planted), instead=instead), ["something else", name]


def not_finite(planted: Planted, random: Any) -> Faulty:
    (name,) = _pick(random)
    tensors = sound(planted)
    value = tensors[f"{name}.weight"].copy()
    value[3, 5] = np.nan
    return tensors | {f"{name}.weight": value}, ["NaN or infinity", name]


def norm_changed(planted: Planted, random: Any) -> Faulty:
    tensors = sound(planted)
    value = (tensors[NORM].astype("float64") * 1.1).astype("float32").astype(tensors[NORM].dtype)
    return tensors | {NORM: value}, ["no adapter changes", "model (1)"]


def half_of_the_rank(planted: Planted, random: Any) -> Faulty:
    (name,) = _pick(random)
    u, s, v = np.linalg.svd(planted.changes[0][name], full_matrices=False)
    instead = {name: planted.weights[0] * (u[:, :2] * s[:2]) @ v[:2]}
    return fused(planted, _factors(planted), instead=instead), ["something else", name]


def factors_merged(planted: Planted, random: Any) -> Faulty:
    """Noise of the size of cross terms, as of two adapters whose factors were summed."""
    instead = {}
    for name, change in planted.changes[0].items():
        cross = random.standard_normal(change.shape)
        size = 0.5 * np.linalg.norm(change) / np.linalg.norm(cross)
        instead[name] = planted.weights[0] * (change + size * cross)
    return fused(planted, {}, instead=instead), [""]


FAULTS = {
    one.__name__: one
    for one in (
        layer_lost, layers_lost, baked_twice, strength_8, alpha_left_out, alpha_twice, alpha_in_one,
        subtracted, weight_squared, not_baked, another_adapter, swapped, transposed, clamped,
        rows_shifted, not_finite, norm_changed, half_of_the_rank, factors_merged,
    )
}  # fmt: skip
