"""Bake into small checkpoints, and compare the result with a dense float64 sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from loramerge.stream.survival import Survival
from tests.builders.bases import (
    STORAGE,
    Array,
    Base,
    Files,
    adapter_for,
    asked,
    exact,
    magnitudes,
    modules,
    read_safetensors,
    ulp,
)
from tests.builders.deltas import full, site

Inputs = list[tuple[Adapter, float]]


def bake_into(base: Base | Path, inputs: Inputs, output: Path, **options: Any) -> list[Survival]:
    path = base if isinstance(base, Path) else base.path
    planned = {k: options.pop(k) for k in ("skip_missing", "dtype") if k in options}
    plan = plan_bake(open_checkpoint(path), [(a, Weight(w)) for a, w in inputs], **planned)
    options.setdefault("threads", 1)
    return bake(plan, output, **options)


def read_all(root: Path) -> Files:
    if root.is_file():
        return {"": read_safetensors(root)[0]}
    return {
        p.relative_to(root).as_posix(): read_safetensors(p)[0]
        for p in sorted(root.rglob("*.safetensors"))
    }


def same_bytes(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_baked(base: Base, inputs: Inputs, output: Path, dtype: str) -> int:
    """Compare every tensor with the float64 oracle; return how many changed.

    Rounding to nearest gives at most half a unit in the last place, and the float32 sum before it
    a few of its own units.
    """
    change = asked(base.weights, inputs)
    expected = base.tensors(exact(base.weights, inputs))
    before, room = base.tensors(base.weights), base.tensors(magnitudes(base.weights, inputs))
    touched = base.tensors(
        {k: np.full(v.shape, float(k in change)) for k, v in base.weights.items()}
    )
    after = read_all(output)
    assert after.keys() == before.keys()
    changed = 0
    for file, tensors in before.items():
        assert list(after[file]) == list(tensors)
        for name, old in tensors.items():
            new, want = after[file][name], expected[file][name]
            mask = touched[file][name]
            if want is old or same_bytes(want, old) or not (mask == 1.0).any():
                assert same_bytes(new, old), name
                continue
            changed += 1
            assert new.dtype == STORAGE[dtype]
            untouched = mask == 0.0
            assert same_bytes(new[untouched], old[untouched]), name
            gap = np.abs(new.astype("float64") - want)
            assert (gap <= 0.5 * ulp(want, dtype) + 2.0**-22 * room[file][name]).all(), name
    return changed


def everything(family: str) -> Adapter:
    """A LoRA on all layers, differences on biases and norms, a dense difference."""
    a = adapter_for(family, seed=1)
    own, deltas = modules(family), dict(a.deltas)
    for name, module in own.items():
        if module.layer == "norm":
            deltas[site(name)] = full(module.shape, 5, "w_norm").scaled(0.3)
        if module.bias:
            role = "b_norm" if module.layer == "norm" else "diff_b"
            deltas[site(f"{name}:bias")] = full(module.shape[:1], 6, role).scaled(0.3)
    first = next(name for name, m in own.items() if m.layer == "conv")
    deltas[site(first)] = full(own[first].shape, 7).scaled(0.3)
    return a.with_deltas(deltas)
