"""Spelling modules by the names of the original single file, fused as that file stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from loramerge.dialects.spec import Fused, Modules, Stems
from loramerge.families import Family, Module, Slot
from loramerge.families.spec import Slots

__all__ = [
    "NETWORK",
    "native_names",
    "original_path",
    "spell_native",
    "spell_parts",
    "tensor_stem",
]

# what the original single file of a diffusion transformer holds under names without components
NETWORK = ("transformer", "text_conditioner", "connectors")
Prefixes = Callable[[Family, str], tuple[str, ...]]


def tensor_stem(tensor: str) -> str:
    """Return a tensor's name without the word for the weight."""
    if tensor.endswith(".weight"):
        return tensor[: -len(".weight")]
    return tensor.removesuffix(".scale")


def original_path(family: Family, component: str, module: Module) -> str:
    """Return the name of a layer in the commonest layout of single files."""
    slot = family.spellings[component][0].slot(module, "weight")
    assert slot is not None
    return tensor_stem(slot.tensor)


def _layouts(family: Family, component: str) -> tuple[Slots, ...]:
    """Return the slots of parameters in each layout of original single files, the commonest first."""
    found: dict[str, Slots] = {}
    for spelling in family.spellings[component]:
        if spelling.layout != "diffusers":
            found.setdefault(spelling.layout, spelling.slot)
    return tuple(found.values())


def native_names(family: Family, modules: Modules) -> Iterator[tuple[str, str, Fused]]:
    """Yield (component, original name, its modules) of every tensor.

    Where there are several layouts, the names of the commonest come first. Modules without all
    their partners are left out.
    """
    known = list(modules)
    by_component = {component: _layouts(family, component) for component, _ in known}
    for turn in range(max(map(len, by_component.values()), default=0)):
        chosen = {c: slots[turn] for c, slots in by_component.items() if turn < len(slots)}
        yield from _names(known, chosen)


def _names(modules: Modules, slots: Mapping[str, Slots]) -> Iterator[tuple[str, str, Fused]]:
    """Yield (component, original name, modules) of every tensor of one layout of each component."""
    groups: dict[tuple[str, str], list[tuple[Slot, str]]] = {}
    for component, module in modules:
        slot = slots[component](module, "weight") if component in slots else None
        if slot is not None:
            entry = groups.setdefault((component, slot.tensor), [])
            entry.append((slot, f"{component}.{module.path}"))
    for (component, tensor), found in groups.items():
        found.sort()
        if sum(slot.span for slot, _ in found) == found[0][0].parts:
            names = tuple(name for _, name in found)
            spans = tuple(slot.span for slot, _ in found) if len(found) > 1 else ()
            yield component, tensor_stem(tensor), Fused(names, spans, found[0][0].swapped)


def spell_native(
    prefixes: Prefixes,
    *,
    flat: bool = False,
    aliases: Mapping[str, str] = {},
    dialect: str | None = None,
) -> Stems:
    """Make a generator of stems: each prefix before the original name of each tensor.

    Args:
        flat: dots become underscores.
        aliases: original name → another spelling that is accepted.
        dialect: whose own names of some layers are written, see `Family.renamed`.
    """

    def stems(family: Family, modules: Modules) -> Iterator[tuple[str, Fused]]:
        own = family.renamed.get(dialect, {}) if dialect else {}
        known = list(modules)
        spelled_by = {c for c in {component for component, _ in known} if prefixes(family, c)}
        spelled_so = [pair for pair in known if pair[0] in spelled_by]
        for component, name, target in native_names(family, spelled_so):
            for spelled in filter(None, (_renamed(own, name), name, aliases.get(name))):
                for prefix in prefixes(family, component):
                    yield prefix + (spelled.replace(".", "_") if flat else spelled), target

    return stems


def _renamed(own: Mapping[str, str], name: str) -> str | None:
    """Return the name that a dialect has for an original one, None where it has no other."""
    first, dot, rest = name.partition(".")
    beginning = own.get(first + dot)
    return own.get(name) if beginning is None else beginning + rest


def spell_parts(prefixes: Prefixes) -> Stems:
    """Make a generator of stems that number the modules of a fused tensor: `linear1.3`."""

    def stems(family: Family, modules: Modules) -> Iterator[tuple[str, str]]:
        for component, name, target in native_names(family, modules):
            if len(target.modules) > 1:
                for prefix in prefixes(family, component):
                    for number, module in enumerate(target.modules):
                        yield f"{prefix}{name}.{number}", module

    return stems
