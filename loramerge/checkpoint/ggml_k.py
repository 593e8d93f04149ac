"""The K types of ggml: super-blocks of 256 weights in groups whose scales are quantised, too.

Source: `quants.py` of the gguf package, with which the weights agree bit for bit. That package cannot
make such blocks. Here a changed block keeps its scales and gets the nearest codes, or gets new scales
from the extremes of its groups, whichever is nearer to the new weights.
"""

from __future__ import annotations

from typing import Any

from loramerge.checkpoint.ggml import BlockType, Grid
from loramerge.checkpoint.ggml_arrays import apart, high_bits, joined, largest_of, smallest_of
from loramerge.checkpoint.storage import Array

__all__ = ["K_TYPES"]

_ALL = 256


class _KType(BlockType):
    """A K type.

    Args:
        groups: of a super-block.
        low, high: limits of codes.
        scales: limits of the integer scales; minimum: whether groups have a minimum.
    """

    def __init__(
        self,
        name: str,
        groups: int,
        codes: tuple[int, int],
        scales: tuple[int, int],
        *,
        minimum: bool,
    ) -> None:
        super().__init__(name)
        self.groups, self.minimum = groups, minimum
        self.low, self.high = codes
        self.least, self.most = scales

    def codes(self, blocks: Array) -> Array:
        """Return the codes of blocks, `(blocks, weights)`."""
        raise NotImplementedError

    def scales(self, blocks: Array) -> tuple[Array, Array, Array | None, Array | None]:
        """Return the scale of blocks, the integer scales of groups, and those of the minima."""
        raise NotImplementedError

    def write(
        self, codes: Array, scale: Array, scales: Array, least: Array | None, minima: Array | None
    ) -> Array:
        """Return the blocks of what `codes` and `scales` return."""
        raise NotImplementedError

    def grid(self, blocks: Array) -> Grid:
        return self._grid(self.codes(blocks), *self.scales(blocks))

    def _grid(
        self, codes: Array, scale: Array, scales: Array, least: Array | None, minima: Array | None
    ) -> Grid:
        import numpy as np

        shape = (len(codes), self.groups)
        step = (scale * scales.astype(np.float32))[:, :, None]
        offset = None
        if least is not None and minima is not None:
            offset = -(least * minima.astype(np.float32))[:, :, None]
        return Grid(codes.reshape(*shape, -1).astype(np.float32), step, offset)

    def fresh(self, values: Array, draw: Any = None) -> Array:
        scales = self._scales(values)
        return self.write(self._codes(values, scales, None, draw)[0], *scales)

    def changed(self, blocks: Array, values: Array, draw: Any = None) -> Array:
        return self.write(*self._nearest(blocks, values, draw))

    def replaced(self, blocks: Array, values: Array, draw: Any = None) -> tuple[Array, Array]:
        found = self._nearest(blocks, values, draw)
        return self.write(*found), self._grid(*found).values()

    def _nearest(self, blocks: Array, values: Array, draw: Any) -> tuple[Any, ...]:
        """Return codes and scales, of each block the old scales or new ones; see `write`."""
        import numpy as np

        kept, scales = self.scales(blocks), self._scales(values)
        codes, error = self._codes(values, kept, blocks, draw)
        other, others = self._codes(values, scales, None, draw)
        nearer = np.flatnonzero(others < error)
        codes[nearer] = other[nearer]
        for old, new in zip(kept, scales, strict=True):
            if old is not None:
                old[nearer] = new[nearer]
        return codes, *kept

    def _codes(
        self, values: Array, scales: tuple[Any, ...], before: Array | None, draw: Any
    ) -> tuple[Array, Array]:
        """Return the codes nearest to weights, `(blocks, weights)`, and their squared errors.

        Errors of random rounding are those of what lies outside the range, so that they choose nothing.

        Args:
            before: blocks whose codes stay where a group has no scale.
        """
        import numpy as np

        scale, whole, least, minima = scales
        step = (scale * whole.astype(np.float32))[:, :, None]
        groups = values.reshape(len(values), self.groups, -1)
        exact = np.empty_like(groups)
        if least is not None:
            offset = least * minima.astype(np.float32)
            groups = np.add(groups, offset[:, :, None], out=exact)
        none = np.nonzero(step[:, :, 0] == 0)
        left = groups[none]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            np.divide(groups, np.where(step == 0, np.float32(1), step), out=exact)
            codes = np.rint(exact) if draw is None else np.floor(exact + draw(exact.shape))
            np.clip(codes, self.low, self.high, out=codes)
            exact -= codes if draw is None else np.clip(exact, self.low, self.high)
            error = np.einsum("bgi,bgi->bg", exact, exact) * step[:, :, 0] ** 2
            if len(left):
                codes[none] = 0 if before is None else self._codes_of(before, *none)
                error[none] = np.einsum("gi,gi->g", left, left)
            error = error.sum(axis=1)
            if not np.isfinite(error).all():
                codes = np.nan_to_num(codes, nan=0)
        return codes.astype(np.int8).reshape(len(values), _ALL), error

    def _codes_of(self, blocks: Array, block: Array, group: Array) -> Array:
        """Return the codes of some groups, `(groups, weights of a group)`."""
        import numpy as np

        some, place = np.unique(block, return_inverse=True)
        codes = self.codes(blocks[some]).reshape(len(some), self.groups, -1)
        found: Array = codes[place, group]
        return found

    def _scales(self, values: Array) -> tuple[Any, ...]:
        """Return scales of groups from their extremes."""
        import numpy as np

        groups = values.reshape(len(values), self.groups, -1)
        top, low = largest_of(groups), smallest_of(groups)
        if not self.minimum:
            step = np.where(-low > top, low, top) / np.float32(self.low)
            scale, scales = self._integers(step)
            return scale, scales, None, None
        low = np.minimum(low, 0)
        scale, scales = self._integers((top - low) / np.float32(self.high))
        least, minima = self._integers(-low)
        return scale, scales, least, minima

    def _integers(self, wanted: Array) -> tuple[Array, Array]:
        """Return a float16 scale for each block, and whole numbers, whose products are near `wanted`."""
        import numpy as np

        limit = self.most if self.least == 0 else self.least
        most = np.abs(wanted).argmax(axis=1)[:, None]
        extreme = np.take_along_axis(wanted, most, axis=1)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            scale = (extreme / np.float32(limit)).astype(np.float16).astype(np.float32)
            whole = np.rint(wanted / scale)
        np.copyto(whole, 0, where=np.isnan(whole))
        np.clip(whole, self.least, self.most, out=whole)
        return scale, whole.astype(np.int8)


