"""Read names that have underscores where their dialect has dots, or dots for underscores.

Exports have such names: `double_blocks.0.img_attn_qkv` for `double_blocks.0.img_attn.qkv`, `to_q_` for
`to_q`. No program reads them, so they are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from loramerge.dialects import DIALECTS, Stem, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.detection import Detection
from loramerge.dialects.fit import ENOUGH, Shapes, possible_families, same_shape
from loramerge.families import Family

__all__ = ["detect_mangled"]

_NETWORKS = ("transformer", "unet", "diffusion_model")
_FLAT = "kohya"  # the dialect that writes underscores for all dots,
_FLAT_HEAD = "lora_unet_"  # and its prefix of the network that decides the family
_BESIDE = "text_encoder"
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
    flat = [_flat_path(group.dialect, group.stem) for group in groups]
    for family in filter(lambda one: _has_most(one, flat), possible_families(groups)):
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


def _has_most(family: Family, flat: Sequence[str]) -> bool:
    """Return whether a family has most of such paths in kohya's names, a table that is there already.

    Most files are of no family, and making the other tables of each takes long.
    """
    table = stem_table(DIALECTS[_FLAT], family)
    own = [path for path in flat if not path.startswith(_BESIDE)]
    named = sum(f"{_FLAT_HEAD}{path}" in table for path in own)
    return not table or named >= ENOUGH * len(own)


def _usual(family: Family, groups: Sequence[Group]) -> Mapping[Named, tuple[Named, Stem]]:
    """Return the usual names of the modules that a family has, and their meaning.

    They are in the file's dialect, or in kohya's where it has no words for a module.
    """
    spoken = dict.fromkeys([*(group.dialect for group in groups), _FLAT])
    tables = {name: _by_flat_path(name, family) for name in spoken}
    paths = {_path(name, stem) for name in (*spoken, *_DOTTED)
             for stem in stem_table(DIALECTS[name], family)}  # fmt: skip
    found = {}
    for group in groups:
        flat = _flat_path(group.dialect, group.stem)
        if _path(group.dialect, group.stem) in paths and flat not in tables[group.dialect]:
            continue  # it has all its dots, after words that the dialect does not have there
        for name in (group.dialect, _FLAT):
            stem, meaning = tables[name].get(flat, ("", None))
            # another word for a text encoder, `te1` for `te`, is another network
            if meaning is not None and (name != group.dialect or _flat(stem) == _flat(group.stem)):
                found[group.dialect, group.stem] = ((name, stem), meaning)
                break
    return found


def _by_flat_path(name: str, family: Family) -> Mapping[str, tuple[str, Stem]]:
    """Return path with underscores → stem and meaning; what the dialect writes comes first."""
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
