"""Start a LoRA from an adapter, in the place of from zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from loramerge.adapter import Adapter
from loramerge.errors import AdapterError, Setting, UsageError, listed
from loramerge.train.lora.branch import Branch
from loramerge.train.lora.names import homes_of
from loramerge.train.lora.saving import branch_of

__all__ = ["start_from"]


@torch.no_grad()
def start_from(models: Mapping[str, nn.Module], adapter: Adapter) -> None:
    """Give the LoRAs of models the values of an adapter, so that they add what it adds.

    Where a LoRA has a higher rank, the rest stays as it was drawn. Modules that the adapter lacks start
    from zero.

    Args:
        models: component → model with LoRA.

    Raises:
        AdapterError: if the models lack a module of the adapter, or do not train it.
        UsageError: if the adapter has a higher rank than the LoRA.
        UnsupportedKind: if a module is not a LoRA.
    """
    adapter.require_sound()
    homes = homes_of(dict(models), adapter.info.detection.naming)
    branches: dict[str, tuple[Branch, Branch]] = {}
    idle = []
    for site, delta in adapter.deltas.items():
        component, path = homes.get(site.name, ("", ""))
        layer = models[component].get_submodule(path) if path else None
        branch = getattr(layer, "lora", None)
        if isinstance(branch, Branch):
            branches[site.name] = branch, branch_of(site.name, delta, layer, 0.0)
        else:
            idle.append(site.name)
    if idle:
        raise AdapterError(
            f"{len(idle)} of {len(adapter.deltas)} modules of the adapter to start from are not trained",
            file=adapter.info.path,
            module=listed(idle, 4),
            hint=("choose layers that include them: ", Setting("targets"), " or ",
                  Setting("text_encoder", True)),
        )  # fmt: skip
    high = {name: found.rank for name, (own, found) in branches.items() if found.rank > own.rank}
    if high:
        most = max(high.values())
        raise UsageError(
            "the adapter to start from has a higher rank than the LoRA",
            file=adapter.info.path,
            expected=f"rank {most}",
            hint=("give ", Setting("rank", most)),
        )
    for own, found in branches.values():
        own.down[: found.rank].copy_(found.down)
        own.up[:, : found.rank].copy_(found.up * (found.own_scale / own.own_scale))
