"""Random numbers as torch's generator of the CPU draws them, without torch.

It is the Mersenne Twister, whose numbers of 32 bits numpy draws, too.
Source: torch's `randperm` for the CPU, which exchanges each place with a later one (Fisher and Yates).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["first_normals", "first_of_permutation"]


def first_of_permutation(size: int, count: int, seed: int) -> Array:
    """Return `torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]`."""
    import numpy as np

    raw = _raw(seed, count)
    moved: dict[int, int] = {}  # place → the number there, where it is not its own
    found = np.empty(count, np.int64)
    for i, draw in enumerate(raw[: min(count, size - 1)]):
        other = i + int(draw) % (size - i)
        found[i] = moved.get(other, other)
        moved[other] = moved.get(i, i)
    if count == size:
        found[size - 1] = moved.get(size - 1, size - 1)
    return found


def _raw(seed: int, count: int) -> Array:
    import numpy as np

    seeded: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state()
    generator = np.random.MT19937()
    generator.state = {
        "bit_generator": "MT19937",
        "state": {"key": seeded[1], "pos": seeded[2]},
    }
    raw: Array = generator.random_raw(count)
    return raw


def first_normals(size: int, seed: int) -> Array | None:
    """Return the first 8 of `torch.normal(0, 1, (size,), generator=…manual_seed(seed))`, as floats
    to 6 digits.

    None for sizes below 16, which torch draws in another way, and where the first numbers are
    drawn twice.
    """
    import numpy as np

    if size < 32 and size != 16:
        return None
    uniform = (_raw(seed, 16) & 0xFFFFFF) / 2.0**24
    return np.sqrt(-2.0 * np.log(1.0 - uniform[:8])) * np.cos(2.0 * np.pi * uniform[8:])
