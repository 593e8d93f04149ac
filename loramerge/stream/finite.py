"""Find NaN and infinity in copied tensors, by their bits, while their bytes are in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from loramerge.errors import NumericsError, Setting
from loramerge.files.tensors import StoredTensor

__all__ = ["finite", "not_finite", "require_finite", "require_finite_range"]

_BLOCK = 1 << 18  # bytes that stay in the processor's cache between reading and looking


class _Bits(NamedTuple):
    """The bits by which a type tells NaN and infinity from finite numbers.

    Args:
        word: the unsigned type of the same size.
        magnitude: the bits without that of the sign.
        least: the smallest magnitude of NaN and infinity.
    """

    word: str
    magnitude: int
    least: int


# complex numbers are looked at in halves
_BITS: dict[str, _Bits] = {
    "F64": _Bits("<u8", (1 << 63) - 1, 0x7FF << 52),
    "F32": _Bits("<u4", (1 << 31) - 1, 0xFF << 23),
    "C64": _Bits("<u4", (1 << 31) - 1, 0xFF << 23),
    "F16": _Bits("<u2", 0x7FFF, 0x7C00),
    "BF16": _Bits("<u2", 0x7FFF, 0x7F80),
    "F8_E4M3": _Bits("u1", 0x7F, 0x7F),
    "F8_E5M2": _Bits("u1", 0x7F, 0x7C),
    "F8_E8M0": _Bits("u1", 0xFF, 0xFF),
}


def finite(dtype: str, raw: Any) -> bool:
    """Return whether bytes of a type contain no NaN and no infinity; true for types without them."""
    import numpy as np

    bits = _BITS.get(dtype)
    if bits is None:
        return True
    values = np.frombuffer(raw, bits.word)
    mask, step = values.dtype.type(bits.magnitude), _BLOCK // values.dtype.itemsize
    magnitude = np.empty(min(step, len(values)), values.dtype)
    for start in range(0, len(values), step):
        part = values[start : start + step]
        if np.bitwise_and(part, mask, out=magnitude[: len(part)]).max() >= bits.least:
            return False
    return True


def require_finite(name: str, dtype: str, raw: Any) -> None:
    """Refuse bytes of a tensor that hold NaN or infinity.

    Raises:
        NumericsError: naming the tensor.
    """
    if not finite(dtype, raw):
        raise _copied(name)


def _copied(name: str) -> NumericsError:
    return NumericsError(
        "the checkpoint holds NaN or infinity where nothing is added",
        module=name,
        hint=(
            "use a checkpoint without them; or copy them as they are with ",
            Setting("allow_nonfinite", True),
        ),
    )


def not_finite(
    name: str, word: str, weights: Any, asked: Any | None, *, wider: bool = True
) -> NumericsError:
    """Return the error of a result that came out as NaN or infinity, saying which part of it is why.

    Args:
        word: the type of the result, as people call it.
        weights: values of the base.
        asked: what was added to them; None if only the type changes.
        wider: whether a wider type can be asked for.
    """
    import numpy as np

    if not np.isfinite(weights).all():
        if asked is None:
            return _copied(name)
        return NumericsError(
            "the base holds NaN or infinity where something is added",
            module=name,
            hint="use a base without them: make it again, or take another copy of it",
        )
    if asked is not None and not np.isfinite(asked).all():
        return NumericsError(
            "the change by the adapters holds NaN or infinity",
            module=name,
            hint=("inspect the adapters with ", Setting("deep", True)),
        )
    remedy = "lower the weights of the adapters" if asked is not None else "keep the type"
    type_ = (", or give ", Setting("dtype", "float32")) if wider else ()
    return NumericsError(f"values do not fit {word}", module=name, hint=(remedy, *type_))


def require_finite_range(tensors: Sequence[StoredTensor], start: int, stop: int) -> None:
    """Refuse a range of a file if values that begin in it are NaN or infinity.

    Args:
        tensors: tensors of the file that may be there, in the order of their bytes.

    Raises:
        NumericsError: naming the first tensor.
    """
    import numpy as np

    first = max(0, bisect_right(tensors, start, key=lambda tensor: tensor.info.start) - 1)
    buffer = np.empty(_BLOCK, np.uint8)
    for tensor in tensors[first:]:
        if tensor.info.start >= stop:
            return
        bits = _BITS.get(tensor.dtype)
        if bits is None:
            continue
        size, origin = np.dtype(bits.word).itemsize, tensor.info.start
        place = origin + max(0, -(-(start - origin) // size)) * size
        end = min(tensor.info.stop, origin + -(-(stop - origin) // size) * size)
        while place < end:
            part = buffer[: min(len(buffer), end - place)]
            tensor.source.read_into(place, part)
            require_finite(tensor.info.name, tensor.dtype, part)
            place += len(part)
