"""Image files: their size, and their pixels as the model reads them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from loramerge.errors import FileError, MissingExtra

__all__ = ["READING", "fitted", "opened", "pixels", "size_of"]

# goes up when a file may give other pixels than before: caches of what was made of them are then stale
READING = 2  # 1 knew neither colour profiles nor late orientations

_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_WIDTH, _HEIGHT = 0x0100, 0x0101  # of a TIFF as it is stored
_TRANSPOSED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation → Pillow's `Transpose`
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


_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
)  # of Pillow, for files that are no images
# formats that Pillow reads only with a plug-in → the package
_PLUGINS = {
    ".avif": "pillow-avif-plugin", ".heic": "pillow-heif", ".heif": "pillow-heif",
    ".jxl": "pillow-jxl-plugin",
}  # fmt: skip
# plug-ins that open files once they are imported and asked to
_REGISTERED = {"pillow_heif": "register_heif_opener", "pillow_avif": "", "pillow_jxl": ""}


@cache
def _register_plugins() -> None:
    """Let Pillow read what further packages, where they are installed, add to it."""
    for package, function in _REGISTERED.items():
        try:
            found = import_module(package)
        except ImportError:
            continue
        if function:
            getattr(found, function)()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Give Pillow's image of a file.

    Raises:
        FileError: if it cannot be read, also to its end.
    """
    image, _ = _pillow()
    _register_plugins()
    try:
        with image.open(path) as picture:
            yield picture
    except (*_UNREADABLE, image.DecompressionBombError) as error:
        package = _PLUGINS.get(path.suffix.lower())
        if package is not None and isinstance(error, image.UnidentifiedImageError):
            reason = f"this Pillow does not read {path.suffix[1:]} files; pip install {package}"
        else:
            reason = str(error)
        raise FileError(f"this image cannot be read ({reason})", file=path) from None


def size_of(path: Path) -> Size:
    """Return width and height after EXIF rotation; only the header is read.

    Raises:
        FileError: if the file is not an image.
    """
    with _opened(path) as picture:
        width, height = picture.size
        turned = _orientation(picture) in _TURNED
    return (height, width) if turned else (width, height)


def _orientation(picture: Any) -> int:
    """Return the EXIF orientation of an image whose pixels have not been read.

    The size of a TIFF Pillow has exchanged by then already. In a PNG the EXIF may stand behind the
    pixels, where Pillow would find it by decoding them all.
    """
    image, _ = _pillow()
    if picture.format == "PNG" and "exif" not in picture.info:
        late = _late_exif(Path(picture.filename))
        if late is None:
            return 1
        exif = image.Exif()
        exif.load(b"Exif\0\0" + late)
        return int(exif.get(_ORIENTATION, 1))
    if picture.format == "TIFF":
        own = picture.tag_v2.get(_ORIENTATION, 1)
        return int(own) if picture.size == _stored_size(picture) else 1
    return int(picture.getexif().get(_ORIENTATION, 1))


def _late_exif(path: Path) -> bytes | None:
    """Return the EXIF of a PNG, of which only the heads of chunks are read."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return file.read(length)
            file.seek(length + 4, 1)
    return None


def _stored_size(picture: Any) -> Size:
    return int(picture.tag_v2[_WIDTH]), int(picture.tag_v2[_HEIGHT])


def opened(path: Path) -> Any:
    """Return the first frame of an image in sRGB, rotated as EXIF says, on white.

    CMYK, palettes, greys of 16 bits or floats, colour profiles and transparency look as in an image
    viewer.

    Raises:
        FileError: if the file cannot be read to its end.
    """
    with _opened(path) as picture:
        turns = _TRANSPOSED.get(_orientation(picture))
        profile = picture.info.get("icc_profile")
        picture.load()
        seen = picture
        if turns is not None and picture.format != "TIFF":
            seen = picture.transpose(turns)
        return _on_white(_in_srgb(_in_8_bits(seen), profile))


def _in_8_bits(seen: Any) -> Any:
    """Return an image of 8 bits; Pillow would clip what is above 255 instead of scaling it."""
    image, _ = _pillow()
    if seen.mode.startswith("I;16") or seen.mode == "I":
        return image.fromarray((_array(seen) >> 8).clip(0, 255).astype("uint8"))
    if seen.mode == "F":
        return image.fromarray(_scaled(_array(seen, "float64")))
    return seen


def _scaled(values: Any) -> Any:
    """Return greys of floats in 8 bits: from 0 to 1, or where some are larger, to 255 or 65535."""
    import numpy as np

    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    most = next((top for top in (1.0, 255.0, 65535.0) if finite.max() <= top), finite.max())
    return (finite.clip(0, most) / most * 255).round().astype("uint8")


def _in_srgb(seen: Any, profile: bytes | None) -> Any:
    """Return an image in sRGB, as its colour profile says; one that cannot be read counts as sRGB."""
    if not profile or seen.mode not in ("RGB", "RGBA", "L", "LA", "CMYK"):
        return seen
    from PIL import ImageCms

    target = {"L": "RGB", "LA": "RGBA", "CMYK": "RGB"}.get(seen.mode, seen.mode)
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        colours = seen.convert("L") if seen.mode == "LA" else seen
        srgb = ImageCms.createProfile("sRGB")
        found: Any = ImageCms.profileToProfile(
            colours, own, srgb, outputMode="RGB" if seen.mode == "LA" else target
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return seen
    if seen.mode == "LA":
        found.putalpha(seen.getchannel("A"))
    return found


def _on_white(seen: Any) -> Any:
    image, _ = _pillow()
    if seen.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in seen.info:
        seen = seen.convert("RGBA")
        ground = image.new("RGBA", seen.size, (*_BACKGROUND, 255))
        seen = image.alpha_composite(ground, seen)
    return seen.convert("RGB")


def _array(picture: Any, kind: str = "int64") -> Any:
    import numpy as np

    return np.asarray(picture).astype(kind)


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
