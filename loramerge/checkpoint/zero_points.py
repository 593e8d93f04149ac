"""The 4-bit weights of modulations in files of nunchaku: `weight = code · scale + zero point`.

A scale and a zero point belong to 64 inputs of an output. The codes of 4 outputs are stored together,
and outputs may alternate among modulations.

Source: nunchaku, `AWQW4A16Linear` and `gemv_awq.cu`; deepcompressor's conversion to `w4x16`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from loramerge.checkpoint.storage import Array, Codec
from loramerge.checkpoint.vectors import apart, together
from loramerge.errors import FormatError
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import Tensor

__all__ = ["ZeroPointTensor", "codes_apart", "codes_together"]

_TOGETHER, _DEPTH, _MOST = 4, 64, 15


def codes_apart(stored: Array, columns: int) -> Array:
    """Return stored codes, `(outputs, columns)` of one byte each."""
    import numpy as np

    words = stored.reshape(-1).view(np.uint16).reshape(-1, columns // _DEPTH, _TOGETHER, 2, 8)
    shifts = np.arange(0, 16, 4, dtype=np.uint16)
    codes = ((words[..., None] >> shifts) & np.uint16(15)).astype(np.uint8)
    return codes.transpose(0, 2, 1, 3, 5, 4).reshape(-1, columns)


def codes_together(codes: Array) -> Array:
    """Return codes as they are stored, in words of 16 bits; the inverse of `codes_apart`."""
    import numpy as np

    columns = codes.shape[1]
    wide = codes.reshape(-1, _TOGETHER, columns // _DEPTH, 2, 4, 8).transpose(0, 2, 1, 3, 5, 4)
    shifts = np.arange(0, 16, 4, dtype=np.uint16)
    found: Array = (wide.astype(np.uint16) << shifts).sum(axis=-1, dtype=np.uint16)
    return found


@dataclass(frozen=True)
class ZeroPointTensor:
    """A weight with zero points.

    Args:
        stem: the beginning of the names of its tensors.
        sources: codes, scales and zero points.
        splits: number of modulations among which outputs alternate.
    """

    stem: str
    sources: tuple[Tensor, Tensor, Tensor]
    splits: int
    marks: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], stem: str, splits: int) -> ZeroPointTensor:
        """Return the weight of a stem.

        Raises:
            FormatError: if its tensors do not fit each other.
        """
        codes, scales, zeros = (
            tensors.get(stem + end) for end in (".qweight", ".wscales", ".wzeros")
        )
        fits = (
            codes is not None and scales is not None and zeros is not None
            and codes.dtype == "I32" and len(codes.shape) == 2
            and scales.shape == zeros.shape == (codes.shape[1] * 2 // _DEPTH, codes.shape[0] * 4)
            and codes.shape[1] * 2 % _DEPTH == 0
            and codes.shape[0] * 4 % splits == 0
            and scales.dtype == zeros.dtype and scales.dtype in ("BF16", "F16")
        )  # fmt: skip
        if not fits or codes is None or scales is None or zeros is None:
            raise FormatError(
                "the tensors of this 4-bit layer with zero points do not fit each other",
                module=stem,
                expected=f"codes of int32, and scales and zero points for each {_DEPTH} inputs",
                found=", ".join(
                    f"{one.dtype} {list(one.shape)}" if one is not None else "none"
                    for one in (codes, scales, zeros)
                ),
            )
        return cls(stem, (codes, scales, zeros), splits)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        rows, columns = self.sources[0].shape
        return rows * _TOGETHER, columns * 2

    @property
    def beside(self) -> tuple[str, ...]:
        """Scales and zero points are written together with the codes."""
        return self.stem + ".wscales", self.stem + ".wzeros"

    @property
    def nbytes(self) -> int:
        """Bytes of these."""
        return self.sources[1].nbytes + self.sources[2].nbytes

    @property
    def packing(self) -> ZeroPointRows:
        """The reader and writer of rows."""
        return ZeroPointRows(self)

    def dequantise(self, rows: Array, start: int) -> Array:
        """Refuse: there are no stored numbers of single weights."""
        raise TypeError("packed weights are read by their packing")

    def codec(self, dtype: str) -> Codec:
        """Refuse: there are no stored numbers of single weights."""
        raise TypeError("packed weights are written by their packing")


class ZeroPointRows:
    """The rows of such a weight; all are written when the last is known."""

    unit = 1
    scattered = True

    def __init__(self, held: ZeroPointTensor) -> None:
        self._held = held

    @cached_property
    def _codes(self) -> Array:
        """The codes in the order of the model, as they are now."""
        stored = self._held.sources[0].numpy()
        return apart(codes_apart(stored, self._held.shape[1]), self._held.splits)

    @cached_property
    def _numbers(self) -> list[Array]:
        """Scales and zero points as they are now, `(outputs, groups)`."""
        return [apart(t.numpy().T, self._held.splits).copy() for t in self._held.sources[1:]]

    def place(self, start: int) -> int:
        """Return 0: the rows do not lie in this order."""
        return 0

    def raw(self, start: int, stop: int) -> Array:
        """Return codes of one byte each."""
        return self._codes[start:stop]

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of codes, with the scales that they have now."""
        import numpy as np

        scales, zeros = (
            one[start : start + len(raw)].astype(np.float32)[..., None] for one in self._numbers
        )
        found: Array = self._grouped(raw).astype(np.float32) * scales + zeros
        return found.reshape(len(raw), -1)

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return codes after a change; scales and zero points are kept for `beside`.

        Each changed group keeps them, or gets those of its smallest and largest number, whichever is
        nearer.
        """
        import numpy as np

        moved = self._grouped(change).any(axis=2)
        if not moved.any():
            return raw
        new = self._grouped((weights + change).astype(np.float32, copy=False))[moved]
        mine = [one[start : start + len(raw)] for one in self._numbers]
        kept = [one[moved] for one in mine]
        low, high = new.min(axis=1), new.max(axis=1)
        kind = numpy_dtype(self._held.sources[1].dtype)
        fresh = [((high - low) / _MOST).astype(kind), low.astype(kind)]
        codes, error = _coded(new, kept[0], kept[1], draw)
        others, other = _coded(new, fresh[0], fresh[1], draw)
        better = other < error
        grouped = self._grouped(raw).copy()
        grouped[moved] = np.where(better[:, None], others, codes)
        for one, before, after in zip(mine, kept, fresh, strict=True):
            one[moved] = np.where(better, after, before)
        found = grouped.reshape(raw.shape)
        self._codes[start : start + len(raw)] = found
        return found

    def _grouped(self, values: Array) -> Array:
        return values.reshape(len(values), -1, _DEPTH)

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of codes, scales and zero points."""
        splits, (scales, zeros) = self._held.splits, self._held.beside
        numbers = [together(one, splits).T.tobytes() for one in self._numbers]
        codes = codes_together(together(self._codes, splits)).tobytes()
        return {self._held.stem + ".qweight": codes, scales: numbers[0], zeros: numbers[1]}

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows."""
        return self.unpack(self.raw(start, stop), start)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each weight of any rows."""
        import numpy as np

        scales = np.abs(self._numbers[0][start:stop].astype(np.float32))
        return np.repeat(scales, _DEPTH, axis=1)


def _coded(values: Array, scales: Array, zeros: Array, draw: Any) -> tuple[Array, Array]:
    """Return the codes of groups at some scales and zero points, and their squared errors.

    Errors of random rounding are those of what lies outside the range, so that they choose nothing.
    """
    import numpy as np

    step, zero = (one.astype(np.float32)[:, None] for one in (scales, zeros))
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.where(step == 0, np.float32(0), (values - zero) / step)
    inside = np.clip(exact, 0, _MOST)
    codes = np.rint(inside) if draw is None else np.floor(inside + draw(inside.shape))
    codes = np.clip(codes, 0, _MOST)
    back = (codes if draw is None else inside) * step + zero
    return codes.astype(np.uint8), ((back - values) ** 2).sum(axis=1)
