"""Times `loramerge diff` and `verify` of checkpoints against reading them, and `diff` of adapters.

    python benchmarks/diff.py [-n 3] [--json FILE]

Each round reads both checkpoints (`cat > /dev/null`) and compares them: the same bytes under two names,
one with an adapter baked into it, and one in which every number differs. The files lie in the page
cache, where reading costs least, or, where the system can be told so, on the disk (`cold`). `verify`
looks for the adapter in the baked one. The distance is compared with numpy's in float64.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import (
    HERE,
    Check,
    Sample,
    ensure,
    environment,
    flush,
    interleave,
    median,
    options,
    pairwise,
    peak,
    report,
    run,
)

READING = "cat of both"
SAME, BAKED, TUNED, VERIFY, ADAPTERS = (
    "diff, same bytes",
    "diff, baked",
    "diff, every number",
    "verify, baked",
    "diff, adapters",
)
COLD = "cat of both, cold"
COLD_TUNED = "diff, every number, cold"
BOUNDS = {SAME: 2.0, BAKED: 2.0, TUNED: 2.0}
PEAK = 400  # MB
SECONDS = 1.5  # of the adapters


def main() -> None:
    """Makes the checkpoints, measures, checks and reports."""
    given = options("Time diff against reading.", rounds=3).parse_args()
    base = ensure("base", "sd21_base.safetensors", given.data, given.python)
    lora = ensure("lora", "sd21_r64.safetensors", given.data, given.python)
    other = ensure("other", "sd21_r64_other.safetensors", given.data, given.python)
    with tempfile.TemporaryDirectory(dir=given.data.resolve()) as folder:
        measure_all(given, base, (lora, other), Path(folder))


def measure_all(
    given: argparse.Namespace, base: Path, loras: tuple[Path, Path], folder: Path
) -> None:
    """Measures, checks and reports, with the files that it makes in `folder`."""
    home, program = folder / "home", [given.python, "-m", "loramerge"]
    same, tuned, baked = (folder / f"{name}.safetensors" for name in ("same", "tuned0", "baked"))
    shutil.copyfile(base, same)
    make = [given.python, str(HERE / "merge_data.py"), "tuned", str(base), str(folder), "1"]
    run(make)
    bake = [*program, "bake", "--base", str(base), "--lora", str(loras[0]), "-o", str(baked)]
    run(bake, environment(home))
    pairs = {SAME: same, BAKED: baked, TUNED: tuned}
    cases: dict[str, Callable[[], Sample]] = {
        READING: functools.partial(run, ["sh", "-c", f'cat "{base}" "{tuned}" > /dev/null'])
    }
    for name, path in pairs.items():
        command = [*program, "diff", str(base), str(path)]
        cases[name] = functools.partial(run, command, environment(home))
    check = [*program, "verify", str(baked), "--base", str(base), "--lora", str(loras[0])]
    cases[VERIFY] = functools.partial(run, check, environment(home))
    if hasattr(os, "posix_fadvise"):
        both = (base, tuned)
        cases[COLD] = functools.partial(cold, cases[READING], both)
        cases[COLD_TUNED] = functools.partial(cold, cases[TUNED], both)
    two = [*program, "diff", *map(str, loras)]
    cases[ADAPTERS] = functools.partial(run, two, environment(home))
    samples = interleave(cases, given.rounds)
    checks = [
        Check(f"{name} / {READING}", pairwise(samples, name, READING), bound)
        for name, bound in BOUNDS.items()
    ]
    if COLD in samples:
        ratio = pairwise(samples, COLD_TUNED, COLD)
        checks.append(Check(f"{COLD_TUNED} / {COLD}", ratio, 2.0))
    checks.append(Check(f"{ADAPTERS}, seconds", median(samples[ADAPTERS]), SECONDS))
    checks += [Check(f"peak of {name}, MB", peak(samples[name]), PEAK)
               for name in (SAME, BAKED, TUNED, VERIFY)]  # fmt: skip
    error = error_of([*program, "diff", str(base), str(tuned), "--json"], base, tuned, home)
    checks.append(Check("distance, relative error to float64", error, 1e-5))
    report("diff of two 2.6 GB float16 checkpoints", samples, checks, given.json)


def cold(case: Callable[[], Sample], paths: tuple[Path, ...]) -> Sample:
    """Runs a case with files that are not in the page cache."""
    for path in paths:
        flush(path)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return case()


def error_of(command: list[str], a: Path, b: Path, home: Path) -> float:
    """Returns the error of the distance of all numbers, relative to numpy's in float64."""
    import numpy as np

    done = subprocess.run(
        command, env=environment(home), cwd=HERE.parent, capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)["total"]
    moved = energies = 0.0
    other = 0.0
    for x, y in zip(blocks(a), blocks(b), strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        moved += float(((y - x) ** 2).sum())
        energies, other = energies + float((x**2).sum()), other + float((y**2).sum())
    exact = (moved / max(energies, other)) ** 0.5
    return float(abs(found["relative_distance"] / exact - 1))


def blocks(path: Path) -> Any:
    """Yields the float16 numbers of a file, some at a time."""
    import numpy as np

    with path.open("rb") as file:
        head = 8 + int.from_bytes(file.read(8), "little")
    size = (os.path.getsize(path) - head) // 2
    stored = np.memmap(path, "<f2", "r", head, (size,))
    for start in range(0, size, 1 << 22):
        yield stored[start : start + (1 << 22)]


if __name__ == "__main__":
    main()
