"""`python -m loramerge.tiny`: the tiny model rebuilt, its pictures as files, and scores.

pictures FOLDER             the character's lesson as folders that `loramerge train` takes
trial ADAPTER … --base B    what bases can do with each adapter, as a table
build FOLDER                the model and its adapters, from nothing: forty minutes of one core,
                            going on where it was interrupted; FOLDER/shipped is what is shipped
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

import torch

from loramerge.adapter.load import load
from loramerge.errors import LoramergeError
from loramerge.library.lookup import find
from loramerge.tiny.adapters import LESSONS, make
from loramerge.tiny.build import build
from loramerge.tiny.folders import write_folders
from loramerge.tiny.pictures import pipeline
from loramerge.tiny.trial import Trial, trial
from loramerge.train.lora.applied import applied

__all__ = ["main", "table"]

_HEAD = (
    "| base | adapter | MB | kind | colour | background | size | all | seen / held | teal | ink "
    "| dots |\n" + "|---" * 12 + "|"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit code."""
    chosen = _parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        if chosen.what == "build":
            _build(chosen.folder)
        elif chosen.what == "pictures":
            for path in write_folders(chosen.folder, seed=chosen.seed, force=chosen.force):
                sys.stdout.write(f"{path}\n")
        else:
            for line in table(chosen.base or ["tiny"], chosen.adapters, chosen.count):
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
    except LoramergeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loramerge.tiny",
        description=inspect.cleandoc(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=1, help="other numbers round differently")
    parts = parser.add_subparsers(dest="what", required=True, metavar="pictures | trial | build")
    made = parts.add_parser("build")
    made.add_argument("folder", type=Path, help="for the result and the states in between")
    drawn = parts.add_parser("pictures")
    drawn.add_argument("folder", type=Path, help="gets the folders zuzu and ordinary")
    drawn.add_argument("--seed", type=int, default=0)
    drawn.add_argument("--force", action="store_true", help="replace pictures that are there")
    tried = parts.add_parser("trial")
    tried.add_argument(
        "adapters", nargs="*", help="names, files or patterns; each is tried alone, at weight 1"
    )
    tried.add_argument("--base", action="append", help="may be repeated (default: tiny)")
    tried.add_argument("--count", type=int, default=64, help="ordinary pictures, and portraits")
    return parser


def _build(folder: Path) -> None:
    result = folder / "shipped"

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    base = build(folder / "work", result / "tiny", say=say)
    for name in LESSONS:
        output = result / f"{name}.safetensors"
        if not output.exists():
            say(f"{output}: {make(name, base, output)} bytes")


def table(bases: Sequence[str], adapters: Sequence[str], count: int) -> Iterator[str]:
    """Yield the lines of a table of scores: each base alone, then with each adapter.

    Raises:
        LoramergeError: if one is not found or does not fit.
    """
    named = [one for name in adapters for one in sorted(glob(name)) or [name]]
    paths = [find(name, "adapters") for name in named]
    folders = [(name, find(name, "bases")) for name in bases]
    yield _HEAD
    for base, folder in folders:
        pipe = pipeline(folder)
        models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
        yield _row(base, None, trial(pipe, count))
        for path in paths:
            with applied(models, [load(path)]):
                yield _row(base, path, trial(pipe, count))


def _row(base: str, adapter: Path | None, found: Trial) -> str:
    shares = [f"{found.follow[n]:.2f}" for n in ("kind", "colour", "background", "size", "all")]
    cells = [
        Path(base).name,
        "–" if adapter is None else adapter.name.removesuffix(".safetensors"),
        "" if adapter is None else f"{adapter.stat().st_size / 1e6:.2f}",
        *shares,
        f"{found.seen:.2f} / {found.held:.2f}",
        *(f"{value:.3f}" for value in (found.teal, found.ink, found.dots)),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
