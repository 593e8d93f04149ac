"""demo: a small world of one base and two adapters, and the main job run on it."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from loramerge.adapter import Adapter, Info, LowRank, Site
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.dialects.detect import Detection
from loramerge.errors import OutputExists
from loramerge.families import Module, Slot, family, parameters
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.writer import write_tensors
from loramerge.library.references import references
from loramerge.verbs.bake import Bake, BakeResult, bake
from loramerge.verbs.batch import FilesResult
from loramerge.verbs.inspect import Inspect, InspectResult, inspect
from loramerge.verbs.mix import Mix, MixResult, mix
from loramerge.verbs.parameters import Context, Doc
from loramerge.verbs.resize import ResizeFiles, ResizeResult, resize_files

__all__ = ["Demo", "DemoResult", "Step", "demo", "write_base"]

_NARROW = 10  # the base's widths are a tenth of SD2.1's: 32 channels instead of 320
_BASE = "tiny-sd21.safetensors"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Make a small SD2-shaped base and two adapters, and run mix, resize, bake and inspect on them.

    Everything is generated; nothing is downloaded. Each command is shown as you would type it.
    """

    folder: Annotated[str, Doc("Folder to make.", ("FOLDER",))] = "loramerge-demo"
    force: Annotated[bool, Doc("Use the folder although it exists.", ("--force", "-f"))] = False


@dataclass
class Step:
    """One command of the tour and its result."""

    title: str
    command: str
    result: MixResult | FilesResult[ResizeResult] | BakeResult | InspectResult


@dataclass
class DemoResult:
    """The tour."""

    folder: str
    made: dict[str, int]
    steps: list[Step] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [str(Path(self.folder, name)) for name in self.made]
            + [
                output
                for step in self.steps
                if not isinstance(step.result, InspectResult)
                for output in step.result.json()["outputs"]
            ],
            "steps": [
                {"title": s.title, "command": s.command, "result": s.result.json()}
                for s in self.steps
            ],
        }


def _narrow(module: Module) -> tuple[int, ...]:
    """Return a module's shape at a tenth of its widths; kernels, latents and text sizes stay apart."""
    text = module.path.startswith("text_model")

    def size(n: int) -> int:
        if n <= 77:
            return n
        if n == 49408:
            return 512
        if text:
            return n // 16
        return n // 16 if n == 1024 else n // _NARROW

    return (*(size(n) for n in module.shape[:2]), *module.shape[2:])


def _modules() -> Iterator[tuple[str, Module, Slot, str]]:
    """Yield (component, module, slot, parameter) of the base, in the names of an LDM single file."""
    sd21 = family("sd21")
    for component in sd21.components:
        spelling = sd21.spellings[component.name][0]
        for module in component.modules:
            for parameter in parameters(module):
                slot = spelling.slot(module, parameter)
                if slot is not None:
                    full = slot._replace(tensor=spelling.prefix + slot.tensor)
                    yield component.name, module, full, parameter


