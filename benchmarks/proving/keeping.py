"""Figures as they are kept: a line of JSON for each case, in a file for each seed.

A run that was interrupted measures only what is not there yet. Several runs may go on side by side in
one folder: each takes a lock for what it works on, and leaves out what another one has locked.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.proving.cases import Case
from benchmarks.proving.tables import Figures

__all__ = ["Trial", "claimed", "figures", "keep", "measure", "measure_resize", "say"]


class Trial(Protocol):
    """The adapters of one seed on their ground."""

    def merged(self, case: Case, count: int) -> dict[str, float]:
        """Return the scores of a method, as means over the groups of so many adapters."""
        ...

    def resized(self) -> Iterator[dict[str, Any]]:
        """Yield the scores of every rule of `resize`."""
        ...


def say(line: str) -> None:
    """Write a line of progress with the time."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def figures(folder: Path) -> Figures:
    """Return all figures that a folder keeps, each with its seed."""
    found = []
    for path in sorted(folder.glob("figures-*.jsonl")):
        seed = int(path.stem.partition("-")[2])
        found += [json.loads(line) | {"seed": seed} for line in path.read_text().splitlines()]
    return found


@contextmanager
def claimed(folder: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Lock a piece of work for a while; yield whether it is ours, and not that of another run.

    Args:
        name: of the work.
        wait: until the other run is done with it.
    """
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name.replace("/", "-")).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True  # closing the file unlocks it


def measure(
    folder: Path,
    seed: int,
    tried: Iterable[Case],
    counts: Sequence[int],
    trial: Callable[[Path, int], Trial],
) -> None:
    """Measure the cases that are not measured yet.

    Args:
        folder: of the figures.
        trial: makes the trial of a seed; called only if a case is missing.
    """

    def done() -> set[tuple[str, int]]:
        return {(row["key"], row["n"]) for row in figures(folder) if row["seed"] == seed}

    missing = [(one, n) for one in tried for n in counts if one.takes(n)]
    for case, count in missing:
        with claimed(folder, f"{seed} {case.key} {count}") as ours:
            if not ours or (case.key, count) in done():
                continue
            scores = trial(folder, seed).merged(case, count)
            named = {"key": case.key, "n": count, "table": case.table, "method": case.method}
            keep(folder, seed, named | scores)
            say(f"seed {seed}: {case.key}, n = {count}: {scores['mean']:.3f}")


def measure_resize(
    folder: Path, seed: int, count: int, trial: Callable[[Path, int], Trial]
) -> None:
    """Measure the rules of resize if they are not measured yet.

    Args:
        count: of all adapters.
    """
    with claimed(folder, f"{seed} resize") as ours:
        rows = [one for one in figures(folder) if one["seed"] == seed and one["table"] == "resize"]
        if rows or not ours:
            return
        for row in list(trial(folder, seed).resized()):
            keep(folder, seed, {"key": "resize", "n": count, "table": "resize", **row})
        say(f"seed {seed}: resize")


def keep(folder: Path, seed: int, row: dict[str, Any]) -> None:
    """Add a row to the figures of a seed."""
    rounded = {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"figures-{seed}.jsonl").open("a") as file:
        file.write(json.dumps(rounded) + "\n")
