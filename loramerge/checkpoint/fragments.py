"""The orders in which nunchaku stores the numbers of SVDQuant: as tensor cores read them.

Codes lie in tiles of 128 outputs and 64 inputs, scales in tiles of 128 outputs, the low-rank factors in
fragments of 16 × 16. All functions take and return arrays of whole tiles.

Source: nunchaku, `lora/flux/packer.py`, and the converters of deepcompressor.
"""

from __future__ import annotations

from loramerge.checkpoint.storage import Array

__all__ = [
    "FRAGMENT", "TILE", "codes_of", "down_of", "fragments_of_down", "fragments_of_up", "micro_scales_of",
    "scales_of", "stored_vector", "up_of", "vector_of",
]  # fmt: skip

TILE = 128  # outputs that are stored together
FRAGMENT = 16  # rows and columns of a fragment of the low-rank factors
_DEPTH = 64  # inputs of a tile of codes


def codes_of(raw: Array, columns: int) -> Array:
    """Return the codes 0 to 15 of stored bytes, `(rows, columns)`."""
    import numpy as np

    packs = raw.reshape(-1, columns // _DEPTH, 8, 8, 4, 2, 2, 4)
    pairs = np.stack((packs & np.uint8(15), packs >> np.uint8(4)), axis=-1)
    numbers = pairs.reshape(*packs.shape[:-1], 8)
    return numbers.transpose(0, 2, 5, 3, 1, 6, 4, 7).reshape(-1, columns)


def scales_of(stored: Array, groups: int) -> Array:
    """Return scales of groups of inputs, `(rows, groups)`."""
    tiles = stored.reshape(-1, groups, 8, 4, 2, 2)
    return tiles.transpose(0, 2, 4, 3, 5, 1).reshape(-1, groups)


def micro_scales_of(stored: Array, groups: int) -> Array:
    """Return scales of groups of 16 inputs, `(rows, groups)`, which are stored in fours."""
    tiles = stored.reshape(-1, groups // 4, 8, 4, 4, 4)
    return tiles.transpose(0, 4, 3, 2, 1, 5).reshape(-1, groups)


def vector_of(stored: Array) -> Array:
    """Return the numbers of a vector (bias, smoothing) in the order of the channels."""
    return scales_of(stored, 1).reshape(-1)


def stored_vector(values: Array) -> Array:
    """Return a vector as it is stored: the inverse of `vector_of`."""
    tiles = values.reshape(-1, 8, 2, 4, 2)
    return tiles.transpose(0, 1, 3, 2, 4).reshape(values.shape)


def up_of(stored: Array, rank: int) -> Array:
    """Return the factor `(outputs, rank)`."""
    return _apart(stored, rank).transpose(0, 2, 1, 3).reshape(-1, rank)


def down_of(stored: Array, rank: int) -> Array:
    """Return the factor `(rank, inputs)`."""
    return _apart(stored, rank).transpose(1, 2, 0, 3).reshape(rank, -1)


def fragments_of_up(up: Array) -> Array:
    """Return a factor `(outputs, rank)` as it is stored, of that shape; the inverse of `up_of`."""
    rows, rank = up.shape
    pieces = up.reshape(rows // FRAGMENT, FRAGMENT, rank // FRAGMENT, FRAGMENT)
    return _together(pieces.transpose(0, 2, 1, 3)).reshape(rows, rank)


def fragments_of_down(down: Array) -> Array:
    """Return a factor `(rank, inputs)` as it is stored, `(inputs, rank)`; the inverse of `down_of`."""
    rank, columns = down.shape
    pieces = down.reshape(rank // FRAGMENT, FRAGMENT, columns // FRAGMENT, FRAGMENT)
    return _together(pieces.transpose(2, 0, 1, 3)).reshape(columns, rank)


def _apart(stored: Array, rank: int) -> Array:
    """Return fragments, `(channels, ranks, 16, 16)`."""
    packs = stored.reshape(-1, rank // FRAGMENT, 8, 4, 2, 2, 2)
    return packs.transpose(0, 1, 4, 2, 5, 3, 6).reshape(*packs.shape[:2], FRAGMENT, FRAGMENT)


def _together(fragments: Array) -> Array:
    """Return fragments as they are stored."""
    packs = fragments.reshape(*fragments.shape[:2], 2, 8, 2, 4, 2)
    return packs.transpose(0, 1, 3, 5, 2, 4, 6)