def _half(blocks: Array, start: int) -> Array:
    """Return the float16 at a byte of each block, `(blocks, 1)`."""
    import numpy as np

    part = np.ascontiguousarray(blocks[:, start : start + 2])
    return part.view(np.float16).astype(np.float32)


def _raw(scale: Array) -> Array:
    import numpy as np

    with np.errstate(over="ignore"):
        return scale.astype(np.float16).view(np.uint8)


class _Six(_KType):
    """Q6_K: codes of 6 bits, 8-bit scales."""

    def codes(self, blocks: Array) -> Array:
        import numpy as np

        low = apart(blocks[:, :128], 4, 64)
        high = apart(blocks[:, 128:192], 2, 32)
        found: Array = (low | (high << np.uint8(4))).astype(np.int8) - np.int8(32)
        return found

    def scales(self, blocks: Array) -> tuple[Array, Array, Array | None, Array | None]:
        import numpy as np

        scales = blocks[:, 192:208].copy().view(np.int8)
        return _half(blocks, 208), scales, None, None

    def write(
        self, codes: Array, scale: Array, scales: Array, least: Array | None, minima: Array | None
    ) -> Array:
        import numpy as np

        whole = (codes + np.int8(32)).astype(np.uint8)
        low, high = joined(whole & 15, 4, 64), joined(whole >> np.uint8(4), 2, 32)
        return np.concatenate((low, high, scales.view(np.uint8), _raw(scale)), axis=1)


