"""Times `loramerge bake` against copying the checkpoint, and checks every written element.

    python benchmarks/bake.py [-n 9] [--read-all] [--json FILE]

Each round copies the base (`cp`, then fsync), bakes with an empty LORAMERGE_HOME (the digest of
the base is not known yet) and bakes again with a kept one. Needs 11 GB of disk, with --read-all 13.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from pathlib import Path

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
from shapes import SD21, UNET_PREFIX, adapted, kohya_name

COPY, ALL = "cp + fsync", "read all (torch)"
FIRST, CACHED = "bake, first time", "bake, digest cached"
BLOCK = 1 << 19  # elements compared at once


def copy(source: Path, target: Path) -> Sample:
    """Copies with `cp`, or in Python where there is none, and waits for the disk."""
    target.unlink(missing_ok=True)
    if program := shutil.which("cp"):
        return run([program, str(source), str(target)], sync=target)
    start = time.perf_counter()
    shutil.copyfile(source, target)
    flush(target)
    return Sample(time.perf_counter() - start, None, None)


def written(command: list[str], target: Path, home: Path | None, folder: Path) -> Sample:
    """Runs a command that writes `target`, fsync included; without `home` in an empty one."""
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        return run(command, environment(home or Path(empty)), sync=target)


def compare(base: Path, lora: Path, baked: Path) -> list[Check]:
    """Compares a baked checkpoint with the sum in float64, rounded once, element by element."""
    import numpy as np
    from tensors import Tensors

    def ordered(array: np.ndarray) -> np.ndarray:
        """Numbers the float16 values in their order, so that neighbours differ by one."""
        bits = array.view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    touched = {f"{UNET_PREFIX}{name}.weight": kohya_name(name, False) for name, _ in adapted(SD21)}
    expected = sum(out * into for _, (out, into) in adapted(SD21))
    elements = different = furthest = changed = 0
    with Tensors(base) as before, Tensors(baked) as after, Tensors(lora) as adapter:
        layout = {name: entry[:2] for name, entry in before.entries.items()}
        kept = {name: entry[:2] for name, entry in after.entries.items()}
        order = list(layout) == sorted(kept, key=lambda name: after.entries[name][2])
        if layout != kept or set(adapter.stems()) != set(touched.values()):
            raise SystemExit("names, dtypes or shapes differ from the base or from the table")
        for name in layout:
            if name not in touched:
                pairs = zip(before.blocks(name), after.blocks(name), strict=True)
                changed += any(a != b for a, b in pairs)
                continue
            up, down = adapter.factors(touched[name])
            old, new = before.read(name), after.read(name)
            rows = BLOCK // down.shape[1]
            for row in range(0, len(old), rows):
                part = slice(row, row + rows)
                exact = up[part] @ down + old[part]
                steps = np.abs(ordered(exact.astype(np.float16)) - ordered(new[part]))
                elements += steps.size
                different += int(np.count_nonzero(steps))
                furthest = max(furthest, int(steps.max()))
    return [
        Check("touched elements", elements, expected, at_least=True),
        Check("share of them not correctly rounded", different / elements, 2e-4),
        Check("largest difference, units in the last place", furthest, 1),
        Check("untouched tensors that changed", changed, 0),
        Check("tensors in the order of the base", int(order), 1, at_least=True),
    ]


def main() -> None:
    """Generates the data if absent, measures, checks and reports."""
    parser = options("Time bake against copying the checkpoint.", rounds=9)
    parser.add_argument("--read-all", action="store_true", help="also load_file + save_file")
    given = parser.parse_args()
    base = ensure("base", "sd21_base.safetensors", given.data, given.python)
    lora = ensure("lora", "sd21_r64.safetensors", given.data, given.python)
    with tempfile.TemporaryDirectory(dir=given.data.resolve()) as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        copied, baked, first = (folder / f"{i}.safetensors" for i in ("copied", "baked", "first"))
        command = [given.python, "-m", "loramerge", "bake", "--base", str(base)]
        command += ["--lora", str(lora), "--force", "-o"]
        cases = {
            COPY: functools.partial(copy, base, copied),
            FIRST: functools.partial(written, [*command, str(first)], first, None, folder),
            CACHED: functools.partial(written, [*command, str(baked)], baked, home, folder),
        }
        if given.read_all:
            target = folder / "all.safetensors"
            paths = [str(base), str(lora), str(target)]
            all_in = [given.python, str(HERE / "peers.py"), "read-all", *paths]
            cases[ALL] = functools.partial(written, all_in, target, home, folder)
        samples = interleave(cases, given.rounds)
        copying = median(samples[COPY])
        checks = [
            Check("bake / copy, medians", median(samples[CACHED]) / copying, 2),
            Check("first bake / copy, medians", median(samples[FIRST]) / copying, 2.5),
            Check("bake / copy, median of rounds", pairwise(samples, CACHED, COPY), 2),
            Check("first bake / copy, median of rounds", pairwise(samples, FIRST, COPY), 2.5),
            Check("peak of bake, MB", peak(samples[CACHED] + samples[FIRST]), 200),
        ]
        checks += compare(base, lora, baked)
    report(f"bake {lora.name} into {base.name}, one BLAS thread", samples, checks, given.json)


if __name__ == "__main__":
    main()
