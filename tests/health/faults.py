"""Damage that trainers, transfers and other tools do to adapters, planted into sound ones.

A fault changes the tensors and the header of a kohya file, and names what must be found: the code and
the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Random = np.random.Generator
UNREACHED = ".layers.11."  # where zeros are usual, see `Family.unreached`
UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"


@dataclass
class Patient:
    """A file that a fault is planted into.

    Args:
        names: stem → module.
        strengths: stem → norm of ΔW beside that of its neighbours.
    """

    arrays: dict[str, Array]
    metadata: dict[str, str]
    names: Mapping[str, str]
    strengths: Mapping[str, float]

    @property
    def stems(self) -> list[str]:
        return [stem for stem in self.names if stem + UP in self.arrays]

    def pick(self, random: Random, *, common: bool = False) -> str:
        """Choose a module; a common one is of a layer that several blocks have."""
        stems = [stem for stem in self.stems if UNREACHED not in self.names[stem]]
        if common:
            stems = [s for s in stems if 1 <= self.strengths.get(s, 0.0) <= 3]
        return stems[int(random.integers(len(stems)))]

    def rank(self, stem: str) -> int:
        return len(self.arrays[stem + DOWN])

    def alpha(self, stem: str) -> float:
        return float(self.arrays.get(stem + ALPHA, self.rank(stem)))

    def put_alpha(self, stem: str, value: float) -> None:
        self.arrays[stem + ALPHA] = np.array(value, "float32")

    def scale_all(self, factor: float) -> None:
        for stem in self.stems:
            self.put_alpha(stem, self.alpha(stem) * factor)


Found = tuple[str, str | None]  # code and module
Plant = Callable[[Patient, Random], Found]


def _untrained(patient: Patient, random: Random) -> Found:
    stem = patient.pick(random)
    patient.arrays[stem + UP][:] = 0
    return "untrained", patient.names[stem]


def _untrained_block(patient: Patient, random: Random) -> Found:
    """A block that the optimiser never got: all of its layers have their first up, zero."""
    chosen = (
        patient.names[patient.pick(random)].rpartition(".")[0].split(".attn")[0].split(".ff")[0]
    )
    for stem, name in patient.names.items():
        if name.startswith(chosen + ".") and stem + UP in patient.arrays:
            patient.arrays[stem + UP][:] = 0
            last = name
    return "untrained", last


def _never_trained(patient: Patient, random: Random) -> Found:
    for stem in patient.stems:
        patient.arrays[stem + UP][:] = 0
    return "no-effect", None


def _spike(patient: Patient, random: Random) -> Found:
    """A direction far above all others, as ai-toolkit #964 describes it."""
    stem = patient.pick(random, common=True)
    up, down = patient.arrays[stem + UP], patient.arrays[stem + DOWN]
    flat_up, flat_down = up.reshape(len(up), -1), down.reshape(len(down), -1)
    size = np.linalg.norm(flat_up.astype("float64")) * np.linalg.norm(flat_down.astype("float64"))
    rank = int(random.integers(len(down)))
    direction = random.normal(0, 1, len(up)), random.normal(0, 1, flat_down.shape[1])
    strength = (random.uniform(25, 60) * size) ** 0.5
    for flat, axis, vector in ((flat_up, 1, direction[0]), (flat_down, 0, direction[1])):
        value = strength * vector / np.linalg.norm(vector)
        if axis:
            flat[:, rank] = value
        else:
            flat[rank] = value
    return "spike", patient.names[stem]


def _nan(patient: Patient, random: Random) -> Found:
    stem = patient.pick(random)
    array = patient.arrays[stem + (UP, DOWN)[int(random.integers(2))]].reshape(-1)
    array[int(random.integers(array.size))] = np.nan
    return "not-finite", patient.names[stem]


def _infinity(patient: Patient, random: Random) -> Found:
    """A merge in float16 whose factors went over its end, as sums saved by scripts do."""
    stem = patient.pick(random)
    array = patient.arrays[stem + UP].reshape(-1)
    array[int(random.integers(array.size))] = np.inf
    return "not-finite", patient.names[stem]


