"""RoAd: pairs of outputs, rotated and scaled; the bias with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AlphaPlace, Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import OfBase, number, require, suffixes
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "RoAd"]

_ROLES = ("road_theta", "road_alpha")
_SIZES = {"road_1": (1, 2), "road_2": (1, 1), "road_4": (2, 1)}  # numbers for so many outputs


@final
@record(eq=False)
class RoAd(OfBase):
    """`W'ᵢ = cᵢ Wᵢ ∓ sᵢ Wⱼ`, j the partner of output i in the other half of its group (Liao and
    Monz 2024; PEFT), and the same of the bias. c = α cos θ, s = α sin θ; the first half of a group
    subtracts.

    Args:
        parts: `theta` and `alpha`, of `out/2` numbers (`road_1`: partners share them), `out`
            (`road_2`), or `2·out` (`road_4`: those of c, then those of s, group by group).
        variant: one of these.
        group: outputs of a group.
        companion: the change of the bias; it is written with the weight, not for itself.
    """

    parts: Mapping[str, Tensor]
    variant: str
    group: int
    shape: tuple[int, ...]
    weight: float = 1.0
    companion: bool = False

    kind: ClassVar[str] = "road"

    @property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(weighs=False, optional=self.companion, peft_type="ROAD")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (float(list(_SIZES).index(self.variant)), float(self.group))

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        numbers, rows = _SIZES[self.variant]
        return self.parts["road_theta"].size * rows // numbers

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[0] == self.outputs

    def stored(self) -> Mapping[str, Tensor]:
        return {} if self.companion else self.parts

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        return {} if self.companion else super().encoded(dtype, alpha=alpha)

    def _turns(self) -> tuple[Array, Array]:
        """Return c and ∓s of every output, in float64."""
        import numpy as np

        theta, alpha = (values(self.parts[role], "float64").reshape(-1) for role in _ROLES)
        half = self.group // 2
        if self.variant == "road_1":
            theta, alpha = (
                v.reshape(-1, half).repeat(2, axis=0).reshape(-1) for v in (theta, alpha)
            )
        if self.variant == "road_4":
            t, a = (v.reshape(-1, 2, self.group) for v in (theta, alpha))
            cosine = (a[:, 0] * np.cos(t[:, 0])).reshape(-1)
            sine = (a[:, 1] * np.sin(t[:, 1])).reshape(-1)
        else:
            cosine, sine = alpha * np.cos(theta), alpha * np.sin(theta)
        signs = np.where(np.arange(len(sine)) % self.group < half, -1.0, 1.0)
        return cosine, sine * signs

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        cosine, sine = self._turns()
        own = times(cosine - 1.0, self.weight).astype(dtype)[:, None]
        other = times(sine, self.weight).astype(dtype)[:, None]
        half = self.group // 2

        def change(start: int, stop: int, base: Any) -> Any:
            rows = np.arange(start, stop)
            partners = np.where(rows % self.group < half, rows + half, rows - half)
            first, last = int(partners.min()), int(partners.max()) + 1
            beside = read(first, last)[partners - first]
            return own[start:stop] * base + other[start:stop] * beside

        return change


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if len(parts) < 2:
        return None
    variant = str(stored.config.get("variant", "road_1"))
    group = int(number(stored, "group_size", 64))
    theta, alpha = (parts[role].shape for role in _ROLES)
    fits = variant in _SIZES and len(theta) == 1 and theta == alpha and theta[0] > 0
    fits = fits and group > 0 and group % 2 == 0
    delta = RoAd(parts, variant, group, (0, 0))
    fits = fits and delta.outputs % group == 0
    require(stored, fits, "RoAd", "theta and alpha of the same size, for groups of an even size")
    shape = shape_like((delta.outputs, 0), stored.like)
    return MadeDelta(RoAd(parts, variant, group, shape), _ROLES)


def _make_bias(stored: Stored, weight: MadeDelta | None) -> MadeDelta | None:
    delta = None if weight is None else weight.delta
    if not isinstance(delta, RoAd):
        return None
    bias = RoAd(delta.parts, delta.variant, delta.group, (delta.outputs,), companion=True)
    return MadeDelta(bias, ())


KINDS = (
    Kind(
        "road",
        roles=_ROLES,
        make=_make,
        make_bias=_make_bias,
        suffixes={"peft": suffixes(*_ROLES)},
        always=(_ROLES[0],),
        compared="formula, PEFT",
    ),
)
