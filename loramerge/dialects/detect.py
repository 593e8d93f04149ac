"""Detect the family of an adapter.

A family fits if it has nearly all of the file's modules by name, and the shapes of the file where they
are known. Of several that fit, the one that has most is taken. Names alone do not make a family: most
networks of the field call their layers alike, and differ in their widths. If two families fit equally,
the header's metadata decides, or the result names both. A file that resembles a family by its names
alone does not belong to it, and the result says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.detection import NO_FAMILY, Detection
from loramerge.dialects.fit import ENOUGH, FamilyFit, Shapes, fit_of, possible_families, same_shape
from loramerge.dialects.relatives import of_larger_relative, of_smaller_relative
from loramerge.dialects.spec import probe_stems
from loramerge.errors import listed
from loramerge.families import FAMILIES, Family
from loramerge.families.spec import ATTENTION

__all__ = ["detect"]

_METADATA_KEYS = ("modelspec.architecture", "ss_base_model_version")
_RESEMBLES = 0.5  # of the modules must be named by a family for the file to resemble it


def _probed(families: Sequence[Family], groups: Sequence[Group], shapes: Shapes) -> list[Family]:
    """Return the families whose probes occur in the file with the right shapes.

    If one of these has all modules and shapes, the tables of the others are not needed.
    """
    stems = {(group.dialect, group.stem) for group in groups}
    names = {group.dialect for group in groups}
    found = []
    for family in families:
        fits = [
            same_shape(shapes.get((name, stem), shape), shape)
            for name in names
            for stem, shape in probe_stems(DIALECTS[name], family).items()
            if (name, stem) in stems
        ]
        if fits and all(fits):
            found.append(family)
    return found


def _named_enough(groups: Sequence[Group], shapes: Shapes) -> dict[Family, FamilyFit]:
    """Return the families that the file resembles by names, and how well each fits."""
    possible = possible_families(groups)
    fits = {f: fit_of(f, groups, shapes) for f in _probed(possible, groups, shapes)}
    if not any((fit.named, fit.exact) == (len(groups), len(shapes)) for fit in fits.values()):
        fits |= {f: fit_of(f, groups, shapes) for f in possible if f not in fits}
    return {
        family: fit
        for family, fit in fits.items()
        if fit.named and fit.share >= _RESEMBLES and (fit.own_shapes or not family.shapes_only)
    }


def _fits(family: Family, fit: FamilyFit, groups: Sequence[Group]) -> bool:
    """Return whether a file that resembles a family belongs to it."""
    return (
        fit.share >= ENOUGH
        and fit.shaped
        and (not fit.strange or not of_larger_relative(family, groups))
        and not (fit.wide and of_smaller_relative(family, groups))
    )


def detect(groups: Sequence[Group], shapes: Shapes, metadata: Mapping[str, str]) -> Detection:
    """Detect the family of an adapter.

    Args:
        groups: the file's modules as classified.
        shapes: (dialect, stem) → `(out, in[, kh, kw])` of the weight, where the factors tell it, or
            `(out, in·kh·kw, 0)` where they hide the kernel.
        metadata: the header's strings; decides only where stems and shapes do not.
    """
    if not groups:
        return Detection((), "the file has no module with a known suffix")
    if metadata.get(NO_FAMILY[0]) == NO_FAMILY[1]:
        return Detection((), "its header says that its base is of no known family")
    found = _detected(groups, shapes, metadata)
    if found.candidates:
        return found
    from loramerge.dialects.mangled import detect_mangled  # few files need it

    usual = partial(_detected, metadata=metadata)
    return detect_mangled(groups, shapes, usual) or found


def _detected(groups: Sequence[Group], shapes: Shapes, metadata: Mapping[str, str]) -> Detection:
    """Detect the family by the names as they are; see `detect`."""
    like = _named_enough(groups, shapes)
    if not any(fit.own_shapes for fit in like.values()) and FAMILIES.look_for_others():
        like = _named_enough(groups, shapes)
    fits = {family: fit for family, fit in like.items() if _fits(family, fit, groups)}
    if not fits:
        unknown = Detection((), "no known family has modules of these names")
        return _resembling(like) if like else unknown
    fit = max(fits.values())
    tied = [family for family, other in fits.items() if other[:4] == fit[:4]]
    if len(tied) > 1:
        for key in _METADATA_KEYS:
            named = _named(tied, metadata.get(key, ""))
            if named is not None:
                what = f"names and shapes fit several; {key} is {metadata[key]}"
                return Detection((named,), what)
    eldest = _without_twins(tied)  # most adapters are of the elder, and the result names the others
    if len(eldest) == 1:
        (family,) = eldest
        what = f"{fit.named} of {len(groups)} modules match by name, {fit.exact} by shape too"
        sure = any(family.metadata.likeness(metadata.get(key, "")) for key in _METADATA_KEYS)
        twins = tuple(other.title for other in tied if other is not family)
        if not sure and _is_shared(family, groups):
            twins = family.twins
        if twins:
            attention = twins == family.twins and family.shared == ATTENTION
            part = "the attention" if attention else "what it changes"
            same = all(_meaning(one, groups) == _meaning(family, groups) for one in tied)
            names = "the same names and shapes" if same else "these names, too, for other modules"
            what += f"; {part} of {listed(list(twins), 9)} has {names}"
        return Detection((family,), what, twins=twins)
    tied = sorted(eldest, key=lambda family: family.order)
    if len({_meaning(family, groups) for family in tied}) > 1:
        names = " and ".join(family.name for family in tied)
        return Detection(
            (),
            f"names fit {names}, which use them for different modules, and the shapes do not "
            "decide",
        )
    return Detection(
        tuple(tied),
        "names and shapes fit all of these, and the metadata names none of them",
        twins=tuple(twin for f in tied if _is_shared(f, groups) for twin in f.twins),
    )


def _without_twins(families: Sequence[Family]) -> list[Family]:
    """Return the families, without those that are twins of another of them."""
    return [f for f in families if not any(f.title in other.twins for other in families)]


def _is_shared(family: Family, groups: Sequence[Group]) -> bool:
    """Return whether the family's twins have all modules too."""
    known = (module for found in _meanings(family, groups) for module in found or ())
    return all(re.search(family.shared, module) for module in known)


