"""Families for the page: the words of their components, and the block vectors that they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loramerge.algebra.blocks import FLUX, FLUX_LENGTHS, VECTORS, block_order
from loramerge.families import FAMILIES, Family
from loramerge.families.components import COMPONENT_WORDS

__all__ = ["component_words", "families"]

_ENCODER = "text_encoder"
_EITHER = 26  # values, of which a family may lack some blocks
_PRESETS = 17


def families() -> list[dict[str, Any]]:
    """Return all families: what weights can be given to, per component, per block and by depth."""
    return [
        {
            "name": name,
            "title": family.title,
            "components": list(_components(family)),
            "vectors": _vectors(family),
            "depth": bool(block_order(family)),
        }
        for name, family in FAMILIES.items()
    ]


def component_words(family: str | None, names: Iterable[str]) -> list[str] | None:
    """Return the words of the components that an adapter changes; None if its family is not known."""
    known = FAMILIES.get(family or "")
    if known is None:
        return None
    wanted = set(names)
    pairs = zip(known.components, _components(known), strict=True)
    return [word for component, word in pairs if component.name in wanted]


def _components(family: Family) -> Iterator[str]:
    """Yield the shortest words for the components: one text encoder is `te`, several have numbers."""
    names = [component.name for component in family.components]
    encoders = [name for name in names if name.startswith(_ENCODER)]
    for name in names:
        if encoders == [name] == [_ENCODER]:
            yield "te"
            continue
        words = [word for word, those in COMPONENT_WORDS.items() if those == (name,)]
        yield min(words, key=len, default=name)


def _vectors(family: Family) -> list[int]:
    """Return the lengths of block vectors that name blocks of a family, that of the presets first."""
    if family.name == FLUX:
        return list(FLUX_LENGTHS)
    blocks = {"BASE", *block_order(family)}
    named = {n: sum(one in blocks for one in names) for n, names in VECTORS.items()}
    found = [n for n in VECTORS if named[n] == n or (n == _EITHER and 2 * named[n] > n)]
    return sorted(found, key=lambda n: n != _PRESETS)
