"""Task and answer of a saver: what a program is to train, the files it saves, and what it means by them.

A saver is a script that runs in a process of its own, knows one program and nothing of loramerge. The
program's network is made for layers of the names and shapes of a family, its factors get values, the
program saves them; and the layers, changed by it, answer a probe. `task.json` holds the layers; beside
each file the saver writes what each layer added to its answer.

Layers are narrow and have the weights of `job.base_of`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "readers"))
from job import Array, base_of, narrow, probe_of
from trees import layer, put

torch: Any = import_module("torch")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Task:
    """Args:
    family: its name in loramerge.
    original: tensor of the original single file → full shape; the transformer or the UNet.
    plain: component → parameter, as diffusers and transformers name it → full shape.
    share: how much narrower than the family's its layers are.
    """

    family: str
    original: Shapes
    plain: Mapping[str, Shapes]
    share: int

    @property
    def network(self) -> str:
        return "unet" if "unet" in self.plain else "transformer"

    def encoders(self) -> list[str]:
        return sorted(name for name in self.plain if name.startswith("text_encoder"))


class Layers:
    """The layers a program sees, and what they are called in the answer."""

    def __init__(self, task: Task) -> None:
        self.share = task.share
        self.found: dict[str, Any] = {}
        self.probes: dict[str, Any] = {}

    def tree(self, shapes: Shapes, classes: Mapping[str, str], head: str = "") -> Any:
        """The modules of tensors; their names in the answer are those of the tensors after `head`."""
        root = torch.nn.Module()
        for name, shape in shapes.items():
            path, _, word = name.rpartition(".")
            if word != "weight" or len(shape) < 2:
                continue
            with torch.device("meta"):
                made = layer(narrow(shape, self.share), False)
            weight = torch.from_numpy(base_of(head + name, narrow(shape, self.share)))
            made.weight = torch.nn.Parameter(weight, requires_grad=False)
            put(root, path, made, classes)
            self.found[head + name] = made
            # kept, since some networks take a layer's weight away
            self.probes[head + name] = torch.from_numpy(probe_of(tuple(made.weight.shape)))[None]
        return root

    def ask(self) -> dict[str, Array]:
        """Ask every layer its probe."""
        with torch.no_grad():
            return {tag: made(self.probes[tag]).numpy().ravel() for tag, made in self.found.items()}


def fill(module: Any, scale: float = 0.3) -> None:
    """Give all factors values; magnitudes stay near what they are."""
    give(module.named_parameters(), scale)


def give(parameters: Iterable[tuple[str, Any]], scale: float = 0.3) -> None:
    """Give factors of these names values."""
    for name, parameter in parameters:
        random = torch.Generator().manual_seed(crc32(name.encode()))
        values = torch.randn(parameter.shape, generator=random)
        near = any(word in name for word in ("dora_scale", "rescale", "magnitude"))
        parameter.data = parameter.data * (1 + 0.1 * values) if near else scale * values


# the layers, what puts the program's network of given factors before them, what saves it to a path: as
# a file there, or as a folder of that name without the suffix
Made = tuple[Layers, Callable[[], None], Callable[[Path], None]]
Variants = Mapping[str, Callable[[], Made]]


def serve(saver: Callable[[Task], Variants]) -> None:
    """Do the task of the command line: `saver.py CHECKOUT TASK OUT`."""
    given = json.loads(Path(sys.argv[2]).read_text())
    out = Path(sys.argv[3])
    original = {name: tuple(shape) for name, shape in given["original"].items()}
    plain = {
        component: {name: tuple(shape) for name, shape in held.items()}
        for component, held in given["plain"].items()
    }
    variants = saver(Task(given["family"], original, plain, given["share"]))
    report = []
    for name, answers in _made(variants, out):
        np.savez(out / f"{name}.npz", **answers)  # type: ignore[arg-type]
        report.append(name)
    (out / "report.json").write_text(json.dumps(report))


def _made(variants: Variants, out: Path) -> Iterator[tuple[str, dict[str, Array]]]:
    for name, make in variants.items():
        try:
            layers, change, write = make()
            before = layers.ask()
            with torch.no_grad():
                change()
                write(out / f"{name}.safetensors")
        except NotImplementedError:  # the program has no such network or file of this family
            continue
        after = layers.ask()
        yield name, {tag: after[tag] - before[tag] for tag in after}
