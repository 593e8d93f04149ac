"""The module of a base that a name in an adapter means, where no family says it.

Programs call one network by many names: `model.diffusion_model.blocks.0`, `transformer.blocks.0`,
`blocks.0`, and kohya's `blocks_0`. Names are of one module if they differ by such levels at their
heads, or by dots and underscores, and if nothing else in the base or the adapter could be meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["NETWORK", "network_head", "renaming"]

NETWORK = "transformer"  # the component of the network of a single file

# levels that come and go at the heads of names: programs call the network so, and models of transformers
# have gained or lost some from version to version, and with or without an output layer
_LEVELS = frozenset(
    {"base_model", "model", "language_model", "transformer", "diffusion_model", "unet", "net"}
)
_ENCODER = "text_encoder"
_LANGUAGE_MODEL = r"^(?:model_)?language_model_"  # such a level in kohya's spelling
# what single files have before the names of a network that is not all that they hold, and what they may
# have where it is
_HEADS = ("model.diffusion_model.", "diffusion_model.")
_WHOLE_HEADS = ("transformer.", "unet.", "net.", "model.")


def network_head(names: Sequence[str]) -> str:
    """Return what stands before the names of the network in a single file, `''` for nothing."""
    for head in _HEADS:
        if any(name.startswith(head) for name in names):
            return head
    return next((h for h in _WHOLE_HEADS if names and all(n.startswith(h) for n in names)), "")


def renaming(modules: Iterable[str], known: Iterable[str]) -> Callable[[str], str]:
    """Return the function that renames modules of an adapter to those of a base.

    Where one level less or more fits all modules, that is it. Else each module has the one name in the
    base that differs from its own by levels such as `model.` and `diffusion_model.` alone: what
    transformers calls `model.language_model.layers.0` is `model.layers.0` in the published files of some
    models that also see, and `model.visual` is `visual`. Of names with underscores for dots, as kohya
    writes them, the same is true. A module that has no such name, or several, or shares it with another
    module of the adapter, keeps its own.

    Args:
        modules: the adapter's.
        known: all of the base's.
    """
    wanted, there = list(dict.fromkeys(modules)), dict.fromkeys(known)
    levels = dict.fromkeys(name.partition(".")[0] for name in there)
    options: list[Callable[[str], str]] = [
        lambda name: name,
        lambda name: name.partition(".")[2],
        *(lambda name, level=level: f"{level}.{name}" for level in levels),
    ]
    for option in options:
        if all(option(name) in there for name in wanted):
            return option
    found = _alike(wanted, there)
    return lambda name: found.get(name, name)


def _alike(wanted: Sequence[str], there: Mapping[str, None]) -> Mapping[str, str]:
    """Return module of an adapter → the one of the base that is called alike.

    A base that is a text encoder alone does not name it.
    """
    if not any(name.startswith(_ENCODER) for name in there):
        alone = {name: _without_encoder(name) for name in wanted}
        if len(set(alone.values())) == len(alone) and alone.keys() != set(alone.values()):
            found = _alike_by_levels(list(alone.values()), there)
            return {name: found[one] for name, one in alone.items() if one in found}
    return _alike_by_levels(wanted, there)


def _without_encoder(name: str) -> str:
    head, dot, rest = name.partition(".")
    return rest if dot and head.startswith(_ENCODER) else name


def _alike_by_levels(wanted: Sequence[str], there: Mapping[str, None]) -> Mapping[str, str]:
    tables = [_by(key, there) for key in (_core, _flat)]

    def meant(name: str) -> str | None:
        if name in there:
            return name
        for key, table in zip((_core, _flat), tables, strict=True):
            if names := table.get(key(name)):
                return names[0] if len(names) == 1 else None
        return None

    found = {name: other for name in wanted if (other := meant(name)) is not None}
    claims = Counter(found.values())
    return {name: other for name, other in found.items() if name == other or claims[other] == 1}


def _by(key: Callable[[str], str], names: Iterable[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return found


def _core(name: str) -> str:
    """Return a name from its first level that does not come and go."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _LEVELS:
        parts.pop(0)
    return ".".join(parts)


def _flat(name: str) -> str:
    """Return the core of a name as kohya writes it."""
    flat = _core(name).replace(".", "_").lstrip("_")
    return re.sub(_LANGUAGE_MODEL, "", flat)
