"""OFT of layers in parts: rows that the checkpoint stores as one, with rotations of their own.

sd-scripts trains fused layers of Flux.1 (`qkv`, `linear1`) so, and others as layers of one part.

Source: sd-scripts 48d368fa, `networks/oft_flux.py` (`OFTModule.get_weight` and `forward`), by its
meaning; its `merge_to` fails on fused layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, final

from loramerge.adapter.delta import AlphaPlace, Facts, ReadRows
from loramerge.adapter.kinds.bases.dependent import ChangeRows, Dependent
from loramerge.adapter.kinds.bases.rotation import encoded_parts
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.adapter.kinds.oft import OFT
from loramerge.files.tensors import Tensor

__all__ = ["KINDS", "OFTInParts"]

_ROLES = tuple(f"oft_blocks_{number}" for number in range(4))  # as many parts as any layer has


@final
@dataclass(frozen=True, eq=False)
class OFTInParts(Dependent):
    """`W' = (R₀ᵀ W₀; R₁ᵀ W₁; …)`, each part of the rows rotated as by an `OFT` of its own.

    Args:
        rotated: the parts, one below the other; alpha, the constraint, is of each.
    """

    rotated: tuple[OFT, ...]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "oft"
    facts: ClassVar[Facts] = Facts(weighs=False, constrained=True)

    @classmethod
    def of(
        cls, parts: Mapping[str, Tensor], like: tuple[int, ...] | None = None, what: str = ""
    ) -> OFTInParts:
        """Make the delta of stored blocks, `oft_blocks_N (n, b_N, b_N)`, and `alpha`.

        Raises:
            ShapeError: if they do not fit together.
        """
        alpha = {"alpha": parts["alpha"]} if "alpha" in parts else {}
        blocks = (parts[role] for role in _ROLES if role in parts)
        rotated = tuple(OFT.of({"oft_blocks": one, **alpha}, None, what) for one in blocks)
        return cls(rotated, shape_like((sum(part.outputs for part in rotated), 0), like))

    @property
    def form(self) -> str:
        return f"{self.kind} in parts"

    @property
    def alpha(self) -> float | None:
        return self.rotated[0].alpha

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.alpha or 0.0,)

    @property
    def bounds(self) -> tuple[int, ...]:
        """The first row of each part, and the end."""
        return (0, *accumulate(part.outputs for part in self.rotated))

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[0] == self.bounds[-1]

    def scaled(self, weight: float) -> OFTInParts:
        return replace(self, weight=self.weight * weight)

    def stored(self) -> Mapping[str, Tensor]:
        blocks = (part.parts["oft_blocks"] for part in self.rotated)
        return dict(zip(_ROLES, blocks, strict=False))

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        self.require_whole()
        first = self.rotated[0].parts
        stated = {"alpha": first["alpha"]} if "alpha" in first else {}
        return encoded_parts({**self.stored(), **stated}, dtype)

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        parts = zip(self.rotated, pairwise(self.bounds), strict=True)
        cuts = ((p, [b - first for b in bounds if first < b < last]) for p, (first, last) in parts)
        return all(not inside or part.splits_exactly(inside) for part, inside in cuts)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> OFT | OFTInParts:
        if len(self.rotated) == 1:  # whose blocks may change places, constrained or not
            cut: tuple[OFT, ...] = (self.rotated[0].rows(ranges),)
        else:
            cut = tuple(piece for pair in ranges for piece in self._cut(*pair))
            if len(cut) == 1:
                return cut[0].scaled(self.weight)
        if len(cut) > len(_ROLES):
            super().rows(ranges)  # refuses
        height = sum(part.outputs for part in cut)
        return replace(self, rotated=cut, shape=(height, *self.shape[1:]))

    def _cut(self, start: int, stop: int) -> Iterator[OFT]:
        """Yield the parts of some rows."""
        for part, (first, last) in zip(self.rotated, pairwise(self.bounds), strict=True):
            low, high = max(start, first), min(stop, last)
            if low < high:
                yield part.rows(((low - first, high - first),))

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        def rows_from(first: int) -> ReadRows:
            return lambda start, stop: read(first + start, first + stop)

        changes = [
            (first, last, part.scaled(self.weight).changer(dtype, rows_from(first)))
            for part, (first, last) in zip(self.rotated, pairwise(self.bounds), strict=True)
        ]

        def change(start: int, stop: int, base: Any) -> Any:
            found = []
            for first, last, change_part in changes:
                low, high = max(start, first), min(stop, last)
                if low < high:
                    rows = base[low - start : high - start]
                    found.append(change_part(low - first, high - first, rows))
            return np.concatenate(found)

        return change


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES, "alpha")
    blocks = [role for role in parts if role != "alpha"]
    if not blocks or blocks != list(_ROLES[: len(blocks)]):
        return None
    return MadeDelta(OFTInParts.of(parts, stored.like, stored.module), tuple(parts))


KINDS = (
    Kind(
        "oft-in-parts",
        roles=_ROLES,
        make=_make,
        suffixes={"lycoris": {role: (f".oft_blocks.{role[-1]}",) for role in _ROLES}},
        always=_ROLES[:1],
        example=dict.fromkeys(_ROLES[:2], (4, 2, 2)),
        compared="formula, sd-scripts",
    ),
)
