"""Score every merge operator, scale rule and resize rule on a small diffusion model of shapes.

python -m benchmarks.shapebench          all; writes the tables and plots of docs/proving-ground.md
python -m benchmarks.shapebench --quick  operators at four adapters, one seed; prints tables

The base and its adapters are made once and kept in the folder --data; figures are kept there, too, so a
run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapebench.cases import Case, cases
from benchmarks.shapebench.page import COUNTS, figures, write_page
from benchmarks.shapebench.tables import operator_table, picture_table
from benchmarks.shapebench.trial import Trial

HERE = Path(__file__).resolve().parent
SEEDS = 5
PICTURES = 4  # adapters, where pictures are generated, too
QUICK = 0.1  # share of the training steps in a quick run


def main() -> None:
    """Run what the arguments say."""
    chosen = _parser().parse_args()
    torch.set_num_threads(1)
    if chosen.quick:
        _run(chosen.data / "quick", 0, [one for one in cases() if one.table == "operators"], (4,))
        found = figures(chosen.data / "quick")
        print("\n".join((*operator_table(found, (4,)), "", *picture_table(found, 4))))
        return
    folder = chosen.data / "shapes"
    if not chosen.page:
        for _, tried in groupby(cases(), key=lambda one: one.table):
            kept = list(tried)
            for seed in range(chosen.seeds):
                _run(folder, seed, kept, COUNTS)
        for seed in range(chosen.seeds):
            _resize(folder, seed)
    write_page(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shapebench",
        description=inspect.cleandoc(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=HERE.parent / "data")
    parser.add_argument(
        "--quick", action="store_true", help="a minute or two: a short training, one seed"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    parser.add_argument(
        "--page", action="store_true", help="only write the page, from kept figures"
    )
    return parser


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def _run(folder: Path, seed: int, tried: list[Case], counts: Sequence[int]) -> None:
    """Measure what is not measured yet; each figure becomes a line of a file."""
    done = {(row["key"], row["n"]) for row in figures(folder) if row["seed"] == seed}
    missing = [
        (one, n) for one in tried for n in counts if one.takes(n) and (one.key, n) not in done
    ]
    trial = _trial(folder, seed) if missing else None
    for case, count in missing:
        pictures = case.table == "operators" and count == PICTURES
        scores = trial.merged(case, count, pictures=pictures)
        _keep(
            folder,
            seed,
            {"key": case.key, "n": count, "table": case.table, "method": case.method, **scores},
        )
        _say(f"seed {seed}: {case.key}, n = {count}: {scores['mean']:.3f}")


def _resize(folder: Path, seed: int) -> None:
    """Measure the rules of resize if they are not measured yet."""
    if not any(row["seed"] == seed and row["table"] == "resize" for row in figures(folder)):
        for row in _trial(folder, seed).resized():
            _keep(folder, seed, {"key": "resize", "n": 8, "table": "resize", **row})
        _say(f"seed {seed}: resize")


@cache
def _trial(folder: Path, seed: int) -> Any:
    return Trial(folder, seed, _say, QUICK if folder.name == "quick" else 1)


def _keep(folder: Path, seed: int, row: dict[str, Any]) -> None:
    rounded = {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}
    with (folder / f"figures-{seed}.jsonl").open("a") as file:
        file.write(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main()
