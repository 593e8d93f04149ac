"""The quantised forms of ComfyUI: a weight, the tensors of its scales, and a mark with its form."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from loramerge.checkpoint.comfy import MARK
from loramerge.checkpoint.storage import Writer

__all__ = ["MarkedEncoding"]

_ALIGNED = 8  # bytes to which marks are filled up, so that what follows is aligned

Entry = tuple[str, str, tuple[int, ...]]


class MarkedEncoding(ABC):
    """A form of ComfyUI, for matrices.

    Args:
        name: the word that users type.
    """

    suffix = ".safetensors"
    dtype: ClassVar[None] = None
    shares = True

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _named, (self.name,)

    @abstractmethod
    def settings(self, shape: tuple[int, ...]) -> Mapping[str, Any]:
        """Return what the mark says of a weight."""

    @abstractmethod
    def stored(self, stem: str, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        """Return (name, type, shape) of the weight's tensor and of those of its scales."""

    @abstractmethod
    def writing(self, stem: str, shape: tuple[int, ...], marks: Mapping[str, bytes]) -> Writer:
        """Return the writer of one weight."""

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of a shape can be stored so."""
        return len(shape) == 2

    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        """Return (name, type, shape) of the tensors that store a weight, its own first."""
        stem = name.removesuffix(".weight")
        return (*self.stored(stem, name, shape), (stem + MARK, "U8", (len(self._mark(shape)),)))

    def writer(self, name: str, shape: tuple[int, ...]) -> Writer:
        """Return the writer of one weight."""
        stem = name.removesuffix(".weight")
        return self.writing(stem, shape, {stem + MARK: self._mark(shape)})

    def _mark(self, shape: tuple[int, ...]) -> bytes:
        raw = json.dumps(self.settings(shape)).encode()
        return raw + b" " * (-len(raw) % _ALIGNED)


def _named(name: str) -> Any:
    """Return a form by its name, in another process."""
    from loramerge.checkpoint.storages import encodings

    return encodings()[name]