class _FourFive(_KType):
    """Q4_K and Q5_K: codes of 4 or 5 bits, scales and minima of 6 bits."""

    def codes(self, blocks: Array) -> Array:
        import numpy as np

        found: Array = apart(blocks[:, -128:], 4, 32)
        if self.high == 31:
            found |= self._high(blocks[:, 16:48]) << np.uint8(4)
        return found.view(np.int8)

    def scales(self, blocks: Array) -> tuple[Array, Array, Array | None, Array | None]:
        import numpy as np

        # each byte of all blocks together: numpy is fast along long axes
        first, second, both = np.ascontiguousarray(blocks[:, 4:16].T).reshape(3, 4, -1)
        scales = np.concatenate((first & 63, (both & 15) | ((first >> 2) & 48)))
        minima = np.concatenate((second & 63, (both >> 4) | ((second >> 2) & 48)))
        found = [np.ascontiguousarray(one.T).view(np.int8) for one in (scales, minima)]
        return _half(blocks, 0), found[0], _half(blocks, 2), found[1]

    @staticmethod
    def _high(packed: Array) -> Array:
        """Return the fifth bits: of all 32 bytes first the lowest bits, then the next ones."""
        bits = high_bits(packed).reshape(len(packed), 32, 8)
        return bits.transpose(0, 2, 1).reshape(len(packed), _ALL)

    def write(
        self, codes: Array, scale: Array, scales: Array, least: Array | None, minima: Array | None
    ) -> Array:
        import numpy as np

        assert least is not None and minima is not None
        whole = codes.view(np.uint8)
        sc, mn = (np.ascontiguousarray(one.view(np.uint8).T) for one in (scales, minima))
        packed = (
            (sc[:4] & 63) | ((sc[4:] >> 4) << 6),
            (mn[:4] & 63) | ((mn[4:] >> 4) << 6),
            (sc[4:] & 15) | ((mn[4:] & 15) << 4),
        )
        parts = [_raw(scale), _raw(least), np.concatenate(packed).T]
        if self.high == 31:
            bits = (whole >> np.uint8(4)).reshape(len(whole), 8, 32).transpose(0, 2, 1)
            parts.append(np.packbits(bits.reshape(len(whole), _ALL), axis=1, bitorder="little"))
        return np.concatenate((*parts, joined(whole & 15, 4, 32)), axis=1)


class _Two(_KType):
    """Q2_K: codes of 2 bits, scales and minima of 4 bits."""

    def codes(self, blocks: Array) -> Array:
        import numpy as np

        return apart(blocks[:, 16:80], 2, 32).view(np.int8)

    def scales(self, blocks: Array) -> tuple[Array, Array, Array | None, Array | None]:
        import numpy as np

        scales, minima = blocks[:, :16] & 15, blocks[:, :16] >> 4
        return _half(blocks, 80), scales.view(np.int8), _half(blocks, 82), minima.view(np.int8)

    def write(
        self, codes: Array, scale: Array, scales: Array, least: Array | None, minima: Array | None
    ) -> Array:
        import numpy as np

        assert least is not None and minima is not None
        both = (scales.astype(np.uint8) & 15) | (minima.astype(np.uint8) << np.uint8(4))
        return np.concatenate((both, joined(codes, 2, 32), _raw(scale), _raw(least)), axis=1)


class _Three(_KType):
    """Q3_K: codes of 3 bits, scales of 6 bits."""

    def codes(self, blocks: Array) -> Array:
        import numpy as np

        bits = high_bits(blocks[:, :32]).reshape(len(blocks), 32, 8)
        high = bits.transpose(0, 2, 1).reshape(len(blocks), _ALL)
        low = apart(blocks[:, 32:96], 2, 32)
        found: Array = low.view(np.int8) - ((high ^ np.uint8(1)) << np.uint8(2)).view(np.int8)
        return found

    def scales(self, blocks: Array) -> tuple[Array, Array, Array | None, Array | None]:
        import numpy as np

        packed = blocks[:, 96:108]
        scales = apart(packed[:, :8], 4, 8)
        scales = scales | (apart(packed[:, 8:], 2, 4) << np.uint8(4))
        return _half(blocks, 108), scales.view(np.int8) - np.int8(32), None, None

    def write(
        self, codes: Array, scale: Array, scales: Array, least: Array | None, minima: Array | None
    ) -> Array:
        import numpy as np

        whole = (codes + np.int8(4)).astype(np.uint8)
        bits = (whole >> np.uint8(2)).reshape(len(whole), 8, 32).transpose(0, 2, 1)
        high = np.packbits(bits.reshape(len(whole), _ALL), axis=1, bitorder="little")
        sc = (scales + np.int8(32)).astype(np.uint8)
        packed = joined(sc & 15, 4, 8), joined(sc >> np.uint8(4), 2, 4)
        return np.concatenate((high, joined(whole & 3, 2, 32), *packed, _raw(scale)), axis=1)


K_TYPES: dict[str, BlockType] = {
    one.name: one
    for one in (
        _Two("Q2_K", 16, (0, 3), (0, 15), minimum=True),
        _Three("Q3_K", 16, (-4, 3), (-32, 31), minimum=False),
        _FourFive("Q4_K", 8, (0, 15), (0, 63), minimum=True),
        _FourFive("Q5_K", 8, (0, 31), (0, 63), minimum=True),
        _Six("Q6_K", 16, (-32, 31), (-128, 127), minimum=False),
    )
}
