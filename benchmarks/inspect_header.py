"""Times `loramerge inspect` of a 170 MB adapter against starting Python with click and rich.

    python benchmarks/inspect_header.py [-n 21] [--json FILE]

Whole processes, interleaved; the bare interpreter is timed beside them as the floor.
"""

from __future__ import annotations

import functools

from measure import Check, ensure, interleave, median, options, report, run

START, LIBRARIES, INSPECT = "python", "python, click, rich", "loramerge inspect"


def main() -> None:
    """Generates the data if absent, measures and reports."""
    given = options("Time header-only inspect.", rounds=21).parse_args()
    path = ensure("sdxl", "sdxl_r32.safetensors", given.data, given.python)
    commands = {
        START: [given.python, "-c", "pass"],
        LIBRARIES: [given.python, "-c", "import click, rich.console, rich.table"],
        INSPECT: [given.python, "-m", "loramerge", "inspect", str(path)],
    }
    cases = {name: functools.partial(run, command) for name, command in commands.items()}
    samples = interleave(cases, given.rounds)
    ratio = median(samples[INSPECT]) / median(samples[LIBRARIES])
    checks = [Check("inspect / python with click and rich", ratio, 2)]
    report(f"inspect {path.name} (header only)", samples, checks, given.json)


if __name__ == "__main__":
    main()
