"""The model that a PEFT adapter was trained on, according to its configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loramerge.families import FAMILIES

__all__ = ["MAPPING", "model_of_transformers"]

MAPPING = "auto_mapping"  # the field of a configuration that names the class of its model
_LIBRARY = "transformers"


def model_of_transformers(configs: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the class of transformers that an adapter is for, if no family has a component of it.

    The layers of its parts may be called as those of text encoders are: `CLIPModel` has the text half
    of `CLIPTextModel`.
    """
    names = [_named(config) for config in configs]
    if not any(names):  # nearly always, and to ask all families takes time
        return None
    known = {name for family in FAMILIES.values() for name in family.classes.values()}
    strange = [name for name in names if name is not None and name not in known]
    return strange[0] if strange and len(strange) == len(names) else None


def _named(config: Mapping[str, Any]) -> str | None:
    """Return the class of transformers that a configuration names, None if it names none."""
    mapping = config.get(MAPPING)
    if not isinstance(mapping, Mapping):
        return None
    name, library = mapping.get("base_model_class"), mapping.get("parent_library")
    of_transformers = isinstance(library, str) and library.partition(".")[0] == _LIBRARY
    return name if isinstance(name, str) and of_transformers else None