def _alpha_zero(patient: Patient, random: Random) -> Found:
    """An alpha of 0 for "off", as block editors write it (sd-webui-supermerger #414)."""
    stem = patient.pick(random)
    patient.put_alpha(stem, 0.0)
    return "alpha-zero", patient.names[stem]


def _missing_partner(patient: Patient, random: Random) -> Found:
    stem = patient.pick(random)
    del patient.arrays[stem + (UP, DOWN)[int(random.integers(2))]]
    return "missing-partner", patient.names[stem]


def _times_eight(patient: Patient, random: Random) -> Found:
    """One module at eight times its strength, in its factors: its alpha says nothing."""
    stem = patient.pick(random, common=True)
    patient.arrays[stem + UP] = patient.arrays[stem + UP].astype("float32") * 8
    return "loud-module", patient.names[stem]


def _layer_lost(patient: Patient, random: Random) -> Found:
    """A layer that one block lacks, while all others have it."""
    stem = patient.pick(random, common=True)
    name = patient.names[stem]
    for end in (UP, DOWN, ALPHA):
        patient.arrays.pop(stem + end, None)
    return "layer-lost", name


def _wrong_alpha(patient: Patient, random: Random) -> Found:
    stem = patient.pick(random)
    factor = float(random.choice([1 / 16, 1 / 4, 4, 16]))
    patient.put_alpha(stem, patient.alpha(stem) * factor)
    return "alpha-odd", patient.names[stem]


def _alpha_lost(patient: Patient, random: Random) -> Found:
    """All alphas half of the rank, one of them missing: it is read as the rank."""
    patient.scale_all(0.5)
    stem = patient.pick(random)
    del patient.arrays[stem + ALPHA]
    return "alpha-odd", patient.names[stem]


def _alpha_became_one(patient: Patient, random: Random) -> Found:
    """No alpha was saved as 1 (LoRA-Merger-ComfyUI, pull request 17): 1/rank of the strength."""
    stem = patient.stems[0]
    patient.metadata |= {
        "ss_network_dim": str(patient.rank(stem)),
        "ss_network_alpha": str(float(patient.rank(stem))),
    }
    for one in patient.stems:
        patient.put_alpha(one, 1.0)
    return "alpha-not-as-trained", None


def _concat(patient: Patient, random: Random) -> Found:
    """sd-scripts' `--concat` of a file with itself: the rank doubles, alpha stays."""
    stem = patient.stems[0]
    patient.metadata |= {
        "ss_network_dim": str(patient.rank(stem)),
        "ss_network_alpha": str(patient.alpha(stem)),
    }
    for one in patient.stems:
        alpha = patient.alpha(one)
        patient.arrays[one + UP] = np.concatenate([patient.arrays[one + UP]] * 2, axis=1)
        patient.arrays[one + DOWN] = np.concatenate([patient.arrays[one + DOWN]] * 2)
        patient.put_alpha(one, alpha)
    return "alpha-not-as-trained", None


def _alpha_for_scale(patient: Patient, random: Random) -> Found:
    """An alpha that was meant as a percentage."""
    stem = patient.pick(random)
    patient.put_alpha(stem, patient.rank(stem) * float(random.integers(100, 2000)))
    return "alpha-large", patient.names[stem]


def _negative_alpha(patient: Patient, random: Random) -> Found:
    for stem in patient.stems:
        patient.put_alpha(stem, -patient.alpha(stem))
    return "alpha-negative", patient.names[patient.pick(random)]


def _dead_rank(patient: Patient, random: Random) -> Found:
    stem = patient.pick(random)
    rank = int(random.integers(patient.rank(stem)))
    patient.arrays[stem + UP].reshape(len(patient.arrays[stem + UP]), -1)[:, rank] = 0
    return "dead-ranks", patient.names[stem]


