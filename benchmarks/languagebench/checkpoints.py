"""Merge operators on whole checkpoints: adapters are baked, and the models merged with `merge`.

What `merge` gives is compared with `mix` of the adapters by the same operator at every rank, because a
checkpoint needs no factors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

import loramerge as lm
from benchmarks.languagebench.tasks import TASKS
from benchmarks.languagebench.trial import Score, Trial
from benchmarks.proving.cases import Case
from benchmarks.proving.keeping import figures, keep, say
from benchmarks.proving.scores import groups

__all__ = ["METHODS", "measure_checkpoints"]

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"scale": 0.75},
    "ties": {},
    "dare-ties": {},
    "sce": {},
}
_COUNT = 4
_FULL = 576  # the most directions that a module has: `mix` keeps all, as `merge` does


def measure_checkpoints(folder: Path, seed: int, trial: Callable[[Path, int], Trial]) -> None:
    """Measure the methods that are not measured yet, with the first group of four."""
    rows = [r for r in figures(folder) if r["seed"] == seed and r["table"] == "checkpoints"]
    missing = [method for method in METHODS if method not in {row["method"] for row in rows}]
    if not missing:
        return
    own = trial(folder, seed)
    group = groups(list(TASKS), _COUNT, seed)[0]
    base = folder / "smollm2"
    with TemporaryDirectory(dir=folder) as place:
        models = [Path(place) / name for name in group]
        for name, model in zip(group, models, strict=True):
            lm.bake(base, [(own.adapters[name], 1.0)], model, threads=1)
        for method in missing:
            out, settings = Path(place) / "merged", METHODS[method]
            lm.merge(models, out, base=base, method=method, threads=1, force=True, **settings)
            merged = own.scores(group, _answers(own, out, group))
            whole = settings if method == "linear" else settings | {"rank": _FULL}
            mixed = own.mixed(Case("", method, None, whole), group)
            scores = {f"mix {name}": value for name, value in mixed.items()}
            named = {"key": f"merge {method}", "n": _COUNT, "table": "checkpoints"}
            keep(folder, seed, named | {"method": method} | merged | scores)
            say(f"seed {seed}: merge --method {method}: {merged['mean']:.3f}")


def _answers(trial: Trial, folder: Path, group: list[str]) -> dict[str, Score]:
    """Return the figures of a checkpoint, whose weights take the places of the model's for a while."""
    weights = trial.language.model.state_dict()
    with torch.no_grad():
        kept = {}
        for name, value in load_file(folder / "model.safetensors").items():
            if not torch.equal(value, weights[name]):
                kept[name] = weights[name].clone()
                weights[name].copy_(value)
        below = [name for name in kept if int(name.split(".")[2]) < trial.language.first]
        assert not below, f"merge changed {below}, which no adapter changes"
        try:
            return trial.answers([*group, "english"])
        finally:
            for name, value in kept.items():
                weights[name].copy_(value)
