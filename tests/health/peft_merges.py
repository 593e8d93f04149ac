"""Merges of adapters by PEFT's own `add_weighted_adapter`, in a model of bare linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter

__all__ = ["ALIKE", "ANY_RANKS", "merges"]

ANY_RANKS = ("cat",)
ALIKE = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")  # take equal ranks
SVD = ("svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
WEIGHTS = ((1.0, 1.0), (0.7, 0.3), (1.0, -0.5))


def merges(
    adapters: Sequence[Adapter], kinds: Sequence[str], folder: Path
) -> Iterator[tuple[str, Path]]:
    """Yield (what it is, folder) of merges of two adapters of one UNet, linear layers only."""
    import torch

    model = _model(adapters)
    for kind in kinds:
        for weights in WEIGHTS:
            torch.manual_seed(0)
            more: dict[str, Any] = {} if kind in ("cat", "linear", "svd") else {"density": 0.5}
            if kind in SVD:
                more |= {"svd_rank": 8, "svd_full_matrices": False}
            model.add_weighted_adapter(
                ["0", "1"], list(weights), "m", combination_type=kind, **more
            )
            model.save_pretrained(str(folder), selected_adapters=["m"])
            model.delete_adapter("m")
            yield f"{kind} {weights}", folder / "m"


def _linear(adapter: Adapter) -> Iterator[tuple[str, Any]]:
    for name, delta in adapter.modules():
        if name.startswith("unet.") and len(delta.shape) == 2:
            yield name.removeprefix("unet."), delta


def _model(adapters: Sequence[Adapter]) -> Any:
    import peft
    import torch

    root = torch.nn.Module()
    for name, shape in {n: d.shape for a in adapters for n, d in _linear(a)}.items():
        *above, last = name.split(".")
        place = root
        for part in above:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        layer = torch.nn.utils.skip_init(torch.nn.Linear, shape[1], shape[0], bias=False)
        place.add_module(last, layer)
    wrapped: Any = None
    for index, adapter in enumerate(adapters):
        tensors = {}
        for name, delta in _linear(adapter):
            up, down = (np.array(f, "float32") for f in delta.factors())
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.from_numpy(down)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.from_numpy(up)
        rank = max(delta.rank or 0 for _, delta in _linear(adapter))
        names = [name for name, _ in _linear(adapter)]
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
        if wrapped is None:
            wrapped = peft.PeftModel(root, config, adapter_name=str(index))
        else:
            wrapped.add_adapter(str(index), config)
        peft.set_peft_model_state_dict(wrapped, tensors, adapter_name=str(index))
    return wrapped
