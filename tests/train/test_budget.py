"""The ladder of choices: laws of a pure function, each with a wrong ladder that must fail it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch")

from loramerge.train.memory.budget import (
    Choice,
    Options,
    Rung,
    fitting,
    ladder,
    smaller_resolutions,
)

EVERYTHING = Options((False, True), ("no", "bf16"), ("adamw", "adafactor"), (512, 384, 256))


def memory(choice: Choice) -> int:
    """Like that of a run: rests, and what grows with the picture."""
    width = 2 if choice.precision == "bf16" else 4
    passing = choice.resolution**2 * width // (4 if choice.checkpointing else 1)
    return 10**6 * width // 4 + passing + (50_000 if choice.optimizer == "adamw" else 5_000)


def flat(choice: Choice) -> int:
    """Where nothing but the resolution helps."""
    return choice.resolution * 1000


Ladder = Callable[[Options, Callable[[Choice], int]], Iterator[Rung]]


def frugal_first(options: Options, count: Callable[[Choice], int]) -> Iterator[Rung]:
    """Wrong: begins with what saves most."""
    return iter(sorted(ladder(options, count), key=lambda rung: rung.memory))


def saves_in_vain(options: Options, count: Callable[[Choice], int]) -> Iterator[Rung]:
    """Wrong: takes a saving whether or not it saves anything."""
    for values in itertools.product(*vars(options).values()):
        choice = Choice(*values)
        yield Rung(choice, "", count(choice))


def overrides(options: Options, count: Callable[[Choice], int]) -> Iterator[Rung]:
    """Wrong: takes what the user said for a proposal."""
    return ladder(EVERYTHING, count)


def no_more_than_needed(rungs: Ladder) -> bool:
    """Whatever fits, nothing above it on the ladder does; and every rung saves something."""
    for count in (memory, flat):
        whole = list(rungs(EVERYTHING, count))
        if [r.memory for r in whole] != sorted((r.memory for r in whole), reverse=True):
            return False
        if len({r.memory for r in whole}) != len(whole) or whole[0].choice != EVERYTHING.best:
            return False
    return True


def said_is_kept(rungs: Ladder) -> bool:
    """What has one option has it on every rung."""
    for name, value in (
        ("checkpointing", False), ("precision", "fp16"), ("optimizer", "prodigy"),
        ("resolution", 640),
    ):  # fmt: skip
        options = Options(**{**vars(EVERYTHING), name: (value,)})
        if any(getattr(rung.choice, name) != value for rung in rungs(options, memory)):
            return False
    return True


@pytest.mark.parametrize(
    ("law", "wrong"),
    [
        (no_more_than_needed, frugal_first),
        (no_more_than_needed, saves_in_vain),
        (said_is_kept, overrides),
    ],
)
def test_laws_of_the_ladder(law: Callable[[Ladder], bool], wrong: Ladder) -> None:
    assert law(ladder) and not law(wrong)


def test_what_is_chosen_fits_and_is_the_first_that_does() -> None:
    whole = list(ladder(EVERYTHING, memory))
    assert [rung.saving for rung in whole] == [
        "as usual", "checkpointing", "bf16", "adafactor", "384 pixels", "256 pixels",
    ]  # fmt: skip
    last = 0
    for given in range(0, 3_000_000, 10_000):
        rung = fitting(iter(whole), given)
        if rung is None:
            assert given < whole[-1].memory
            continue
        place = whole.index(rung)
        assert rung.memory <= given and all(above.memory > given for above in whole[:place])
        assert place <= last or not last  # with more memory never a lower rung
        last = place
    assert last == 0


def test_no_more_is_counted_than_is_asked() -> None:
    counted: list[Choice] = []

    def count(choice: Choice) -> int:
        counted.append(choice)
        return memory(choice)

    assert fitting(ladder(EVERYTHING, count), 1 << 40) is not None
    assert counted == [EVERYTHING.best]


def test_resolutions_are_steps_down_to_half() -> None:
    assert smaller_resolutions(1024, 64) == [1024, 896, 768, 640, 512]
    assert smaller_resolutions(512, 64) == [512, 448, 384, 320, 256]
    assert smaller_resolutions(32, 8) == [32, 24, 16]
    assert smaller_resolutions(8, 8) == [8]


def test_a_container_has_its_own_memory(tmp_path: Any) -> None:
    from loramerge.train.device.free import _of_container

    assert _of_container(tmp_path) is None
    for name, text in (
        ("max", "1000\n"),
        ("current", "700\n"),
        ("stat", "anon 5\ninactive_file 60\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text, "ascii")
    assert _of_container(tmp_path) == 360
    (tmp_path / "memory.max").write_text("max\n", "ascii")
    assert _of_container(tmp_path) is None
