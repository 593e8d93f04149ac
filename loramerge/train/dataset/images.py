"""Image files: their size, and their pixels as the model reads them."""

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
        raise MissingExtra(
            "reading images needs Pillow", hint="pip install 'loramerge[train]'"
        ) from None
    return Image, ImageOps


def size_of(path: Path) -> Size:
    """Return width and height after EXIF rotation; only the header is read.

    Raises:
        FileError: if the file is not an image.
    """
    image, _ = _pillow()
    try:
        with image.open(path) as picture:
            width, height = picture.size
            # Pillow decodes a whole PNG to look for EXIF after the pixels, where hardly any has it
            noted = picture.format != "PNG" or "exif" in picture.info
            turned = noted and picture.getexif().get(_ORIENTATION) in _TURNED
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise FileError(f"this picture cannot be read ({error})", file=path) from None
    return (height, width) if turned else (width, height)


def opened(path: Path) -> Any:
    """Return the first frame of an image in RGB, rotated as EXIF says, on white.

    CMYK, palettes, 16-bit greys and transparency look as in an image viewer.

    Raises:
        FileError: if the file cannot be read to its end.
    """
    image, operations = _pillow()
    try:
        with image.open(path) as picture:
            picture.load()
            seen = operations.exif_transpose(picture)
            if seen.mode.startswith("I;16") or seen.mode == "I":
                # Pillow would clip values above 255 instead of scaling them
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
    """Scale an image to cover a size and crop the centre; return it and (left, top) of the crop.

    The crop is in pixels of the scaled image, as SDXL's size conditioning wants it.
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
    """Return an image as the VAE reads it: `(3, h, w)` float32 in [-1, 1]."""
    import numpy as np

    values = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)
    return values / 127.5 - 1.0
