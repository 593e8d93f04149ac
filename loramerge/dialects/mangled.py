"""Read names that have underscores where their dialect has dots, or dots for underscores.

Exports have such names: `double_blocks.0.img_attn_qkv` for `double_blocks.0.img_attn.qkv`, `to_q_` for
`to_q`. No program reads them, so they are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from loramerge.dialects import DIALECTS, Stem, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.detection import Detection
from loramerge.dialects.fit import ENOUGH, Shapes, possible_families, same_shape
from loramerge.families import Family

__all__ = ["detect_mangled"]

_TABLES = 512  # of a dialect and a family
_NETWORKS = ("transformer", "unet", "diffusion_model")
_FLAT = "kohya"  # the dialect that writes underscores for all dots
_DOTTED = ("comfyui", "diffusers")  # these two cover the names of both libraries

Named = tuple[str, str]  # a dialect, and a stem in it


def detect_mangled(
    groups: Sequence[Group], shapes: Shapes, detect: Callable[[Sequence[Group], Shapes], Detection]
) -> Detection | None:
    """Return the result for a file whose names are a family's but for dots and underscores, or None.

    With underscores for all dots its modules are those of the family, shapes included.

    Args:
        detect: what decides about the same modules in their usual names.
    """
    for family in possible_families(groups):
        usual = _usual(family, groups)
        odd = [named for named, (other, _) in usual.items() if other != named]
        if not odd or len(usual) < ENOUGH * len(groups) or not _same_shapes(family, usual, shapes):
            continue
        other = {named: usual[named][0] for named in odd}
        renamed = [g._replace(dialect=d, stem=s) for g in groups
                   for d, s in [other.get((g.dialect, g.stem), (g.dialect, g.stem))]]  # fmt: skip
        found = detect(renamed, {other.get(named, named): one for named, one in shapes.items()})
        if family in found.candidates:
            says = f"{len(odd)} of them in other names, such as {odd[0][1]} for {other[odd[0]][1]}"
            return replace(found, reason=f"{found.reason}; {says}", respelled=other)
    return None


def _usual(family: Family, groups: Sequence[Group]) -> Mapping[Named, tuple[Named, Stem]]:
    """Return the usual names of the modules that a family has, and their meaning.

    They are in the file's dialect, or in kohya's where it has no words for a module.
    """
    spoken = dict.fromkeys([*(group.dialect for group in groups), _FLAT])
    tables = {name: _by_flat_path(name, family, DIALECTS.version) for name in spoken}
    dotted = [_paths(name, family, DIALECTS.version) for name in (*spoken, *_DOTTED)]
    found = {}
    for group in groups:
        flat = _flat_path(group.dialect, group.stem)
        path = _path(group.dialect, group.stem)
        if flat not in tables[group.dialect] and any(path in paths for paths in dotted):
            continue  # it has all its dots, after words that the dialect does not have there
        for name in (group.dialect, _FLAT):
            stem, meaning = tables[name].get(flat, ("", None))
            # another word for a text encoder, `te1` for `te`, is another network
            if meaning is not None and (name != group.dialect or _flat(stem) == _flat(group.stem)):
                found[group.dialect, group.stem] = ((name, stem), meaning)
                break
    return found


@lru_cache(maxsize=_TABLES)
def _paths(name: str, family: Family, _: int) -> frozenset[str]:
    """Return the paths of all stems that a dialect has for a family; see `_by_flat_path`."""
    return frozenset(_path(name, stem) for stem in stem_table(DIALECTS[name], family))


@lru_cache(maxsize=_TABLES)
def _by_flat_path(name: str, family: Family, _: int) -> Mapping[str, tuple[str, Stem]]:
    """Return path with underscores → stem and meaning; what the dialect writes comes first.

    Kept for the next file, since each file of no family asks for those of several; the last argument is
    the version of the dialects.
    """
    dialect = DIALECTS[name]
    table = stem_table(dialect, family).items()
    found: dict[str, tuple[str, Stem]] = {}
    for stem, meaning in sorted(table, key=lambda one: not dialect.forms[one[1].form].written):
        found.setdefault(_flat_path(name, stem), (stem, meaning))
    return found


def _path(dialect: str, stem: str) -> str:
    """Return a stem without the dialect's prefix and the network's name."""
    module = DIALECTS[dialect].opaque_module(stem)
    network, _, path = module.partition(".")
    return path if network in _NETWORKS else module


def _flat_path(dialect: str, stem: str) -> str:
    """Return such a path with underscores for dots."""
    return _flat(_path(dialect, stem))


def _flat(name: str) -> str:
    return name.replace(".", "_").strip("_")


def _same_shapes(family: Family, usual: Mapping[Named, tuple[Named, Stem]], shapes: Shapes) -> bool:
    """Return whether some shapes are known, and all of these are those of one size of the family."""
    told = {(shapes[n], meaning.shape) for n, (_, meaning) in usual.items() if n in shapes}
    return bool(told) and any(
        all(same_shape(found, tuple(size.get(n, n) for n in shape)) for found, shape in told)
        for size in ({}, *family.sizes)
    )
