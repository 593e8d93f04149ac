"""The deltas of a group of keys: the modules that it names, its kind, and its scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from loramerge.adapter.delta import Delta
from loramerge.adapter.formats.source import AdapterSource
from loramerge.adapter.kinds import make_deltas, make_weight
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.declaration import Stored
from loramerge.adapter.site import Site
from loramerge.dialects import DIALECTS, Dialect, Stem, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.detection import Detection
from loramerge.errors import LoramergeError, ShapeError
from loramerge.families import Family
from loramerge.files.tensors import Tensor, scalars
from loramerge.records import NamedTuple, row_maker

__all__ = [
    "Target",
    "configuration_of",
    "deltas_of",
    "head_rows",
    "read_numbers",
    "shape_of",
    "target_of",
]


class Target(NamedTuple):
    """The modules that a group's stem names.

    Args:
        site: of the weights of all of them together.
        swapped: see `Fused`.
        shape: of these weights in the family, None if that is not known.
        opaque: the family knows nothing of it.
        aside: the dialect never writes it so.
    """

    site: Site
    swapped: bool = False
    shape: tuple[int, ...] | None = None
    opaque: bool = False
    aside: bool = False


_target_of, _site_of = row_maker(Target), row_maker(Site)


def target_of(group: Group, detection: Detection) -> Target:
    """Return the modules of a group.

    What the family does not know is a module all the same, named as the file spells it.
    """
    family = detection.naming
    dialect, stems = _spoken(group.dialect, family, DIALECTS.version)
    stem = stems.get(group.stem)
    if stem is not None:
        site = _site_of((stem.modules, "weight", stem.spans))
        aside = not dialect.forms[stem.form].written
        return _target_of((site, stem.swapped, stem.shape, False, aside))
    named = dialect.opaque_module(group.stem)
    known = None if family is None else family.find(named)
    return Target(Site((named,)), shape=known and known.shape, opaque=known is None)


@cache
def _spoken(name: str, family: Family | None, version: int) -> tuple[Dialect, Mapping[str, Stem]]:
    """Return a dialect, and its stems for a family; asked for each module."""
    dialect = DIALECTS[name]
    return dialect, {} if family is None else stem_table(dialect, family)


def read_numbers(groups: Iterable[Group], source: AdapterSource) -> None:
    """Read the alphas and scales of all groups."""
    keys = (group.roles.get(role) for group in groups for role in ("alpha", "scale"))
    source.numbers = scalars({key: source.tensors[key] for key in keys if key is not None})


def shape_of(group: Group, tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the shape of a group's weight, if its factors tell it, as `detect` takes it."""
    roles = group.roles
    if "up" in roles and "down" in roles:
        up, down = tensors[roles["up"]].shape, tensors[roles["down"]].shape
        mid = tensors[roles["mid"]].shape[2:] if "mid" in roles else ()
        return (*up[:1], *down[1:2], *(mid or down[2:]))
    parts = {role: tensors[key] for role, key in roles.items()}
    try:
        made = make_weight(Stored(parts, Scale, group.stem))
    except LoramergeError:
        return None
    shape = made.delta.shape if made is not None else ()
    if made is None or not shape or not all(shape):
        return None
    return (*shape, 0) if made.hides_kernel else shape


def head_rows(detection: Detection, keys: Sequence[str]) -> int:
    """Return the rows of a head in fused tensors that are interleaved by heads; 0 where none is.

    The file's keys tell it.
    """
    family = detection.naming
    if family is None or family.interleaved is None:
        return 0
    words, width = family.interleaved
    return width if any(word in key for key in keys for word in words) else 0


def deltas_of(
    group: Group, target: Target, source: AdapterSource, head: int
) -> dict[Site, tuple[Delta, tuple[str, ...]]]:
    """Return the deltas a group holds, each with the roles it takes.

    Args:
        head: rows of a head in fused tensors that are interleaved by heads; 0 where none is.

    Raises:
        ShapeError, UnsupportedKind: if its tensors make no delta.
    """
    tensors = {role: source.tensors[key] for role, key in group.roles.items()}
    found: dict[Site, tuple[Delta, tuple[str, ...]]] = {}
    site, module = target.site, target.site.name
    config, path = configuration_of(group, module, source)
    stored = Stored(
        tensors,
        lambda: _scale(group, module, tensors, source),
        module,
        target.shape,
        config or {},
        path,
    )
    made, biases = make_deltas(stored)
    if made is not None:
        found[site] = made.delta, made.roles
    for beside in biases:
        found[site._replace(parameter=beside.parameter)] = beside.delta, beside.roles
    if site.spans or target.swapped:
        from loramerge.adapter.row_order import halves, stacked

        for each, (delta, roles) in found.items():
            rows = delta.shape[0]
            each.bounds(rows)  # refuses rows that the modules cannot share
            if target.swapped:
                found[each] = (delta.rows(halves(rows)), roles)
            elif head:
                found[each] = (delta.rows(stacked(rows, len(site.spans), head)), roles)
    return found


def configuration_of(
    group: Group, module: str, source: AdapterSource
) -> tuple[Mapping[str, Any] | None, str]:
    """Return PEFT's configuration of a module, if there is one, and its name there."""
    if not source.configs:
        return None, group.stem
    component, _, path = module.partition(".")
    config = source.configs.get(component)
    if config is None:
        config, path = source.configs.get(""), group.stem.removeprefix("base_model.model.")
    return config, source.paths.get(group.stem, path)


def _scale(
    group: Group, module: str, tensors: Mapping[str, Tensor], source: AdapterSource
) -> Scale:
    """Return the scale of a group's factors: from its tensors, or its configuration, or none."""
    alpha = _number(group, "alpha", module, source)
    ratio = _number(group, "scale", module, source)
    if ratio is not None:
        return Scale(alpha, tensors.get("alpha"), ratio=ratio, stated=tensors["scale"])
    if alpha is not None:
        return Scale(alpha, tensors["alpha"])
    config, path = configuration_of(group, module, source)
    if config is None:
        return Scale()
    from loramerge.adapter.formats.peft import scale_of

    return scale_of(config, path, module, tensors)


def _number(group: Group, role: str, module: str, source: AdapterSource) -> float | None:
    """Return the value of an alpha or a scale, None where the group has none.

    Raises:
        ShapeError: if it is not one number.
    """
    key = group.roles.get(role)
    if key is None:
        return None
    value = source.numbers.get(key)
    if value is not None:
        return value
    tensor = source.tensors[key]
    if tensor.size != 1:
        raise ShapeError(
            f"{role} is not one number", module=module, found=f"{role} {list(tensor.shape)}"
        )
    return tensor.item()
