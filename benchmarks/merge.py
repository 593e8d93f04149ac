"""Times `loramerge merge` of three checkpoints against reading them all and writing one.

    python benchmarks/merge.py [-n 3] [--only ties] [--large] [--mergekit EXE] [--json FILE]

Each round reads the inputs (`cat > /dev/null`) and copies one (`cp`, then fsync), and merges them:
a weighted sum, SLERP, and TIES on a base. What is written is compared with the float64 definition in
some of the tensors. `--large` also merges a 24 GB checkpoint of 12 shards, made of sparse files that
hold zeros, for its memory alone. `--mergekit EXE`, a Python that has mergekit, merges a folder
of transformers of the same size with both.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import (
    Check,
    Sample,
    ensure,
    environment,
    flush,
    interleave,
    median,
    options,
    peak,
    report,
    run,
)
from shapes import UNET_PREFIX

YARDSTICK = "cat of all, cp + fsync of one"
METHODS = {
    "weighted sum": (["--method", "linear"], 3, False, 2.0),
    "ties": (["--method", "ties", "--density", "0.3"], 3, True, 4.0),
    "slerp": (["--method", "slerp"], 2, False, 4.0),
}
# With 0.7, entries that cancel but for the rounding of 0.7 would be elected by it; 0.75 is exact.
WEIGHTS = {"weighted sum": (0.2, 0.3, 0.5), "ties": (1.0, 0.75), "slerp": (0.6, 0.4)}
TUNED = 2  # checkpoints beside the base
PEAK = 400  # MB


def main() -> None:
    """Makes the checkpoints, measures, checks and reports."""
    parser = options("Time merges against reading and writing.", rounds=3)
    parser.add_argument("--only", choices=METHODS, action="append", help="measure only this method")
    parser.add_argument("--large", action="store_true", help="the memory of 24 GB, too")
    parser.add_argument("--threads", type=int, help="of loramerge; default: all")
    parser.add_argument("--mergekit", metavar="EXE", help="a Python with mergekit")
    given = parser.parse_args()
    base = ensure("base", "sd21_base.safetensors", given.data, given.python)
    with tempfile.TemporaryDirectory(dir=given.data.resolve()) as folder:
        measure_all(given, base, Path(folder))


def measure_all(given: argparse.Namespace, base: Path, folder: Path) -> None:
    """Measures, checks and reports, with the files that it makes in `folder`."""
    make(given.python, "tuned", str(base), str(folder), str(TUNED))
    paths = [base, *(folder / f"tuned{number}.safetensors" for number in range(TUNED))]
    out, home = folder / "out.safetensors", folder / "home"
    names = given.only or list(METHODS)
    cases: dict[str, Callable[[], Sample]] = {
        YARDSTICK: functools.partial(read_and_copy, paths, folder / "copy.safetensors")
    }
    for name in names:
        command = [*merging(given, name, paths), "-f", "-o", str(out)]
        cases[name] = functools.partial(merged, command, out, home)
    samples = interleave(cases, given.rounds)
    yardstick = median(samples[YARDSTICK])
    checks = [
        Check(f"{name} / {YARDSTICK}", median(samples[name]) / yardstick, METHODS[name][3])
        for name in names
    ]
    checks += [Check(f"peak of {name}, MB", peak(samples[name]), PEAK) for name in names]
    for path in folder.glob("*.safetensors"):
        if path not in paths:
            path.unlink()
    if given.large:
        checks += large(given, folder / "large", samples, home)
    if given.mergekit:
        checks += beside_mergekit(given, folder / "language", samples, home)
    for name in names:
        run([*merging(given, name, paths), "-f", "-o", str(out)], environment(home))
        checks.append(Check(f"{name}: largest error, half units in the last place",
                            error_of(name, paths, out), 1.001))  # fmt: skip
    report("merge of three 2.6 GB float16 checkpoints", samples, checks, given.json)


def merging(given: argparse.Namespace, name: str, paths: list[Path]) -> list[str]:
    """Returns the command of a merge, without its output."""
    words, count, on_base, _ = METHODS[name]
    models = paths[1:] if on_base else paths[:count]
    inputs = [f"{path}:{weight}" for path, weight in zip(models, WEIGHTS[name], strict=True)]
    based = ["--base", str(paths[0])] if on_base else []
    threads = ["--threads", str(given.threads)] if given.threads else []
    literal = ["--scale", "literal"] if on_base else []
    return [given.python, "-m", "loramerge", "merge", *inputs, *based, *words, *literal, *threads]


def make(python: str, kind: str, *words: str) -> None:
    """Makes files in another process: this one stays smaller than what it measures."""
    run([python, str(Path(__file__).with_name("merge_data.py")), kind, *words])


def read_and_copy(paths: list[Path], target: Path) -> Sample:
    """Reads all inputs, and copies one of them and waits for the disk."""
    start = time.perf_counter()
    target.unlink(missing_ok=True)
    reading = run(["sh", "-c", 'cat "$@" > /dev/null', "cat", *map(str, paths)])
    copying = run(["cp", str(paths[0]), str(target)], sync=target)
    cpu = (reading.cpu or 0) + (copying.cpu or 0)
    return Sample(time.perf_counter() - start, cpu, max(reading.peak or 0, copying.peak or 0))


def merged(command: list[str], out: Path, home: Path) -> Sample:
    """Merges, with the digests of the inputs known, and waits for the disk."""
    out.unlink(missing_ok=True)
    return run(command, environment(home), sync=out)


def large(
    given: argparse.Namespace, folder: Path, samples: dict[str, list[Sample]], home: Path
) -> list[Check]:
    """Merges 24 GB of zeros in shards with themselves, and returns the memory that it took."""
    make(given.python, "large", str(folder))
    out = folder.with_name("large-out")
    command = [given.python, "-m", "loramerge", "merge", f"{folder}:0.5", f"{folder}:0.5"]
    command += ["--strip", "-f", "-o", str(out)]
    samples["24 GB"] = [run(command, environment(home))]
    shutil.rmtree(out)
    shutil.rmtree(folder)
    return [Check("peak of 24 GB, MB", peak(samples["24 GB"]), PEAK)]


def beside_mergekit(
    given: argparse.Namespace, folder: Path, samples: dict[str, list[Sample]], home: Path
) -> list[Check]:
    """Merges language models with both programs, once each after one run that is not counted."""
    make(given.python, "language", str(folder), str(TUNED + 1))
    models = [folder / str(number) for number in range(TUNED + 1)]
    checks = []
    for name, (words, count, on_base, _) in METHODS.items():
        if given.only and name not in given.only:
            continue
        config = folder / f"{name}.yml"
        config.write_text(json.dumps(mergekit_recipe(name, models, words, count, on_base)), "utf-8")
        ours, theirs = folder / "ours", folder / "theirs"
        command = [*merging(given, name, models), "-f", "-o", str(ours)]
        tool = str(Path(given.mergekit).with_name("mergekit-yaml"))
        peer = [given.mergekit, tool, str(config), str(theirs), "--no-copy-tokenizer"]
        for label, words_of, target in (("loramerge", command, ours), ("mergekit", peer, theirs)):
            found = []
            for _ in range(2):
                shutil.rmtree(target, ignore_errors=True)
                found.append(timed_folder(words_of, target, home))
            samples[f"{label}: {name}, language model"] = found[1:]
        mine, other = (
            samples[f"{one}: {name}, language model"] for one in ("loramerge", "mergekit")
        )
        checks.append(Check(f"{name}: loramerge / mergekit, time", median(mine) / median(other), 1))
        memory = (peak(mine) or 0) / (peak(other) or 1)
        checks.append(Check(f"{name}: loramerge / mergekit, memory", memory, 1))
    shutil.rmtree(folder)
    return checks


def timed_folder(command: list[str], target: Path, home: Path) -> Sample:
    """Runs a command and waits until the folder that it wrote is on the disk."""
    start = time.perf_counter()
    sample = run(command, environment(home))
    for path in target.rglob("*.safetensors"):
        flush(path)
    return Sample(time.perf_counter() - start, sample.cpu, sample.peak)


def mergekit_recipe(
    name: str, models: list[Path], words: list[str], count: int, on_base: bool
) -> dict[str, object]:
    """Returns mergekit's recipe of a merge."""
    chosen = models[1:] if on_base else models[:count]
    weights = WEIGHTS[name]
    if name == "slerp":
        return {
            "models": [{"model": str(one)} for one in chosen],
            "base_model": str(chosen[0]), "merge_method": "slerp",
            "parameters": {"t": weights[1]}, "dtype": "float16",
        }  # fmt: skip
    own = [
        {"model": str(one), "parameters": {"weight": weight, "density": 0.3}}
        for one, weight in zip(chosen, weights, strict=True)
    ]
    recipe: dict[str, object] = {
        "models": own, "merge_method": "ties" if on_base else "linear", "dtype": "float16",
    }  # fmt: skip
    return recipe | ({"base_model": str(models[0])} if on_base else {})


