"""WaveFT: a few wavelet coefficients of the change, at random places."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import comb
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import ComputedWhole, flat, number, require, suffixes
from loramerge.adapter.kinds.bases.draws import first_of_permutation
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "WaveFT"]

_ROLE = "waveft_spectrum"
_MOST = 10  # Daubechies' filters of more moments lose digits when they are computed


@final
@record(eq=False)
class WaveFT(ComputedWhole):
    """`ΔW = scale · T C`, C zero but for n entries, T one step of the inverse wavelet transform of both
    axes, or nothing (PEFT).

    Args:
        parts: `spectrum (n,)`.
        seed: of the places, which are the first n of a permutation of all `out·in`.
        moments: N of Daubechies' wavelet `dbN`; 0 if the entries of C are those of ΔW.
    """

    parts: Mapping[str, Tensor]
    scale: float
    seed: int
    moments: int
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "waveft"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="WAVEFT")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale, float(self.seed), float(self.moments))

    def may_fit(self, shape: tuple[int, ...]) -> bool:
        rows, columns = flat(shape)
        return self.parts[_ROLE].size <= rows * columns

    def whole(self, dtype: str) -> Array:
        import numpy as np

        rows, columns = self.flat_shape
        spectrum = values(self.parts[_ROLE], dtype)
        places = first_of_permutation(rows * columns, spectrum.size, self.seed)
        # the transform cuts 2N − 2 from either axis, so zeros are put around the entries
        around = [_padded(size, max(0, 2 * self.moments - 2)) for size in (rows, columns)]
        begin = [(wide - size) // 2 for wide, size in zip(around, (rows, columns), strict=True)]
        found = np.zeros(around, dtype)
        found[places // columns + begin[0], places % columns + begin[1]] = spectrum
        if self.moments:
            _exchange(found)
            for _ in range(2):
                found = _synthesised(found, self.moments).T
            first, second = (found.shape[0] - rows) // 2, (found.shape[1] - columns) // 2
            found = found[first : first + rows, second : second + columns]
        return times(found, self.scale)


def _padded(size: int, more: int) -> int:
    return size + more + (size + more) % 2 if more else size


def _exchange(coefficients: Array) -> None:
    """Exchange the quarters that PEFT takes for the other axis' details, in place."""
    half, width = coefficients.shape[0] // 2, coefficients.shape[1] // 2
    right = coefficients[:half, width:].copy()
    coefficients[:half, width:] = coefficients[half:, :width]
    coefficients[half:, :width] = right


def _synthesised(coefficients: Array, moments: int) -> Array:
    """Return the inverse transform of the first axis: its first half is smooth, the second detail."""
    import numpy as np

    low = _daubechies(moments).astype(coefficients.dtype)
    high = low[::-1] * (-1.0) ** np.arange(len(low), dtype=coefficients.dtype)
    half, taps = len(coefficients) // 2, len(low)
    found = np.zeros((2 * half - 2 + taps, *coefficients.shape[1:]), coefficients.dtype)
    for tap in range(taps):
        stop = tap + 2 * half - 1
        found[tap:stop:2] += low[tap] * coefficients[:half] + high[tap] * coefficients[half:]
    cut = (2 * taps - 3) // 2
    return found[cut : len(found) - cut]


def _daubechies(moments: int) -> Array:
    """Return the filter of 2N taps with N vanishing moments and the least delay (Daubechies 1988)."""
    import numpy as np

    # P(y) = Σ C(N−1+k, k) yᵏ with y = (2 − z − 1/z) / 4; of each pair of roots the one inside the circle
    inside: Any = [1.0 + 0j]
    for y in np.roots([comb(moments - 1 + k, k) for k in reversed(range(moments))]):
        pair = np.roots([1.0, 4.0 * y - 2.0, 1.0])
        inside = np.convolve(inside, [1.0, -pair[np.argmin(abs(pair))]])
    for _ in range(moments):
        inside = np.convolve(inside, [1.0, 1.0])
    real: Array = np.real(inside)
    taps: Array = real * (np.sqrt(2.0) / real.sum())
    return taps


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(_ROLE)
    require(stored, len(parts[_ROLE].shape) == 1, "WaveFT", "spectrum (n)")
    scale, seed = number(stored, "scaling", 25.0), number(stored, "random_loc_seed", 777)
    delta = WaveFT(parts, scale, int(seed), _moments(stored), (0, 0))
    return MadeDelta(delta.of_module(stored.like), (_ROLE,))


def _moments(stored: Stored) -> int:
    """Return the moments of the wavelet that a configuration names.

    Raises:
        UnsupportedKind: if it is none of Daubechies'.
    """
    if stored.config.get("use_idwt", True) is False:
        return 0
    name = str(stored.config.get("wavelet_family", "db1"))
    found = re.fullmatch(r"db(\d\d?)", name)
    if found is None or not 0 < int(found[1]) <= _MOST:
        raise UnsupportedKind(
            f"WaveFT with the wavelet {name[:20]!r} is not computed",
            module=stored.module,
            expected=f"wavelet_family db1 to db{_MOST}",
            hint="merge it in PEFT with merge_and_unload()",
        )
    return int(found[1])


KINDS = (
    Kind(
        "waveft",
        roles=(_ROLE,),
        make=_make,
        suffixes={"peft": suffixes(_ROLE)},
        always=(_ROLE,),
        compared="formula, PEFT",
    ),
)
