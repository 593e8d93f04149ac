"""Times merges of four rank-32 SDXL adapters by operators that need no dense matrix, and by TIES.

    python benchmarks/operators.py [-n 1] [--dense] [--methods tsv-m,svc,…] [--json FILE]

Each run is a whole process with one thread that mixes the four adapters (986 modules each, those of the
UNet's attention and of both text encoders) down to rank 32. The bounds are of processor time, which
neighbours on the machine disturb less than wall time. `--dense` adds TIES on dense matrices (minutes),
whose memory is that of one module at a time.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from measure import Check, Sample, ensure, interleave, options, peak, report, run

METHODS = ("linear", "tsv-m", "svc", "regmean-proxy", "protect", "compress-then-merge", "pico")
ADAPTERS = 4
DENSE = "ties"
LARGEST = 10240 * 1280 * 8 / 1e6  # MB of the largest module's ΔW in float64


def least_cpu(samples: list[Sample]) -> float | None:
    """Returns the least processor seconds of some runs, None where they are not known."""
    known = [sample.cpu for sample in samples if sample.cpu is not None]
    return min(known) if known else None


def main() -> None:
    """Generates the data if absent, measures and reports."""
    parser = options("Time merges of four SDXL adapters.", rounds=1)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rank", type=int, default=32, help="0 keeps all 128 directions")
    parser.add_argument(
        "--dense", action="store_true", help="TIES on dense matrices, too (minutes)"
    )
    given = parser.parse_args()
    last = ensure("four", f"sdxl_te_r32_{ADAPTERS}.safetensors", given.data, given.python)
    adapters = [f"{last.with_stem(f'sdxl_te_r32_{n + 1}')}:0.5" for n in range(ADAPTERS)]
    methods = [*given.methods.split(","), *([DENSE] if given.dense else [])]
    with tempfile.TemporaryDirectory(dir=given.data) as folder:
        rank = ["--rank", str(given.rank)] if given.rank else []
        cases = {
            method: functools.partial(
                run,
                [given.python, "-m", "loramerge", "mix", *adapters, "--method", method, *rank,
                 "-o", str(Path(folder, "out.safetensors")), "--force", "--threads", "1", "-q"],
            )
            for method in methods
        }  # fmt: skip
        samples = interleave(cases, given.rounds)
    checks = [
        check
        for method in methods
        if method != DENSE
        for check in (
            Check(f"{method}: processor seconds", least_cpu(samples[method]), 60),
            Check(f"{method}: peak MB", peak(samples[method]), 1500),
        )
    ]
    if given.dense:
        least = min(found for name in methods if name != DENSE if (found := peak(samples[name])))
        more = peak(samples[DENSE])
        ratio = None if more is None else (more - least) / LARGEST
        checks.append(Check(f"{DENSE}: memory beyond the others', in largest ΔW", ratio, 20))
    report(f"4-way mixes of rank-32 SDXL adapters, rank {given.rank or 'kept'}", samples, checks,
           given.json)  # fmt: skip


if __name__ == "__main__":
    main()
