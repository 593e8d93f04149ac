"""The command `demo`: take a tour on a tiny model that ends with an image."""

from __future__ import annotations

from loramerge.cli import show
from loramerge.cli.command import verb_command
from loramerge.cli.commands import render_named
from loramerge.steps.parameters import Verb
from loramerge.tiny.demo import Demo, DemoResult, demo


def render(result: DemoResult) -> None:
    """Show the tour: each command as typed, and what it showed."""
    out = show.console()
    for place, count in result.made.items():
        out.print(f"Wrote {count} pictures with captions into {place}.", markup=False)
    for step in result.steps:
        out.print()
        out.print(step.title, style="bold", markup=False)
        out.print(f"$ {step.command}", markup=False, soft_wrap=True)
        if step.result is None:
            missing = ", ".join(result.missing)
            out.print(f"not done: {missing} missing", markup=False)
        else:
            render_named(step.verb)(step.result)
    out.print()
    if result.missing:
        text = (
            f"Everything is in {result.folder}, but for the picture: "
            "pip install 'loramerge[train]', and the last command draws it."
        )
    else:
        text = f"Open {result.picture}: {result.shows}."
    out.print(text, markup=False, soft_wrap=True)


VERB = Verb("demo", Demo, "report", demo, None, uses_device=True)
command = verb_command(VERB, render, "loramerge demo my-demo")
