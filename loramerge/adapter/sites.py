"""Bringing adapters to common sites: those of a dialect, or the finest that several need.

A file may store several modules fused, as one site. Its delta is cut only where something finer asks
for it, and deltas of modules are joined where a dialect stores them fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import Delta
from loramerge.adapter.fused import fused
from loramerge.adapter.kinds.lora import without_values as of_unread
from loramerge.adapter.site import Site
from loramerge.dialects import Dialect
from loramerge.errors import (
    FormatError,
    LoramergeError,
    Message,
    Setting,
    UnsupportedKind,
)
from loramerge.families import Parameter

__all__ = [
    "aligned",
    "cut",
    "for_dialect",
    "joins",
    "spelled_before",
    "without_values",
]

Place = tuple[str, Parameter]  # module and parameter


def spelled_before(adapter: Adapter, site: Site, target: Dialect) -> bool:
    """Return whether the file spells a site in a dialect."""
    return target.name in adapter.info.spelled.get(site, ())


def for_dialect(adapter: Adapter, target: Dialect) -> Adapter:
    """Return the adapter with the sites that a dialect stores.

    Sites that the file spells in this dialect stay unchanged.

    Raises:
        UnsupportedKind: if a delta would have to be cut or joined and its kind cannot be.
        ShapeError: if deltas do not fit together. FormatError: if two deltas belong to one module.
    """
    naming = adapter.info.detection.naming
    if naming is None:
        return adapter
    layout = target.layout(naming)
    if not layout and all(len(site.modules) == 1 for site in adapter.deltas):
        return adapter

    def wanted(module: str, parameter: Parameter) -> Site:
        found = layout.get(module)
        if found is None:
            return Site((module,), parameter)
        return Site(found.modules, parameter, found.spans)

    return _rearranged(adapter, wanted, lambda site: spelled_before(adapter, site, target))


def without_values(adapter: Adapter, target: Dialect) -> Adapter:
    """Return the adapter with placeholders for the values of deltas that would have to be cut or
    joined.

    The size predicted from headers alone may be larger than the file, never smaller.
    """
    naming = adapter.info.detection.naming
    if not joins(adapter) and (naming is None or not target.layout(naming)):
        return adapter
    deltas: dict[Site, Delta] = {site: of_unread(delta) for site, delta in adapter.deltas.items()}
    return adapter.with_deltas(deltas, dtype=adapter.dtype)


def joins(adapter: Adapter) -> bool:
    """Return whether any site has several modules."""
    return any(len(site.modules) > 1 for site in adapter.deltas)


def aligned(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return adapters whose sites are equal or apart: the finest that any of them has.

    A delta that cannot be cut keeps its site, and the others are brought to it.

    Raises:
        UnsupportedKind, ShapeError, FormatError: see `for_dialect`.
    """
    if not any(joins(adapter) for adapter in adapters):
        return list(adapters)
    chosen: dict[Place, Site] = {}
    for adapter in adapters:
        for site in adapter.deltas:
            for module in site.modules:
                known = chosen.get((module, site.parameter))
                if known is None or len(site.modules) < len(known.modules):
                    chosen[module, site.parameter] = site
    for adapter in adapters:
        for site, delta in adapter.deltas.items():
            if len(site.modules) > 1 and not delta.splits_exactly(site.bounds(delta.shape[0])):
                chosen |= {(module, site.parameter): site for module in site.modules}

    def wanted(module: str, parameter: Parameter) -> Site:
        site = chosen[module, parameter]
        same = [m for m in site.modules if chosen.get((m, parameter)) == site]
        return site if len(same) == len(site.modules) else site.part(same)

    return [_rearranged(adapter, wanted, lambda _: False) for adapter in adapters]


def cut(site: Site, delta: Delta, groups: Sequence[Site]) -> Iterator[tuple[Site, Delta]]:
    """Cut the delta of a site into those of groups of its modules; zero parts are left out.

    Raises:
        UnsupportedKind: if its kind cannot be cut.
    """
    if len(groups) == 1:
        yield site, delta
        return
    bounds = site.bounds(delta.shape[0])
    order = sorted(groups, key=lambda group: site.modules.index(group.modules[0]))
    edges = (*(bounds[site.modules.index(group.modules[0])] for group in order), bounds[-1])
    if not delta.splits_exactly(edges):
        hint: Message = "bake it, or keep its dialect"
        if delta.needs_base:
            hint = (
                "bake it, or convert it with ",
                Setting("to_lora", True),
                " ",
                Setting("base", "B"),
            )
        raise UnsupportedKind(
            f"a delta of kind {delta.kind} that a file stores for several modules cannot be cut",
            module=site.name,
            expected="a dialect and other adapters that store these modules as one, too",
            hint=hint,
        )
    for group, part in zip(order, delta.split(edges), strict=True):
        if part is not None:
            yield group, part


def _pieces(site: Site, delta: Delta, wanted: Callable[[str, Parameter], Site]) -> Iterator[
    tuple[Site, Site, Delta]
]:  # fmt: skip
    """Yield (site wanted, site of the piece, piece) of a delta."""
    groups: dict[Site, list[str]] = {}
    for module in site.modules:
        groups.setdefault(wanted(module, site.parameter), []).append(module)
    parts = {site.part(modules): target for target, modules in groups.items()}
    follow = all(_follows(site.modules, part.modules) for part in parts)
    if not follow:  # pieces that do not follow each other are cut into single modules
        parts = {site.part((module,)): wanted(module, site.parameter) for module in site.modules}
    for piece, cut_delta in cut(site, delta, list(parts)):
        yield parts[piece], piece, cut_delta


def _follows(modules: Sequence[str], part: Sequence[str]) -> bool:
    start = modules.index(part[0])
    return tuple(modules[start : start + len(part)]) == tuple(part)


def _rearranged(
    adapter: Adapter,
    wanted: Callable[[str, Parameter], Site],
    stays: Callable[[Site], bool],
) -> Adapter:
    """Cut and join the deltas of an adapter so that they fit the requested sites."""
    collected: dict[Site, list[tuple[Site, Delta]]] = {}
    changed = False
    for site, delta in adapter.deltas.items():
        if stays(site):
            found = [(site, site, delta)]
        else:
            try:
                found = list(_pieces(site, delta, wanted))
            except LoramergeError as error:
                error.module, error.file = error.module or site.name, adapter.info.path
                raise
        for target, piece, part in found:
            changed = changed or target != site
            collected.setdefault(target, []).append((piece, part))
    if not changed:
        return adapter
    deltas = dict(_joined(adapter, collected))
    computed = any(t.dtype == "F64" for d in deltas.values() for t in d.stored().values())
    # what was computed in float64 is written in the file's type
    dtype = adapter.dtype if computed else adapter.info.dtype
    return adapter.with_deltas(deltas, dtype=dtype)


def _joined(
    adapter: Adapter, collected: Mapping[Site, Sequence[tuple[Site, Delta]]]
) -> Iterator[tuple[Site, Delta]]:
    for site, parts in collected.items():
        modules = [module for piece, _ in parts for module in piece.modules]
        if len(set(modules)) < len(modules):
            raise FormatError(
                "two deltas lie on one module", file=adapter.info.path, module=site.name
            )
        if len(parts) == 1 and parts[0][0].modules == site.modules:
            yield site, parts[0][1]
            continue
        try:
            yield site, fused(site, parts)
        except LoramergeError as error:
            error.module, error.file = error.module or site.name, adapter.info.path
            raise
