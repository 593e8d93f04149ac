"""SHiRA and Super-Tuning: a few entries of the change, at stored places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import ComputedWhole, flat, number, require, suffixes
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "SHiRA", "SuperTuning"]

_SHIRA = ("shira_weight", "shira_indices")
_SUPER = ("supertuning_values", "supertuning_indices")
_FACTORS = ("supertuning_lora_A", "supertuning_lora_B")


@final
@record(eq=False)
class SHiRA(ComputedWhole):
    """ΔW is zero but for n entries (Bhardwaj et al. 2024; PEFT).

    Args:
        parts: `weight (n,)`, and `indices (2, n)`: rows and columns.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "shira"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="SHIRA")

    def may_fit(self, shape: tuple[int, ...]) -> bool:
        most = self.parts["shira_indices"].numpy().max(axis=1)
        return all(most < flat(shape))

    def whole(self, dtype: str) -> Array:
        import numpy as np

        found = np.zeros(self.flat_shape, dtype)
        rows, columns = self.parts["shira_indices"].numpy()
        np.add.at(found, (rows, columns), values(self.parts["shira_weight"], dtype))
        return found


@final
@record(eq=False)
class SuperTuning(ComputedWhole):
    """`ΔW = S + scale · B A`, S zero but for n entries (PEFT's Super-Tuning).

    Args:
        parts: `values (n,)`; `indices (n,)`, of the flattened weight; and, where it has them, the
            factors `lora_A (r, in)` and `lora_B (out, r)`.
        scale: alpha / r.
    """

    parts: Mapping[str, Tensor]
    scale: float
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "supertuning"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="SUPERTUNING")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale,)

    def may_fit(self, shape: tuple[int, ...]) -> bool:
        rows, columns = flat(shape)
        return int(self.parts["supertuning_indices"].numpy().max()) < rows * columns

    def whole(self, dtype: str) -> Array:
        import numpy as np

        found = np.zeros(self.flat_shape, dtype)
        places = self.parts["supertuning_indices"].numpy()
        np.add.at(found.reshape(-1), places, values(self.parts["supertuning_values"], dtype))
        if _FACTORS[0] in self.parts:
            down, up = (values(self.parts[role], dtype) for role in _FACTORS)
            found += times(up, self.scale) @ down
        return found


def _make_shira(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_SHIRA)
    if len(parts) < 2:
        return None
    entries, places = (parts[role].shape for role in _SHIRA)
    fits = len(entries) == 1 and entries[0] > 0 and places == (2, entries[0])
    require(stored, fits, "SHiRA", "weight (n) and indices (2, n)")
    like = stored.like if stored.like is not None else None
    shape = (0, 0) if like is None else like
    return MadeDelta(SHiRA(parts, shape), _SHIRA)


def _make_super(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_SUPER, *_FACTORS)
    if _SUPER[0] not in parts:
        return None
    if _SUPER[1] not in parts:
        raise UnsupportedKind(
            "the file lacks the places of the entries, which PEFT finds again in the base",
            module=stored.module,
            hint="save it in PEFT with save_precomputed_indices=True",
        )
    entries, places = (parts[role].shape for role in _SUPER)
    factors = [parts[role].shape for role in _FACTORS if role in parts]
    fits = len(entries) == 1 and entries[0] > 0 and places == entries and len(factors) in (0, 2)
    fits = fits and (not factors or len(factors[0]) == len(factors[1]) == 2)
    fits = fits and (not factors or factors[0][0] == factors[1][1] > 0)
    require(
        stored, fits, "Super-Tuning", "values (n), indices (n), lora_A (r, in), lora_B (out, r)"
    )
    scale, shape = 1.0, stored.like or (0, 0)
    if factors:
        scale = number(stored, "lora_alpha", 0.0) / factors[0][0]
        shape = (factors[1][0], factors[0][1])
    return MadeDelta(SuperTuning(parts, scale, shape), tuple(parts))


KINDS = (
    Kind(
        "shira",
        roles=_SHIRA,
        make=_make_shira,
        suffixes={"peft": suffixes(*_SHIRA)},
        always=(_SHIRA[0],),
        integers=(_SHIRA[1],),
        compared="formula, PEFT",
    ),
    Kind(
        "supertuning",
        roles=(*_SUPER, *_FACTORS),
        make=_make_super,
        suffixes={
            "peft": {
                **suffixes(*_SUPER),
                **{role: (f".{role}.weight", f".{role}.default.weight") for role in _FACTORS},
            }
        },
        always=(_SUPER[0],),
        integers=(_SUPER[1],),
        compared="formula, PEFT",
    ),
)
