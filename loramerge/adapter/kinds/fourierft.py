"""FourierFT: a few entries of the weight's spectrum, at random places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import ComputedWhole, flat, number, require, suffixes
from loramerge.adapter.kinds.bases.draws import first_of_permutation
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "FourierFT"]

_ROLE = "fourierft_spectrum"


@final
@record(eq=False)
class FourierFT(ComputedWhole):
    """`ΔW = scale · Re(F⁻¹ S)`, S zero but for n entries (Gao et al. 2024; PEFT).

    Args:
        parts: `spectrum (n,)`.
        seed: of the places, which are the first n of a permutation of all `out·in`.
    """

    parts: Mapping[str, Tensor]
    scale: float
    seed: int
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "fourierft"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="FOURIERFT")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale, float(self.seed))

    def may_fit(self, shape: tuple[int, ...]) -> bool:
        rows, columns = flat(shape)
        return self.parts[_ROLE].size <= rows * columns

    def whole(self, dtype: str) -> Array:
        import numpy as np

        spectrum = np.zeros(self.flat_shape, dtype)
        count = self.parts[_ROLE].size
        places = first_of_permutation(spectrum.size, count, self.seed)
        spectrum.reshape(-1)[places] = values(self.parts[_ROLE], dtype)
        return times(np.fft.ifft2(spectrum).real.astype(dtype), self.scale)


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(_ROLE)
    require(stored, len(parts[_ROLE].shape) == 1, "FourierFT", "spectrum (n)")
    scale, seed = number(stored, "scaling", 150.0), number(stored, "random_loc_seed", 777)
    delta = FourierFT(parts, scale, int(seed), (0, 0))
    return MadeDelta(delta.of_module(stored.like), (_ROLE,))


KINDS = (
    Kind(
        "fourierft",
        roles=(_ROLE,),
        make=_make,
        suffixes={"peft": suffixes(_ROLE)},
        always=(_ROLE,),
        compared="formula, PEFT",
    ),
)
