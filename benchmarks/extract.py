"""Times `loramerge extract` against full SVDs of the same modules in one run.

    python benchmarks/extract.py [-n 3] [--modules 40] [--rank 64] [--json FILE]

The tuned checkpoint is the SD2.1-shaped base in float16 with a change of slowly decaying spectrum in
some of its matrices, evenly spread over the file. loramerge runs as a whole process with one thread;
numpy's thin SVDs of the same differences, in float32, are timed in this process, without reading them.
The ratio is that of CPU times, in which waiting for the disk does not count. The SVDs also give the
optimum that errors are compared with.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from measure import THREADS, Check, Sample, ensure, interleave, options, peak, report, run

os.environ |= dict.fromkeys(THREADS, "1")  # before numpy is imported

import numpy as np
from tensors import DTYPES, Tensors

OURS, COPY, FULL = "loramerge extract --threads 1", "cp", "numpy.linalg.svd"
UNET = "model.diffusion_model."
SIZE = 0.02  # of the change, relative to the weights


def main() -> None:
    """Generates the data if absent, measures, checks and reports."""
    parser = options("Time extract against full SVDs.", rounds=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--modules", type=int, default=40, help="matrices that were tuned")
    given = parser.parse_args()
    base = ensure("base", "sd21_base.safetensors", given.data, given.python)
    with tempfile.TemporaryDirectory(dir=given.data.resolve()) as folder:
        measure_all(given, base, Path(folder))


def measure_all(given: argparse.Namespace, base: Path, folder: Path) -> None:
    """Measures, checks and reports, with the tuned checkpoint and the results in `folder`."""
    tuned, out = folder / "tuned.safetensors", folder / "out.safetensors"
    names = write_tuned(base, tuned, given.modules)
    command = [given.python, "-m", "loramerge", "extract", "-t", str(tuned), "-b", str(base)]
    command += ["--rank", str(given.rank), "--threads", "1", "--strip", "-f", "-o", str(out)]
    cases = {
        OURS: functools.partial(run, [*command, "--dtype", "float32"]),
        COPY: functools.partial(run, ["cp", str(base), str(folder / "copy.safetensors")]),
    }
    samples = interleave(cases, given.rounds)
    seconds, lost, energy = whole_svds(base, tuned, names, given.rank)
    samples[f"{FULL} of {len(names)} matrices"] = [Sample(seconds, seconds, None)]
    own = statistics.median(sample.cpu or sample.wall for sample in samples[OURS])
    kept = kept_energy(out)
    error = max(energy - kept, 0.0) ** 0.5
    checks = [
        Check(f"CPU time: {FULL} / {OURS}", seconds / own, 20, at_least=True),
        Check("peak, MB", peak(samples[OURS]), 1000),
        Check("error / optimum", error / lost**0.5, 1.005),
        Check("modules found / modules tuned", modules_of(out) / len(names), 1, at_least=True),
    ]
    report(f"extract: rank {given.rank}, {len(names)} matrices", samples, checks, given.json)


def write_tuned(base: Path, tuned: Path, count: int) -> list[str]:
    """Writes a copy of the base with changes in some matrices of its UNet; returns their names."""
    shutil.copyfile(base, tuned)
    with Tensors(base) as tensors, tuned.open("r+b") as file:
        matrices = [
            name
            for name, (_, shape, *_) in tensors.entries.items()
            if name.startswith(UNET) and len(shape) > 1 and min(shape[:2]) >= 320
        ]
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


def whole_svds(base: Path, tuned: Path, names: list[str], rank: int) -> tuple[float, float, float]:
    """Returns the seconds of all SVDs, Σσ² beyond the rank, and Σσ² of everything."""
    seconds = lost = energy = 0.0
    with Tensors(base) as before, Tensors(tuned) as after:
        for name in names:
            delta = after.read(name).astype(np.float32) - before.read(name).astype(np.float32)
            start = time.process_time()
            _, sizes, _ = np.linalg.svd(delta.reshape(len(delta), -1), full_matrices=False)
            seconds += time.process_time() - start
            squares = sizes.astype(np.float64) ** 2
            lost, energy = lost + squares[rank:].sum(), energy + squares.sum()
    return seconds, float(lost), float(energy)


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
