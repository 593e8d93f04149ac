"""The command `demo`: take a tour on a tiny model that ends with an image."""

from __future__ import annotations

from collections.abc import Mapping

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.commands import render_named
from loramerge.errors import on_command_line, spelled
from loramerge.events import Finished
from loramerge.steps.parameters import Verb
from loramerge.tiny.demo import Demo, DemoResult, DemoStep, demo


def part(event: Finished) -> None:
    """Show a command of the tour with its output, or what was written before the first."""
    if isinstance(event.result, DemoStep):
        _command(event.result)
    else:
        _pictures(event.result)


def _pictures(made: Mapping[str, int]) -> None:
    for place, count in made.items():
        show.line(f"Wrote {count} images with captions into {place}.")


def _command(step: DemoStep) -> None:
    show.line()
    show.line(step.title, bold=True)
    show.line(f"$ {step.command}", wrap=False)
    if step.result is None:
        show.line(f"Not done. Not installed: {', '.join(step.missing)}.")
        return
    render_named(step.verb)(step.result)
    for note in dict.fromkeys(step.notes):
        show.line(f"note: {spelled(note, on_command_line)}")


def render(result: DemoResult) -> None:
    """Show the end of the tour; its commands were shown one by one."""
    show.line()
    if result.missing:
        text = (
            f"Everything but the image is in {result.folder}. To draw it too: "
            "pip install 'loramerge[train]', then run the last command."
        )
    else:
        text = f"Open {result.picture}: {result.shows}."
    show.line(text)


VERB = Verb("demo", Demo, "report", demo, None, uses_device=True)
command = verb_command(VERB, render, "loramerge demo my-demo", part)
