"""Picture files: how large they are, and their pixels as the model sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loramerge.errors import FileError, MissingExtra

__all__ = ["fitted", "opened", "pixels", "size_of"]

_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_BACKGROUND = (255, 255, 255)  # behind transparent pixels

Size = tuple[int, int]  # width, height


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtra("pictures need Pillow", hint="pip install 'loramerge[train]'") from None
    return Image, ImageOps


def size_of(path: Path) -> Size:
    """Return width and height as the picture is meant to be seen; only the header is read.

    Raises:
        FileError: if it is no picture.
    """
    image, _ = _pillow()
    try:
        with image.open(path) as picture:
            width, height = picture.size
            # Pillow decodes a whole PNG in search of a note after the pixels, where hardly any has it
            noted = picture.format != "PNG" or "exif" in picture.info
            turned = noted and picture.getexif().get(_ORIENTATION) in _TURNED
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise FileError(f"this picture cannot be read ({error})", file=path) from None
    return (height, width) if turned else (width, height)


def opened(path: Path) -> Any:
    """Return a picture in RGB as it is meant to be seen: turned, on white, its first frame.

    CMYK, palettes, greys of 16 bits and transparency come out as a viewer shows them.

    Raises:
        FileError: if it cannot be read to its end.
    """
    image, operations = _pillow()
    try:
        with image.open(path) as picture:
            picture.load()
            seen = operations.exif_transpose(picture)
            if seen.mode.startswith("I;16") or seen.mode == "I":
                # Pillow would cut what is above 255, not scale it
                seen = image.fromarray((_array(seen) >> 8).clip(0, 255).astype("uint8"))
            if seen.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in seen.info:
                seen = seen.convert("RGBA")
                ground = image.new("RGBA", seen.size, (*_BACKGROUND, 255))
                seen = image.alpha_composite(ground, seen)
            return seen.convert("RGB")
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise FileError(f"this picture cannot be read ({error})", file=path) from None


def _array(picture: Any) -> Any:
    import numpy as np

    return np.asarray(picture).astype("int64")


def fitted(picture: Any, size: Size) -> tuple[Any, Size]:
    """Return a picture scaled to cover a size and cut to it in the middle, and (left, top) of the cut.

    The cut is stated in the scaled picture's pixels, as SDXL is told of it.
    """
    image, _ = _pillow()
    width, height = size
    factor = max(width / picture.width, height / picture.height)
    scaled = (
        max(width, round(picture.width * factor)),
        max(height, round(picture.height * factor)),
    )
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    if scaled != picture.size:
        picture = picture.resize(scaled, image.Resampling.LANCZOS)
    return picture.crop((left, top, left + width, top + height)), (left, top)


def pixels(picture: Any) -> Any:
    """Return a picture as the VAE takes it: `(3, h, w)` float32 in [-1, 1]."""
    import numpy as np

    values = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)
    return values / 127.5 - 1.0
