"""The command `demo`: take a tour on a tiny model that ends with an image."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.commands import render_named
from loramerge.errors import on_command_line, spelled
from loramerge.steps.parameters import Verb
from loramerge.tiny.demo import Demo, DemoResult, demo


def render(result: DemoResult) -> None:
    """Show the tour: each command with its output."""
    for place, count in result.made.items():
        show.line(f"Wrote {count} images with captions into {place}.")
    for step in result.steps:
        show.line()
        show.line(step.title, bold=True)
        show.line(f"$ {step.command}", wrap=False)
        if step.result is None:
            missing = ", ".join(result.missing)
            show.line(f"Not done. Not installed: {missing}.")
        else:
            render_named(step.verb)(step.result)
            for note in dict.fromkeys(step.notes):
                show.line(f"note: {spelled(note, on_command_line)}")
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
command = verb_command(VERB, render, "loramerge demo my-demo")
