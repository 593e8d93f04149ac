"""The edits of a bake: which rows of which tensors change, and by which deltas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loramerge.adapter import Delta, Site
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.composed import Composed
from loramerge.checkpoint.conversion import Conversion
from loramerge.files.dtypes import DTYPES
from loramerge.stream.reading import Stretch

__all__ = ["BakePlan", "Edit"]


@dataclass(frozen=True)
class Edit:
    """A change of one module's rows of one tensor: the weighted deltas of all adapters.

    Args:
        site: the module, alone.
        offsets: for each delta, the row at which the module's begin (0 except for fused deltas).
        stretches: for each delta, where the weight it lies on is stored.
    """

    site: Site
    place: Place
    deltas: tuple[Delta, ...]
    offsets: tuple[int, ...]
    stretches: tuple[tuple[Stretch, ...], ...]


@dataclass
class BakePlan:
    """The changes that a bake makes, tensor by tensor; made from headers alone.

    Args:
        edits: tensor → its edits, by file.
        skipped: names of adapter modules that the base lacks and that may be skipped.
        dtype: safetensors name of the type for all floating tensors, or None to keep theirs.
        notes: messages about files that change their form.
        config: fields of a language model's configuration that change.
        warnings: messages about weights of adapters that differ from the base's.
        wider: safetensors name of the type of tensors that change and are stored in a narrower one,
            or None to keep theirs.
        onto: way to move changes onto the numbers that the storage holds, see `moved_onto`; nothing
            rounds the sums.
        conversion: the forms that tensors get in another storage.
    """

    checkpoint: Checkpoint
    edits: dict[CheckpointFile, dict[str, list[Edit]]]
    skipped: list[str]
    dtype: str | None = None
    notes: list[str] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    wider: str | None = None
    conversion: Conversion | None = None
    onto: str = ""

    def all_edits(self) -> Iterator[tuple[CheckpointFile, str, Edit]]:
        """Yield every edit with its file and the name of its tensor."""
        for file, tensors in self.edits.items():
            for name, edits in tensors.items():
                yield from ((file, name, edit) for edit in edits)

    @property
    def modules(self) -> list[str]:
        """Names of all sites that change, each once."""
        return list(dict.fromkeys(edit.site.name for *_, edit in self.all_edits()))

    @property
    def dtypes(self) -> list[str]:
        """Types of the tensors that change, as users name them, after the bake."""
        return sorted({self.written(*one) for one in self.all_edits()})

    def written(self, file: CheckpointFile, name: str, edit: Edit) -> str:
        """Return the type in which a tensor that changes is written, as users name it."""
        tensor = edit.place.tensor
        if isinstance(tensor, Composed):
            return DTYPES[tensor.written].word
        old, dtype = DTYPES[tensor.dtype], tensor.dtype
        if self.wider is not None and old.bits < DTYPES[self.wider].bits * old.elements:
            return DTYPES[self.wider].word
        anew = {} if self.conversion is None else self.conversion.forms.get(file, {})
        return anew[name].name if name in anew else DTYPES[self.dtype or dtype].word

    @property
    def tensors(self) -> int:
        """Number of tensors that change."""
        return sum(len(tensors) for tensors in self.edits.values())
