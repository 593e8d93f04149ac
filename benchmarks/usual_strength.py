"""The strength that is usual among the adapters of a folder, as a line for their family's file.

python -m benchmarks.usual_strength FOLDER                 the mean norm of a module's change
python -m benchmarks.usual_strength FOLDER --base BASE     the size of the change beside BASE's weights

An adapter counts as it was trained, at weight 1, and once: what loramerge mixed or resized is left out,
and so is a second file with the same change, whatever its dialect. The range goes from the weakest to
the strongest that was found. It is only as good as the folder: adapters that their makers published at
strengths other than 1, or of a single trainer, say little about others.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from loramerge.families.usual import Usual
from loramerge.verbs.inspect import Inspect, Inspected, inspect

__all__ = ["Measured", "line", "main", "measured", "usual_by_family", "without"]

_SAME = 4  # digits to which two norms are equal if the change is the same


class Measured(NamedTuple):
    """One adapter, and why it does not count; empty if it does."""

    file: Inspected
    left_out: str = ""

    def value(self, base: bool) -> float:
        """Return the measure: ‖ΔW‖/‖W‖ beside a base, else the mean norm of a module."""
        found = (self.file.base or {})["change"] if base else self.file.mean_norm
        assert found is not None
        return float(found)


def measured(files: Iterable[Inspected], base: bool) -> list[Measured]:
    """Return all adapters of a folder, each with the reason if it does not count."""
    seen: dict[tuple[str | None, int, str, str], str] = {}
    found = []
    for file in files:
        if file.what != "adapter":
            continue
        reason = without(file, base)
        if not reason:
            norms = (f"{value:.{_SAME}g}" for value in (file.norm or 0.0, file.mean_norm or 0.0))
            same = seen.setdefault((file.family, file.modules, *norms), file.path)
            reason = "" if same is file.path else f"the same change as {same}"
        found.append(Measured(file, reason))
    return found


def without(file: Inspected, base: bool) -> str:
    """Return why one adapter does not count, empty if it does."""
    if file.family is None:
        return "no family is known"
    if file.merged is not None:
        return "loramerge made it of others"
    if not file.norm or not file.mean_norm:
        return "no norm, or a norm of 0"
    if any(problem.severity == "error" for problem in file.findings):
        return "it is damaged"
    if base and not ((file.base or {}).get("works") and (file.base or {}).get("change")):
        return "it does not fit the base"
    return ""


def usual_by_family(found: Iterable[Measured], base: bool) -> dict[str, Usual]:
    """Return family → the range; the ends are rounded outwards to two digits."""
    values: dict[str, list[float]] = {}
    for one in found:
        if not one.left_out:
            values.setdefault(str(one.file.family), []).append(one.value(base))
    return {
        family: Usual(_rounded(min(many), math.floor), _rounded(max(many), math.ceil), len(many))
        for family, many in sorted(values.items())
    }


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    places = 1 - math.floor(math.log10(value))
    return float(f"{towards(value * 10**places) / 10**places:.2g}")


def line(usual: Usual, base: bool) -> str:
    """Return the line that goes into the family's literal."""
    name = "usual_change" if base else "usual_norm"
    return f"    {name}=Usual({usual.low:g}, {usual.high:g}, {usual.adapters}),"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a folder, and print each adapter and the lines."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.usual_strength",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FOLDER", help="folders or files of adapters")
    parser.add_argument("--base", help="the base that they were trained on")
    asked = parser.parse_args(arguments)
    base = asked.base is not None
    found = measured(
        inspect(Inspect(files=tuple(asked.files), deep=True, base=asked.base)).files, base
    )
    for one in found:
        said = f"left out: {one.left_out}" if one.left_out else f"{one.value(base):.4g}"
        print(f"{one.file.family or '–':12} {said:12} {one.file.path}")
    for family, usual in usual_by_family(found, base).items():
        print(f"\n# {family}, of {usual.adapters} adapters\n{line(usual, base)}")


if __name__ == "__main__":
    main()
