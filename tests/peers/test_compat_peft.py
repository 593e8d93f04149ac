"""PEFT's own `add_weighted_adapter(combination_type="linear")` makes what `mix_like` says it makes.

As of PEFT 0.21. What it does beside the formula: the new adapter takes the first one's
configuration, so that after an rsLoRA adapter the result is scaled by √r; and ranks are compared
between configurations, not between modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.algebra.compat import mix_like
from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from loramerge.errors import ShapeError

pytestmark = pytest.mark.peers
torch: Any = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")

Array = np.ndarray[Any, Any]


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {
            "first": torch.nn.Linear(12, 20, bias=False),
            "second": torch.nn.Linear(20, 16, bias=False),
            "conv": torch.nn.Conv2d(6, 10, 3),
        }
    )


def with_adapters(configs: Sequence[Mapping[str, Any]]) -> Any:
    """The model with adapters `0`, `1`, …, of random factors."""
    wrapped: Any = None
    for index, config in enumerate(configs):
        lora = peft.LoraConfig(**{"target_modules": ["first", "second", "conv"], **config})
        if wrapped is None:
            wrapped = peft.PeftModel(model(), lora, adapter_name=str(index))
        else:
            wrapped.add_adapter(str(index), lora)
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) / 4
    return wrapped


def deltas(wrapped: Any, name: str) -> dict[str, Array]:
    found = {}
    for path, layer in wrapped.base_model.model.named_modules():
        if hasattr(layer, "get_delta_weight") and name in layer.lora_A:
            found[path] = layer.get_delta_weight(name).detach().numpy().astype("float64")
    return found


def folders(wrapped: Any, path: Path) -> list[Path]:
    wrapped.save_pretrained(str(path))
    return [path / name for name in wrapped.peft_config]


CASES: dict[str, tuple[list[dict[str, Any]], list[float]]] = {
    "one": ([{"r": 4, "lora_alpha": 8}], [0.7]),
    "one, negative": ([{"r": 4, "lora_alpha": 8}], [-0.7]),
    "two": ([{"r": 4, "lora_alpha": 8}, {"r": 4, "lora_alpha": 2}], [0.7, 0.4]),
    "signs": ([{"r": 4, "lora_alpha": 8}, {"r": 4, "lora_alpha": 2}], [0.7, -0.4]),
    "modules apart": (
        [
            {"r": 4, "lora_alpha": 8, "target_modules": ["first", "second"]},
            {"r": 4, "lora_alpha": 2, "target_modules": ["second", "conv"]},
            {"r": 4, "lora_alpha": 4},
        ],
        [0.7, -0.4, 1.2],
    ),
    "alphas apart": (
        [{"r": 4, "lora_alpha": 8, "alpha_pattern": {"second": 1}}, {"r": 4, "lora_alpha": 2}],
        [0.7, 0.4],
    ),
    "ranks apart": (
        [
            {"r": 4, "lora_alpha": 8, "rank_pattern": {"second": 2}},
            {"r": 4, "lora_alpha": 2, "rank_pattern": {"second": 2}},
        ],
        [0.7, 0.4],
    ),
    "rsLoRA first": (
        [{"r": 4, "lora_alpha": 8, "use_rslora": True}, {"r": 4, "lora_alpha": 2}],
        [0.7, 0.4],
    ),
    "rsLoRA second": (
        [{"r": 4, "lora_alpha": 8}, {"r": 4, "lora_alpha": 2, "use_rslora": True}],
        [0.7, 0.4],
    ),
    "rsLoRA, ranks apart": (
        [{"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"conv": 2}}] * 2,
        [0.7, 0.4],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_makes_the_same(case: str, tmp_path: Path) -> None:
    configs, weights = CASES[case]
    wrapped = with_adapters(configs)
    inputs = [
        (load(folder), Weight(weight))
        for folder, weight in zip(folders(wrapped, tmp_path), weights, strict=True)
    ]
    names = [str(index) for index in range(len(configs))]
    wrapped.add_weighted_adapter(names, weights, "merged", combination_type="linear")
    theirs = deltas(wrapped, "merged")
    ours = {site.name: d.dense() for site, d in mix_like("peft-linear", inputs).deltas.items()}
    assert ours.keys() == theirs.keys() and len(theirs) == 3
    for name, expected in theirs.items():
        assert np.linalg.norm(ours[name] - expected) <= 1e-6 * np.linalg.norm(expected)
    if len(inputs) > 1:  # and it is not the sum
        exact = {site.name: d.dense() for site, d in mix(inputs)[0].deltas.items()}
        assert np.linalg.norm(exact["second"] - theirs["second"]) > 0.3 * np.linalg.norm(
            exact["second"]
        )


def test_peft_refuses_what_is_refused_here(tmp_path: Path) -> None:
    wrapped = with_adapters([{"r": 4}, {"r": 8}])
    inputs = [(load(folder), Weight()) for folder in folders(wrapped, tmp_path)]
    with pytest.raises(ValueError, match="same r value"):
        wrapped.add_weighted_adapter(["0", "1"], [1, 1], "merged", combination_type="linear")
    with pytest.raises(ShapeError, match="different ranks"):
        mix_like("peft-linear", inputs)
