"""The vocabulary of CLIP, which single files lack: that of all published bases comes with loramerge.

`vocabulary/` has the pairs that are joined, from OpenAI's CLIP, with its licence.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from loramerge.errors import Setting, UsageError
from loramerge.files.json_values import read_values

__all__ = ["vocabulary"]

_FILES = ("vocab.json", "merges.txt")
_PAIRS = Path(__file__).parent / "vocabulary" / "pairs.txt.gz"
_MARKS = ("<|startoftext|>", "<|endoftext|>")
_END = "</w>"  # of a word


def vocabulary(path: Path, rows: int, place: Path) -> Path:
    """Return a folder with a vocabulary for a single file.

    That is one beside the file, in `tokenizer` or in a diffusers folder, or else CLIP's own.

    Args:
        rows: of the token embedding, as many as the vocabulary has entries.
        place: folder in which CLIP's own is written.

    Raises:
        UsageError: if neither has as many entries.
    """
    for folder in (path.parent / "tokenizer", *sorted(path.parent.glob("*/tokenizer"))):
        try:
            if all((folder / name).is_file() for name in _FILES):
                words = read_values(folder / _FILES[0])
                if isinstance(words, dict) and len(words) == rows:
                    return folder
        except (OSError, ValueError):
            continue
    with gzip.open(_PAIRS, "rt", encoding="utf-8") as text:
        pairs = text.read().split("\n")[:-1]
    words = list(_words(pairs))
    if len(words) != rows:
        raise UsageError(
            f"the file's text encoder has a vocabulary of {rows} entries, which is not CLIP's",
            file=path,
            expected=f"{' and '.join(_FILES)} of its own in {path.parent / 'tokenizer'}, "
            f"or an encoder of {len(words)} entries",
            hint=("put its two files there, or give a diffusers folder of the same family: ",
                  Setting("config")),
        )  # fmt: skip
    folder = place / "vocabulary"
    folder.mkdir(exist_ok=True)
    numbers = {word: number for number, word in enumerate(words)}
    (folder / _FILES[0]).write_text(json.dumps(numbers, ensure_ascii=False), "utf-8")
    (folder / _FILES[1]).write_text("\n".join(["#version: 0.2", *pairs, ""]), "utf-8")
    return folder


def _words(pairs: list[str]) -> Iterator[str]:
    """Yield the entries: bytes, bytes at the end of a word, joined pairs, and the two marks."""
    letters = _letters()
    yield from letters
    yield from (letter + _END for letter in letters)
    yield from ("".join(pair.split()) for pair in pairs)
    yield from _MARKS


def _letters() -> list[str]:
    """Return a letter for each byte, in CLIP's order: printable ones as they are, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
