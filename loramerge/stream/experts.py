"""Experts of one parameter of an adapter, where a transformers model stores them.

Some models store every expert's weights in tensors of their own, whose names an adapter's experts then
get. Others stack all experts of a parameter in one tensor, `(experts, out, in)` or, as in GPT-OSS,
`(experts, in, out)`: an expert then has its rows of that tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from loramerge.adapter import Adapter, Site
from loramerge.adapter.formats.peft_experts import Expert, expert_of
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.errors import AdapterError, UnsupportedKind
from loramerge.families import Parameter
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import Tensor

__all__ = ["experts_apart", "with_stacks"]

# a parameter of all experts → the modules of one expert whose weights it holds, one above the other
_MODULES = {"gate_up_proj": ("gate_proj", "up_proj")}

_Stack = tuple[CheckpointFile, Tensor]


def experts_apart(adapter: Adapter, base: Checkpoint) -> Adapter:
    """Return an adapter whose experts have the names of their modules: `experts.3.down_proj`.

    Those of parameters that the base stores stacked keep theirs.
    """
    experts = {site: expert_of(site.modules[0]) for site in adapter.deltas}
    if not any(experts.values()):
        return adapter
    stacked = tuple(_stacks(base, (expert for expert in experts.values() if expert)))
    deltas = {}
    for site, delta in adapter.deltas.items():
        expert = experts[site]
        apart = expert is not None and not _is_stacked(expert, stacked)
        deltas[_site(site, expert) if apart and expert else site] = delta
    return adapter.with_deltas(deltas)


def with_stacks(base: Checkpoint, adapters: Iterable[Adapter]) -> Checkpoint:
    """Return a base with a place for every expert of the stacked parameters that adapters change.

    Raises:
        UnsupportedKind: if a stack has scales beside it, or other axes than those of matrices.
        AdapterError: if nothing tells which axis of a stack is that of the inputs.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    experts = []
    for adapter in adapters:
        for site, delta in adapter.deltas.items():
            if (expert := expert_of(site.modules[0])) is not None:
                shapes.setdefault(_end(expert), delta.shape)
                experts.append(expert)
    stacks = _stacks(base, experts)
    if not stacks:
        return base
    wanted = {name: next(s for end, s in shapes.items() if name.endswith(end)) for name in stacks}
    ways = {name: _ways(stacks[name][1].shape[1:], shape) for name, shape in wanted.items()}
    told = {way for found in ways.values() if len(found) == 1 for way in found}
    slots: dict[tuple[str, Parameter], list[Place]] = dict(base.slots)
    for name, (file, tensor) in stacks.items():
        found = ways[name] if len(ways[name]) < 2 else ways[name] & told
        if len(found) > 1 or (not found and ways[name]):
            raise AdapterError(
                "the experts' matrices are square, and nothing tells which axis is that of the inputs",
                file=base.path,
                module=name,
                hint="merge the adapter in PEFT with merge_and_unload()",
            )
        count, rows, columns = tensor.shape
        flat = tensor.reshaped((count * rows, columns))
        for number in range(count):
            place = Place(file, flat, name, number, count, transposed=found == {True})
            slots[f"{name}.{number}", "weight"] = [place]
    return replace(base, slots=slots)


def _stacks(base: Checkpoint, experts: Iterable[Expert]) -> Mapping[str, _Stack]:
    """Return the tensors of a base that hold all experts of a parameter.

    Raises:
        UnsupportedKind: if one cannot be changed.
    """
    ends = tuple({_end(expert) for expert in experts})
    found = {
        name: (file, tensor)
        for file in base.files.weights if ends
        for name, tensor in file.open()[0].items()
        if name.endswith(ends)
    }  # fmt: skip
    for name, (file, tensor) in found.items():
        held = Place(file, tensor, name).held
        if len(tensor.shape) != 3 or not is_float(tensor.dtype) or held is None or held.beside:
            raise UnsupportedKind(
                "the base stores all experts of a parameter in one tensor, and in a form into which an "
                "adapter of experts cannot be baked",
                file=base.path,
                module=name,
                found=f"{tensor.dtype} {list(tensor.shape)}",
                hint="merge the adapter in PEFT with merge_and_unload()",
            )
    return found


def _ways(stored: tuple[int, ...], shape: tuple[int, ...]) -> set[bool]:
    """Return whether a stored matrix may be that of an expert, and whether its transpose may."""
    turned = tuple(reversed(stored))
    return {way for way, one in ((False, stored), (True, turned)) if one == shape}


def _is_stacked(expert: Expert, names: tuple[str, ...]) -> bool:
    return any(name.endswith(_end(expert)) for name in names)


def _end(expert: Expert) -> str:
    return f".{expert.module.rpartition('.')[2]}.{expert.parameter}"


def _site(site: Site, expert: Expert) -> Site:
    names = _MODULES.get(expert.parameter, (expert.parameter,))
    modules = tuple(f"{expert.module}.{expert.number}.{name}" for name in names)
    return Site(modules, site.parameter, (1,) * len(names) if len(names) > 1 else ())
