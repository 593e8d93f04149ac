"""Rows of an embedding that were trained alone: PEFT's `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, AlphaPlace, Content, Delta, Facts, ReadRows
from loramerge.adapter.floats import cast, values
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.adapter.kinds.full import Full
from loramerge.errors import AdapterError, ShapeError
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "TokenRows", "united_rows"]

_ROLE = "token_rows"


@final
@record(eq=False)
class TokenRows(Delta):
    """`W'[i] = W[i] + weight · (value[k] − W[i])` for the k-th token i, and no change elsewhere.

    Args:
        value: `(tokens, dim)`.
        tokens: a row of the embedding for each row of `value`.
    """

    value: Tensor
    tokens: tuple[int, ...]
    shape: tuple[int, ...]
    weight: float = 1.0

    needs_base: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(replaces=True, tied=True)
    kind: ClassVar[str] = "tokens"

    @classmethod
    def of(cls, value: Tensor, tokens: Sequence[int], what: str = "") -> TokenRows:
        """Make the delta of stored rows.

        Raises:
            ShapeError: if there is not one token for each row.
        """
        if len(value.shape) != 2 or len(tokens) != value.shape[0]:
            raise ShapeError(
                "the rows and trainable_token_indices of the configuration do not fit together",
                module=what,
                expected=f"{len(tokens)} rows",
                found=list(value.shape),
            )
        return cls(value, tuple(tokens), (0, value.shape[1]))

    def fits(self, shape: tuple[int, ...]) -> bool:
        inside = not self.tokens or max(self.tokens) < shape[0]
        return len(shape) == 2 and shape[1] == self.shape[1] and inside

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        if base is None:
            raise AdapterError(
                "trained tokens are a difference only against a base",
                hint="bake the adapter, or drop this module",
            )
        change: Array = base.astype(dtype) * 0
        self.row_adder(dtype)(0, len(base), base.astype(dtype), change, False)
        return change

    def content(self) -> Content:
        return Content((self.weight, *self.tokens), (Full.of(self.value, "diff"),))

    def scaled(self, weight: float) -> TokenRows:
        return replace(self, weight=self.weight * weight)

    def stored(self) -> Mapping[str, Tensor]:
        return {_ROLE: self.value}

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        if self.weight != 1.0:
            raise AdapterError(
                "trained tokens cannot be stored at a weight other than 1",
                found=self.weight,
                hint="bake the adapter instead",
            )
        if dtype in (None, self.value.dtype):
            return {_ROLE: self.value}
        return {_ROLE: cast(values(self.value, "float64"), dtype or self.value.dtype, _ROLE)}

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        rows = values(self.value, dtype)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            if fresh:
                out[...] = 0
            for row, token in zip(rows, self.tokens, strict=True):
                if start <= token < stop:
                    out[token - start] += self.weight * (row - base[token - start])

        return add


def united_rows(deltas: Sequence[TokenRows]) -> TokenRows:
    """Return the rows of several deltas of one embedding.

    Raises:
        AdapterError: if two have different rows for one token, or one has a weight other than 1.
    """
    import numpy as np

    rows: dict[int, Array] = {}
    for delta in deltas:
        for token, row in zip(delta.tokens, delta.value.numpy(), strict=True):
            if delta.weight != 1.0 or not np.array_equal(rows.setdefault(token, row), row):
                raise AdapterError(
                    "rows of one token can be mixed only if they are equal, all at weight 1",
                    found=f"token {token}, weight {delta.weight:g}",
                    hint="bake the adapters one after the other, or drop this module from one of them",
                )
    same = {delta.value.dtype for delta in deltas}
    stacked = np.stack(list(rows.values()))
    value = ArrayTensor(stacked if len(same) == 1 else stacked.astype("float32"))
    return TokenRows.of(value, list(rows))


def _tokens_of(stored: Stored) -> list[int]:
    """Return the rows that a configuration names for a module."""
    found = stored.config.get("trainable_token_indices", stored.config.get("token_indices"))
    if isinstance(found, Mapping):
        path = stored.path
        names = (name for name in found if path == name or path.endswith(f".{name}"))
        found = found.get(next(names, ""))
    if not isinstance(found, list) or not all(type(i) is int and i >= 0 for i in found):
        raise ShapeError(
            "the configuration does not say which tokens were trained",
            module=stored.module,
            expected="trainable_token_indices: whole numbers from 0",
        )
    return found


def _make(stored: Stored) -> MadeDelta | None:
    value = stored.tensors.get(_ROLE)
    if value is None:
        return None
    delta = TokenRows.of(value, _tokens_of(stored), stored.module)
    return MadeDelta(delta, (_ROLE,))


KINDS = (
    Kind(
        "tokens",
        roles=(_ROLE,),
        make=_make,
        suffixes={
            "peft-lora": {
                _ROLE: (".token_adapter.trainable_tokens_delta", ".trainable_tokens_delta")
            }
        },
        always=(_ROLE,),
        compared="PEFT",
    ),
)
