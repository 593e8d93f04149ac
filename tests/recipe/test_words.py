"""Errors of a step use the words of recipes, on the command line and in Python."""

from __future__ import annotations

from typing import Any

import pytest

from loramerge.errors import LoramergeError, Setting, UsageError, on_command_line, spelled
from loramerge.events import Event, Note, Warn
from loramerge.recipe.registry import known_verbs
from loramerge.recipe.words import spelling_events, with_recipe_words
from tests.builders.commands import Runner

MESSAGE = (
    "give ",
    Setting("rank", 8),
    " or ",
    Setting("output", "b"),
    ", or ",
    Setting("force", True),
)
SAID = "give rank: 8 or save: b, or --force"


def test_parameters_of_the_step_are_its_words_and_options_of_the_run_stay_options() -> None:
    error = with_recipe_words(UsageError("no", hint=MESSAGE), known_verbs()["resize"])
    assert spelled(error.hint or "", on_command_line) == SAID
    told: list[Event] = []
    tell = spelling_events(told.append, known_verbs()["resize"])
    tell(Warn(MESSAGE))
    tell(Note("as it is"))
    assert spelled(told[0].text, on_command_line) == SAID  # type: ignore[union-attr]
    assert told[1] == Note("as it is")


def test_a_run_says_so(run: Runner) -> None:
    (run.folder / "r.yaml").write_text(
        "version: 1\ninputs: {a: a.safetensors}\nsteps:\n"
        "  one: {convert: {adapter: a, to: xlabs}, save: out.safetensors}\n"
    )
    result: Any = run("run", "r.yaml")
    assert result.code and "to: " in result.err and "--to" not in result.err, result.err


def test_the_words_are_those_of_python_too(run: Runner) -> None:
    import loramerge as lm

    content = {
        "version": 1,
        "inputs": {"a": "a.safetensors"},
        "steps": {"one": {"convert": {"adapter": "a", "to": "xlabs"}, "save": "x.safetensors"}},
    }
    with pytest.raises(LoramergeError) as caught:
        lm.run(content)
    assert "to: " in str(caught.value) and "to='" not in str(caught.value)