def write_base(path: Path, seed: int = 0) -> int:
    """Write an SD2.1-shaped LDM single file of reduced widths with random float16 weights.

    Returns:
        Bytes written.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    parts: dict[str, list[Any]] = {}
    for _, module, slot, parameter in _modules():
        shape = _narrow(module)
        if parameter == "bias":
            value = random.normal(0, 0.01, shape[:1])
        elif module.layer == "norm":
            value = 1 + random.normal(0, 0.05, shape)
        else:
            value = random.normal(0, 1 / math.sqrt(max(1, math.prod(shape[1:]))), shape)
        parts.setdefault(slot.tensor, []).append(value.astype(np.float16))
    tensors: list[tuple[str, Tensor]] = [
        (name, ArrayTensor(np.concatenate(values))) for name, values in sorted(parts.items())
    ]
    return write_tensors(path, tensors, {"format": "pt"}, force=True)


def _adapter(seed: int, rank: int, title: str, *, text: bool) -> Adapter:
    """Make an adapter of attention and feed-forward modules with a decaying spectrum."""
    import numpy as np

    random = np.random.default_rng(seed)
    deltas = {}
    for component, module, _, parameter in _modules():
        attention = ".attn" in module.path or ".ff." in module.path or ".self_attn." in module.path
        if parameter != "weight" or not attention or module.layer != "linear":
            continue
        if component != "unet" and not text:
            continue
        out, inner = _narrow(module)[:2]
        r = min(rank, out, inner)
        decay = np.arange(1, r + 1) ** -1.0 * 0.05
        up = random.normal(0, 1, (out, r)) * np.sqrt(decay)
        down = random.normal(0, 1 / math.sqrt(inner), (r, inner)) * np.sqrt(decay)[:, None]
        site = Site((f"{component}.{module.path}",))
        deltas[site] = LowRank.from_arrays(
            up.astype(np.float16), down.astype(np.float16), (out, inner)
        )
    metadata = {
        "ss_output_name": title,
        "ss_tag_frequency": json.dumps({f"10_{title}": {title: 24, "outdoors": 7}}),
    }
    info = Info(
        detection=Detection((family("sd21"),), "made by the demo"), metadata=metadata, dtype="F16"
    )
    return Adapter(dict(deltas), info=info)


def demo(parameters: Demo, context: Context = Context()) -> DemoResult:
    """Run the verb.

    Raises:
        OutputExists: if the folder exists and `force` is not set.
    """
    folder = Path(parameters.folder)
    if folder.exists() and not (parameters.force and folder.is_dir()):
        raise OutputExists(
            f"the {'folder' if folder.is_dir() else 'file'} exists",
            file=folder,
            hint="give another name" + (", or --force to use it" if folder.is_dir() else ""),
        )
    base, flat, zuzu = (folder / n for n in (_BASE, "flat.safetensors", "zuzu.safetensors"))
    made = {
        _BASE: write_base(base),
        "flat.safetensors": save(
            _adapter(1, 16, "flat", text=False), flat, to="kohya", dtype="F16", force=True
        ),
        "zuzu.safetensors": save(
            _adapter(2, 32, "zuzu", text=True), zuzu, to="diffusers", dtype="F16", force=True
        ),
    }
    result = DemoResult(str(folder), made)
    assert load(flat).deltas and load(zuzu).deltas
    mixed, small = folder / "mix.safetensors", folder / "mix-r8.safetensors"
    baked = folder / "baked.safetensors"

    def command(*words: str | Path) -> str:
        join = subprocess.list2cmdline if os.name == "nt" else shlex.join
        return join(["loramerge", *(str(word) for word in words)])

    adapters = (f"{zuzu}:0.7", f"{flat}:0.3")
    result.steps += [
        Step(
            "Two adapters of different rank and dialect, mixed exactly",
            command("mix", *adapters, "--to", "kohya", "-o", mixed),
            mix(
                Mix(
                    adapters=references(*adapters),
                    to="kohya",
                    output=str(mixed),
                    force=parameters.force,
                ),
                context,
            ),
        ),
        Step(
            "Re-ranked by SVD; the report says what that lost",
            command("resize", "--rank", "8", mixed, "-o", small),
            resize_files(
                ResizeFiles(files=(str(mixed),), rank=8, output=str(small), force=parameters.force),
                context,
            ),
        ),
        Step(
            "Baked into the base; every other tensor is byte-identical",
            command("bake", "--base", base, "--lora", f"{small}:1", "-o", baked),
            bake(
                Bake(
                    base=str(base),
                    lora=references(f"{small}:1"),
                    output=str(baked),
                    force=parameters.force,
                ),
                context,
            ),
        ),
        Step(
            "What is in the resized file, read with its weights",
            command("inspect", "--deep", "--base", base, small),
            inspect(Inspect(files=(str(small),), deep=True, base=str(base)), context),
        ),
    ]
    return result
