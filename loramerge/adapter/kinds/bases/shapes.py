"""Shapes that stored tensors give only in part, completed by the family's."""

from __future__ import annotations

import math

__all__ = ["kernel_of", "shape_like"]


def kernel_of(shape: tuple[int, ...], like: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return a shape with the kernel its module has, where the factors of ΔW hide it.

    Args:
        shape: `(out, in[, kh, kw])`, or `(out, in·kh·kw)` of flattened factors.
        like: the module's shape in its family, if that is known; only its kernel counts.
    """
    if like is None or len(shape) != 2 or len(like) < 3:
        return shape
    kernel = like[2:]
    size = math.prod(kernel)
    return shape if shape[1] % size else (shape[0], shape[1] // size, *kernel)


def shape_like(shape: tuple[int, int], like: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the full shape for one of which the file gives only some sizes (0 for the others).

    Args:
        like: the module's shape in the family, if that is known; taken where sizes agree.
    """
    if like is None or len(like) < 2:
        return shape
    agree = all(known in (0, there) for known, there in zip(shape, like, strict=False))
    return like if agree else shape
