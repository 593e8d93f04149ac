"""Score every merge operator, scale rule and resize rule on a small diffusion model of shapes.

python -m benchmarks.shapebench          all; writes the tables and plots of docs/proving-ground.md
python -m benchmarks.shapebench --quick  operators at four adapters, one seed; prints tables

The base and its adapters are made once and kept in the folder --data; figures are kept there, too, so a
run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import chain, groupby
from pathlib import Path

import torch

from benchmarks.proving.cases import Case, operator_cases, parameter_cases, scale_cases
from benchmarks.proving.keeping import figures, measure, measure_resize, say
from benchmarks.proving.tables import operator_table, score_table
from benchmarks.shapebench.page import COUNTS, PICTURE_SCORES, write_page
from benchmarks.shapebench.pictures import CONCEPTS
from benchmarks.shapebench.trial import Trial

HERE = Path(__file__).resolve().parent
SEEDS = 5
FULL_RANK = 64  # of the layers
QUICK = 0.1  # share of the training steps in a quick run


def main() -> None:
    """Run what the arguments say."""
    chosen = _parser().parse_args()
    torch.set_num_threads(1)
    if chosen.quick:
        measure(chosen.data / "quick", 0, operator_cases(), (4,), _trial)
        found = figures(chosen.data / "quick")
        pictures = score_table(found, 4, PICTURE_SCORES)
        print("\n".join((*operator_table(found, (4,)), "", *pictures)))
        return
    folder = chosen.data / "shapes"
    if not chosen.page:
        for _, tried in groupby(cases(), key=lambda one: one.table):
            kept = list(tried)
            for seed in range(chosen.seeds):
                measure(folder, seed, kept, COUNTS, _trial)
        for seed in range(chosen.seeds):
            measure_resize(folder, seed, len(CONCEPTS), _trial)
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


def cases() -> Iterator[Case]:
    """Yield every case: operators first, then scales, then parameters."""
    return chain(operator_cases(), scale_cases(), parameter_cases(FULL_RANK))


@cache
def _trial(folder: Path, seed: int) -> Trial:
    return Trial(folder, seed, say, QUICK if folder.name == "quick" else 1)


if __name__ == "__main__":
    main()
