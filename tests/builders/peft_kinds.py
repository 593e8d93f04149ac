"""A module of 24 × 16 of every kind that only PEFT has: tensors, configuration, and what it means.

The formulas are written from PEFT's definitions, dense and in float64, and share nothing with the
package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders.kinds import values
from tests.builders.samples import safetensors_bytes

__all__ = ["IN", "OUT", "SAMPLES", "PeftSample", "write"]

Array = np.ndarray[Any, Any]
Parts = Mapping[str, Array]
OUT, IN = 24, 16


@dataclass(frozen=True)
class PeftSample:
    """One module.

    Args:
        kind: as the package calls the kind.
        tensors: end of key → values.
        change: tensors by end, and the base → ΔW.
        shared: name below `base_model.` → values, shared by all modules.
        shapeless: the shape of the weight is not in the file.
    """

    kind: str
    config: Mapping[str, Any]
    tensors: Parts
    change: Callable[[Parts, Array], Array]
    shared: Parts = field(default_factory=dict)
    needs_base: bool = False
    shapeless: bool = False

    def expected(self, base: Array) -> Array:
        parts = {**self.tensors, **self.shared}
        wide = {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in parts.items()}
        return self.change(wide, base.astype(np.float64))


def write(folder: Path, sample: PeftSample, stem: str = "layer") -> Path:
    """Write a sample as PEFT saves it."""
    folder.mkdir(parents=True)
    tensors = {f"base_model.model.{stem}.{end}": v for end, v in sample.tensors.items()}
    tensors |= {f"base_model.{name}": v for name, v in sample.shared.items()}
    contiguous = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(contiguous))
    (folder / "adapter_config.json").write_text(json.dumps(dict(sample.config)), "utf-8")
    return folder


def _spread(places: Array, entries: Array) -> Array:
    found = np.zeros(OUT * IN)
    np.add.at(found, places, entries)
    return found.reshape(OUT, IN)


def _reflections(u: Array) -> Array:
    product = np.eye(len(u))
    for vector in u.T / np.linalg.norm(u, axis=0)[:, None]:
        product = product @ (np.eye(len(u)) - 2 * np.outer(vector, vector))
    return product


def _gralora(t: Parts, _: Array) -> Array:
    a, b, found = t["gralora_A"], t["gralora_B"], np.zeros((OUT, IN))
    k, rank = len(a), a.shape[2]
    q, rows, columns = rank // k, OUT // k, IN // k
    for s in range(k):
        for n in range(k):
            left = b[s, n * q : (n + 1) * q].T
            block = left @ a[n][:, s * q : (s + 1) * q].T
            found[s * rows : (s + 1) * rows, n * columns : (n + 1) * columns] = block
    return 8 / rank * found


def _road(t: Parts, base: Array) -> Array:
    rotation = np.zeros((OUT, OUT))
    for group in range(OUT // 4):
        for i in range(2):
            angle, size = t["road_theta"][2 * group + i], t["road_alpha"][2 * group + i]
            first, second = 4 * group + i, 4 * group + i + 2
            rotation[first, first] = rotation[second, second] = size * np.cos(angle)
            rotation[second, first] = size * np.sin(angle)
            rotation[first, second] = -size * np.sin(angle)
    return rotation @ base - base


def _c3a(t: Parts, _: Array) -> Array:
    kernel, found = t["c3a_kernel"], np.zeros((OUT, IN))
    for o in range(OUT):
        for i in range(IN):
            found[o, i] = kernel[o // 4, i // 4, (i % 4 - o % 4) % 4] / IN
    return found


def _osf(t: Parts, base: Array) -> Array:
    u, s, v = np.linalg.svd(base, full_matrices=False)
    low = (u[:, 11:] * s[11:]) @ v[11:]
    names = ("U_low", "S_low", "V_low")
    new_u, new_s, new_v = (t[f"osf_svd_params.{name}"] for name in names)
    return (new_u * new_s) @ new_v - low


def _vblora(t: Parts, _: Array) -> Array:
    def vectors(logits: Array) -> Array:
        least = np.sort(logits, axis=-1)[..., -2:-1]
        weights = np.where(logits >= least, np.exp(logits), 0.0)
        return (weights / weights.sum(-1, keepdims=True)) @ t["vblora_vector_bank"]

    down = vectors(t["vblora_logits_A"]).reshape(2, IN)
    up = vectors(t["vblora_logits_B"]).swapaxes(1, 2).reshape(OUT, 2)
    return up @ down


def _delora(t: Parts, _: Array) -> Array:
    a, b = t["delora_A"], t["delora_B"]
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=0)
    return (b * (t["delora_lambda"] / 3 / sizes)) @ a * t["delora_w_norm"]


def _randlora(t: Parts, _: Array) -> Array:
    scaled = np.einsum("rn,rxm,nm->rnm", t["randlora_lambda"], t["randlora_A"], t["randlora_gamma"])
    return 5 / 4 * t["randlora_B"].reshape(OUT, -1) @ scaled.reshape(-1, IN)


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


_PLACES = np.random.default_rng(3).permutation(OUT * IN)[:20].astype(np.int32)
_TURNED = np.stack([_PLACES // IN, _PLACES % IN]).astype(np.int32)
# torch.randperm(384, generator=torch.Generator().manual_seed(777))[:6]
_DRAWN = np.array([359, 192, 99, 0, 159, 189])
_INDICES = [np.random.default_rng(4).integers(0, 8, shape) for shape in ((2, IN), (OUT, 2))]
_BLOCKS = values(6, 4, 4)

SAMPLES: Mapping[str, PeftSample] = {
    "adalora": PeftSample(
        "adalora",
        {"peft_type": "ADALORA", "init_r": 3, "lora_alpha": 6},
        {"lora_A": values(2, IN), "lora_B": values(OUT, 2), "lora_E": values(2, 1)},
        lambda t, _: 6 / 3.00001 * (t["lora_B"] * t["lora_E"][:, 0]) @ t["lora_A"],
    ),
    "c3a": PeftSample(
        "c3a", {"peft_type": "C3A", "block_size": 4}, {"c3a_kernel": values(6, 4, 4)}, _c3a
    ),
    "deft": PeftSample(
        "deft",
        {"peft_type": "DEFT", "r": 3, "alpha": 6},
        {"deft_P": values(OUT, 3), "deft_R": values(3, IN)},
        lambda t, w: t["deft_P"] @ (2 * t["deft_R"] - np.maximum(t["deft_P"], 0).T @ w),
        needs_base=True,
    ),
    "delora": PeftSample(
        "delora",
        {"peft_type": "DELORA", "r": 3},
        {
            "delora_A": values(3, IN),
            "delora_B": values(OUT, 3),
            "delora_lambda": values(1),
            "delora_w_norm": abs(values(IN)),
        },
        _delora,
    ),
    "fourierft": PeftSample(
        "fourierft",
        {"peft_type": "FOURIERFT", "scaling": 150.0, "random_loc_seed": 777},
        {"fourierft_spectrum": values(6)},
        lambda t, _: 150 * np.fft.ifft2(_spread(_DRAWN, t["fourierft_spectrum"])).real,
        shapeless=True,
    ),
    "glora": PeftSample(
        "glora",
        {"peft_type": "GLORA", "r": 2},
        {
            "glora_A.Xd": values(OUT, 2),
            "glora_A.Xu": values(2, IN),
            "glora_B.X": values(OUT, 1),
            "glora_C.zeros": np.zeros((IN, 1), np.float32),
            "glora_D.zeros": np.zeros(OUT, np.float32),
            "glora_E.zeros": np.zeros(OUT, np.float32),
        },
        lambda t, w: w * (t["glora_A.Xd"] @ t["glora_A.Xu"]) + t["glora_B.X"],
        needs_base=True,
    ),
    "gralora": PeftSample(
        "gralora",
        {"peft_type": "GRALORA", "alpha": 8},
        {"gralora_A": values(2, 8, 4), "gralora_B": values(2, 4, 12)},
        _gralora,
    ),
    "hira": PeftSample(
        "hira",
        {"peft_type": "HIRA", "r": 2},
        {"hira_A": values(2, IN), "hira_B": values(OUT, 2)},
        lambda t, w: w * (t["hira_B"] @ t["hira_A"]),
        needs_base=True,
    ),
    "hra": PeftSample(
        "hra",
        {"peft_type": "HRA", "r": 3},
        {"hra_u": values(IN, 3)},
        lambda t, w: w @ _reflections(t["hra_u"]) - w,
        needs_base=True,
    ),
    "miss": PeftSample(
        "miss",
        {"peft_type": "MISS", "r": 5, "init_weights": True},
        {"miss_block": values(5, OUT)},
        lambda t, _: np.tile(t["miss_block"].T, (1, 4))[:, :IN],
        shapeless=True,
    ),
    "bone": PeftSample(
        "miss",
        {"peft_type": "BONE", "r": 4, "init_weights": "bat"},
        {"bone_block": _BLOCKS},
        lambda t, w: (
            np.einsum("manb,mbc->manc", w.reshape(6, 4, 4, 4), t["bone_block"]).reshape(OUT, IN)
            + np.tile(t["bone_block"].reshape(OUT, 4), (1, 4))
        ),
        needs_base=True,
    ),
    "osf": PeftSample(
        "osf",
        {"peft_type": "OSF"},
        {
            "osf_svd_params.U_low": values(OUT, 5),
            "osf_svd_params.S_low": values(5),
            "osf_svd_params.V_low": values(5, IN),
        },
        _osf,
        needs_base=True,
    ),
    "peanut": PeftSample(
        "peanut",
        {"peft_type": "PEANUT", "act_fn": "silu", "scaling": 0.5, "depth": 0},
        {"peanut_A.weight": values(3, OUT), "peanut_B.weight": values(OUT, 3)},
        lambda t, w: 0.5 * t["peanut_B.weight"] @ _silu(t["peanut_A.weight"] @ w),
        needs_base=True,
    ),
    "pvera": PeftSample(
        "pvera",
        {"peft_type": "PVERA", "r": 3},
        {"pvera_lambda_b": values(OUT), "pvera_lambda_d": values(6)},
        lambda t, _: (
            (t["pvera_lambda_b"][:, None] * t["pvera_B"][:OUT])
            @ (t["pvera_lambda_d"][:3, None] * t["pvera_A"][:3, :IN])
        ),
        {"pvera_A": values(6, 20), "pvera_B": values(30, 3)},
        shapeless=True,
    ),
    "randlora": PeftSample(
        "randlora",
        {"peft_type": "RANDLORA", "r": 4, "randlora_alpha": 5},
        {"randlora_lambda": values(4, 4), "randlora_gamma": values(4, IN)},
        _randlora,
        {"randlora_A": values(4, 1, IN), "randlora_B": values(OUT, 4, 4)},
        shapeless=True,
    ),
    "road": PeftSample(
        "road",
        {"peft_type": "ROAD", "variant": "road_1", "group_size": 4},
        {"road_theta": values(12), "road_alpha": values(12, seed=1)},
        _road,
        needs_base=True,
    ),
    "shira": PeftSample(
        "shira",
        {"peft_type": "SHIRA", "r": 1},
        {"shira_weight": values(20), "shira_indices": _TURNED},
        lambda t, _: _spread(_PLACES, t["shira_weight"]),
        shapeless=True,
    ),
    "supertuning": PeftSample(
        "supertuning",
        {"peft_type": "SUPERTUNING"},
        {"supertuning_values": values(20), "supertuning_indices": _PLACES},
        lambda t, _: _spread(_PLACES, t["supertuning_values"]),
        shapeless=True,
    ),
    "tinylora": PeftSample(
        "tinylora",
        {"peft_type": "TINYLORA", "r": 2},
        {"tinylora_A": values(2, IN), "tinylora_B": values(OUT, 2), "tinylora_P": values(3, 2, 2)},
        lambda t, _: (
            t["tinylora_B"]
            @ np.einsum("k,kij->ij", t["tinylora_v.0"], t["tinylora_P"])
            @ t["tinylora_A"]
        ),
        {"tinylora_v.0": values(3)},
    ),
    "unilora": PeftSample(
        "unilora",
        {"peft_type": "UNILORA", "r": 2},
        {
            "unilora_indices_A": _INDICES[0],
            "unilora_indices_B": _INDICES[1],
            "unilora_scales_A": values(2, IN),
            "unilora_scales_B": values(OUT, 2),
        },
        lambda t, _: (
            (t["unilora_theta_d"][t["unilora_indices_B"]] * t["unilora_scales_B"])
            @ (t["unilora_theta_d"][t["unilora_indices_A"]] * t["unilora_scales_A"])
        ),
        {"unilora_theta_d": values(8)},
    ),
    "vblora": PeftSample(
        "vblora",
        {"peft_type": "VBLORA", "topk": 2, "r": 2},
        {"vblora_logits_A": values(2, 4, 6), "vblora_logits_B": values(6, 2, 6)},
        _vblora,
        {"vblora_vector_bank": values(6, 4)},
    ),
    "vera": PeftSample(
        "vera",
        {"peft_type": "VERA", "r": 3},
        {"vera_lambda_b": values(OUT), "vera_lambda_d": values(3)},
        lambda t, _: (
            (t["vera_lambda_b"][:, None] * t["vera_B"][:OUT])
            @ (t["vera_lambda_d"][:, None] * t["vera_A"][:, :IN])
        ),
        {"vera_A": values(3, 20), "vera_B": values(30, 3)},
        shapeless=True,
    ),
    "waveft": PeftSample(
        "waveft",
        {"peft_type": "WAVEFT", "scaling": 25.0, "random_loc_seed": 777, "use_idwt": False},
        {"waveft_spectrum": values(6)},
        lambda t, _: 25 * _spread(_DRAWN, t["waveft_spectrum"]),
        shapeless=True,
    ),
}
