"""Times a recipe that sweeps over 20 mixes, one task at a time and two.

    python benchmarks/sweep.py [-n 3] [--rank 8] [--json FILE]

Two rank-64 adapters are mixed at 20 weights and saved; each run is a whole process with one thread
for each task, and makes everything again. `--rank 0` keeps the exact sums of rank 128.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from measure import Check, ensure, environment, interleave, median, options, peak, report, run

CASES = 20
RECIPE = """\
version: 1
inputs: {{a: {a}, b: {b}}}
sweep: {{w: [{weights}]}}
steps:
  mix:
    mix: {{adapters: ["a:${{w}}", "b:0.4"]{rank}}}
    save: out/mix-${{w}}.safetensors
"""


def main() -> None:
    """Generates the data if absent, measures and reports."""
    parser = options("Time a sweep of 20 mixes with one and with two jobs.", rounds=3)
    parser.add_argument("--rank", type=int, default=8, help="0 keeps the exact sums")
    given = parser.parse_args()
    a, b = (ensure(kind, f"sd21_r64{end}.safetensors", given.data, given.python)
            for kind, end in (("lora", ""), ("other", "_other")))  # fmt: skip
    with tempfile.TemporaryDirectory(dir=given.data) as folder:
        recipe = Path(folder, "sweep.yaml")
        weights = ", ".join(f"{(i + 1) / CASES:g}" for i in range(CASES))
        rank = f", rank: {given.rank}" if given.rank else ""
        recipe.write_text(RECIPE.format(a=a, b=b, weights=weights, rank=rank), "utf-8")
        command = [given.python, "-m", "loramerge", "run", str(recipe), "--fresh", "-q",
                   "--threads", "1", "--jobs"]  # fmt: skip
        env = environment(Path(folder, "home"))
        cases = {
            f"{jobs} jobs" if jobs > 1 else "1 job": functools.partial(
                run, [*command, str(jobs)], env
            )
            for jobs in (1, 2)
        }
        samples = interleave(cases, given.rounds)
    one, two = samples["1 job"], samples["2 jobs"]
    memory = [peak(one), peak(two)]
    ratio = memory[1] / memory[0] if memory[0] and memory[1] else None
    checks = [
        Check("one job / two jobs, time", median(one) / median(two), 1.6, at_least=True),
        Check("two jobs / one job, memory", ratio, 2),
    ]
    report(f"sweep of {CASES} mixes, rank {given.rank or 'kept'}", samples, checks, given.json)


if __name__ == "__main__":
    main()
