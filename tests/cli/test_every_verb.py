"""Every verb has what belongs to it: a command, a renderer, rows in the docs, a step and a plan."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import click
import pytest

import loramerge.verbs
from loramerge.cli import show
from loramerge.cli.commands import command_named, render_named, summaries
from loramerge.cli.main import group, main
from loramerge.recipe.json_schema import json_schema
from loramerge.verbs import known_verbs
from tests.docs import reference

VERBS = known_verbs()
DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_file_of_verbs_is_a_verb():
    names = {info.name for info in pkgutil.iter_modules(loramerge.verbs.__path__)}
    assert names == set(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_command_and_renderer(name):
    command = command_named(name)
    assert isinstance(command, click.Command) and command.name == name
    assert name in summaries() and name in group.list_commands(click.Context(group))
    assert render_named(name) is not show.result  # its own


def test_a_verb_has_rows_in_the_docs():
    commands, steps = (DOCS / "commands.md").read_text("utf-8"), reference.table("steps")
    assert [name for name in VERBS if f"\n## {name}\n" not in commands] == []
    assert {name: f"| `{name}` |" in steps for name in VERBS} == {
        name: verb.in_recipes for name, verb in VERBS.items()
    }


def test_all_verbs_but_the_editing_of_headers_are_steps():
    steps = json_schema()["properties"]["steps"]["additionalProperties"]["properties"]
    assert set(steps) - {"save"} == {v.name for v in VERBS.values() if v.in_recipes}
    assert [v.name for v in VERBS.values() if not v.in_recipes] == ["meta"]


@pytest.mark.parametrize("name", VERBS)
def test_parameters_of_verbs_that_write_adapters(name):
    verb = VERBS[name]
    assert verb.name == name and (verb.compute is not None) == (verb.gives == "adapter")


def test_a_result_nobody_knows_is_still_shown(capsys):
    class Strange:
        def json(self):
            return {"outputs": ["x.bin"], "size": 3, "parts": [1, 2], "name": "[bold]x[/bold]"}

    render_named("no_such_verb")(Strange())
    shown = capsys.readouterr().out
    assert "x.bin" in shown and "[bold]x[/bold]" in shown and "size" in shown


def test_a_mistake_of_the_program_claims_only_what_it_knows(monkeypatch, capsys):
    def fail(name):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("loramerge.cli.main.command_named", fail)
    assert main(["mix", "a"]) == 70
    said = capsys.readouterr().err
    assert "RuntimeError: unforeseen" in said and "written" not in said
