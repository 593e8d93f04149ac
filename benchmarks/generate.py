"""Writes the benchmarks' data: adapters and one checkpoint, seeded, with numpy alone.

    python benchmarks/generate.py [lora] [other] [base] [sdxl] [four] [--data DIR] [--seed N] [--force]

`lora` is sd21_r64.safetensors (kohya, 192 modules, rank 64, 55 MB), `other` another of its kind,
`base` is sd21_base.safetensors (LDM single file, float16, 2.6 GB), `sdxl` is sdxl_r32.safetensors
(kohya, SGM names, 722 modules, rank 32, 170 MB), and `four` are four of these with the text encoders
(986 modules, 216 MB each). The safetensors writer is the script's own: whatever
reads these files is checked against it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from shapes import (
    SD21,
    SDXL,
    Shape,
    Unet,
    adapted,
    kohya_name,
    sd21_checkpoint,
    sdxl_text_encoders,
)

FILES = {
    "lora": "sd21_r64.safetensors",
    "other": "sd21_r64_other.safetensors",
    "base": "sd21_base.safetensors",
    "sdxl": "sdxl_r32.safetensors",
    "four": "sdxl_te_r32_4.safetensors",  # the last of them
}
ALPHA = 32.0
DECAY = (0.5, 1.3)  # the i-th singular value falls like i ** -p, p drawn from this range
STRENGTH = 0.05  # Frobenius norm of a delta, relative to that of the weight
BLOCK = 1 << 22  # elements drawn at once


def write_safetensors(
    path: Path,
    entries: Iterable[tuple[str, Shape]],
    metadata: dict[str, str],
    blocks: Callable[[str, Shape], Iterable[np.ndarray]],
) -> None:
    """Writes a float16 safetensors file, tensors sorted by name, one block at a time.

    Args:
        path: Output file; appears only when complete.
        entries: Name and shape of each tensor.
        metadata: The header's `__metadata__`; left out if empty.
        blocks: Gives the elements of a tensor in row-major order, in float16 pieces.
    """
    ordered = sorted(entries)
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, shape in ordered:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in ordered:
            for block in blocks(name, shape):
                file.write(np.ascontiguousarray(block, dtype="<f2").data)
        if file.tell() != 8 + len(text) + offset:
            raise AssertionError(f"{path.name}: the blocks do not add up to the header's sizes")
    os.replace(partial, path)


def generator(seed: int, name: str) -> np.random.Generator:
    """Returns a stream of its own for each name, so that no tensor depends on another."""
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))


def orthonormal(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Draws `columns` orthonormal vectors, float32 (rows, columns)."""
    return np.linalg.qr(random.standard_normal((rows, columns), dtype=np.float32))[0]


def factors(
    random: np.random.Generator, out: int, into: int, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the factors of one delta, float16: up (out, rank) and down (rank, into).

    The delta is `ALPHA / rank * up @ down` with singular values `c * i ** -p`. As in a trained
    adapter, down keeps rows of about unit norm and up carries the spectrum, and the directions
    are rotated, so that cutting columns off is not a solution.
    """
    spectrum = np.arange(1, rank + 1) ** -random.uniform(*DECAY)
    spectrum *= STRENGTH * math.sqrt(out) / np.linalg.norm(spectrum) / (ALPHA / rank)
    turn = orthonormal(random, rank, rank)
    up = (orthonormal(random, out, rank) * spectrum.astype(np.float32)) @ turn
    down = turn.T @ orthonormal(random, into, rank).T
    return up.astype(np.float16), down.astype(np.float16)


def kohya_metadata(net: Unet, rank: int, seed: int) -> dict[str, str]:
    """Returns training metadata as kohya's trainer stores it: all values are strings."""
    random = generator(seed, "tags")
    tags = {f"tag {i}": int(random.integers(1, 200)) for i in range(300)}
    sdxl = net is SDXL
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(ALPHA),
        "ss_network_args": "{}",
        "ss_v2": str(not sdxl),
        "ss_base_model_version": "sdxl_base_v1-0" if sdxl else "sd_v2",
        "ss_sd_model_name": "sdxl_base.safetensors" if sdxl else "sd21_base.safetensors",
        "ss_output_name": "benchmark",
        "ss_resolution": "(1024, 1024)" if sdxl else "(768, 768)",
        "ss_clip_skip": "None",
        "ss_mixed_precision": "fp16",
        "ss_learning_rate": "0.0001",
        "ss_unet_lr": "0.0001",
        "ss_text_encoder_lr": "None",
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_lr_scheduler": "cosine",
        "ss_num_train_images": "200",
        "ss_num_epochs": "10",
        "ss_steps": "2000",
        "ss_seed": str(seed),
        "ss_tag_frequency": json.dumps({"10_benchmark": tags}),
    }


