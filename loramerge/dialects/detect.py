"""Which family an adapter belongs to: by its stems first, then by shapes, then by metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.spec import probe_stems
from loramerge.families import FAMILIES, UNETS, Family

__all__ = ["NO_FAMILY", "Detection", "detect"]

# what the trainer writes for a base of no known family, which may resemble one by its names
NO_FAMILY = ("loramerge.family", "none")

_METADATA_KEYS = ("modelspec.architecture", "ss_base_model_version")
_SHARE = 0.5  # of the modules must belong to a family for it to be taken


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
    """Say whether a shape is a module's, 1×1 kernels apart.

    `(out, in·kh·kw, 0)` stands for one whose factors hide the kernel, and so how many axes it has.
    """
    if found[2:] == (0,):
        return found[:2] == (shape[0], math.prod(shape[1:]))
    return _flat(found) == _flat(shape)


def _score(
    family: Family, groups: Sequence[Group], shapes: Mapping[tuple[str, str], tuple[int, ...]]
) -> tuple[int, int, int]:
    """Count modules the family has, those of its shape (1×1 kernels apart), and of as many axes."""
    matched = exact = axes = 0
    tables = {name: stem_table(DIALECTS[name], family) for name in {g.dialect for g in groups}}
    for dialect, name, _ in groups:
        stem = tables[dialect].get(name)
        if stem is None:
            continue
        matched += 1
        shape = shapes.get((dialect, name))
        if shape is not None:
            exact += _same(shape, stem.shape)
            axes += len(shape) == len(stem.shape)  # never where the kernel is hidden
    return matched, exact, axes


# in the stems of UNets, and of nothing else
_UNET_ALONE = re.compile(r"attentions|(?:input|middle|output)_block")


def _possible(groups: Sequence[Group]) -> list[Family]:
    """Return the families that the names alone do not rule out; tables of others are not made."""
    if any(_UNET_ALONE.search(group.stem) for group in groups):
        return [FAMILIES[name] for name in UNETS]
    names = "\n".join(group.stem for group in groups)
    return [family for family in FAMILIES.values() if family.occurs_in(names)]


def _plausible(
    families: Sequence[Family],
    groups: Sequence[Group],
    shapes: Mapping[tuple[str, str], tuple[int, ...]],
) -> dict[str, bool]:
    """Return the families of which a probe occurs, and whether all that occur have its shapes."""
    stems = {(group.dialect, group.stem) for group in groups}
    names = {group.dialect for group in groups}
    found = {}
    for family in families:
        fits = [
            _same(shapes.get((name, stem), shape), shape)
            for name in names
            for stem, shape in probe_stems(DIALECTS[name], family).items()
            if (name, stem) in stems
        ]
        if fits:
            found[family.name] = all(fits)
    return found


def _ruled_out(family: Family, groups: Sequence[Group]) -> bool:
    """Say whether a stem occurs that only a relative of the family has."""
    if family.never is None:
        return False
    pattern = re.compile(family.never)
    return any(pattern.search(group.stem) for group in groups)


def detect(
    groups: Sequence[Group],
    shapes: Mapping[tuple[str, str], tuple[int, ...]],
    metadata: Mapping[str, str],
) -> Detection:
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
        return Detection((), "it was trained on a base of no known family, says its header")
    possible = _possible(groups)
    probed = _plausible(possible, groups, shapes)
    scores = {n: _score(FAMILIES[n], groups, shapes) for n, fits in probed.items() if fits}
    whole = len(groups), len(shapes)
    if not any(score[:2] == whole for score in scores.values()):
        # no perfect fit: count every family whose probes occur, or all if none do
        others = probed or [family.name for family in possible]
        rest = [n for n in others if n not in scores and not FAMILIES[n].only_exact]
        scores |= {name: _score(FAMILIES[name], groups, shapes) for name in rest}
    scores = {
        name: s
        for name, s in scores.items()
        if s[0] >= _SHARE * len(groups)
        and not _ruled_out(FAMILIES[name], groups)
        and (not FAMILIES[name].only_exact or 0 < s[1] == len(shapes))
    }
    if not scores:
        return Detection((), "no known family has modules of these names")
    if shapes:
        firm = max((s[0] for name, s in scores.items() if not FAMILIES[name].by_shape), default=0)
        scores = {
            name: s
            for name, s in scores.items()
            if s[1] or s[0] > firm or not FAMILIES[name].by_shape
        }
    best = max(scores.values())
    tied = [FAMILIES[name] for name, score in scores.items() if score == best]
    matched, exact, _ = best
    if len(tied) == 1:
        what = f"{matched} of {len(groups)} modules have its names, {exact} exactly its shapes"
        return Detection((tied[0],), what)
    for key in _METADATA_KEYS:
        named = _named(tied, metadata.get(key, ""))
        if named is not None:
            what = f"names and shapes fit several; {key} says {metadata[key]}"
            return Detection((named,), what)
    if any(f.by_shape and _meaning(f, groups) != _meaning(tied[0], groups) for f in tied):
        names = " and ".join(family.name for family in tied)
        return Detection((), f"names fit {names}, which mean different modules, and no shape tells")
    for family in tied:
        if all(g.dialect == family.alone_in and "alpha" in g.roles for g in groups):
            what = f"names and shapes fit several; only its programs write {family.alone_in} names"
            return Detection((family,), f"{what} with alphas")
    return Detection(tuple(tied), "names and shapes fit all of these, and the metadata is silent")


def _meaning(family: Family, groups: Sequence[Group]) -> tuple[tuple[str, ...] | None, ...]:
    """Return the modules that a family means by each stem, None where it has none."""
    tables = {name: stem_table(DIALECTS[name], family) for name in {g.dialect for g in groups}}
    stems = (tables[group.dialect].get(group.stem) for group in groups)
    return tuple(None if stem is None else stem.modules for stem in stems)


def _named(tied: Sequence[Family], value: str) -> Family | None:
    """Return the one family that a value of the metadata names, by its longest beginning."""
    lengths = {
        family.name: max((len(m) for m in family.metadata if value.startswith(m)), default=0)
        for family in tied
    }
    best = max(lengths.values())
    named = [family for family in tied if lengths[family.name] == best]
    return named[0] if best and len(named) == 1 else None
