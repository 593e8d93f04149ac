"""Modules that an adapter lacks, although all of their relatives are there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from loramerge.adapter import Adapter, Problem
from loramerge.adapter.metadata import RECIPE_KEY
from loramerge.algebra.health.limits import LIMITS
from loramerge.algebra.health.neighbours import LayerPlace, place_of
from loramerge.errors import listed

__all__ = ["about_structure", "lost_modules"]

_LEAST = 4  # blocks of which one can be missed


def about_structure(adapter: Adapter) -> Iterator[Problem]:
    """Yield what the set of an adapter's modules says: lost layers, missing text encoders."""
    lost = lost_modules(adapter)
    if lost:
        blocks = sorted({place_of(name).block for name in lost})
        layers = sorted({place_of(name).layer for name in lost})
        yield Problem(
            "warning",
            "layer-lost",
            listed(lost, 4),
            f"{listed(layers, 4)} of {listed(blocks, 3)} {'is' if len(lost) == 1 else 'are'} missing, "
            "while the other blocks have all layers",
            "export or download the file again; if it was trained so, no action is needed",
        )
    yield from _encoders(adapter)


def _encoders(adapter: Adapter) -> Iterator[Problem]:
    family = adapter.info.detection.family
    if family is None:
        return
    has = adapter.components()
    clips = [c.name for c in family.components if c.name in ("text_encoder", "text_encoder_2")]
    there = [name for name in clips if name in has]
    if len(clips) == 2 and len(there) == 1 and family.paired_encoders:
        (absent,) = set(clips) - set(there)
        yield Problem(
            "note",
            "text-encoder-missing",
            None,
            f"it changes {there[0]} and not {absent}, and {family.title} uses both",
            "if it was trained so, no action is needed; else export it again",
        )
    if has and not set(has) - set(clips) and adapter.deltas:
        yield Problem(
            "note",
            "only-text-encoder",
            None,
            "it changes nothing but text encoders",
            "if it was trained so, no action is needed; else export it again",
        )


def lost_modules(adapter: Adapter) -> list[str]:
    """Return the modules that are missing though nearly all blocks have that layer, sorted.

    Expected are the family's modules, or where the family is not known, those that the numbers in the
    names suggest. Modules that no gradient reaches are not missed, and neither are those of a file
    that loramerge made, whose recipe says what was left out.
    """
    if RECIPE_KEY in adapter.info.metadata or not adapter.deltas:
        return []
    has = {module for site in adapter.deltas for module in site.modules}
    adapted = {place_of(name) for name in has}
    expected = list(_expected(adapter, adapted))
    grid: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (stack, layer) → block → name
    for name in expected:
        place = place_of(name)
        grid[place.stack if not _unet(place) else place.component, place.layer][place.block] = name
    unreached = [p for f in adapter.info.detection.candidates for p in f.unreached]
    found: list[str] = []
    for blocks in grid.values():
        missing = [name for name in blocks.values() if name not in has]
        share = LIMITS["layer-lost"].value
        if len(blocks) < _LEAST or not missing or len(missing) > max(1, share * len(blocks)):
            continue
        found += (m for m in missing if not any(fnmatchcase(m, p) for p in unreached))
    return sorted(found)


def _unet(place: LayerPlace) -> bool:
    """Return whether the stacks of a component are the levels of one UNet, with the same layers."""
    return "attentions" in place.block.split(".")


def _expected(adapter: Adapter, adapted: Iterable[LayerPlace]) -> Iterator[str]:
    family = adapter.info.detection.family
    places = list(adapted)
    layers = {(place.component, place.layer) for place in places}
    if family is not None:
        for name, _ in family.modules():
            place = place_of(name)
            if (place.component, place.layer) in layers:
                yield name
        return
    stacks: Mapping[str, list[LayerPlace]] = _by_stack(places)
    for members in stacks.values():
        blocks = {place.block for place in members}
        own = {place.layer for place in members}
        yield from (f"{block}.{layer}" for block in _numbered(sorted(blocks)) for layer in own)


def _by_stack(places: Sequence[LayerPlace]) -> Mapping[str, list[LayerPlace]]:
    found: dict[str, list[LayerPlace]] = defaultdict(list)
    for place in places:
        if any(part.isdigit() for part in place.block.split(".")):
            found[place.stack].append(place)
    return found


def _numbered(blocks: Sequence[str]) -> Sequence[str]:
    """Return blocks of one number each with those between them; others as they are."""
    heads = {block.rpartition(".")[0] for block in blocks}
    last = [block.rpartition(".")[2] for block in blocks]
    if len(heads) != 1 or not all(number.isdigit() for number in last):
        return blocks
    numbers = [int(number) for number in last]
    (head,) = heads
    if max(numbers) - min(numbers) >= 2 * len(numbers):
        return blocks
    return [f"{head}.{number}" for number in range(min(numbers), max(numbers) + 1)]
