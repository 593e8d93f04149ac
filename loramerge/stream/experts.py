"""Experts of one parameter of an adapter, as the files of a model of transformers keep them."""

from __future__ import annotations

from loramerge.adapter import Adapter, Site
from loramerge.adapter.formats.peft_experts import expert_of

__all__ = ["experts_apart"]

# a parameter of all experts → the modules of one expert whose weights it holds, one above the other
_MODULES = {"gate_up_proj": ("gate_proj", "up_proj")}


def experts_apart(adapter: Adapter) -> Adapter:
    """Return an adapter whose experts have the names of their modules: `experts.3.down_proj`."""
    deltas = {_site(site): delta for site, delta in adapter.deltas.items()}
    return adapter if deltas.keys() == adapter.deltas.keys() else adapter.with_deltas(deltas)


def _site(site: Site) -> Site:
    expert = expert_of(site.modules[0])
    if expert is None:
        return site
    names = _MODULES.get(expert.parameter, (expert.parameter,))
    modules = tuple(f"{expert.module}.{expert.number}.{name}" for name in names)
    return Site(modules, site.parameter, (1,) * len(names) if len(names) > 1 else ())
