"""Fonts for the labels of grids: Pillow's own, or one of the system's that has all letters.

Where none has, letters are escaped: a box says nothing, and two boxes look alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["font_for", "legible"]

# with Chinese, Japanese and Korean letters, by the names that systems have
_FALLBACKS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf", "wqy-zenhei.ttc", "wqy-microhei.ttc", "msyh.ttc", "meiryo.ttc",
    "malgun.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf",
)  # fmt: skip
_NO_LETTER = "\U0010ffff"


def font_for(texts: Iterable[str], size: int) -> Any:
    """Return a font of Pillow for texts: its own if that has all letters, else the first that has."""
    from PIL import ImageFont

    texts = list(texts)
    own = ImageFont.load_default(size)
    if not _lacking(texts, own):
        return own
    for name in _FALLBACKS:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        if not _lacking(texts, font):
            return font
    return own


def legible(text: str, font: Any) -> str:
    r"""Return a text with the letters that a font lacks escaped, `\x` or `\u` and a number."""
    lacking = _lacking([text], font)
    return "".join(_escaped(one) if one in lacking else one for one in text)


def _escaped(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode()


def _lacking(texts: Iterable[str], font: Any) -> set[str]:
    """Return the letters of texts that a font does not have."""
    letters = {one for text in texts for one in text if not one.isascii() and not one.isspace()}
    if not letters:
        return set()
    none = _drawn(_NO_LETTER, font)
    return {one for one in letters if _drawn(one, font) == none}


def _drawn(letter: str, font: Any) -> bytes:
    from PIL import Image, ImageDraw

    paper = Image.new("L", (48, 48))
    ImageDraw.Draw(paper).text((4, 4), letter, 255, font)
    return bytes(paper.tobytes())