def _collapsed(patient: Patient, random: Random) -> Found:
    """All ranks but the first at nothing, as weight decay without gradients leaves them."""
    for stem in patient.stems:
        up = patient.arrays[stem + UP].astype("float32")
        up.reshape(len(up), -1)[:, 1:] *= 1e-5
        patient.arrays[stem + UP] = up
    return "collapsed", None


def _overflow(patient: Patient, random: Random) -> Found:
    stem = patient.pick(random)
    up = patient.arrays[stem + UP].astype("float32")
    largest = np.abs(_dense(patient, stem)).max()
    patient.arrays[stem + UP] = up * np.float32(random.uniform(2e5, 1e6) / largest)
    return "float16-overflow", patient.names[stem]


def _float16_product(patient: Patient, random: Random) -> Found:
    """Factors of very unequal sizes: their sum of products is sound, float16 does not hold them."""
    stem = patient.pick(random)
    patient.arrays[stem + UP] = patient.arrays[stem + UP].astype("float32") * 2.0**28
    patient.arrays[stem + DOWN] = patient.arrays[stem + DOWN].astype("float32") / 2.0**28
    return "float16-product", patient.names[stem]


def _ranks_differ(patient: Patient, random: Random) -> Found:
    """sd-scripts' resize of a LoCon with a core cuts up and down and leaves the core."""
    stem = patient.pick(random)
    patient.arrays[stem + DOWN] = patient.arrays[stem + DOWN][:-1]
    return "shape", patient.names[stem]


def _alpha_none(patient: Patient, random: Random) -> Found:
    """sd-scripts' resize of a file whose kinds it does not know."""
    patient.metadata |= {"ss_network_alpha": "None", "ss_network_dim": "4"}
    return "header-stale", None


def _uneven_attention(patient: Patient, random: Random) -> Found:
    stems = [s for s in patient.stems if patient.names[s].endswith(("to_k", "k_proj"))]
    stem = stems[int(random.integers(len(stems)))]
    patient.arrays[stem + UP] = patient.arrays[stem + UP].astype("float32") / 2000
    name = patient.names[stem]
    return "qkv-imbalance", name.rpartition(".")[0]


def _faint(patient: Patient, random: Random) -> Found:
    stem = patient.pick(random, common=True)
    patient.arrays[stem + UP] = patient.arrays[stem + UP].astype("float32") / 400
    return "faint-module", patient.names[stem]


def _dense(patient: Patient, stem: str) -> Array:
    up = patient.arrays[stem + UP].astype("float64")
    down = patient.arrays[stem + DOWN].astype("float64")
    whole = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    dense: Array = whole * patient.alpha(stem) / len(down)
    return dense


FAULTS: dict[str, Plant] = {
    "an untrained module": _untrained,
    "an untrained block": _untrained_block,
    "never trained": _never_trained,
    "a spike": _spike,
    "NaN": _nan,
    "infinity": _infinity,
    "alpha 0": _alpha_zero,
    "a missing partner": _missing_partner,
    "strength times 8": _times_eight,
    "a layer lost": _layer_lost,
    "a wrong alpha": _wrong_alpha,
    "an alpha lost": _alpha_lost,
    "alphas saved as 1": _alpha_became_one,
    "joined factors": _concat,
    "alpha far above the rank": _alpha_for_scale,
    "negative alphas": _negative_alpha,
    "a dead rank": _dead_rank,
    "collapsed spectra": _collapsed,
    "float16 overflow": _overflow,
    "unequal factors": _float16_product,
    "ranks that differ": _ranks_differ,
    "alpha None": _alpha_none,
    "uneven attention": _uneven_attention,
    "a faint module": _faint,
}


def dense_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """ΔW of every whole module of a kohya file by stem, in float64."""
    patient = Patient(dict(arrays), {}, {}, {})
    stems = [key.removesuffix(UP) for key in arrays if key.endswith(UP)]
    return {
        s: _dense(patient, s)
        for s in stems
        if s + DOWN in arrays and math.prod(arrays[s + UP].shape)
    }
