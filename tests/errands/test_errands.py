"""Errands of newcomers, as scripts of what they type with the README and `--help` at hand.

A script holds commands (`$ …`, or `!2 …` for one that must end with that code) and words that the
command must say (`> …`). What people try from habit is in them, with the answer that helps.
"""

from __future__ import annotations

import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import loramerge as lm

HERE = Path(__file__).parent


def steps(script: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield (exit code, arguments, words that are said) of each command."""
    found: list[tuple[int, list[str], list[str]]] = []
    for line in script.splitlines():
        sign, _, rest = line.partition(" ")
        if sign == "$":
            found.append((0, shlex.split(rest.removeprefix("loramerge ")), []))
        elif sign.startswith("!"):
            found.append((int(sign[1:]), shlex.split(rest), []))
        elif sign == ">":
            found[-1][2].append(rest)
    yield from found


def follow(run, name: str) -> None:
    """Run a script; a command that is refused writes nothing."""
    for code, arguments, words in steps((HERE / f"{name}.txt").read_text("utf-8")):
        before = run.state()
        found = run(*arguments)
        said = found.out + found.err
        assert found.code == code, (arguments, said)
        for word in words:
            assert word in said, (arguments, word, said)
        if code:
            assert run.state() == before, arguments


def test_a_hobbyist(run):
    Path("loras").mkdir()
    for name, shipped in (("character", "zuzu"), ("style", "polka")):
        lm.save(shipped, f"loras/{name}.safetensors")
    follow(run, "hobbyist")


def test_a_user_of_supermerger(run):
    follow(run, "supermerger")


def test_a_user_of_peft(run):
    follow(run, "peft")


def test_a_programmer(work):
    runpy.run_path(str(HERE / "programmer.py"))


@pytest.mark.long_tail
def test_a_trainer(run):
    from PIL import Image

    Path("pictures").mkdir()
    for index, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(f"pictures/{index}.png")
    follow(run, "trainer")
