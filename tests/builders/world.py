"""What the tests of the command line work on, made once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter, Info, LowRank, Site
from loramerge.adapter.save import save
from loramerge.dialects.detection import Detection
from loramerge.families import FAMILIES, Module, Slot, family, parameters
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.writer import write_tensors
from tests.builders.samples import Sample, read_safetensors, safetensors_bytes, scale_of

__all__ = ["ADAPTED", "make_world", "rewrite", "tune", "weights", "write_folder"]

# of each block some, as many as show what a command does with a block
_TAUGHT = ("attn1.to_q", "attn1.to_out.0", "attn2.to_v", "ff.net.2", "self_attn.q_proj")
ADAPTED = {"unet": 64, "text": 23}  # modules of a; b has those of the text encoder, too
_NARROW = 10  # the base's widths are a tenth of SD2.1's: 32 channels instead of 320


def make_world(folder: Path) -> None:
    """Write base.safetensors, a.safetensors (kohya, rank 4) and b.safetensors (diffusers, rank 6)."""
    write_base(folder / "base.safetensors")
    save(_adapter(1, 4, "flat", text=False), folder / "a.safetensors", to="kohya", dtype="F16")
    save(_adapter(2, 6, "zuzu", text=True), folder / "b.safetensors", to="diffusers", dtype="F16")


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
    random = np.random.default_rng(seed)
    deltas = {}
    for component, module, _, parameter in _modules():
        attention = ".attn" in module.path or ".ff." in module.path or ".self_attn." in module.path
        if parameter != "weight" or not attention or module.layer != "linear":
            continue
        if component != "unet" and not text:
            continue
        if not module.path.endswith(_TAUGHT):
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
        detection=Detection((family("sd21"),), "made by the tests"), metadata=metadata, dtype="F16"
    )
    return Adapter(dict(deltas), info=info)


def rewrite(source: Path, target: Path, change) -> Path:
    """Write a changed copy of a safetensors file; `change` edits its tensors and metadata."""
    arrays, metadata = read_safetensors(source)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    change(arrays, metadata)
    target.write_bytes(safetensors_bytes(arrays, metadata))
    return target


def tune(base: Path, tuned: Path) -> Path:
    """Write a copy of a base in which a few weights of the UNet have changed."""

    def change(arrays: dict[str, np.ndarray], _: Any) -> None:
        wanted = [n for n in arrays if n.endswith(("attn1.to_q.weight", "attn1.to_out.0.bias"))]
        for name in wanted[::3]:
            arrays[name] = (1.25 * arrays[name]).astype(arrays[name].dtype)

    return rewrite(base, tuned, change)


def weights(path: Path) -> dict[str, np.ndarray]:
    """Dense float64 ΔW of a kohya or diffusers file by stem, from raw keys and arrays."""
    arrays, metadata = read_safetensors(path)
    ends = {".lora_down.weight": ".lora_up.weight", ".lora_A.weight": ".lora_B.weight"}
    dialect = "diffusers" if any(key.endswith(".lora_A.weight") for key in arrays) else "kohya"
    sample = Sample("sd21", dialect, arrays, metadata)
    found = {}
    for key, down in arrays.items():
        end = next((e for e in ends if key.endswith(e)), None)
        if end is not None:
            stem = key.removesuffix(end)
            up = arrays[stem + ends[end]].astype(np.float64)
            scale = scale_of(sample, stem, stem, len(down))
            dense = up.reshape(len(up), -1) @ down.astype(np.float64).reshape(len(down), -1)
            found[stem] = scale * dense
    return found


def write_folder(base: Path, folder: Path) -> None:
    """Write the UNet of a single file as a diffusers folder."""
    arrays, _ = read_safetensors(base)
    spelling = FAMILIES["sd21"].spellings["unet"][0]
    component = FAMILIES["sd21"].components[0]
    tensors = {
        f"{module.path}.{parameter}": arrays[slot.tensor]
        for module, parameter, slot in spelling.slots(component)
    }
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(
        safetensors_bytes(tensors)
    )
