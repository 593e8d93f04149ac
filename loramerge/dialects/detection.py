"""The family of an adapter, as detected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from loramerge.families import Family
from loramerge.records import record

__all__ = ["NO_FAMILY", "Detection"]

# the metadata entry of an adapter whose base has no known family, though its names may resemble one
NO_FAMILY = ("loramerge.family", "none")


@record
class Detection:
    """The families that fit, best first, and why.

    One candidate: the family is known. Several: nothing in the file tells them apart (their module
    names agree for what the file holds). None: an unknown family.

    Args:
        resembles: families that have the file's module names, but other shapes, or too few of the names.
        twins: models whose adapters have the same names and shapes.
        respelled: (dialect, stem) → those of the family, of names that differ from these by dots and
            underscores alone.
    """

    candidates: tuple[Family, ...]
    reason: str
    resembles: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()
    respelled: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

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
