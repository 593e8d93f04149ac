"""Times `loramerge resize --rank 8` against a bare script, its peers and full-matrix SVDs.

    python benchmarks/resize.py [--elias DIR] [--kohya DIR] [-n 7] [--json FILE]

All are whole processes with one BLAS thread, interleaved in one run. Then every result is compared
with the best that rank 8 allows (Eckart–Young), known in float64 from the factors.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from measure import HERE, Check, Sample, ensure, interleave, median, options, peak, report, run

if TYPE_CHECKING:
    from tensors import Tensors

BARE, ONE, DEFAULT = "bare numpy script", "loramerge, --threads 1", "loramerge"
ELIAS, KOHYA, FULL = "elias-gaeros/resize_lora", "kohya resize_lora.py", "full-matrix SVDs"


def resize_command(python: str, source: Path, target: Path, rank: int, *more: str) -> list[str]:
    """Returns the command line of loramerge."""
    command = [python, "-m", "loramerge", "resize", "--rank", str(rank), str(source)]
    return [*command, "-o", str(target), "--force", *more]


def optimum(original: Tensors, rank: int) -> dict[str, float]:
    """Returns the smallest error ‖ΔW − X‖_F over X of rank `rank`, for each module.

    The singular values beyond `rank`, from thin QR of both factors and an SVD of the core.
    """
    import numpy as np

    best = {}
    for stem in original.stems():
        up, down = original.factors(stem)
        left, right = (np.asarray(np.linalg.qr(side, mode="r")) for side in (up, down.T))
        core = left @ right.T
        best[stem] = float(np.linalg.norm(np.linalg.svd(core, compute_uv=False)[rank:]))
    return best


def excess(original: Tensors, path: Path, best: dict[str, float], rank: int) -> tuple[float, float]:
    """Returns error / optimum - 1 of a resized file: of the worst module, and of the whole.

    Raises:
        SystemExit: A module is missing or has too large a rank.
    """
    import numpy as np
    from tensors import Tensors

    worst, total = -1.0, 0.0
    with Tensors(path) as resized:
        if set(resized.stems()) != set(best):
            raise SystemExit(f"{path.name}: not the modules of the input")
        for stem in best:
            up, down = original.factors(stem)
            small_up, small_down = resized.factors(stem)
            if len(small_down) > rank:
                raise SystemExit(f"{path.name}: {stem} has rank {len(small_down)}")
            left, right = np.hstack([up, -small_up]), np.vstack([down, small_down])
            square = float(((left.T @ left) * (right @ right.T)).sum())
            worst = max(worst, square**0.5 / best[stem] - 1)
            total += square
    return worst, (total / sum(value * value for value in best.values())) ** 0.5 - 1


def main() -> None:
    """Generates the data if absent, measures, checks and reports."""
    parser = options("Time resize against its peers.", rounds=7)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--elias", type=Path, help="checkout of elias-gaeros/resize_lora")
    parser.add_argument("--kohya", type=Path, help="checkout of kohya-ss/sd-scripts (minutes)")
    parser.add_argument("--no-svd", action="store_true", help="without full-matrix SVDs (20 s)")
    given = parser.parse_args()
    source = ensure("lora", "sd21_r64.safetensors", given.data, given.python)
    with tempfile.TemporaryDirectory(dir=given.data.resolve()) as folder:
        measure_all(given, source, Path(folder))


def measure_all(given: argparse.Namespace, source: Path, folder: Path) -> None:
    """Measures, checks and reports, with outputs in `folder`."""
    python, rank = given.python, given.rank
    peers = [python, str(HERE / "peers.py")]
    out = {name: folder / f"{i}.safetensors" for i, name in enumerate((BARE, ONE, DEFAULT, ELIAS))}
    bare = [python, str(HERE / "bare_resize.py"), str(source)]
    commands = {
        BARE: [*bare, str(out[BARE]), str(rank)],
        ONE: resize_command(python, source, out[ONE], rank, "--threads", "1"),
        DEFAULT: resize_command(python, source, out[DEFAULT], rank),
    }
    if given.elias:
        root = str(given.elias.resolve())
        commands[ELIAS] = [*peers, "elias", root, str(source), str(out[ELIAS]), str(rank)]
    cases = {name: functools.partial(run, command) for name, command in commands.items()}
    samples = interleave(cases, given.rounds)

    own = median(samples[ONE])
    checks = [
        Check("loramerge --threads 1 / bare script", own / median(samples[BARE]), 2),
        Check("loramerge / bare script", median(samples[DEFAULT]) / median(samples[BARE]), 2),
        Check("peak of loramerge, MB", peak(samples[ONE] + samples[DEFAULT]), 300),
    ]
    if given.elias:
        ratio = median(samples[ELIAS]) / own
        checks.append(Check("elias-gaeros / loramerge --threads 1", ratio, 3, at_least=True))
    if not given.no_svd:
        run([*peers, "svd", str(source), str(folder / "svd.json")])
        found = json.loads((folder / "svd.json").read_text(encoding="utf-8"))
        samples[f"{FULL} (by shape × count)"] = [Sample(found["seconds"], None, None)]
        ratio = found["seconds"] / own
        checks.append(Check(f"{FULL} / loramerge --threads 1", ratio, 100, at_least=True))
    if given.kohya:
        out[KOHYA] = folder / "kohya.safetensors"
        paths = [str(given.kohya.resolve()), str(source), str(out[KOHYA]), str(rank)]
        samples[KOHYA] = [run([*peers, "kohya", *paths])]
        ratio = median(samples[KOHYA]) / own
        checks.append(Check("kohya / loramerge --threads 1", ratio, 100, at_least=True))

    wide = {name: folder / f"wide-{i}.safetensors" for i, name in enumerate((BARE, ONE))}
    run([*bare, str(wide[BARE]), str(rank), "float32"])
    run(resize_command(python, source, wide[ONE], rank, "--dtype", "float32"))
    from tensors import Tensors

    with Tensors(source) as original:
        best = optimum(original, rank)
        listed = [("float32", name, path) for name, path in wide.items()]
        listed += [("float16", name, path) for name, path in out.items() if path.exists()]
        for dtype, name, path in listed:
            worst, whole = excess(original, path, best, rank)
            checks.append(Check(f"error / optimum - 1, {dtype}, worst module: {name}", worst, 1e-4))
            checks.append(Check(f"error / optimum - 1, {dtype}, whole: {name}", whole, 1e-4))
    title = f"resize to rank {rank}: {source.name}, one BLAS thread"
    report(title, samples, checks, given.json)


if __name__ == "__main__":
    main()