def error_of(name: str, paths: list[Path], out: Path) -> float:
    """Returns the largest error of some tensors, in half units of the last place of float16."""
    import numpy as np
    from tensors import Tensors

    worst = 0.0
    weights = WEIGHTS[name]
    with Tensors(out) as written:
        readers = [Tensors(path) for path in paths]
        for entry in [name for name in written.entries if name.startswith(UNET_PREFIX)][::31]:
            values = [reader.read(entry).astype("float64") for reader in readers]
            wanted = definition(name, values, weights)
            found = written.read(entry)
            unit = np.spacing(np.abs(wanted).astype("float16")).astype("float64") / 2
            unit = np.maximum(unit, 2.0**-25)
            worst = max(worst, float((np.abs(found - wanted) / unit).max()))
    return worst


def definition(name: str, values: list[Any], weights: tuple[float, ...]) -> Any:
    """Returns the float64 definition of a merge."""
    import numpy as np

    if name == "weighted sum":
        return sum(w * v for w, v in zip(weights, values, strict=True))
    if name == "slerp":
        a, b = values[:2]
        cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        angle = np.arccos(min(1.0, cosine))
        if np.sin(angle) < 1e-6:
            return weights[0] * a + weights[1] * b
        return (np.sin(weights[0] * angle) * a + np.sin(weights[1] * angle) * b) / np.sin(angle)
    kept = []
    for weight, value in zip(weights, values[1:], strict=True):
        change = value - values[0]
        count = int(0.3 * change.size)
        least = np.sort(np.abs(change), axis=None)[-count] if count else np.inf
        kept.append(weight * np.where(np.abs(change) >= least, change, 0.0))
    signs = np.where(sum(kept) < 0, -1.0, 1.0)
    agree = [one * signs > 0 for one in kept]
    total = sum(np.where(yes, one, 0.0) for yes, one in zip(agree, kept, strict=True))
    return values[0] + total / np.maximum(sum(agree), 1)


if __name__ == "__main__":
    main()
