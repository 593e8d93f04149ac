"""LoKr of kohya files, written as PEFT folders: PEFT makes the same shapes up, and merges the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.formats.peft_lokr import _split
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.errors import NotExpressible
from tests.builders.kinds import METADATA, MODULES, STEMS, Array, kron, samples, values, wide
from tests.builders.samples import relative, safetensors_bytes

pytestmark = pytest.mark.peers
torch: Any = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")

KERNELS: dict[str, tuple[int, ...]] = {"linear": (), "conv1x1": (1, 1), "conv3x3": (3, 3)}
OUT, IN = 96, 48


def lokr(layer: str, factor: int, first: int | None, second: int | None) -> tuple[Any, Array]:
    """Tensors as LyCORIS makes them of a factor and ranks (None: whole), and ΔW in float64."""
    kernel = KERNELS[layer]
    (a, b), (c, d) = _split(OUT, factor), _split(IN, factor)
    tensors: dict[str, Array] = {"alpha": np.array(1.5, np.float32)}
    if first is None:
        tensors["lokr_w1"] = values(a, c)
        w1 = wide(tensors["lokr_w1"])
    else:
        tensors |= {"lokr_w1_a": values(a, first), "lokr_w1_b": values(first, c)}
        w1 = wide(tensors["lokr_w1_a"]) @ wide(tensors["lokr_w1_b"])
    if second is None:
        tensors["lokr_w2"] = values(b, d, *kernel, seed=3)
        w2 = wide(tensors["lokr_w2"])
    else:
        tensors["lokr_w2_a"] = values(b, second, seed=5)
        tensors["lokr_w2_b"] = values(second, d * int(np.prod(kernel)), seed=6)
        w2 = (wide(tensors["lokr_w2_a"]) @ wide(tensors["lokr_w2_b"])).reshape(b, d, *kernel)
    rank = first or second
    return tensors, (1.5 / rank if rank else 1.0) * kron(w1, w2)


# per layer: ranks of the halves
CASES: dict[str, tuple[int, dict[str, tuple[int | None, int | None]]]] = {
    "w2 factored": (-1, dict.fromkeys(KERNELS, (None, 2))),
    "ranks that differ": (4, {"linear": (None, 3), "conv1x1": (None, 2), "conv3x3": (None, 3)}),
    "both factored": (-1, dict.fromkeys(KERNELS, (2, 2))),
    "both whole": (4, dict.fromkeys(KERNELS, (None, None))),
    "some whole": (-1, {"linear": (None, None), "conv1x1": (None, 2), "conv3x3": (None, None)}),
}


def network() -> Any:
    """Layers of zeros by the names that the UNet has for them."""
    made = {
        "linear": torch.nn.Linear(IN, OUT, bias=False),
        "conv1x1": torch.nn.Conv2d(IN, OUT, 1, bias=False),
        "conv3x3": torch.nn.Conv2d(IN, OUT, 3, bias=False),
    }
    root = torch.nn.Module()
    for layer, module in made.items():
        *parents, leaf = MODULES[layer].split(".")[1:]
        place = root
        for name in parents:
            if not hasattr(place, name):
                place.add_module(name, torch.nn.Module())
            place = getattr(place, name)
        torch.nn.init.zeros_(module.weight)
        place.add_module(leaf, module)
    return root


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_peft_loads_and_merges_what_a_kohya_file_says(case: str, tmp_path: Path) -> None:
    factor, ranks = CASES[case]
    tensors: dict[str, Array] = {}
    expected: dict[str, Array] = {}
    for layer, (first, second) in ranks.items():
        made, change = lokr(layer, factor, first, second)
        tensors |= {f"{STEMS[layer]}.{end}": value for end, value in made.items()}
        expected[MODULES[layer].removeprefix("unet.")] = change
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(tensors, METADATA))
    save(load(tmp_path / "a.safetensors").require_sound(), tmp_path / "p", to="peft")
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text("utf-8"))
    assert config["peft_type"] == "LOKR"
    back = {s.name.removeprefix("unet."): d for s, d in load(tmp_path / "p").deltas.items()}
    wrapped = peft.PeftModel.from_pretrained(network(), tmp_path / "p")
    merged = wrapped.merge_and_unload().state_dict()
    assert merged.keys() == {f"{name}.weight" for name in expected}
    for name, change in expected.items():
        found = merged[f"{name}.weight"].double().numpy()
        assert relative(found, change) < 1e-6, name
        assert relative(found, change / 1.5) > 0.1  # without alpha
        assert relative(back[name].dense(), change) < 1e-6, name


def test_sizes_are_split_as_peft_does() -> None:
    from peft.tuners.lokr.layer import factorization

    for size in (1, 7, 12, 16, 48, 127, 250, 320, 360, 512, 640, 768, 1280, 3072, 5120):
        for factor in (-1, 1, 2, 3, 4, 5, 8, 16, 20, 100):
            assert _split(size, factor) == tuple(factorization(size, factor)), (size, factor)


def test_shapes_that_no_factor_gives_are_refused(tmp_path: Path) -> None:
    layer, sample = samples()["lokr-full-factored-linear"]
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(sample.keys(layer), METADATA))
    with pytest.raises(NotExpressible, match="one decompose_factor") as caught:
        save(load(tmp_path / "a.safetensors"), tmp_path / "p", to="peft")
    assert MODULES[layer].removeprefix("unet.") in str(caught.value.module)
    assert "to='kohya'" in str(caught.value) and not (tmp_path / "p").exists()
