"""Detect the family of an adapter.

A family is one that has nearly all of the file's modules by name, and whose shapes are those of the file
where they are known; of several the one that has most. Names alone do not make a family: most of the
field's networks call their layers alike, and differ in their widths. What fits two families equally is
said, unless the header's metadata names one of them; what a file resembles by names alone, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.spec import probe_stems
from loramerge.errors import listed
from loramerge.families import FAMILIES, UNETS, Family

__all__ = ["NO_FAMILY", "Detection", "detect"]

# the entry that marks an adapter of a base of no known family, which may resemble one by its names
NO_FAMILY = ("loramerge.family", "none")

_METADATA_KEYS = ("modelspec.architecture", "ss_base_model_version")
_SHARE = 0.75  # of the network's modules must be named by a family for it to be taken
_RESEMBLES = 0.5  # of them for it to be said that the file resembles it
# Published networks have layers wider than this; whoever makes a miniature for a test or a
# demonstration makes it narrower, and then names are all that tells.
_NARROW = 128
_BESIDE = ("text_encoder", "transformer_2.")  # networks beside the one whose names tell the family
_WIDENED = 0.1  # of the known shapes may be others than the family's: control adapters widen layers
_FEWEST = 5  # blocks of a sort by which a smaller network is told from a choice of blocks


@dataclass(frozen=True)
class Detection:
    """The families that fit, best first, and why.

    One candidate: the family is known. Several: nothing in the file tells them apart (their module
    names agree for what the file holds). None: an unknown family.

    Args:
        resembles: names of families whose names of modules are the file's, but not their shapes, or
            not enough of them.
    """

    candidates: tuple[Family, ...]
    reason: str
    resembles: tuple[str, ...] = ()

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
        strange: modules that it lacks; those of text encoders and of a second network do not count.
        wide: whether any of the known shapes is that of a layer wider than a miniature's.
        foreign: those of `other` whose shape is that of a layer wider than a miniature's.
    """

    named: int
    exact: int
    alike: int
    axes: int
    other: int
    strange: int
    wide: bool
    foreign: int = 0

    @property
    def own_shapes(self) -> bool:
        """True if most of the known shapes are the family's."""
        return self.exact > self.other

    @property
    def shaped(self) -> bool:
        """True if the known shapes are the family's, but for a few of layers that were widened.

        Those of miniatures do not count.
        """
        return self.foreign <= _WIDENED * (self.exact + self.foreign)

    @property
    def share(self) -> float:
        """The part of the network's modules that the family has by name."""
        return self.named / (self.named + self.strange or 1)


Shapes = Mapping[tuple[str, str], tuple[int, ...]]


def _fit(family: Family, groups: Sequence[Group], shapes: Shapes) -> _Fit:
    named = alike = axes = known = strange = 0
    wide = False
    exact = [0] * (1 + len(family.sizes))
    foreign = [0] * len(exact)
    tables = {name: stem_table(DIALECTS[name], family) for name in {g.dialect for g in groups}}
    for dialect, name, _ in groups:
        stem = tables[dialect].get(name)
        if stem is None:
            strange += not DIALECTS[dialect].opaque_module(name).startswith(_BESIDE)
            continue
        named += 1
        shape = shapes.get((dialect, name))
        if shape is not None:
            known += 1
            for number, size in enumerate(({}, *family.sizes)):
                same = _same(shape, tuple(size.get(n, n) for n in stem.shape))
                exact[number] += same
                foreign[number] += not same and min(shape[:2]) > _NARROW
            alike += _alike(shape, stem.shape)
            axes += len(shape) == len(stem.shape)  # never where the kernel is hidden
            wide = wide or min(shape[:2]) > _NARROW
    own = max(exact)
    return _Fit(named, own, alike, axes, known - own, strange, wide, foreign[exact.index(own)])


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


def _named_enough(groups: Sequence[Group], shapes: Shapes) -> dict[Family, _Fit]:
    """Return the families that the file resembles by names, and how well each fits."""
    possible = _possible(groups)
    fits = {f: _fit(f, groups, shapes) for f in _probed(possible, groups, shapes)}
    if not any((fit.named, fit.exact) == (len(groups), len(shapes)) for fit in fits.values()):
        fits |= {f: _fit(f, groups, shapes) for f in possible if f not in fits}
    return {
        family: fit
        for family, fit in fits.items()
        if fit.named and fit.share >= _RESEMBLES and (fit.own_shapes or not family.shapes_only)
    }


def _fits(family: Family, fit: _Fit, groups: Sequence[Group]) -> bool:
    """Return whether a file that resembles a family is of it."""
    return (
        fit.share >= _SHARE
        and fit.shaped
        and (not fit.strange or not _overrun(family, groups))
        and not (fit.wide and _shorter(family, groups))
    )


_BLOCK = re.compile(r"([^\d]*)\.(\d+)\.")


def _blocks(modules: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of the blocks of each sort that modules lie in."""
    found: dict[str, set[int]] = {}
    for module in modules:
        matched = _BLOCK.match(module)
        if matched:
            found.setdefault(matched[1], set()).add(int(matched[2]))
    return found


@cache
def _all_blocks(family: Family) -> Mapping[str, set[int]]:
    return _blocks(name for name, _ in family.modules())


def _shorter(family: Family, groups: Sequence[Group]) -> bool:
    """Return whether the file has the first so many blocks of several sorts, and the family more.

    The file is then one of a smaller relative.
    """
    stems = (stem_table(DIALECTS[group.dialect], family).get(group.stem) for group in groups)
    found = _blocks(stem.modules[0] for stem in stems if stem is not None)
    several = [
        (numbers, _all_blocks(family)[sort])
        for sort, numbers in found.items()
        if len(_all_blocks(family)[sort]) > _FEWEST
    ]
    return len(several) > 1 and all(
        _FEWEST < len(numbers) == max(numbers) + 1 < len(everything)
        for numbers, everything in several
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
    like = _named_enough(groups, shapes)
    if not any(fit.own_shapes for fit in like.values()) and FAMILIES.look_for_others():
        like = _named_enough(groups, shapes)
    fits = {family: fit for family, fit in like.items() if _fits(family, fit, groups)}
    if not like:
        return Detection((), "no known family has modules of these names")
    if not fits:
        return _resembling(like)
    fit = max(fits.values())
    tied = [family for family, other in fits.items() if other[:4] == fit[:4]]
    if len(tied) == 1:
        what = f"{fit.named} of {len(groups)} modules match by name, {fit.exact} by shape too"
        if tied[0].twins and _is_attention(tied[0], groups):
            what += f"; the attention of {listed(list(tied[0].twins), 9)} is alike"
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


def _is_attention(family: Family, groups: Sequence[Group]) -> bool:
    """Return whether all modules are attention's."""
    return all("attn" in m for found in _meaning(family, groups) for m in found or ("attn",))


def _resembling(like: Mapping[Family, _Fit]) -> Detection:
    """Return what is said of a file that resembles families, and is of none."""
    best = max(like.values())
    names = tuple(family.name for family, fit in like.items() if fit[:2] == best[:2])
    known = best.exact + best.other
    if not best.shaped:
        why = f"but {'none' if not best.exact else f'only {best.exact}'} of {known} have its shape"
    else:
        why = f"but {best.strange} others have not" if best.strange else "but it has fewer blocks"
    says = f"resembles {' and '.join(names)}: {best.named} modules have such names, {why}"
    return Detection((), says, names)


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
