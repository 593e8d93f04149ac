"""What the tests of the command line work on, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loramerge.adapter.save import save
from loramerge.families import FAMILIES
from loramerge.verbs.demo import _adapter, write_base
from tests.samples import Sample, read_safetensors, safetensors_bytes, scale_of

__all__ = ["make_world", "rewrite", "weights", "write_folder"]


def make_world(folder: Path) -> None:
    """Write base.safetensors, a.safetensors (kohya, rank 4) and b.safetensors (diffusers, rank 6)."""
    write_base(folder / "base.safetensors")
    save(_adapter(1, 4, "flat", text=False), folder / "a.safetensors", to="kohya", dtype="F16")
    save(_adapter(2, 6, "zuzu", text=True), folder / "b.safetensors", to="diffusers", dtype="F16")


def rewrite(source: Path, target: Path, change) -> Path:
    """Write a changed copy of a safetensors file; `change` edits its tensors and metadata."""
    arrays, metadata = read_safetensors(source)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    change(arrays, metadata)
    target.write_bytes(safetensors_bytes(arrays, metadata))
    return target


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
