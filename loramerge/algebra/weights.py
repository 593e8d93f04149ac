"""The user's coefficient of an adapter: one number, or one per component."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from loramerge.adapter import Site
from loramerge.errors import UsageError

__all__ = ["COMPONENT_WORDS", "Weight"]

# what users write → component names
COMPONENT_WORDS: dict[str, tuple[str, ...]] = {
    "unet": ("unet", "transformer"),
    "transformer": ("transformer", "unet"),
    "te": ("text_encoder", "text_encoder_2", "text_encoder_3"),
    "te1": ("text_encoder",),
    "te2": ("text_encoder_2",),
    "te3": ("text_encoder_3",),
    "text_encoder": ("text_encoder",),
    "text_encoder_2": ("text_encoder_2",),
    "text_encoder_3": ("text_encoder_3",),
}


@dataclass(frozen=True)
class Weight:
    """A coefficient for every site: that of its component if one is given, else `default`."""

    default: float = 1.0
    components: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in (self.default, *self.components.values()):
            if not math.isfinite(value):
                raise UsageError("a weight must be a finite number", found=value)

    def of(self, site: Site) -> float:
        """Return the coefficient of a site."""
        return self.components.get(site.component, self.default)

    def text(self) -> str:
        """Return the weight as users write it."""
        parts = [_shown(self.default)] if self.default != 1.0 or not self.components else []
        named = [f"{name}={_shown(value)}" for name, value in self.components.items()]
        return ":".join(parts + named)


def _shown(value: float) -> str:
    """Return a number in as few digits as say it exactly."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
