"""The report of each step is shown when the step ends: the same text as at the end, only earlier."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import loramerge as lm
from loramerge.cli import run as command
from loramerge.cli import show
from loramerge.cli.commands import render_named
from loramerge.cli.session import Session
from loramerge.events import Event, Finished, Progress
from loramerge.recipe.run import engine
from tests.recipe.outcomes import CHAIN
from tests.recipe.test_run_fails import FAILS, broken_copy

MANY = """
version: 1
sweep: {r: [1, 2, 3]}
steps:
  small: {resize: {adapter: a.safetensors, rank: "${r}"}, save: "small-${r}.safetensors"}
  half: {mix: {adapters: ["small:0.5"]}, save: "half-${r}.safetensors"}
  third: {mix: {adapters: ["small:0.3"]}, save: "third-${r}.safetensors"}
"""


def reports_at_the_end(outcomes: Any) -> None:
    """Show what was shown before any report came early."""
    told = [o for o in outcomes if o.result is not None and o.task.lasts]
    if len(told) <= 8:
        for outcome in told:
            show.line(outcome.task.name, bold=True)
            render_named(outcome.task.verb.name)(outcome.result)
            show.line()


def table(run: Any) -> Callable[[Any], str]:
    """Return the function that shows a result as before, and returns the text."""

    def shown(result: Any) -> str:
        run._capsys.readouterr()
        reports_at_the_end(list(result.outcomes.values()))
        command._show(result)
        return str(run._capsys.readouterr().out)

    return shown


@pytest.mark.parametrize("text", [CHAIN, MANY], ids=["chain", "many"])
@pytest.mark.parametrize("more", [(), ("--jobs", "2")], ids=["one", "two"])
def test_the_text_is_that_of_the_end(
    text: str, more: tuple[str, ...], recipe: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe(text)
    from loramerge.recipe import run as module

    results: list[Any] = []
    whole = module.run_recipe
    monkeypatch.setattr(
        module, "run_recipe", lambda *a, **k: results.append(whole(*a, **k)) or results[-1]
    )
    for options in (("--fresh",), ()):  # all of it, and then what is up to date
        out = run.ok("run", "recipe.yaml", *options, *more).out
        assert out == table(run)(results.pop())


def test_the_order_in_which_steps_end_is_another_text(
    recipe: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe(CHAIN)
    right = run.ok("run", "recipe.yaml").out
    monkeypatch.setattr(command._Reports, "take", lambda self, event: self._report(event.result))
    wrong = run.ok("run", "recipe.yaml", "--fresh").out
    assert wrong != right and sorted(wrong) == sorted(right)


@pytest.fixture
def out_before(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> dict[str, str]:
    """Step → what stood on standard output when it began."""
    found: dict[str, str] = {}
    whole, text = engine.perform, [""]

    def perform(verb: Any, parameters: Any, context: Any, **how: Any) -> Any:
        text[0] += capsys.readouterr().out
        found[how["step"]] = text[0]
        return whole(verb, parameters, context, **how)

    monkeypatch.setattr("loramerge.recipe.run.engine.perform", perform)
    return found


def test_each_step_finds_the_reports_of_those_before(
    recipe: Any, run: Any, out_before: dict[str, str]
) -> None:
    recipe(CHAIN)
    run.ok("run", "recipe.yaml")
    assert list(out_before) == ["blend", "small", "model", "other"]
    assert out_before["blend"] == ""
    assert "blend.safetensors" in out_before["small"]
    assert "relative error" in out_before["model"]  # of small; model itself waits for other
    assert out_before["other"] == out_before["model"]


def test_more_than_eight_reports_are_a_table_alone(
    recipe: Any, run: Any, out_before: dict[str, str]
) -> None:
    recipe(MANY)
    assert "written" not in run.ok("run", "recipe.yaml").out
    assert set(out_before.values()) == {""}
    Path("small-1.safetensors").unlink()
    out_before.clear()
    out = run.ok("run", "recipe.yaml").out  # others of this rank are up to date again
    assert out.count("written") == 1 == len(out_before)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_later_failure_leaves_the_first_reports(jobs: str, recipe: Any, run: Any) -> None:
    broken_copy()
    recipe(FAILS)
    result = run("run", "recipe.yaml", "--jobs", jobs)
    assert result.code == 7 and "error: step bad: " in result.err
    assert result.out.count("good.safetensors") == 1
    for quiet in ("--json", "-q"):
        assert run("run", "recipe.yaml", "--fresh", quiet).out == ""


def test_reports_that_wait_for_a_failed_step_are_shown_once(recipe: Any, run: Any) -> None:
    broken_copy()
    recipe(FAILS)
    first = run("run", "recipe.yaml", "--keep-going").out
    assert [line for line in first.splitlines() if line in ("good", "apart")] == ["good", "apart"]
    assert first.count("written ") == 2


# --- the session --------------------------------------------------------------------------------------


def test_a_full_disk_ends_no_run_and_is_told_after_it() -> None:
    calls: list[str] = []

    def full(event: Finished) -> None:
        calls.append(event.name)
        raise OSError(28, "No space left on device")

    went_on = False
    with pytest.raises(OSError, match="No space"), Session(finished=full) as session:
        session.notify(Finished("one", None))
        session.notify(Finished("two", None))
        went_on = True
    assert went_on and calls == ["one"]


def test_bars_are_gone_while_a_result_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """While rich draws, standard output goes to standard error."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    seen: list[Any] = []
    session = Session(finished=lambda _: seen.append((sys.stdout, session._bars)))
    plain = sys.stdout
    with session:
        session.notify(Progress("work", 1, 3))
        assert session._bars is not None
        session.notify(Finished("one", None))
        session.notify(Progress("work", 2, 3))
        assert session._bars is not None
    assert seen == [(plain, None)] and session._bars is None


def test_python_gets_the_results_as_they_come(recipe: Any) -> None:
    heard: list[Event] = []
    result = lm.run(recipe(CHAIN), notify=heard.append)
    found = [one for one in heard if isinstance(one, Finished)]
    assert [one.name for one in found] == ["blend", "small", "model", "other"]
    assert all(one.result is result.outcomes[one.name] for one in found)
