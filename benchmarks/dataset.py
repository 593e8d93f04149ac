"""Looks at folders of 1,000 and of 12,000 pictures before training: time and peak memory.

    python benchmarks/dataset.py --base DIR [-n 3] [--json FILE]

`loramerge train --dry-run` reads every picture to its end, counts tokens and fills buckets; memory
must not grow with the folder. `--base` is a diffusers folder, of which only configurations and
tokenizer are read. Pictures are drawn here (seeded, Pillow), 95 MB for 12,000.
"""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path

from measure import Check, environment, interleave, median, options, peak, report, run
from PIL import Image

COUNTS = (1_000, 12_000)
SIZES = ((128, 128), (160, 104), (104, 160), (144, 112))
WORDS = ["red", "blue", "round", "tall", "soft", "small", "dark", "bright", "old", "new"]


def draw(folder: Path, count: int) -> None:
    """Writes pictures of several ratios with captions of tags."""
    folder.mkdir(parents=True)
    rng = random.Random(count)
    for number in range(count):
        small = Image.frombytes("RGB", (8, 8), rng.randbytes(192))
        whole = small.resize(rng.choice(SIZES), Image.Resampling.BICUBIC)
        whole.save(folder / f"{number:05}.jpg", quality=80)
        (folder / f"{number:05}.txt").write_text(", ".join(rng.sample(WORDS, 4)), "utf-8")


def main() -> None:
    """Draws the pictures, measures and reports."""
    parser = options("Time a look at 12,000 pictures.", rounds=3)
    parser.add_argument("--base", required=True, help="a diffusers folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        cases = {}
        for count in COUNTS:
            folder = Path(place, str(count))
            draw(folder, count)
            command = [given.python, "-m", "loramerge", "train", "--base", given.base, "--images",
                       str(folder), "--trigger", "zuzu", "--dry-run", "-q"]  # fmt: skip
            cases[f"{count} pictures"] = functools.partial(
                run, command, environment(Path(place, "home"))
            )
        samples = interleave(cases, given.rounds)
    few, many = (samples[name] for name in cases)
    low, high = peak(few), peak(many)
    each = 1000 * (median(many) - median(few)) / (COUNTS[1] - COUNTS[0])
    checks = [
        Check("memory, 12,000 / 1,000 pictures", high / low if low and high else None, 1.25),
        Check("ms for each further picture", each, 5),
    ]
    report("a look at folders of pictures", samples, checks, given.json)


if __name__ == "__main__":
    main()
