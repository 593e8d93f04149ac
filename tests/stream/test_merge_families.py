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

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]


def merged(out: Path, *models: tuple[Path, Weight], base: Path | None = None) -> Tensors:
    opened = [(open_checkpoint(path), weight) for path, weight in models]
    plan = plan_merge(opened, base=None if base is None else open_checkpoint(base))
    merge(plan, out, threads=1)
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


CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 10, "block_out_channels": (8, 12, 16, 16)},
    "sdxl": {
        "cross_attention_dim": 18, "block_out_channels": (8, 12, 16), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": 22, "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_diffusers_reads_what_was_merged(family: str, tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    diffusers: Any = pytest.importorskip("diffusers")
    a = single(tmp_path / "a.safetensors", family, "F32", seed=1)
    b = folder(tmp_path / "b", family, "F32", seed=2)
    out = tmp_path / "out.safetensors"
    merged(out, (a.path, Weight()), (b.path, Weight(0.25)))
    model = diffusers.UNet2DConditionModel
    narrow = model(norm_num_groups=2, attention_head_dim=2, **CONFIGS[family])
    narrow.save_config(tmp_path / "config" / "unet")
    read = model.from_single_file(
        str(out), config=str(tmp_path / "config"), subfolder="unet", local_files_only=True
    ).state_dict()
    assert read.keys() == narrow.state_dict().keys()
    for key, value in read.items():
        one, other = (base.weights[f"unet.{key}"].astype("float64") for base in (a, b))
        want = torch.from_numpy(0.75 * one + 0.25 * other).to(value.dtype)
        torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-7)
