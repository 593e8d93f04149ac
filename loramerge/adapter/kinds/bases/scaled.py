"""Deltas with one scale before everything."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Self
from typing import cast as cast_type

from loramerge.adapter.delta import AlphaPlace, Content, Delta
from loramerge.adapter.kinds.bases.scale import Scale, encoded_scale, scaled_tensor
from loramerge.files.tensors import Tensor

__all__ = ["Scaled"]


class Scaled(Delta):
    """A delta with one scale before everything; abstract.

    A final class adds its fields, what it computes, and `carriers`: the roles that take in what
    alpha cannot.
    """

    scale: Scale

    @property
    def core(self) -> Scaled | None:
        return self

    @property
    def dim(self) -> int | None:
        """The rank as the file counts it: the inner size of its factors."""
        return self.rank

    @property
    def alpha(self) -> float | None:
        return self.scale.alpha

    @property
    def scale_dim(self) -> int | None:
        """The number alpha is divided by; None where alpha does not count."""
        return self.dim

    @property
    def factor(self) -> float:
        """The number everything is multiplied by."""
        return self.scale.value(self.scale_dim)

    def content(self) -> Content:
        return Content((self.factor,))

    @property
    def carriers(self) -> tuple[str, ...]:
        """The roles to multiply so that ΔW is multiplied; factors have a way of their own."""
        raise NotImplementedError

    def _replaced(self, **fields: Any) -> Self:
        changed: Self = replace(cast_type(Any, self), **fields)
        return changed

    def scaled(self, weight: float) -> Self:
        return self._replaced(scale=self.scale._replace(weight=self.scale.weight * weight))

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        scale, dim, factor = self.scale, self.scale_dim, self.factor
        if alpha == "apart":
            return self._written(math.copysign(1.0, factor), dtype)
        beside: dict[str, Tensor] = scale.beside if alpha == "beside" else {}
        if alpha == "beside" and scale.unchanged:
            factor = 1.0
        elif alpha == "beside" and dim is not None:
            factor, tensor = encoded_scale(scale, dim, alpha=True)
            beside = {} if tensor is None else {"alpha": tensor}
        else:
            beside.pop("scale", None)
        return self._written(factor, dtype) | beside

    def _written(self, factor: float, dtype: str | None) -> dict[str, Tensor]:
        """Return the tensors to write, times a factor."""
        return {
            role: scaled_tensor(tensor, factor if role in self.carriers else 1.0, dtype, role)
            for role, tensor in self.stored().items()
        }
