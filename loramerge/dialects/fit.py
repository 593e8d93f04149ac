"""Count how well the modules of a file fit a family, by names and by shapes.

Shapes of narrow layers do not count against a family: miniatures have its names, and widths of
their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.families import FAMILIES, UNETS, Family
from loramerge.records import NamedTuple

__all__ = ["ENOUGH", "FamilyFit", "Shapes", "fit_of", "possible_families", "same_shape"]

ENOUGH = 0.75  # of the network's modules must be named by a family for it to fit
# Published networks have layers wider than this. Miniatures for tests and demonstrations are narrower;
# for them only names count.
_NARROW = 128
_BESIDE = ("text_encoder", "transformer_2.")  # networks that do not decide the family
_WIDENED = 0.1  # of the known shapes may differ from the family's: control adapters widen layers


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without 1×1 kernels, which some files leave out."""
    return shape[:2] if math.prod(shape[2:]) == 1 else shape


def same_shape(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a shape is a module's, 1×1 kernels apart.

    `(out, in·kh·kw, 0)` stands for one whose factors hide the kernel, and so how many axes it has.
    """
    if found[2:] == (0,):
        return found[:2] == (shape[0], math.prod(shape[1:]))
    return _flat(found) == _flat(shape)


def _alike(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a matrix has the proportions of a module's."""
    return len(found) > 1 < len(shape) and found[0] * shape[1] == found[1] * shape[0]


class FamilyFit(NamedTuple):
    """The counts of modules by which a family fits a file.

    Args:
        named: modules that it has by name.
        exact: those of them whose shape is known, and its own.
        alike: those whose shape has the proportions of its own; distinguishes networks of another
            width.
        axes: those whose shape has as many axes as its own; distinguishes convolutions from linear
            layers.
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
        """True if the known shapes are the family's, except for a few widened layers.

        Those of miniatures do not count.
        """
        return self.foreign <= _WIDENED * (self.exact + self.other)

    @property
    def share(self) -> float:
        """The part of the network's modules that the family has by name."""
        return self.named / (self.named + self.strange or 1)


Shapes = Mapping[tuple[str, str], tuple[int, ...]]


def fit_of(family: Family, groups: Sequence[Group], shapes: Shapes) -> FamilyFit:
    """Count how well a family fits a file's modules.

    A family that comes in several sizes is counted with the size that fits best.
    """
    named = alike = axes = known = strange = 0
    wide = False
    sizes: tuple[Mapping[int, int], ...] = ({}, *family.sizes)
    exact = [0] * len(sizes)
    foreign = [0] * len(exact)
    tables = {name: stem_table(DIALECTS[name], family) for name in {g.dialect for g in groups}}
    pairs: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}  # few: layers repeat
    for dialect, name, _ in groups:
        stem = tables[dialect].get(name)
        if stem is None:
            strange += not DIALECTS[dialect].opaque_module(name).startswith(_BESIDE)
            continue
        named += 1
        shape = shapes.get((dialect, name))
        if shape is not None:
            pair = shape, stem.shape
            pairs[pair] = pairs.get(pair, 0) + 1
    for (shape, expected), count in pairs.items():
        known += count
        for number, size in enumerate(sizes):
            width = tuple(size.get(n, n) for n in expected) if size else expected
            same = shape == width or same_shape(shape, width)
            exact[number] += count * same
            foreign[number] += count * (not same and min(shape[:2]) > _NARROW)
        alike += count * _alike(shape, expected)
        axes += count * (len(shape) == len(expected))  # never where the kernel is hidden
        wide = wide or min(shape[:2]) > _NARROW
    own = max(exact)
    return FamilyFit(named, own, alike, axes, known - own, strange, wide, foreign[exact.index(own)])


# in the stems of UNets, and of nothing else
_UNET_ALONE = re.compile(r"attentions|(?:input|middle|output)_block")


def possible_families(groups: Sequence[Group]) -> list[Family]:
    """Return the families that the file's names do not rule out, without making any table."""
    names = "\n".join(group.stem for group in groups)
    unet = _UNET_ALONE.search(names) is not None
    shipped = FAMILIES.shipped(UNETS if unet else None)
    families = {family.name: family for family in (*shipped, *FAMILIES.added())}
    return [family for family in families.values() if family.occurs_in(names)]
