"""`python -m loramerge.train.tiny FOLDER`: the tiny model and its adapters, rebuilt from nothing.

About forty minutes of one core. What is interrupted goes on where it was when it is called again;
what `FOLDER/shipped` then holds is what comes with loramerge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from loramerge.train.tiny.adapters import LESSONS, make
from loramerge.train.tiny.build import build


def main() -> None:
    """Build what is not there yet."""
    parser = argparse.ArgumentParser(
        prog="python -m loramerge.train.tiny", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="for the result and the states in between")
    parser.add_argument("--threads", type=int, default=1, help="other numbers round differently")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    result = chosen.folder / "shipped"

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    base = build(chosen.folder / "work", result / "tiny", say=say)
    for name in LESSONS:
        output = result / f"{name}.safetensors"
        if not output.exists():
            say(f"{output}: {make(name, base, output)} bytes")


if __name__ == "__main__":
    main()
