"""The part of an adapter that rounding keeps, per storage and size of the adapter.

A weight of 512 × 2048 normal numbers is stored in each way, a change of rank 16 and of a given share of
its norm is added, and the sum is stored again, by the code that `bake` runs. `--write` puts the table
into docs/formats.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.checkpoint.blocks import BLOCK, FloatBlockRows
from loramerge.checkpoint.codebook import CodebookRows, Scales
from loramerge.checkpoint.ggml import BLOCK_TYPES
from loramerge.checkpoint.ggml_k import K_TYPES
from loramerge.checkpoint.micro import MX, NV, Format, GroupRows, tiled_size
from loramerge.checkpoint.packing import BlockRows
from loramerge.checkpoint.relative import Relative, RelativeRows, stored_codes
from loramerge.checkpoint.rotated import RotatedRows
from loramerge.checkpoint.scaled import ScaledTensor
from loramerge.checkpoint.storage import Packing
from loramerge.checkpoint.zero_points import ByRows, ZeroPointTensor
from loramerge.files.dtypes import PACKED, numpy_dtype
from loramerge.files.header import TensorInfo
from loramerge.files.tensors import ArrayTensor, RawTensor, StoredTensor
from loramerge.stream.on_grid import WAYS as ON_GRID
from loramerge.stream.on_grid import moved_onto, spacing
from loramerge.stream.packed_rows import aimed_at
from loramerge.stream.rounding import Rounder, generator

Array = np.ndarray[Any, Any]
SHAPE = (512, 2048)
ROUNDINGS = ("nearest", "stochastic", *ON_GRID)
SIZES = (0.001, 0.003, 0.01, 0.03, 0.1)
DOC = Path(__file__).parents[1] / "docs" / "formats.md"
# the numbers of the 16 codes of bitsandbytes, which its files hold
NF4 = np.array([-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
                0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0],
               np.float32)  # fmt: skip
_FP4 = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32)
FP4 = np.concatenate([_FP4, -_FP4])
BEGIN, END = "<!-- survival -->", "<!-- end -->"


class Memory:
    """A file in memory."""

    def __init__(self, raw: bytes) -> None:
        self._raw = np.frombuffer(raw, np.uint8)

    def handle(self) -> Any:
        """Return itself: it is always open."""
        return self

    def read_into(self, offset: int, buffer: Any) -> None:
        """Copy bytes from a position on."""
        buffer[:] = self._raw[offset : offset + len(buffer)]


def stored(raw: Array, dtype: str) -> StoredTensor:
    """Return bytes as a tensor of the shape of the weight."""
    data = raw.tobytes()
    return StoredTensor(Memory(data), TensorInfo("w", dtype, SHAPE, 0, len(data)))


def micro(weight: Array, kind: Format) -> GroupRows:
    """Return a weight in a micro-scaled format, by the format's rule."""
    scales = bytes(tiled_size(SHAPE[0], SHAPE[1] // kind.group))
    whole = None
    if kind is NV:
        most = np.float32(np.abs(weight).max() / (448 * 6))
        whole = ("t", RawTensor(most.tobytes(), "F32", ()))
    blank = np.zeros((SHAPE[0], SHAPE[1] // kind.packed), np.uint8)
    scale = ("s", RawTensor(scales, "U8", (len(scales),)))
    empty = GroupRows(stored(blank, "U8"), kind, scale, whole)
    codes = empty.pack(blank, np.zeros_like(weight), weight, 0, None)
    found = ("s", RawTensor(empty.beside()["s"], "U8", (len(scales),)))
    return GroupRows(stored(codes, "U8"), kind, found, whole)


def rotated(weight: Array, bits: int) -> RotatedRows:
    """Return a weight in rotated whole numbers, a scale for each row."""
    tiny = ArrayTensor(np.full((SHAPE[0], 1), 1e-9, np.float32))
    blank = np.zeros((SHAPE[0], SHAPE[1] * bits // 8), np.int8)
    probe = RotatedRows(stored(blank, f"I{bits}"), "s", tiny, 256, bits)
    codes = probe.pack(blank, np.zeros_like(weight), weight, 0, None)
    scale = np.frombuffer(probe.beside()["s"], np.float32).reshape(-1, 1)
    return RotatedRows(stored(codes, f"I{bits}"), "s", ArrayTensor(scale), 256, bits)


def relative(weight: Array, bits: int) -> RelativeRows:
    """Return a weight in ComfyUI's W4A8, codes of so many bits that are whole numbers."""
    groups = (SHAPE[0], SHAPE[1] // 16)
    middle = np.full((SHAPE[0], SHAPE[1]), 1 << (bits - 1), np.uint8)
    parts = (stored_codes(middle, bits), np.full(groups, 1e-3, np.float32),
             np.full(SHAPE[:1], 1e-9, np.float32))  # fmt: skip
    probe = _relative(*parts, bits)
    codes = probe.pack(parts[0], np.zeros_like(weight), weight, 0, None)
    beside = probe.beside()
    scales = np.frombuffer(beside["g"], np.float32).reshape(groups)
    return _relative(codes, scales, np.frombuffer(beside["r"], np.float32), bits)


def _relative(codes: Array, groups: Array, rows: Array, bits: int) -> RelativeRows:
    scales = ("g", ArrayTensor(groups)), ("r", ArrayTensor(rows))
    return RelativeRows(Relative(stored(codes, f"I{bits}"), *scales, None, bits, 16, 256))


def zero_points(weight: Array) -> Packing:
    """Return a weight in awq_w4a16, groups of 64 columns."""
    numbers = np.zeros((SHAPE[1] // 64, SHAPE[0]), np.float16)
    codes = np.full((SHAPE[0], SHAPE[1] // 2), 0x88, np.uint8)
    probe = _zero_points(codes, numbers, numbers).packing
    blank = probe.raw(0, SHAPE[0])
    probe.pack(blank, np.zeros_like(weight), weight, 0, None)
    made = probe.beside()
    scales, zeros = (
        np.frombuffer(made[name], np.float16).reshape(numbers.shape) for name in ("s", "z")
    )
    return _zero_points(np.frombuffer(made["w"], np.uint8), scales, zeros).packing


def _zero_points(codes: Array, scales: Array, zeros: Array) -> ZeroPointTensor:
    sources = ArrayTensor(codes), ArrayTensor(scales), ArrayTensor(zeros)
    return ZeroPointTensor(("w", "s", "z"), sources, ByRows(SHAPE), 64)


def of_codebook(weight: Array, table: Array, block: int = 64) -> CodebookRows:
    """Return a weight in 4 bits of bitsandbytes, a scale for each block of numbers."""
    tiny = np.full(SHAPE[0] * SHAPE[1] // block, 1e-9, np.float32)
    blank = np.zeros(SHAPE[0] * SHAPE[1] // 2, np.uint8)
    probe = CodebookRows(stored(blank, "U8"), table, block, lambda: Scales("s", tiny))
    codes = probe.pack(blank, np.zeros_like(weight), weight, 0, None)
    scales = Scales("s", np.frombuffer(probe.beside()["s"], np.float32).copy())
    return CodebookRows(stored(codes, "U8"), table, block, lambda: scales)


def in_blocks(weight: Array) -> FloatBlockRows:
    """Return a weight in float8 with a scale for each block of rows and columns."""
    shape = (SHAPE[0] // BLOCK, SHAPE[1] // BLOCK)
    blank = np.zeros(SHAPE, numpy_dtype("F8_E4M3"))
    tiny = ArrayTensor(np.full(shape, 1e-9, np.float32))
    probe = FloatBlockRows(stored(blank, "F8_E4M3"), "s", tiny)
    codes = probe.pack(blank, np.zeros_like(weight), weight, 0, None)
    scales = np.frombuffer(probe.beside()["s"], np.float32).reshape(shape)
    return FloatBlockRows(stored(codes, "F8_E4M3"), "s", ArrayTensor(scales))


def packings(weight: Array) -> Iterator[tuple[str, Packing]]:
    """Yield every packed storage with the weight in it."""
    for name, kind in sorted(
        (BLOCK_TYPES | K_TYPES).items(), key=lambda one: -one[1].size / one[1].elements
    ):
        assert name in PACKED
        blocks = kind.fresh(weight.reshape(-1, kind.elements))
        yield f"GGUF {name}", BlockRows(stored(blocks, name), kind)
    yield "mxfp8", micro(weight, MX)
    yield "nvfp4", micro(weight, NV)
    yield "int8, rotated", rotated(weight, 8)
    yield "float8 e4m3, a scale per block", in_blocks(weight)
    yield "convrot_w4a4", rotated(weight, 4)
    yield "asym_w4a8_int8, 6 bits", relative(weight, 6)
    yield "asym_w4a8_int8, 4 bits", relative(weight, 4)
    yield "awq_w4a16", zero_points(weight)
    yield "bitsandbytes nf4", of_codebook(weight, NF4)
    yield "bitsandbytes fp4", of_codebook(weight, FP4)


def of_packing(packing: Packing, change: Array, way: str) -> Array:
    """Return the change that is in the stored weight afterwards."""
    raw = packing.raw(0, SHAPE[0])
    before = packing.unpack(raw, 0).copy()
    draw = partial(generator(0, "w").random, dtype=np.float32) if way == "stochastic" else None
    aimed = aimed_at(way if way in ON_GRID else "", packing, change, 0, SHAPE[0])
    after = packing.pack(raw, before, aimed, 0, draw)
    return packing.unpack(after, 0) - before


def of_numbers(dtype: str, scale: Array | None, weight: Array, change: Array, way: str) -> Array:
    """Return the change that is in a weight of plain numbers, with a scale or without one."""
    kind = numpy_dtype(dtype)
    rounder = Rounder(dtype, "w", 0 if way == "stochastic" else None)
    out, back = np.empty(SHAPE, kind), np.empty(SHAPE, np.float32)
    exact = weight if scale is None else weight / scale
    codes = (np.rint(exact) if kind.kind == "i" else exact).astype(kind).astype(np.float32)
    if way in ON_GRID:
        steps = spacing(codes, dtype) * (1 if scale is None else scale)
        change = moved_onto(way, change, steps.astype(np.float32))
    if scale is None:
        rounder.round(codes + change, out, back)
        return back - codes
    codec = ScaledTensor("s", ArrayTensor(scale), stored(codes.astype(kind), dtype)).codec(dtype)
    before, total = codec.weights(codes, 0, np.empty_like(codes)), np.empty_like(codes)
    for _ in range(2):
        codec.add(codes, change, 0, total)
        rounder.round(total, out, back)
        if not codec.overflowed():
            break
    codec.change(back, before, 0)
    return back


def figures(written: Array, asked: Array) -> tuple[float, float]:
    """Return the share of a change that is kept, and its correlation with what was asked."""
    along = float((written * asked).sum())
    size = math.sqrt(float((written**2).sum()) * float((asked**2).sum()))
    return along / float((asked**2).sum()), along / size if size else 0.0


def table() -> str:
    """Return the table as Markdown: kept by every rounding, each with its correlation."""
    random = np.random.default_rng(0)
    weight = (random.standard_normal(SHAPE) * 0.02).astype(np.float32)
    up, down = random.standard_normal((SHAPE[0], 16)), random.standard_normal((16, SHAPE[1]))
    change = (up @ down).astype(np.float32)
    change *= np.linalg.norm(weight) / np.linalg.norm(change)
    top, low = np.abs(weight).max(), np.abs(weight).max(axis=1, keepdims=True)
    numbers: dict[str, tuple[str, Array | None]] = {
        "float16": ("F16", None),
        "bfloat16": ("BF16", None),
        "float8 e4m3": ("F8_E4M3", None),
        "float8 e4m3, scaled": ("F8_E4M3", np.float32(top / 448).reshape(1, 1)),
        "float8 e5m2": ("F8_E5M2", None),
        "int8": ("I8", np.float32(top / 127).reshape(1, 1)),
        "int8, a scale per row": ("I8", (low / 127).astype(np.float32)),
    }
    rows: list[tuple[str, list[str]]] = []
    for name, (dtype, scale) in numbers.items():
        sums = [change * np.float32(size) for size in SIZES]
        cells = [
            cell((of_numbers(dtype, scale, weight, asked, way) for way in ROUNDINGS), asked)
            for asked in sums
        ]
        rows.append((name, cells))
    held: dict[str, list[str]] = {}
    for size in SIZES:
        asked = change * np.float32(size)
        every = zip(*(packings(weight) for _ in ROUNDINGS), strict=True)  # each keeps new scales
        for same in every:
            found = [
                of_packing(one, asked, way) for (_, one), way in zip(same, ROUNDINGS, strict=True)
            ]
            held.setdefault(same[0][0], []).append(cell(found, asked))
    rows += held.items()
    head = ["storage", *(f"{size:.1%} of the weights" for size in SIZES)]
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(found: Iterable[Array], asked: Array) -> str:
    """Return the figures of one storage and size, one for each rounding."""
    return "; ".join(
        f"{kept:.0%} ({same:.2f})" for kept, same in (figures(x, asked) for x in found)
    )


def main() -> None:
    """Print the table, or write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into docs/formats.md")
    found = table()
    if not parser.parse_args().write:
        print(found)
        return
    text = DOC.read_text("utf-8")
    before, rest = text.split(BEGIN, 1)
    DOC.write_text(f"{before}{BEGIN}\n{found}\n{END}{rest.split(END, 1)[1]}", "utf-8")


if __name__ == "__main__":
    main()
