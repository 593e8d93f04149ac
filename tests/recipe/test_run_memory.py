"""Sweeps: results kept in memory, threads and jobs, progress."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
import loramerge.recipe.run as engine
from loramerge.adapter import Adapter
from loramerge.events import Note, Progress
from tests.recipe.outcomes import done, files
from tests.tail import tail

SWEEP = """
version: 1
sweep: {w: [0.1, 0.2, 0.3]}
steps:
  blend: {mix: {adapters: ["a.safetensors:${w}", b.safetensors]}}
  small: {resize: {adapter: blend, rank: 2}, save: "${w}.safetensors"}
"""


@pytest.fixture
def alive(monkeypatch) -> Iterator[Callable[[], int]]:
    """Return the largest number of adapters that were in memory at once."""
    gc.freeze()  # of the modules that other tests have imported nothing is to be collected
    refs: list[weakref.ref[Adapter]] = []
    most = [0]
    plain = engine.perform

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        if found.adapter is not None:
            refs.append(weakref.ref(found.adapter))
        gc.collect()
        most[0] = max(most[0], sum(ref() is not None for ref in refs))
        return found

    monkeypatch.setattr(engine, "perform", watched)

    def ask() -> int:
        assert refs
        gc.collect()
        assert all(ref() is None for ref in refs)
        return most[0]

    yield ask
    gc.unfreeze()


def test_a_sweep_keeps_one_result_in_memory(recipe, work, alive) -> None:
    result = lm.run(recipe(SWEEP), threads=1)
    assert len(done(result)) == 6
    assert alive() == 1


def test_results_that_are_needed_again_stay_and_then_go(recipe, work, alive) -> None:
    text = SWEEP.replace('["a.safetensors:${w}", b.safetensors]', '["half:${w}", b.safetensors]')
    text += "  half: {mix: {adapters: ['a.safetensors:0.5']}}\n"
    lm.run(recipe(text), threads=1)
    assert alive() == 2


def test_saved_results_are_not_kept_at_all(recipe, work, alive, monkeypatch) -> None:
    text = SWEEP + "  last: {mix: {adapters: [small]}}\n  end: {diff: {a: last, b: small}}\n"
    lm.run(recipe(text), threads=1)
    assert alive() <= 2


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(("threads", "jobs"), [(2, 3), tail(2, 1), tail(1, 2)])
def test_threads_and_jobs_change_no_byte(threads: int, jobs: int, recipe, work) -> None:
    text = (
        SWEEP
        + """
  model:
    bake: {base: base.safetensors, adapters: [small], rounding: stochastic}
    save: "m${w}.safetensors"
"""
    )
    text = text.replace("[0.1, 0.2, 0.3]", "[0.1, 0.2]")
    lm.run(recipe(text.replace('save: "', 'save: "one/')), threads=1)
    lm.run(recipe(text.replace('save: "', 'save: "two/'), "two.yaml"), threads=threads, jobs=jobs)
    assert files(Path("one")) == files(Path("two"))
    assert len(files(Path("one"))) == 4


def test_progress_is_told_over_the_whole_graph(recipe, work) -> None:
    events: list[Any] = []
    lm.run(recipe(SWEEP), notify=events.append)
    whole = [e for e in events if isinstance(e, Progress) and e.task.endswith("recipe.yaml")]
    assert [e.done for e in whole] == sorted(e.done for e in whole)
    assert {e.total for e in whole} == {3}
    assert whole[-1].done == 3
    inner = {e.task.partition(":")[0] for e in events if isinstance(e, Progress)}
    assert "small[w=0.3]" in inner
    assert not any(isinstance(e, Note) and "weight 1" in e.text for e in events)


def test_a_quiet_run_prints_nothing(recipe, run) -> None:
    recipe(SWEEP)
    result = run.ok("run", "recipe.yaml", "-q")
    assert result.out == result.err == ""
    shown = run.ok("run", "recipe.yaml").out
    assert "small[w=0.3]" in shown
    assert "up to date" in shown