def _resembling(like: Mapping[Family, FamilyFit]) -> Detection:
    """Return the result for a file that resembles families and belongs to none."""
    best = max(like.values())
    closest = _without_twins([family for family, fit in like.items() if fit[:2] == best[:2]])
    names = tuple(family.name for family in closest)
    known = best.exact + best.other
    if not best.shaped:
        why = f"but {'none' if not best.exact else f'only {best.exact}'} of {known} have its shape"
    else:
        why = f"but {best.strange} others do not" if best.strange else "but it has fewer blocks"
    says = f"resembles {' and '.join(names)}: {best.named} modules have its names, {why}"
    return Detection((), says, names)


def _meaning(family: Family, groups: Sequence[Group]) -> tuple[tuple[str, ...] | None, ...]:
    """Return the modules that a family means by each stem, None where it has none."""
    return tuple(_meanings(family, groups))


def _meanings(family: Family, groups: Sequence[Group]) -> Iterator[tuple[str, ...] | None]:
    tables = {name: stem_table(DIALECTS[name], family) for name in {g.dialect for g in groups}}
    stems = (tables[group.dialect].get(group.stem) for group in groups)
    return (None if stem is None else stem.modules for stem in stems)


def _named(tied: Sequence[Family], value: str) -> Family | None:
    """Return the one family that a value of the metadata names, by its longest beginning."""
    lengths = {family.name: family.metadata.likeness(value) for family in tied}
    best = max(lengths.values())
    named = [family for family in tied if lengths[family.name] == best]
    return named[0] if best and len(named) == 1 else None
