"""Times `loramerge extract` against full SVDs of the same modules in one run.

    python benchmarks/extract.py [-n 3] [--modules 40] [--rank 64] [--kohya] [--json FILE]

The tuned checkpoint is the SD2.1-shaped base in float16 with a change of slowly decaying spectrum in
some of its matrices, evenly spread over the file, or with `--modules 0` in all matrices of the UNet and
the text encoder. loramerge runs as a whole process with one thread; numpy's thin SVDs of the same
differences, in float32, are timed in this process, without reading them: one of each shape, times the
number of such matrices. The ratio is that of CPU times, in which waiting for the disk does not count.
The SVDs also give the optimum that errors are compared with, as a share of the energy for each shape.

`--kohya` also times what kohya's `extract_lora_from_models.py` computes for each matrix: torch's SVD
with all of its left and right vectors, and the clamp. Nothing else of that script is counted. It
needs torch and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from measure import THREADS, Check, Sample, ensure, interleave, options, peak, report, run

os.environ |= dict.fromkeys(THREADS, "1")  # before numpy is imported

import numpy as np
from tensors import DTYPES, Tensors

OURS, COPY, FULL = "loramerge extract --threads 1", "cp", "numpy.linalg.svd"
KOHYA = "kohya's SVD and clamp"
UNET, TEXT = "model.diffusion_model.", "cond_stage_model.model.transformer."
FUSED = "in_proj_weight"  # q, k and v above each other, which adapters hold apart
UNNAMED = ("_embedding.", ".layers.23.", ".resblocks.23.")  # embeddings, and a layer that SD2 skips
SIZE = 0.02  # of the change, relative to the weights


def main() -> None:
    """Generates the data if absent, measures, checks and reports."""
    parser = options("Time extract against full SVDs.", rounds=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument(
        "--modules", type=int, default=40, help="matrices that were tuned; 0 is all"
    )
    parser.add_argument("--kohya", action="store_true", help="time kohya's computation, too")
    given = parser.parse_args()
    base = ensure("base", "sd21_base.safetensors", given.data, given.python)
    with tempfile.TemporaryDirectory(dir=given.data.resolve()) as folder:
        measure_all(given, base, Path(folder))


def measure_all(given: argparse.Namespace, base: Path, folder: Path) -> None:
    """Measures, checks and reports, with the tuned checkpoint and the results in `folder`."""
    tuned, out = folder / "tuned.safetensors", folder / "out.safetensors"
    # in another process: the peak of a program is at least the size of the one that starts it
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        names = apart.submit(write_tuned, base, tuned, given.modules).result()
    command = [given.python, "-m", "loramerge", "extract", "-t", str(tuned), "-b", str(base)]
    command += ["--rank", str(given.rank), "--threads", "1", "--strip", "-f", "-o", str(out)]
    command += [] if given.modules else ["--to", "diffusers"]  # which has names for all
    cases = {
        OURS: functools.partial(run, [*command, "--dtype", "float32"]),
        COPY: functools.partial(run, ["cp", str(base), str(folder / "copy.safetensors")]),
    }
    samples = interleave(cases, given.rounds)
    found = whole_svds(base, tuned, names, given.rank, kohya=given.kohya)
    samples[f"{FULL} of {found.count} matrices"] = [Sample(found.seconds, found.seconds, None)]
    own = statistics.median(sample.cpu or sample.wall for sample in samples[OURS])
    error = max(found.energy - kept_energy(out), 0.0) ** 0.5
    checks = [
        Check(f"CPU time: {FULL} / {OURS}", found.seconds / own, 20, at_least=True),
        Check("peak, MB", peak(samples[OURS]), 1000),
        Check("error / optimum", error / found.lost**0.5, 1.005),
        Check("modules found / modules tuned", modules_of(out) / found.count, 1, at_least=True),
    ]
    if given.kohya:
        samples[f"{KOHYA} of {found.count} matrices"] = [Sample(found.kohya, found.kohya, None)]
        checks.append(Check(f"CPU time: {KOHYA} / {OURS}", found.kohya / own, 20, at_least=True))
    report(f"extract: rank {given.rank}, {found.count} matrices", samples, checks, given.json)


def write_tuned(base: Path, tuned: Path, count: int) -> list[str]:
    """Writes a copy of the base with changes in some matrices of its UNet; returns their names."""
    shutil.copyfile(base, tuned)
    with Tensors(base) as tensors, tuned.open("r+b") as file:
        matrices = [
            name
            for name, (_, shape, *_) in tensors.entries.items()
            if len(shape) > 1 and name.startswith((UNET, TEXT) if count == 0 else UNET)
            and min(shape[:2]) >= (4 if count == 0 else 320)
            and not any(word in name for word in UNNAMED)
        ]  # fmt: skip
        count = count or len(matrices)
        chosen = matrices[:: max(1, len(matrices) // count)][:count]
        for index, name in enumerate(chosen):
            dtype, _, start, _ = tensors.entries[name]
            weights = tensors.read(name)
            file.seek(start)
            file.write(change(weights, index).astype(DTYPES[dtype]).tobytes())
    return chosen


def change(weights: np.ndarray, seed: int) -> np.ndarray:
    """Returns weights plus a change whose singular values fall like i^(-1/2)."""
    random = np.random.default_rng(seed)
    flat = weights.reshape(len(weights), -1).astype(np.float32)
    short = min(flat.shape)
    left, right = (random.standard_normal((n, short), dtype=np.float32) for n in flat.shape)
    sizes = np.arange(1, short + 1, dtype=np.float32) ** -0.5
    delta = (left * sizes) @ right.T
    delta *= SIZE * np.linalg.norm(flat) / np.linalg.norm(delta)
    return (flat + delta).reshape(weights.shape)


@dataclass
class Whole:
    """SVDs of all matrices: their number, seconds, Σσ² beyond the rank, and Σσ² of everything.

    `kohya` has the seconds of kohya's computation.
    """

    count: int
    seconds: float
    kohya: float
    lost: float
    energy: float


def whole_svds(base: Path, tuned: Path, names: list[str], rank: int, *, kohya: bool) -> Whole:
    """Decomposes one difference of each shape, and counts it for all of that shape."""
    seconds: dict[tuple[int, ...], float] = {}
    theirs: dict[tuple[int, ...], float] = {}
    share: dict[tuple[int, ...], float] = {}
    counts: Counter[tuple[int, ...]] = Counter()
    energies: dict[tuple[int, ...], float] = defaultdict(float)
    for delta in differences(base, tuned, names):
        shape = delta.shape
        counts[shape] += 1
        flat = delta.reshape(-1)
        energies[shape] += math.fsum(
            float(np.dot(one, one))
            for at in range(0, flat.size, 1 << 20)
            for one in [flat[at : at + (1 << 20)].astype(np.float64)]
        )
        if shape not in seconds:
            start = time.process_time()
            _, sizes, _ = np.linalg.svd(delta, full_matrices=False)
            seconds[shape] = time.process_time() - start
            if kohya:
                theirs[shape] = kohya_seconds(delta, rank)
            squares = sizes.astype(np.float64) ** 2
            share[shape] = squares[rank:].sum() / squares.sum()
    return Whole(
        counts.total(),
        sum(seconds[shape] * count for shape, count in counts.items()),
        sum(theirs.get(shape, 0.0) * count for shape, count in counts.items()),
        float(sum(share[shape] * energy for shape, energy in energies.items())),
        sum(energies.values()),
    )


def kohya_seconds(delta: np.ndarray, rank: int) -> float:
    """Returns the CPU time of kohya's factors of one difference."""
    import torch

    torch.set_num_threads(1)
    matrix, rank = torch.from_numpy(delta), min(rank, *delta.shape)
    start = time.process_time()
    left, sizes, right = torch.linalg.svd(matrix)  # all vectors, as there
    left, right = left[:, :rank] @ torch.diag(sizes[:rank]), right[:rank]
    numbers = torch.cat([left.flatten(), right.flatten()])
    # torch.quantile refuses more than 16 million numbers; a 20480 × 64 factor has fewer
    highest = torch.quantile(numbers, 0.99)
    left.clamp(-highest, highest), right.clamp(-highest, highest)
    return time.process_time() - start


def differences(base: Path, tuned: Path, names: list[str]) -> Iterator[np.ndarray]:
    """Yields the flat differences of the modules, in float32."""
    with Tensors(base) as before, Tensors(tuned) as after:
        for name in names:
            delta = after.read(name).astype(np.float32) - before.read(name).astype(np.float32)
            yield from np.split(delta.reshape(len(delta), -1), 3 if name.endswith(FUSED) else 1)


def kept_energy(path: Path) -> float:
    """Returns Σ‖ΔW‖² of an adapter: what a projection onto leading directions keeps."""
    total = 0.0
    with Tensors(path) as tensors:
        for stem in tensors.stems():
            up, down = tensors.factors(stem)
            up, down = up.reshape(len(up), -1), down.reshape(len(down), -1)
            total += float(((up.T @ up) * (down @ down.T)).sum())
    return total


def modules_of(path: Path) -> int:
    """Returns the number of modules of an adapter."""
    with Tensors(path) as tensors:
        return len(tensors.stems())


if __name__ == "__main__":
    main()