def write_adapter(path: Path, net: Unet, rank: int, seed: int, *, text: bool = False) -> None:
    """Writes a kohya adapter for all modules that kohya adapts in `net`.

    Args:
        text: for those of SDXL's text encoders, too.
    """
    sgm = net is SDXL
    modules = {kohya_name(name, sgm): shape for name, shape in adapted(net)}
    modules |= dict(sdxl_text_encoders()) if text else {}
    entries: list[tuple[str, Shape]] = []
    for stem, (out, into) in modules.items():
        entries.append((f"{stem}.alpha", ()))
        entries.append((f"{stem}.lora_down.weight", (rank, into)))
        entries.append((f"{stem}.lora_up.weight", (out, rank)))
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def blocks(name: str, shape: Shape) -> Iterable[np.ndarray]:
        stem, _, role = name.partition(".")
        if role == "alpha":
            return [np.array(ALPHA, dtype=np.float16)]
        if stem not in drawn:
            drawn.clear()
            drawn[stem] = factors(generator(seed, stem), *modules[stem], rank)
        return [drawn[stem][role == "lora_down.weight"]]

    write_safetensors(path, entries, kohya_metadata(net, rank, seed), blocks)


def write_base(path: Path, seed: int) -> None:
    """Writes a whole SD2.1 checkpoint: weights of variance 1 / inputs, gains 1, biases small."""

    def blocks(name: str, shape: Shape) -> Iterable[np.ndarray]:
        random, count = generator(seed, name), math.prod(shape)
        gain = len(shape) == 1 and name.endswith("weight")
        spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.02
        for start in range(0, count, BLOCK):
            block = random.standard_normal(min(BLOCK, count - start), dtype=np.float32)
            block *= spread
            yield (block + 1 if gain else block).astype(np.float16)

    write_safetensors(path, sd21_checkpoint(), {}, blocks)


def main() -> None:
    """Parses the command line and writes what was asked for."""
    parser = argparse.ArgumentParser(description="Write the data of the benchmarks.")
    parser.add_argument(
        "which", nargs="*", metavar="{lora,other,base,sdxl,four}", help="default: all"
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="write again what exists")
    options = parser.parse_args()
    if unknown := set(options.which) - set(FILES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(FILES)}")
    options.data.mkdir(parents=True, exist_ok=True)
    for kind in options.which or FILES:
        path = options.data / FILES[kind]
        if path.exists() and not options.force:
            print(f"{path.name} exists")
            continue
        if kind == "lora":
            write_adapter(path, SD21, 64, options.seed)
        elif kind == "other":
            write_adapter(path, SD21, 64, options.seed + 1)
        elif kind == "sdxl":
            write_adapter(path, SDXL, 32, options.seed)
        elif kind == "four":
            for number in range(1, 5):
                one = path.with_stem(f"sdxl_te_r32_{number}")
                write_adapter(one, SDXL, 32, options.seed + 100 * number, text=True)
        else:
            write_base(path, options.seed)
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
