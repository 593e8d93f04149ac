"""The long tail: the share that runs, and the core that always runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tail import SEED, SHARE, crossed, drawn, seed_of_today

NAMES = [f"tests/test_some.py::test[{number}]" for number in range(2000)]


def core(found: list[Any]) -> list[tuple[Any, ...]]:
    return [one.values for one in found if not one.marks]


@pytest.mark.parametrize("share", [10, 20])
def test_a_share_is_drawn_and_the_same_each_time(
    share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARE, str(share))
    found = [name for name in NAMES if drawn(name, "1")]
    assert 0.7 < len(found) / len(NAMES) * share < 1.3
    assert found == [name for name in NAMES if drawn(name, "1")]


def test_none_is_drawn_where_no_share_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARE, raising=False)
    assert not any(drawn(name, "1") for name in NAMES)


def test_many_seeds_draw_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARE, "20")
    assert all(any(drawn(name, str(seed)) for seed in range(400)) for name in NAMES[:100])


def test_the_seed_is_the_one_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEED, "7")
    assert seed_of_today() == "7"
    monkeypatch.delenv(SEED)
    assert seed_of_today()


def test_each_pair_and_each_value_is_in_the_core() -> None:
    found = crossed("abc", "uvw", "xyz")
    assert len(found) == 27 and len({one.values for one in found}) == 27
    always = core(found)
    assert len(always) == 9
    for axes in ((0, 1), (0, 2), (1, 2)):
        assert len({tuple(one[axis] for axis in axes) for one in always}) == 9
    assert all({mark.name for mark in one.marks} <= {"long_tail"} for one in found)


def test_a_core_that_left_a_value_out_would_be_refused() -> None:
    with pytest.raises(AssertionError, match="would be left out"):
        crossed("ab", "vwxyz")
