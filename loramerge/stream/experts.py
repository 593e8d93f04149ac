"""Experts of one parameter of an adapter, named as in the files of a transformers model."""

from __future__ import annotations

from loramerge.adapter import Adapter, Site
from loramerge.adapter.formats.peft_experts import Expert, expert_of
from loramerge.checkpoint import Checkpoint
from loramerge.errors import UnsupportedKind

__all__ = ["experts_apart"]

# a parameter of all experts → the modules of one expert whose weights it holds, one above the other
_MODULES = {"gate_up_proj": ("gate_proj", "up_proj")}


def experts_apart(adapter: Adapter, base: Checkpoint) -> Adapter:
    """Return an adapter whose experts have the names of their modules: `experts.3.down_proj`.

    Raises:
        UnsupportedKind: if the base stores all experts of a parameter in one tensor.
    """
    deltas = {_site(site): delta for site, delta in adapter.deltas.items()}
    if deltas.keys() == adapter.deltas.keys():
        return adapter
    ends = tuple({_end(expert) for s in adapter.deltas if (expert := expert_of(s.modules[0]))})
    whole = [name for file in base.files.weights for name in file.open()[0] if name.endswith(ends)]
    if whole:
        raise UnsupportedKind(
            "the base stores all experts of a parameter in one tensor, into which an adapter of experts "
            "cannot be baked",
            file=base.path,
            module=whole[0],
            hint="merge the adapter in PEFT with merge_and_unload()",
        )
    return adapter.with_deltas(deltas)


def _end(expert: Expert) -> str:
    return f"{expert.module.rpartition('.')[2]}.{expert.parameter}"


def _site(site: Site) -> Site:
    expert = expert_of(site.modules[0])
    if expert is None:
        return site
    names = _MODULES.get(expert.parameter, (expert.parameter,))
    modules = tuple(f"{expert.module}.{expert.number}.{name}" for name in names)
    return Site(modules, site.parameter, (1,) * len(names) if len(names) > 1 else ())
