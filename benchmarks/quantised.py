"""Times `loramerge bake` into quantised files of Flux's shape against `cp` of the same files.

    python benchmarks/quantised.py [-n 3] [--double 3 --single 6] [--json FILE]

Whole processes, interleaved in one run; `cp` and bake both end when the file is on the disk. The adapter
of rank 16 changes attention and feed-forward of all blocks, seven in ten of all weights. The defaults
make files of 2 GB; 19 and 38 blocks are the whole Flux.1 (12 GB).
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import tempfile
from pathlib import Path

from measure import HERE, Check, environment, interleave, options, pairwise, peak, report, run

FILES = {"q8": "flux_q8.gguf", "fp8": "flux_fp8.safetensors", "q4k": "flux_q4k.gguf"}
ADAPTER = "flux_r16.safetensors"


def main() -> None:
    """Generates the data if absent, measures and reports."""
    parser = options("Time bakes into quantised files against cp.", rounds=3)
    parser.add_argument("--double", type=int, default=3, help="blocks; default: %(default)s")
    parser.add_argument("--single", type=int, default=6, help="blocks; default: %(default)s")
    given = parser.parse_args()
    data = given.data.resolve() / f"flux_{given.double}_{given.single}"
    data.mkdir(parents=True, exist_ok=True)
    for kind, name in {**FILES, "adapter": ADAPTER}.items():
        if not (data / name).exists():
            sizes = ["--double", str(given.double), "--single", str(given.single)]
            script = str(HERE / "flux_data.py")
            subprocess.run([given.python, script, kind, *sizes, "--data", str(data)], check=True)
    with tempfile.TemporaryDirectory(dir=data) as folder:
        measure_all(given, data, Path(folder))


def measure_all(given: argparse.Namespace, data: Path, folder: Path) -> None:
    """Measures and reports, with outputs in `folder`."""
    cases, env = {}, environment(folder / "home")
    for kind, name in FILES.items():
        out = folder / name
        cases[f"cp {kind}"] = functools.partial(run, ["cp", str(data / name), str(out)], sync=out)
        command = [given.python, "-m", "loramerge", "bake", "--base", str(data / name),
                   str(data / ADAPTER), "-o", str(out), "--force", "--allow-loss"]  # fmt: skip
        cases[f"bake {kind}"] = functools.partial(run, command, env)
    samples = interleave(cases, given.rounds)
    baked = [f"bake {kind}" for kind in FILES]
    checks = [
        Check(f"bake / cp, {kind}", pairwise(samples, f"bake {kind}", f"cp {kind}"), 3)
        for kind in FILES
    ]
    checks.append(Check("peak, MB", peak([s for name in baked for s in samples[name]]), 400))
    report("bake into quantised files", samples, checks, given.json)


if __name__ == "__main__":
    main()
