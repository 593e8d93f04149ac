"""Files of other formats, recognised by their first bytes, and what to do with each.

A valid safetensors file may begin with the same bytes as some of these (its first eight are a number),
so a file is compared with the table only after it could not be read.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path, PurePath

from loramerge.errors import ForeignFile
from loramerge.records import NamedTuple

__all__ = ["HEAD", "foreign", "foreign_in", "safetensors_named_otherwise"]

HEAD = 64  # bytes from the start of a file that the table needs

_DOWNLOAD = "download the file itself; the site may ask you to log in or accept a licence first"
_EXTRACT = "extract it, and give the safetensors file in it"
_TORCH = "give it a name that ends in .pt or .ckpt, so that it is read as one"
_SAVE = "save a dictionary of tensors with torch.save, or with safetensors"
_SAFETENSORS = "give the model's safetensors file"
_IMAGE = "give the adapter or model itself; an image cannot be one"


class Signature(NamedTuple):
    """The first bytes of files of a format, and advice for whoever gives such a file.

    Args:
        start: in lower case; letters in files may be capitals.
        format: a noun with its article.
    """

    start: bytes
    format: str
    hint: str


SIGNATURES = (
    Signature(b"<!doctype", "a web page", _DOWNLOAD),
    Signature(b"<html", "a web page", _DOWNLOAD),
    Signature(b"<?xml", "a web page or another XML file", _DOWNLOAD),
    Signature(b"version https://git-lfs", "a Git LFS pointer",
              "run git lfs pull in its folder, or download the file itself"),
    Signature(b"gguf", "a GGUF file",
              "a GGUF file needs a name that ends in .gguf, and not every command reads such files"),
    Signature(b"pk\x03\x04", "a zip archive or a PyTorch file", f"{_TORCH}, or {_EXTRACT}"),
    *(Signature(bytes((0x80, protocol)), "a PyTorch file (a pickle)", _TORCH)
      for protocol in (2, 3, 4, 5)),
    # of dictionaries, lists and classes, as Python 2 wrote them, and the number at the start of torch's
    *(Signature(start, "a pickle of an old protocol", _SAVE)
      for start in (b"(dp0\n", b"(dp1\n", b"(lp0\n", b"(lp1\n", b"ccollections\n", b"ctorch",
                    b"}q\0", b"]q\0", b"l119547037146038801333356l")),
    Signature(b"\x1f\x8b", "a gzip archive", _EXTRACT),
    Signature(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _EXTRACT),
    Signature(b"rar!", "a RAR archive", _EXTRACT),
    Signature(b"\x89hdf", "an HDF5 file", _SAFETENSORS),
    Signature(b"{", "a JSON file", "give the safetensors file that belongs to it"),
    Signature(b"\x89png", "a PNG image", _IMAGE),
    Signature(b"\xff\xd8\xff", "a JPEG image", _IMAGE),
    Signature(b"riff", "a WebP image or another RIFF file", _IMAGE),
)  # fmt: skip

# small files of folders, which people give in the place of the folder
_BESIDE = dict.fromkeys(
    ("adapter_config.json", "model_index.json", "config.json"), "give the folder that holds it"
)


def foreign(head: bytes, path: str | PathLike[str], wanted: str) -> ForeignFile | None:
    """Return the error for a file of another format; None where the format is not known.

    Args:
        head: the first bytes of the file, at least `HEAD` of them if it has so many.
        wanted: the format that was expected, with its article.
    """
    one = _signature(head)
    if one is None:
        return None
    hint = _BESIDE.get(PurePath(path).name, one.hint)
    return ForeignFile(f"this is {one.format}, not {wanted}", file=path, hint=hint)


def _signature(head: bytes) -> Signature | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").lower()
    return next((one for one in SIGNATURES if start.startswith(one.start)), None)


_WEIGHTS = frozenset({".gguf", ".zip", ".7z", ".rar", ".gz", ".h5", ".pkl"})


def foreign_in(folder: Path) -> str | None:
    """Return the foreign format in a folder without a file of tensors: `model.gguf (a GGUF file)`.

    Returns:
        None where no file has a name under which weights of other formats are published.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in _WEIGHTS and file.is_file():
            with file.open("rb") as opened:
                one = _signature(opened.read(HEAD))
            if one is not None:
                return f"{file.name} ({one.format})"
    return None


def safetensors_named_otherwise(head: bytes, path: str | PathLike[str]) -> ForeignFile | None:
    """Return the error for a safetensors file that has another name; None for other files."""
    if len(head) > 8 and head[8:9] == b"{" and head[5:8] == bytes(3):
        return ForeignFile(
            "this is a safetensors file under the name of a pickle",
            file=path,
            hint="give it a name that ends in .safetensors",
        )
    return None
