"""The log of a run: one line of JSON for each step, which a resumed run goes on writing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from loramerge.files.json_values import values_in
from loramerge.files.run_log import read_log
from loramerge.files.writer import write_bytes
from loramerge.train.run.loop import TrainStep

__all__ = ["Log", "read_chosen"]


def read_chosen(path: Path) -> dict[str, Any] | None:
    """Return the choice for the given memory from the first line of a log, if it has one."""
    try:
        with path.open(encoding="utf-8") as file:
            entry = values_in(file.readline())
        chosen = entry["chosen"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return dict(chosen)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


class Log:
    """Writes the log.

    Args:
        done: steps that are done; what the log says of later ones is forgotten.
        chosen: what was chosen for the memory given; the first line says it.
    """

    def __init__(self, path: Path, done: int, chosen: Mapping[str, Any] | None = None) -> None:
        first = [] if chosen is None else [{"chosen": dict(chosen)}]
        kept = [entry for entry in read_log(path) if entry["step"] < done]
        write_bytes(path, "".join(map(_line, [*first, *kept])).encode(), force=True)
        self._file: IO[str] = path.open("a", encoding="utf-8", newline="\n")

    def __call__(self, step: TrainStep) -> None:
        """Write what a step did."""
        entry: dict[str, Any] = {
            "step": step.number,
            "loss": step.loss if math.isfinite(step.loss) else None,
            "rate": step.rate,
            "gradient": step.norm if math.isfinite(step.norm) else None,
        }
        self._file.write(_line(entry | ({"skipped": True} if step.skipped else {})))
        self._file.flush()

    def validated(self, done: int, loss: float) -> None:
        """Write a loss on the images that are held back, after so many steps."""
        shown = loss if math.isfinite(loss) else None
        self._file.write(_line({"step": done - 1, "validation": shown}))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
