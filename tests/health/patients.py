"""Sound adapters to plant faults into: generated, shipped, and real where they are."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.algebra.health.examination import measures_of
from loramerge.algebra.health.neighbours import beside_neighbours, place_of
from loramerge.library.shipped import shipped
from tests.builders.samples import (
    attention,
    make,
    read_safetensors,
    safetensors_bytes,
    write,
)
from tests.health.faults import ALPHA, DOWN, UP, Patient

__all__ = ["GENERATED", "REAL", "SHIPPED", "patient", "written"]

GENERATED = ("generated", "generated with alphas")
SHIPPED = ("zuzu", "polka")
REAL = ("analog_svd_rank4", "hf_catundchat", "hf_timoha", "lora_disney")
SPREAD = 0.12  # of the logarithm of norms beside neighbours: the median of those of real adapters


def patient(name: str, real: Path, folder: Path) -> Patient:
    """Return a sound file in kohya's dialect.

    Args:
        real: the folder of real adapters.
    """
    path = _file(name, str(real), str(folder))
    arrays, metadata = read_safetensors(path)
    adapter = load(path)
    names = {
        key.removesuffix(UP): site.name
        for (site, role), (_, key) in adapter.info.spelling.items()
        if role == "up" and key.endswith(UP)
    }
    beside = {site.name: times for site, times in beside_neighbours(measures_of(adapter)).items()}
    layers = Counter((p.component, p.layer) for p in map(place_of, names.values()))
    strengths = {
        stem: beside.get(module, 0.0)
        for stem, module in names.items()
        if layers[(place := place_of(module)).component, place.layer] >= 4
    }
    whole = {key: np.array(array) for key, array in arrays.items()}
    return Patient(whole, dict(metadata), names, strengths)


@cache
def _file(name: str, real: str, folder: str) -> Path:
    path = Path(folder, f"{name.replace(' ', '-')}.safetensors")
    if name in GENERATED:
        _generate(path, alpha=None if name == "generated" else 2.0)
        return path
    source = shipped(name) if name in SHIPPED else Path(real, f"{name}.safetensors")
    adapter = load(source)
    save(Adapter(adapter.deltas, info=adapter.info), path, to="kohya", force=True)
    arrays, metadata = read_safetensors(path)
    for stem in [key.removesuffix(DOWN) for key in arrays if key.endswith(DOWN)]:
        arrays.setdefault(stem + ALPHA, np.array(float(len(arrays[stem + DOWN])), "float32"))
    kept = {k: v for k, v in metadata.items() if not k.startswith(("loramerge.", "sshs_"))}
    path.write_bytes(safetensors_bytes(arrays, kept))
    return path


def _generate(path: Path, alpha: float | None) -> None:
    random = np.random.default_rng(7)
    modules = {n: m for n, m in attention("sd15").items() if "layers.11." not in n or alpha is None}
    sample = make("sd15", "kohya", modules, alpha=alpha)
    for key, array in list(sample.tensors.items()):
        if key.endswith(UP):
            sample.tensors[key] = (array * np.exp(random.normal(0, SPREAD))).astype(array.dtype)
        if key.endswith(DOWN) and alpha is None:
            stem = key.removesuffix(DOWN)
            sample.tensors.setdefault(stem + ALPHA, np.array(float(len(array)), "float32"))
    write(sample, path)


def written(one: Patient, path: Path) -> Path:
    """Write a patient."""
    path.write_bytes(safetensors_bytes(one.arrays, one.metadata))
    return path
