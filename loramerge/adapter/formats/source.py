"""The tensors of an adapter's file or files, with their metadata and configuration."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

from loramerge.files.tensors import Tensor
from loramerge.records import record

__all__ = ["AdapterSource"]


@record(eq=False, frozen=False)
class AdapterSource:
    """Named tensors, the header's strings, and PEFT configurations by component.

    Args:
        files: every file read, for digests.
        paths: stem → the name that a configuration has for it, where that is not the module's.
        translated: the program whose own format was read as a dialect's; None for files of a dialect.
        model: the model in words, where the file itself names one that is not of a family.
        llama_cpp: see `info.Info`.
        numbers: key → value of alphas and scales that were read already, all together.
    """

    path: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    translated: str | None = None
    model: str | None = None
    llama_cpp: dict[str, str | int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.stat().st_size for file in self.files)
