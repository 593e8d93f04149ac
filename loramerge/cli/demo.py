"""The command `demo`."""

from __future__ import annotations

from importlib import import_module

from loramerge.cli import show
from loramerge.cli.options import verb_command
from loramerge.tiny.demo import Demo, DemoResult


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
            import_module(f"loramerge.cli.{step.verb}").render(step.result)
    out.print()
    if result.missing:
        text = (
            f"Everything is in {result.folder}, but for the picture: "
            "pip install 'loramerge[train]', and the last command draws it."
        )
    else:
        text = f"Open {result.picture}: {result.shows}."
    out.print(text, markup=False, soft_wrap=True)


command = verb_command(
    "demo",
    Demo,
    "loramerge.tiny.demo:demo",
    render,
    "loramerge demo my-demo",
    decomposes=True,
    recipe=False,
)
