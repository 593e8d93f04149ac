"""Whatever a file holds: a readable result, or a known exit code with one message and no output.

`LORAMERGE_ATTACKS=100000 python -m pytest -m slow tests/attack` tries as many; a failure names its seed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loramerge.adapter.load import load
from loramerge.errors import LoramergeError
from tests.attack.mutations import mutated

CODES = {0, 1, 2, 3, 4, 5, 6, 7}
COMMANDS = (
    ("inspect", "x.safetensors", "--deep"),
    ("inspect", "x.safetensors", "--json"),
    ("mix", "x.safetensors:0.5", "-o", "out.safetensors"),
    ("resize", "--rank", "1", "x.safetensors", "-o", "out.safetensors"),
    ("convert", "x.safetensors", "--to-lora", "-o", "out.safetensors"),
    ("diff", "x.safetensors", "x.safetensors"),
    ("meta", "x.safetensors", "--set", "a=b", "-o", "out.safetensors"),
    ("plan", "x.safetensors"),
)
STEERS = set(map(chr, (*range(9), *range(11, 32), *range(127, 160), 0x202E)))


def require_clean(result, said: str) -> None:
    """Refuse an unknown exit code, a traceback, escape codes, and messages without an end."""
    assert result.code in CODES, said
    assert "Traceback" not in result.err and "bug:" not in result.err, said
    assert not set(result.out + result.err) & STEERS, said
    assert len(result.err) < 200_000, said


def attack(run, number: int) -> None:
    """Give the file of a seed to one of the commands, and judge what it did."""
    source = Path("x.safetensors")
    source.unlink(
        missing_ok=True
    )  # to cut a file to nothing waits for the disk, a new one does not
    source.write_bytes(mutated(number))
    command = COMMANDS[number % len(COMMANDS)]
    output = Path("out.safetensors")
    result = run(*command)
    said = f"seed {number}: {' '.join(command)}: {result.code}: {result.err[-600:]}"
    require_clean(result, said)
    if result.code > 1:
        assert (
            sum(line.startswith(("error:", "Error:")) for line in result.err.splitlines()) == 1
        ), said
        assert not output.exists(), said
    elif output.exists() and (command[0] != "meta" or _loads("x.safetensors")):
        load(output)  # but for `meta`, which edits headers that nothing else can read, too
    output.unlink(missing_ok=True)
    left = {path.name for path in Path().iterdir()}
    assert left == {"x.safetensors", "a.safetensors", "b.safetensors", "base.safetensors"}, said


def _loads(path: str) -> bool:
    try:
        load(path)
    except LoramergeError:
        return False
    return True


def test_a_few_tampered_files(run):
    for number in range(48):
        attack(run, number)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_many_tampered_files(run, part):
    many = int(os.environ.get("LORAMERGE_ATTACKS", "4000")) // 20
    failed = []
    for number in range(1000 + part * many, 1000 + (part + 1) * many):
        try:
            attack(run, number)
        except (Exception, SystemExit) as error:
            failed.append(f"seed {number}: {type(error).__name__}: {str(error)[:600]}")
    assert not failed, f"{len(failed)} of {many}:\n" + "\n".join(failed[:20])
