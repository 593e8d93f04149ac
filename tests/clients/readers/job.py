"""Job and answer of a reader: files of small shapes, and the changes a program makes of them.

A reader is a script that runs in a process of its own, knows one program and nothing of loramerge.
`job.json` holds the names and full shapes of the original checkpoint of a family and the files to read;
for each file the reader writes which keys the program left unread, and what it changed of which tensor.

Files are narrower than the network: every size that `narrow` makes smaller is a 32nd.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

Array = np.ndarray[Any, Any]
SHARE = 32


def narrow_size(size: int) -> int:
    return size // SHARE if size >= 256 and size % SHARE == 0 else size


def narrow(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight in the files: both channels narrower, kernels as they are."""
    return (*map(narrow_size, shape[:2]), *shape[2:])


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


@dataclass(frozen=True)
class Job:
    """Args:
    family: its name in loramerge.
    network: tensor of the original single file → full shape; the transformer or the UNet.
    plain: parameter of the UNet by diffusers' name → tensor.
    encoders: component → parameter → full shape of each text encoder.
    """

    family: str
    network: Mapping[str, tuple[int, ...]]
    encoders: Mapping[str, Mapping[str, tuple[int, ...]]]
    plain: Mapping[str, str]


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
    read = reader(Job(given["family"], shapes, encoders, given["plain"]))
    report = {}
    for path in given["files"]:
        loaded = read(load_file(path))
        name = Path(path).stem
        np.savez(out / f"{name}.npz", **dict(loaded.changes))  # type: ignore[arg-type]
        report[name] = {"unread": loaded.unread, "refused": loaded.refused}
    (out / "report.json").write_text(json.dumps(report))
