"""Modules that no family knows: they are called as the file spells them, and written so again.

Dialects spell one such module in several ways (`blocks.0.attn.wq`, `blocks_0_attn_wq`). Which names
mean one module follows where they come together: names that differ in dots and underscores alone are of
one, and it is called by the name with most dots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.site import Site
from loramerge.dialects import DIALECTS, Dialect
from loramerge.dialects.words import Words
from loramerge.families import Family

__all__ = [
    "common_stems",
    "commonly_named",
    "flat_name",
    "flatly_named",
    "in_order_of_llama_cpp",
    "is_opaque",
    "opaque_key",
    "speaking_for",
]

_NETWORKS = ("transformer.", "unet.", "model.diffusion_model.", "diffusion_model.")


def is_opaque(site: Site, naming: Family | None) -> bool:
    """Return whether a family knows nothing of a site's module."""
    return naming is None or (len(site.modules) == 1 and naming.find(site.modules[0]) is None)


def in_order_of_llama_cpp(module: str) -> bool:
    """Return whether a module has llama.cpp's name, because its rows are in an order of llama.cpp.

    See `formats.gguf_reading`: heads whose number the file does not tell.
    """
    return re.fullmatch(r"blk\.\d+\.attn_[qk]", module) is not None


def flat_name(module: str) -> str:
    """Return a module's name without its network, with underscores for dots."""
    head = next((head for head in _NETWORKS if module.startswith(head)), "")
    return module[len(head) :].replace(".", "_")


def opaque_key(
    adapter: Adapter, site: Site, role: str, target: Dialect, words: Words
) -> str | None:
    """Return the key to write for a role of a module that no family knows, or None if there is none.

    A module that came spelled in another dialect cannot be spelled in this one, except for one without
    a prefix: what its underscores stand for, and what its network is called there, only a family says.
    """
    known = adapter.info.spelling.get((site, role))
    if known is not None and known[0] == target.name:
        return known[1]
    module = site.modules[0]
    stems = adapter.info.stems.get(module)
    stem = None if stems is None else stems.get(target.name)
    if stem is None and target.name in adapter.info.dialects:
        if stems is None:  # made in memory
            stem = target.opaque_stem(module)
        elif (stem := _without_prefix(stems)) is not None and known is not None:
            return known[1]
    ends = next(filter(None, (form.spelled(words).get(role) for form in target.forms)), None)
    return None if stem is None or ends is None else stem + ends[0]


def _without_prefix(stems: Mapping[str, str]) -> str | None:
    """Return the stem of a module without a prefix of any dialect: it is spelled alike in all of them.

    Its keys' ends alone have chosen a dialect, which may be another than that of the rest of the file.
    """
    return next(
        (
            s
            for name, s in stems.items()
            if (d := DIALECTS[name]).heads and not d.component_of(s)[0]
        ),
        None,
    )


def speaking_for(adapters: Sequence[Adapter], usual: Dialect, spoken: Sequence[Dialect]) -> Dialect:
    """Return the dialect in which the modules that no family knows are all spelled.

    Args:
        usual: what is written if it is such, or if none is.
        spoken: the adapters' own dialects.
    """
    named = common_stems(commonly_named(adapters)).values()
    stems = [by for by in named if _without_prefix(by) is None]
    return next((d for d in (usual, *spoken) if all(d.name in by for by in stems)), usual)


def common_stems(adapters: Sequence[Adapter]) -> dict[str, dict[str, str]]:
    """Return the stems of modules of no family in each dialect that the adapters came in."""
    found: dict[str, dict[str, str]] = {}
    for adapter in adapters:
        for module, stems in adapter.info.stems.items():
            known = found.setdefault(module, {})
            for dialect, stem in stems.items():
                known[dialect] = min(stem, known.get(dialect, stem))
    return found


def commonly_named(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return adapters in which one module of no family has one name in all of them."""
    if len({name for adapter in adapters for name in adapter.info.dialects}) < 2:
        return list(adapters)
    names: dict[str, set[str]] = {}
    for adapter in adapters:
        own: dict[str, set[str]] = {}
        for module in _opaque_modules(adapter):
            own.setdefault(flat_name(module), set()).add(module)
        for flat, modules in own.items():
            names.setdefault(flat, set()).update(modules)
            if len(modules) > 1:  # two modules of one file are two
                names[flat].add("")
    chosen = {
        flat: max(modules, key=lambda name: (name.count("."), name))
        for flat, modules in names.items()
        if len(modules) > 1 and "" not in modules
    }
    return [_renamed(adapter, chosen) for adapter in adapters] if chosen else list(adapters)


def flatly_named(adapter: Adapter) -> Adapter:
    """Return an adapter in which modules of no family are called by their flat names.

    Copies in two dialects then have the same names, without either being known to the other.
    """
    names = Counter(flat_name(module) for module in _opaque_modules(adapter))
    return _renamed(adapter, {name: name for name, count in names.items() if count == 1})


def _opaque_modules(adapter: Adapter) -> set[str]:
    naming = adapter.info.detection.naming
    return {site.modules[0] for site in adapter.deltas if is_opaque(site, naming)}


def _renamed(adapter: Adapter, chosen: Mapping[str, str]) -> Adapter:
    opaque = _opaque_modules(adapter)

    def new(site: Site) -> Site:
        module = site.modules[0]
        known = chosen.get(flat_name(module)) if module in opaque else None
        return site if known is None else site._replace(modules=(known,))

    info = adapter.info
    return adapter.with_deltas(
        {new(site): delta for site, delta in adapter.deltas.items()},
        spelling={(new(site), role): spelled for (site, role), spelled in info.spelling.items()},
        types={new(site): kind for site, kind in info.types.items()},
        stems={new(Site((module,))).modules[0]: stems for module, stems in info.stems.items()},
    )
