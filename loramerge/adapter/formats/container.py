"""The parts of a container beside its keys; the defaults are those of a plain safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import Delta
from loramerge.adapter.encoded import Encoded
from loramerge.adapter.site import Site
from loramerge.dialects import Dialect
from loramerge.errors import FormatError
from loramerge.files.tensors import Tensor
from loramerge.files.writer import write_tensors

__all__ = ["Check", "Container", "Unwritten"]

Check = Callable[[Path], None]  # looks at what was written before it gets its name


@dataclass(frozen=True)
class Unwritten:
    """All that is about to be written into a container.

    Args:
        adapter: with the sites of the dialect.
        pairs: key → tensor; a container may add to them.
        deltas: as they are written.
        alphas: those that are stated, the rank where none is.
        dtype: requested float type, None for the type of each tensor.
        components: key → component; a container that adds to the pairs adds to it.
    """

    adapter: Adapter
    dialect: Dialect
    pairs: dict[str, Tensor]
    deltas: Mapping[Site, Delta]
    alphas: Set[float]
    dtype: str | None
    components: dict[str, str]


class Container:
    """A plain safetensors file. Others override parts of it."""

    def complete(self, content: Unwritten) -> None:
        """Add tensors without which the container cannot be read."""

    def metadata(self, content: Unwritten, kept: Mapping[str, str]) -> dict[str, str]:
        """Return entries of the header.

        Args:
            kept: those that stay as they were.
        """
        return {}

    def configurations(self, content: Unwritten) -> dict[str, dict[str, Any]]:
        """Return the configurations to write beside the tensors, by component."""
        return {}

    def write(self, encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
        """Write atomically and return the bytes written."""
        if place.suffix == ".pt":
            raise FormatError(
                "only lora_diffusion lists are written as .pt",
                file=place,
                hint="give the output a name that ends in .safetensors",
            )
        return write_tensors(
            place, encoded.tensors, encoded.metadata, force=force, check=check, late=encoded.late
        )
