"""Merges of checkpoints at paths, and comparisons of their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.method import Method
from loramerge.algebra.operators import find_operator
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.checkpoint.files import find_files
from loramerge.stream.ingredients import Blended
from loramerge.stream.merge import merge
from loramerge.stream.merge_plan import plan_merge
from tests.builders import small_models
from tests.builders.bases import Base, read_safetensors, ulp

__all__ = ["as_row", "merged", "refused", "same_as", "small_bytes", "wide"]

Array = np.ndarray[Any, Any]


def merged(output: Path, *models: tuple[Path, float | Weight], **options: Any) -> list[Blended]:
    """Merge checkpoints at paths into a new one."""
    base = options.pop("base", None)
    planned = {
        key: options.pop(key) for key in ("union", "dtype", "skip_missing") if key in options
    }
    if "text_encoder" in options:
        planned["text_encoder"] = open_checkpoint(options.pop("text_encoder"))
    if "vae" in options:
        planned["vae"] = find_files(options.pop("vae"))
    name, settings = options.pop("method", "linear"), options.pop("settings", {})
    method = Method.of(find_operator(name), settings, options.pop("scale", None))
    opened = [
        (open_checkpoint(path), weight if isinstance(weight, Weight) else Weight(weight))
        for path, weight in models
    ]
    planned["adapters"] = [(one, Weight(weight)) for one, weight in options.pop("adapters", ())]
    plan = plan_merge(opened, method, base=base and open_checkpoint(base), **planned)
    options.setdefault("threads", 1)
    return merge(plan, output, **options)


def wide(path: Path) -> dict[str, Array]:
    return {name: value.astype("float64") for name, value in small_models.read(path).items()}


def as_row(value: Array) -> Array:
    return value.reshape(1, -1) if value.ndim == 1 else value.reshape(len(value), -1)


def small_bytes(path: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in small_models.read(path).items()}


def same_as(
    base: Base,
    output: Path,
    want: dict[str, Array],
    dtype: str,
    room: dict[str, Array] | None = None,
) -> None:
    """Compare every weight of a result with what it must be, to one rounding.

    Args:
        room: sizes of the terms, a few units of float32 of which the sum may be off.
    """
    sizes = base.tensors(room or {k: np.zeros(v.shape) for k, v in want.items()})
    for name, expected in base.tensors(want).items():
        got, _ = read_safetensors(base.file(output, name))
        for tensor, value in expected.items():
            if tensor.startswith("model_ema."):
                assert tensor not in got
                continue
            wanted = value.astype("float64")
            if value.dtype.kind in "iu" or not value.size:
                assert np.array_equal(got[tensor], value)
                continue
            gap = np.abs(got[tensor].astype("float64") - wanted)
            assert (gap <= 0.51 * ulp(wanted, dtype) + 2.0**-22 * sizes[name][tensor]).all(), tensor


def refused(error: type[Exception], match: str, output: Path, *models: Any, **options: Any) -> None:
    with pytest.raises(error, match=match):
        merged(output, *models, **options)
    assert not output.exists() and not list(output.parent.glob(f"{output.stem}*"))
