"""Detect the family of an adapter.

The family is the one that has most of the file's modules by name; of those that have as many, shapes
decide where they are known. What fits two families equally is said, unless the header's metadata
names one of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.spec import probe_stems
from loramerge.families import FAMILIES, UNETS, Family

__all__ = ["NO_FAMILY", "Detection", "detect"]

# the entry that marks an adapter of a base of no known family, which may resemble one by its names
NO_FAMILY = ("loramerge.family", "none")

_METADATA_KEYS = ("modelspec.architecture", "ss_base_model_version")
_SHARE = 0.5  # of the modules must be named by a family for it to be taken


@dataclass(frozen=True)
class Detection:
    """The families that fit, best first, and why.

    One candidate: the family is known. Several: nothing in the file tells them apart (their module
    names agree for what the file holds). None: an unknown family.
    """

    candidates: tuple[Family, ...]
    reason: str

    @property
    def family(self) -> Family | None:
        """The family, if there is just one candidate."""
        return self.candidates[0] if len(self.candidates) == 1 else None

    @property
    def naming(self) -> Family | None:
        """The family whose tables name the modules; candidates agree on these names."""
        return self.candidates[0] if self.candidates else None

    @property
    def name(self) -> str | None:
        """`sd21`, `sd15 or sd21`, or None."""
        return " or ".join(f.name for f in self.candidates) or None


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without 1×1 kernels, which some files leave out."""
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


def _same(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a shape is a module's, 1×1 kernels apart.

    `(out, in·kh·kw, 0)` stands for one whose factors hide the kernel, and so how many axes it has.
    """
    if found[2:] == (0,):
        return found[:2] == (shape[0], math.prod(shape[1:]))
    return _flat(found) == _flat(shape)


def _alike(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a matrix has the proportions of a module's."""
    return len(found) > 1 < len(shape) and found[0] * shape[1] == found[1] * shape[0]


class _Fit(NamedTuple):
    """The counts of modules by which a family fits a file.

    Args:
        named: modules that it has by name.
        exact: those of them whose shape is known, and its own.
        alike: those whose shape has the proportions of its own; tells networks of another width.
        axes: those whose shape has as many axes as its own; tells convolutions from linear layers.
        other: those whose shape is known, and another.
    """

    named: int
    exact: int
    alike: int
    axes: int
    other: int

    @property
    def own_shapes(self) -> bool:
        """True if most of the known shapes are the family's."""
        return self.exact > self.other


Shapes = Mapping[tuple[str, str], tuple[int, ...]]


def _fit(family: Family, groups: Sequence[Group], shapes: Shapes) -> _Fit:
    named = exact = alike = axes = other = 0
    tables = {name: stem_table(DIALECTS[name], family) for name in {g.dialect for g in groups}}
    for dialect, name, _ in groups:
        stem = tables[dialect].get(name)
        if stem is None:
            continue
        named += 1
        shape = shapes.get((dialect, name))
        if shape is not None:
            same = _same(shape, stem.shape)
            exact += same
            other += not same
            alike += _alike(shape, stem.shape)
            axes += len(shape) == len(stem.shape)  # never where the kernel is hidden
    return _Fit(named, exact, alike, axes, other)


# in the stems of UNets, and of nothing else
_UNET_ALONE = re.compile(r"attentions|(?:input|middle|output)_block")


def _possible(groups: Sequence[Group]) -> list[Family]:
    """Return the families that the names alone do not rule out; tables of others are not made."""
    names = "\n".join(group.stem for group in groups)
    unet = _UNET_ALONE.search(names) is not None
    shipped = FAMILIES.shipped(UNETS if unet else None)
    families = {family.name: family for family in (*shipped, *FAMILIES.added())}
    return [family for family in families.values() if family.occurs_in(names)]


def _probed(families: Sequence[Family], groups: Sequence[Group], shapes: Shapes) -> list[Family]:
    """Return the families of which a probe occurs in its own shape.

    Whole tables of the others need not be made, if one of these has all modules and shapes.
    """
    stems = {(group.dialect, group.stem) for group in groups}
    names = {group.dialect for group in groups}
    found = []
    for family in families:
        fits = [
            _same(shapes.get((name, stem), shape), shape)
            for name in names
            for stem, shape in probe_stems(DIALECTS[name], family).items()
            if (name, stem) in stems
        ]
        if fits and all(fits):
            found.append(family)
    return found


_NUMBER = re.compile(r"\d+")


@cache
def _numberless(dialect: str, family: Family) -> frozenset[str]:
    """Return the stems of a family's network with their numbers taken out."""
    return frozenset(
        _NUMBER.sub("#", name)
        for name, stem in stem_table(DIALECTS[dialect], family).items()
        if not stem.modules[0].startswith("text_encoder")
    )


def _overrun(family: Family, groups: Sequence[Group]) -> bool:
    """Return whether the file has blocks of the family's sort with numbers that it has not.

    The file is then one of a larger relative.
    """
    return any(
        _NUMBER.sub("#", group.stem) in _numberless(group.dialect, family)
        for group in groups
        if stem_table(DIALECTS[group.dialect], family).get(group.stem) is None
    )


def _fitting(groups: Sequence[Group], shapes: Shapes) -> dict[Family, _Fit]:
    """Return the families that have enough of the modules, and how well each fits."""
    possible = _possible(groups)
    fits = {f: _fit(f, groups, shapes) for f in _probed(possible, groups, shapes)}
    if not any((fit.named, fit.exact) == (len(groups), len(shapes)) for fit in fits.values()):
        fits |= {f: _fit(f, groups, shapes) for f in possible if f not in fits}
    return {
        family: fit
        for family, fit in fits.items()
        if fit.named >= _SHARE * len(groups)
        and (fit.own_shapes or not family.shapes_only)
        and (fit.named == len(groups) or not _overrun(family, groups))
    }


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
    fits = _fitting(groups, shapes)
    if not any(fit.own_shapes for fit in fits.values()) and FAMILIES.look_for_others():
        fits = _fitting(groups, shapes)
    if not fits:
        return Detection((), "no known family has modules of these names")
    fit = max(fits.values())
    tied = [family for family, other in fits.items() if other[:4] == fit[:4]]
    if len(tied) == 1:
        what = f"{fit.named} of {len(groups)} modules match by name, {fit.exact} by shape too"
        return Detection((tied[0],), what)
    for key in _METADATA_KEYS:
        named = _named(tied, metadata.get(key, ""))
        if named is not None:
            what = f"names and shapes fit several; {key} says {metadata[key]}"
            return Detection((named,), what)
    if any(_meaning(f, groups) != _meaning(tied[0], groups) for f in tied):
        names = " and ".join(family.name for family in tied)
        return Detection((), f"names fit {names}, which mean different modules, and no shape tells")
    return Detection(tuple(tied), "names and shapes fit all of these, and the metadata is silent")


def _meaning(family: Family, groups: Sequence[Group]) -> tuple[tuple[str, ...] | None, ...]:
    """Return the modules that a family means by each stem, None where it has none."""
    tables = {name: stem_table(DIALECTS[name], family) for name in {g.dialect for g in groups}}
    stems = (tables[group.dialect].get(group.stem) for group in groups)
    return tuple(None if stem is None else stem.modules for stem in stems)


def _named(tied: Sequence[Family], value: str) -> Family | None:
    """Return the one family that a value of the metadata names, by its longest beginning."""
    lengths = {family.name: family.metadata.likeness(value) for family in tied}
    best = max(lengths.values())
    named = [family for family in tied if lengths[family.name] == best]
    return named[0] if best and len(named) == 1 else None
