"""An adapter spelled in a dialect, ready to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loramerge.dialects import Dialect
from loramerge.files.tensors import Tensor

__all__ = ["Encoded"]


@dataclass
class Encoded:
    """The tensors to write in order, the header's strings, PEFT configurations.

    Args:
        components: key → component, where a configuration of each component is written.
        late: give replacements for entries of `metadata`, of the same lengths, while the tensors are
            written: digests take as long as they do.
    """

    dialect: Dialect
    tensors: list[tuple[str, Tensor]]
    metadata: dict[str, str]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    components: dict[str, str] = field(default_factory=dict)
    late: list[Callable[[], Mapping[str, str]]] = field(default_factory=list)

    def late_entries(self) -> dict[str, str]:
        """Return the entries that take as long as the writing."""
        return {key: value for make in self.late for key, value in make().items()}
