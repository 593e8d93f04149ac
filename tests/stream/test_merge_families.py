"""Merges of whole diffusion models by blocks, against float64 by the names of the original files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.stream.merge import merge
from loramerge.stream.merge_plan import plan_merge
from tests.builders import flux
from tests.builders.bases import folder, read_safetensors, single, write_safetensors
from tests.builders.single_file import write_single_file

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]


def write_merge(out: Path, *models: tuple[Path, Weight], base: Path | None = None) -> None:
    opened = [(open_checkpoint(path), weight) for path, weight in models]
    plan = plan_merge(opened, base=None if base is None else open_checkpoint(base))
    merge(plan, out, threads=1)


def merged(out: Path, *models: tuple[Path, Weight], base: Path | None = None) -> Tensors:
    write_merge(out, *models, base=base)
    return read_safetensors(out)[0]


def unet_block(vector: tuple[float, ...], first_out: int) -> Callable[[str], float]:
    """The value of a block vector for a tensor of a single file: BASE, IN…, MID, OUT…"""

    def value(name: str) -> float:
        found = re.match(r"model\.diffusion_model\.(input|middle|output)_blocks?\.(\d+)\.", name)
        if found is None:
            return vector[0]
        part, number = found[1], int(found[2])
        place = {"input": 1 + number, "middle": first_out - 1, "output": first_out + number}[part]
        return vector[place]

    return value


def flux_block(vector: tuple[float, ...], rest: float) -> Callable[[str], float]:
    """The value of 57 weights for a tensor of Flux: 19 double blocks, then 38 single ones."""

    def value(name: str) -> float:
        found = re.match(r"(double|single)_blocks\.(\d+)\.", name)
        if found is None:
            return rest
        return vector[int(found[2]) + (0 if found[1] == "double" else 19)]

    return value


def uneven(count: int) -> tuple[float, ...]:
    return tuple(round(0.9 - 0.013 * number, 3) for number in range(count))


def write_flux(path: Path, seed: int, *, diffusers: bool = False) -> Path:
    native = flux.native_weights(seed=seed)
    if not diffusers:
        write_safetensors(path, native)
        return path
    write_safetensors(path, flux.diffusers_weights(native))
    return path


Models = tuple[list[Path], list[Tensors], Weight, Callable[[str], float]]


TAIL = pytest.mark.long_tail
FAMILIES = ["flux1", pytest.param("sd15", marks=TAIL), pytest.param("sdxl", marks=TAIL)]


@pytest.fixture(params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Models:
    """Three models, the second in another layout; what the first's layout holds of each; weights."""
    if request.param == "flux1":
        paths = [
            write_flux(tmp_path / "a.safetensors", 1),
            write_flux(tmp_path / "b.safetensors", 2, diffusers=True),
            write_flux(tmp_path / "c.safetensors", 3),
        ]
        tensors: list[Tensors] = [flux.native_weights(seed=seed) for seed in (1, 2, 3)]
        vector = uneven(57)
        return paths, tensors, Weight(0.25, blocks=vector), flux_block(vector, 0.25)
    family = request.param
    a = single(tmp_path / "a.safetensors", family, "F32", seed=1)
    b = folder(tmp_path / "b", family, "F32", seed=2)
    c = single(tmp_path / "c.safetensors", family, "F32", seed=3)
    held = [a.tensors(one.weights)[""] for one in (a, b, c)]
    vector = uneven(26 if family == "sd15" else 20)
    first_out = 14 if family == "sd15" else 11
    return (
        [a.path, b.path, c.path], held, Weight(blocks=vector), unet_block(vector, first_out)
    )  # fmt: skip


def require(got: Tensors, want: Mapping[str, Array], wrong: Mapping[str, Array]) -> None:
    """Every merged tensor is the definition to a few roundings, and none is the wrong one."""
    different = 0
    for name, value in want.items():
        size = np.abs(value).max()
        np.testing.assert_allclose(got[name], value, rtol=0, atol=4e-7 * size, err_msg=name)
        different += not np.allclose(got[name], wrong[name], rtol=0, atol=1e-4 * size)
    assert different > 0.9 * len(want)


def wide(tensors: Tensors) -> dict[str, Array]:
    skipped = ("model_ema.", "first_stage_model.")
    return {
        name: value.astype("float64")
        for name, value in tensors.items()
        if value.dtype.kind == "f" and value.size and not name.startswith(skipped)
        and name not in ("betas", "alphas_cumprod")
    }  # fmt: skip


def test_weights_by_block(models: Models, tmp_path: Path) -> None:
    (a, b, _), tensors, weight, share = models
    got = merged(tmp_path / "out.safetensors", (a, Weight()), (b, weight))
    x, y = wide(tensors[0]), wide(tensors[1])
    want = {name: (1 - share(name)) * x[name] + share(name) * y[name] for name in x}
    wrong = {name: share(name) * x[name] + (1 - share(name)) * y[name] for name in x}
    require(got, want, wrong)


def test_add_difference_by_block(models: Models, tmp_path: Path) -> None:
    (a, b, c), tensors, weight, share = models
    got = merged(tmp_path / "out.safetensors", (a, Weight()), (b, weight), base=c)
    x, y, z = map(wide, tensors)
    want = {name: x[name] + share(name) * (y[name] - z[name]) for name in x}
    wrong = {name: x[name] + y[name] - z[name] for name in x}
    require(got, want, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_reads_what_was_merged(kind: Any, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    diffusers: Any = pytest.importorskip("diffusers")
    from tests.builders.pipelines import pipeline_folder

    source = pipeline_folder(kind)
    if kind == "sd15":  # SDXL's single files store fused tensors, which diffusers' folder has apart
        path, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
        write_single_file(source, path)
        write_merge(out, (path, Weight()), (source, Weight(0.5)))
        pipeline = diffusers.StableDiffusionPipeline.from_single_file(
            str(out), config=str(source), local_files_only=True
        )
    else:
        out = tmp_path / "out"
        write_merge(out, (source, Weight()), (source, Weight(0.5)))
        pipeline = diffusers.DiffusionPipeline.from_pretrained(out)
    expected = diffusers.DiffusionPipeline.from_pretrained(source)
    assert type(pipeline) is type(expected)
    for name in ("unet", "vae", "text_encoder"):
        found, want = (getattr(one, name).state_dict() for one in (pipeline, expected))
        assert found.keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-7)
