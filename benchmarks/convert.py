"""Times `loramerge convert` of a 170 MB SDXL file against `cp` of it.

    python benchmarks/convert.py [-n 7] [--json FILE]

Whole processes, interleaved in one run; `cp` and convert both end when the file is on the disk. Once
with the digest of the input known (a second conversion of the same file) and once without. Then the
results are compared with the input, without loramerge.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import tempfile
from pathlib import Path

from measure import (
    Check,
    Sample,
    ensure,
    environment,
    interleave,
    median,
    options,
    peak,
    report,
    run,
)

COPY, START = "cp + fsync", "python with click, rich and numpy"
KNOWN, FIRST = "digest known", "first time"
CASES = {
    "kohya → diffusers": ("--to", "diffusers"),
    "kohya → kohya float16": ("--to", "kohya", "--dtype", "float16"),
}


def main() -> None:
    """Generates the data if absent, measures, checks and reports."""
    parser = options("Time convert against cp.", rounds=7)
    given = parser.parse_args()
    source = ensure("sdxl", "sdxl_r32.safetensors", given.data, given.python)
    with tempfile.TemporaryDirectory(dir=given.data.resolve()) as folder:
        measure_all(given, source, Path(folder))


def measure_all(given: argparse.Namespace, source: Path, folder: Path) -> None:
    """Measures, checks and reports, with outputs in `folder`."""
    python, homes = given.python, {KNOWN: folder / "known", FIRST: folder / "first"}
    copy = folder / "copy.safetensors"
    cases = {
        COPY: functools.partial(run, ["cp", str(source), str(copy)], sync=copy),
        START: functools.partial(run, [python, "-c", "import click, rich.table, numpy"]),
    }
    outputs = {}
    for index, (name, how) in enumerate(CASES.items()):
        for state, home in homes.items():
            out = outputs[f"{name}, {state}"] = folder / f"{index}-{state[:5]}.safetensors"
            command = [
                python,
                "-m",
                "loramerge",
                "convert",
                str(source),
                *how,
                "-o",
                str(out),
                "-f",
            ]

            cases[f"{name}, {state}"] = functools.partial(convert, command, home, state)
    samples = interleave(cases, given.rounds)
    start, cp = median(samples[START]), median(samples[COPY])
    checks = [Check(f"({n} - start) / cp", (median(samples[n]) - start) / cp, 3) for n in outputs]
    checks.append(Check("peak, MB", peak([s for n in outputs for s in samples[n]]), 300))
    wrong = sum(not same_factors(source, path) for path in outputs.values())
    checks.append(Check("files whose factors are not those of the input", wrong, 0))
    report(f"convert: {source.name}", samples, checks, given.json)


def convert(command: list[str], home: Path, state: str) -> Sample:
    """Runs a conversion; without what an earlier one left, if it shall be the first."""
    if state == FIRST:
        shutil.rmtree(home, ignore_errors=True)
    return run(command, environment(home))


def same_factors(source: Path, converted: Path) -> bool:
    """Says whether both files hold the same factors, told by their bytes, whatever their names.

    Alpha is the rank in this file, so that a dialect without alphas needs no other factors.
    """
    import hashlib

    from tensors import Tensors

    found = []
    for path in (source, converted):
        with Tensors(path) as tensors:
            factors = [name for name, entry in tensors.entries.items() if len(entry[1]) > 1]
            digests = [hashlib.sha256(b"".join(tensors.blocks(name))).digest() for name in factors]
            found.append(sorted(digests))
    return found[0] == found[1]


if __name__ == "__main__":
    main()
