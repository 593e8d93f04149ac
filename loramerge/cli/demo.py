"""The command `demo`."""

from __future__ import annotations

from importlib import import_module

from loramerge.cli import show
from loramerge.cli.options import verb_command
from loramerge.verbs.demo import Demo, DemoResult

# type of a step's result → the command that shows it
_COMMAND_OF = {
    "MixResult": "mix",
    "FilesResult": "resize",
    "BakeResult": "bake",
    "InspectResult": "inspect",
}


def render(result: DemoResult) -> None:
    """Show the tour: each command as typed, and what it showed."""
    out = show.console()
    names = ", ".join(f"{name} ({show.size(n)})" for name, n in result.made.items())
    out.print(f"Made {names} in {result.folder}.", markup=False)
    for step in result.steps:
        out.print()
        out.print(step.title, style="bold", markup=False)
        out.print(f"$ {step.command}", markup=False, soft_wrap=True)
        name = _COMMAND_OF[type(step.result).__name__]
        import_module(f"loramerge.cli.{name}").render(step.result)
    out.print()
    out.print(
        f"Everything is in {result.folder}; try the commands with your own files.", markup=False
    )


command = verb_command(
    "demo",
    Demo,
    "loramerge.verbs.demo:demo",
    render,
    "loramerge demo my-demo",
    decomposes=True,
    recipe=False,
)
