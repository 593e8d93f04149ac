"""Job and answer of a reader: files of small shapes, and the changes a program makes of them.

A reader is a script that runs in a process of its own, knows one program and nothing of loramerge.
`job.json` holds the names and full shapes of the original checkpoint of a family and the files to read;
for each file the reader writes which keys the program left unread, and what it changed of which tensor.

Files are narrower than the network: every size that `narrow` makes smaller is a 32nd, or another share.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

Array = np.ndarray[Any, Any]
SHARE = 32


def narrow_size(size: int, share: int = SHARE) -> int:
    return size // share if size >= 256 and size % share == 0 else size


def narrow(shape: tuple[int, ...], share: int = SHARE) -> tuple[int, ...]:
    """The shape of a weight in the files: both channels narrower, kernels as they are."""
    return (*(narrow_size(size, share) for size in shape[:2]), *shape[2:])


def base_of(tag: str, shape: tuple[int, ...]) -> Array:
    """The weights of the base under a name, the same in every process."""
    random = np.random.default_rng(crc32(tag.encode()))
    return random.standard_normal(shape).astype(np.float32)


def probe_of(shape: tuple[int, ...]) -> Array:
    """Return one random input for a layer with a weight of this shape, as large as its kernel."""
    random = np.random.default_rng(int(np.prod(shape[1:])))
    values = random.standard_normal(int(np.prod(shape[1:]))).astype(np.float32)
    return values.reshape(shape[1:])


@dataclass
class Loaded:
    """Args:
    unread: keys that the program did not use.
    changes: tensor of the checkpoint → what it adds, only where it changes something.
    refused: what the program said when it refused the file.
    """

    unread: list[str]
    changes: Mapping[str, Array]
    refused: str = ""


class Part(NamedTuple):
    """Rows of a tensor of the checkpoint that are a parameter of another network.

    Args:
        tag: name of the tensor.
        first, last: its narrow rows.
        swapped: whether their halves are exchanged.
    """

    tag: str
    first: int
    last: int
    swapped: bool

    @classmethod
    def whole(cls, tag: str, shape: tuple[int, ...]) -> Part:
        return cls(tag, 0, shape[0], False)

    def base(self, shape: tuple[int, ...]) -> Array:
        """Return the weights of the base, if the tensor has this full shape."""
        return self._turned(base_of(self.tag, narrow(shape))[self.first : self.last])

    def add(self, changes: dict[str, Any], change: Array, shape: tuple[int, ...]) -> None:
        """Add a change of the parameter to that of the tensor, which has this full shape."""
        held = changes.setdefault(self.tag, np.zeros(narrow(shape), np.float32))
        held[self.first : self.last] += self._turned(change)

    def _turned(self, rows: Array) -> Array:
        return np.concatenate(np.split(rows, 2)[::-1]) if self.swapped else rows


@dataclass(frozen=True)
class Job:
    """Args:
    family: its name in loramerge.
    network: tensor of the original single file → full shape; the transformer or the UNet.
    plain: parameter of the network by diffusers' name → where the checkpoint has it.
    encoders: component → parameter → full shape of each text encoder.
    """

    family: str
    network: Mapping[str, tuple[int, ...]]
    encoders: Mapping[str, Mapping[str, tuple[int, ...]]]
    plain: Mapping[str, Part]


Reader = Callable[[Job, Mapping[str, Any]], Loaded]


def serve(reader: Callable[[Job], Callable[[Mapping[str, Any]], Loaded]]) -> None:
    """Read the job of the command line: `reader.py CHECKOUT JOB OUT`."""
    from safetensors.torch import load_file

    given = json.loads(Path(sys.argv[2]).read_text())
    out = Path(sys.argv[3])
    shapes = {name: tuple(shape) for name, shape in given["network"].items()}
    encoders = {
        component: {name: tuple(shape) for name, shape in held.items()}
        for component, held in given["encoders"].items()
    }
    plain = {name: Part(*part) for name, part in given["plain"].items()}
    read = reader(Job(given["family"], shapes, encoders, plain))
    report = {}
    for path in given["files"]:
        loaded = read(load_file(path))
        name = Path(path).stem
        np.savez(out / f"{name}.npz", **dict(loaded.changes))  # type: ignore[arg-type]
        report[name] = {"unread": loaded.unread, "refused": loaded.refused}
    (out / "report.json").write_text(json.dumps(report))
