"""Writes files of Flux.1's shape with fewer blocks: a GGUF file, a scaled float8 file, or an adapter.

python benchmarks/flux_data.py q8|q4k|fp8|adapter --double 3 --single 6 --data DIR
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

WIDTH = 3072
BLOCKS = {"Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144)}  # number of the type, weights and bytes
NAMES = {"q8": "flux_q8.gguf", "q4k": "flux_q4k.gguf", "fp8": "flux_fp8.safetensors",
         "adapter": "flux_r16.safetensors"}  # fmt: skip
_POOL = 1 << 22  # bytes that are repeated
Shapes = dict[str, tuple[int, ...]]
RANDOM = np.random.default_rng(0)


def shapes(double: int, single: int) -> Shapes:
    """Returns the weights of so many blocks, biases and norms left out."""
    w = WIDTH
    found: Shapes = {
        "img_in.weight": (w, 64), "txt_in.weight": (w, 4096), "final_layer.linear.weight": (64, w),
        "time_in.in_layer.weight": (w, 256), "time_in.out_layer.weight": (w, w),
        "vector_in.in_layer.weight": (w, 768), "vector_in.out_layer.weight": (w, w),
        "final_layer.adaLN_modulation.1.weight": (2 * w, w),
    }  # fmt: skip
    for i in range(double):
        for side in ("img", "txt"):
            for name, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.0", 4, 1),
                                        ("mlp.2", 1, 4), ("mod.lin", 6, 1)):  # fmt: skip
                found[f"double_blocks.{i}.{side}_{name}.weight"] = (rows * w, columns * w)
    for i in range(single):
        for name, rows, columns in (("linear1", 7, 1), ("linear2", 1, 5), ("modulation.lin", 3, 1)):
            found[f"single_blocks.{i}.{name}.weight"] = (rows * w, columns * w)
    return found


def touched(table: Shapes) -> Shapes:
    """Returns the weights that the adapter changes: attention and feed-forward of all blocks."""
    words = ("attn", "mlp", ".linear1", ".linear2")
    return {n: s for n, s in table.items() if "blocks" in n and any(word in n for word in words)}


def repeated(pool: bytes, size: int) -> Iterator[bytes]:
    """Yields so many bytes of a pool, again and again."""
    for done in range(0, size, len(pool)):
        yield pool[: size - done]


def blocks(kind: str) -> bytes:
    """Returns random blocks whose scales are those of usual weights."""
    _, _, size = BLOCKS[kind]
    found = RANDOM.integers(0, 256, (_POOL // size, size), np.uint8)
    for place in (0, 2)[: 1 if kind == "Q8_0" else 2]:
        scale = np.float16(5e-4 if kind == "Q8_0" else 1e-4)
        found[:, place : place + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return found.tobytes()


def halves(size: int) -> bytes:
    """Returns normal weights in bfloat16."""
    return (RANDOM.standard_normal(size) * 0.02).astype(ml_dtypes.bfloat16).tobytes()


def text(value: str) -> bytes:
    """Returns a text of GGUF."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def write_gguf(path: Path, kind: str, table: Shapes) -> None:
    """Writes the blocks' matrices as blocks of a type, all else as float32."""
    number, elements, size = BLOCKS[kind]
    listed, offset, places = b"", 0, []
    for name, shape in table.items():
        packed, count = "blocks" in name, int(np.prod(shape))
        taken = count // elements * size if packed else 4 * count
        listed += text(name) + struct.pack("<I", len(shape))
        listed += struct.pack(
            f"<{len(shape)}QIQ", *reversed(shape), number if packed else 0, offset
        )
        places.append((offset, taken, packed))
        offset += taken + -taken % 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(table), 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("flux") + listed
    head += bytes(-len(head) % 32)
    pools = blocks(kind), (RANDOM.standard_normal(_POOL // 4) * 0.02).astype("<f4").tobytes()
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + offset)
        for start, taken, packed in places:
            file.seek(len(head) + start)
            file.writelines(repeated(pools[0 if packed else 1], taken))


def write_safetensors(path: Path, table: dict[str, tuple[str, tuple[int, ...], Any]]) -> None:
    """Writes tensors: name → type, shape, and a function that yields the bytes of a size."""
    header, offset = {}, 0
    widths = {"F8_E4M3": 1, "F32": 4, "BF16": 2}
    for name, (kind, shape, _) in table.items():
        stop = offset + int(np.prod(shape)) * widths[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for kind, shape, make in table.values():
            file.writelines(make(int(np.prod(shape)) * widths[kind]))


def float8(table: Shapes) -> dict[str, tuple[str, tuple[int, ...], Any]]:
    """Returns a checkpoint with scaled float8 in its blocks."""
    numbers = (RANDOM.standard_normal(_POOL) * 60).astype("f4").astype(ml_dtypes.float8_e4m3fn)
    pool, scale = numbers.tobytes(), np.float32(3e-4).tobytes()
    found: dict[str, tuple[str, tuple[int, ...], Any]] = {}
    for name, shape in table.items():
        if "blocks" not in name:
            found[name] = "BF16", shape, lambda size: [halves(size // 2)]
            continue
        found[name] = "F8_E4M3", shape, lambda size: repeated(pool, size)
        found[f"{name.removesuffix('weight')}scale_weight"] = "F32", (), lambda size: [scale]
    return found


def adapter(table: Shapes, rank: int) -> dict[str, tuple[str, tuple[int, ...], Any]]:
    """Returns an adapter of all touched weights."""
    found: dict[str, tuple[str, tuple[int, ...], Any]] = {}
    make: Callable[[int], list[bytes]] = lambda size: [halves(size // 2)]  # noqa: E731
    for name, (rows, columns) in touched(table).items():
        stem = f"diffusion_model.{name.removesuffix('.weight')}"
        found[f"{stem}.lora_A.weight"] = "BF16", (rank, columns), make
        found[f"{stem}.lora_B.weight"] = "BF16", (rows, rank), make
    return found


def main() -> None:
    """Writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=NAMES)
    parser.add_argument("--double", type=int, default=3)
    parser.add_argument("--single", type=int, default=6)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    table, path = shapes(given.double, given.single), given.data / NAMES[given.kind]
    part = path.with_name(f"{path.name}.part")
    if given.kind == "fp8":
        write_safetensors(part, float8(table))
    elif given.kind == "adapter":
        write_safetensors(part, adapter(table, 16))
    else:
        write_gguf(part, {"q8": "Q8_0", "q4k": "Q4_K"}[given.kind], table)
    part.rename(path)


if __name__ == "__main__":
    main()
