"""Graphs of names: orders and cycles, against definitions; and orders that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.recipe.graph import find_cycle, ordered, reachable

Graph = dict[str, list[str]]
NAMES = [f"s{i}" for i in range(8)]

# needs may name what is no node (an input), as recipes do
graphs = st.dictionaries(
    st.sampled_from(NAMES), st.lists(st.sampled_from([*NAMES, "input"]), max_size=4)
)


@st.composite
def acyclic(draw: st.DrawFn) -> Graph:
    """Graphs in which every name needs names before it in some order, listed in another one."""
    names = draw(st.permutations(NAMES))
    found = {
        name: draw(st.lists(st.sampled_from([*names[:i], "input"]), max_size=4))
        for i, name in enumerate(names)
    }
    return {name: found[name] for name in draw(st.permutations(names))}


def is_order(order: list[str], needs: Graph) -> bool:
    """Every name once, and each after what it needs."""
    place = {name: i for i, name in enumerate(order)}
    return sorted(order) == sorted(needs) and all(
        place[n] < place[name] for name in needs for n in needs[name] if n in needs
    )


def closure(needs: Mapping[str, Iterable[str]], starts: Iterable[str]) -> set[str]:
    """What can be reached, by adding until nothing is added."""
    found = set(starts)
    while more := {n for name in found for n in needs.get(name, ())} - found:
        found |= more
    return found


def has_cycle(needs: Graph) -> bool:
    return any(name in closure(needs, needs[name]) for name in needs)


@given(acyclic())
def test_an_order_puts_everything_after_what_it_needs(needs: Graph) -> None:
    assert find_cycle(needs) is None
    assert is_order(ordered(needs), needs)


@given(acyclic())
def test_an_order_is_kept_where_it_is_one(needs: Graph) -> None:
    once = ordered(needs)
    assert ordered({name: needs[name] for name in once}) == once


@given(graphs)
def test_cycles_are_found_and_nothing_else(needs: Graph) -> None:
    cycle = find_cycle(needs)
    assert (cycle is not None) == has_cycle(needs)
    if cycle is None:
        assert is_order(ordered(needs), needs)
        return
    assert len(set(cycle)) == len(cycle) > 0
    for name, following in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
        assert following in needs[name]
    with pytest.raises(ValueError, match="cycle"):
        ordered(needs)


@given(graphs, st.lists(st.sampled_from(NAMES), max_size=3))
def test_reachable_steps(needs: Graph, starts: list[str]) -> None:
    assert reachable(starts, needs) == closure(needs, starts)


def test_long_chains_need_no_deep_stack() -> None:
    needs = {f"s{i}": [f"s{i + 1}"] for i in range(20_000)} | {"s20000": []}
    assert ordered(needs)[0] == "s20000"
    assert find_cycle(needs) is None
    assert len(reachable(["s0"], needs)) == 20_001


def test_a_step_that_needs_itself() -> None:
    assert find_cycle({"a": ["b"], "b": ["b"]}) == ["b"]


# ---- the laws are not vacuous


def _as_written(needs: Graph) -> list[str]:
    return list(needs)


def _alphabetical(needs: Graph) -> list[str]:
    return sorted(needs)


def _by_count(needs: Graph) -> list[str]:
    return sorted(needs, key=lambda name: len(needs[name]))


def _direct_only(needs: Graph) -> list[str]:
    """Puts each name's own needs before it, without theirs."""
    return list(dict.fromkeys(n for name in needs for n in (*needs[name], name) if n in needs))


@pytest.mark.parametrize("wrong", [_as_written, _alphabetical, _by_count, _direct_only])
def test_orders_that_are_none_fail(wrong: Callable[[Graph], list[str]]) -> None:
    needs = {"a": ["c"], "b": [], "c": ["b", "d"], "d": ["b", "e", "f", "g"], "e": ["b"],
             "f": ["b"], "g": ["b"]}  # fmt: skip
    assert not is_order(wrong(needs), needs)
    assert is_order(ordered(needs), needs)


def test_steps_that_use_the_two_before_them_take_linear_time(run, recipe):
    """Forty unsaved steps, each reached in over a hundred million ways."""
    whole = load(run.folder / "a.safetensors")
    few = dict(list(whole.deltas.items())[:2])
    save(whole.with_deltas(few), run.folder / "few.safetensors", to=whole.info.dialect)
    steps, names = (
        ["version: 1", "inputs: {s0: few.safetensors, s1: few.safetensors}", "steps:"],
        40,
    )
    for i in range(2, names):
        steps.append(f"  s{i}: {{mix: {{adapters: ['s{i - 1}:0.5', 's{i - 2}:0.4'], rank: 1}}")
        steps[-1] += ", save: out.safetensors}" if i == names - 1 else "}"
    recipe("\n".join(steps))
    assert run.ok("plan", "recipe.yaml", "--json").json["tasks"]["s39"]["modules"]
    run.ok("run", "recipe.yaml", "-q", "--threads", "1")
