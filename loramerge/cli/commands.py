"""Commands and renderers, found by name and imported only when they are used.

A command is a module of this package whose docstring starts with "The command `NAME`: …", which is
also its line in the help. It defines `command`; if it belongs to a verb, also `render(result)`. Verbs
of other packages need no module here: their command follows from their parameters.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click

from loramerge.cli.show import Render

__all__ = ["command_named", "render_named", "summaries"]

# the order of the help; others follow by name
_ORDER = (
    "inspect", "diff", "compare", "mix", "resize", "convert", "heal", "bake", "unbake", "verify",
    "extract", "merge", "train", "preview", "meta", "card", "run", "plan", "schema", "recipes", "base",
    "library", "dialects", "operators", "families", "ui", "comfyui", "completion", "demo",
)  # fmt: skip
_FIRST_LINE = r'"""The command `(\w+)`: (.+?)\.?("""|$)'


@cache
def summaries() -> dict[str, str]:
    """Return name → description of every command, without importing one."""
    from loramerge.verbs import added_verbs

    found: dict[str, str] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        with path.open(encoding="utf-8") as file:
            match = re.match(_FIRST_LINE, file.readline().rstrip())
        if match and match[1] == path.stem:
            found[path.stem] = f"{match[2][0].upper()}{match[2][1:]}."
    ordered = sorted(found, key=lambda name: (*_ORDER, name).index(name))
    added = {
        name: f"Added by {entry.dist.name if entry.dist else entry.value}."
        for name, entry in added_verbs().items()
        if name not in found
    }
    return {name: found[name] for name in ordered} | added


def command_named(name: str) -> click.Command | None:
    """Return the command of this name, None if there is none."""
    module = _module(name)
    if module is not None:
        found = getattr(module, "command", None)
        return found if isinstance(found, click.Command) else None
    from loramerge.verbs import verb_named

    verb = verb_named(name)
    if verb is None:
        return None
    from loramerge.cli.command import verb_command

    return verb_command(verb, render_named(name), f"loramerge {name} --help")


def render_named(verb: str) -> Render:
    """Return the renderer of a verb's results: its own, or a general one."""
    from loramerge.cli import show

    render: Render | None = getattr(_module(verb), "render", None)
    if render is None:
        from loramerge.verbs import verb_module

        render = getattr(verb_module(verb), "render", None)
    return render or show.result


def _module(name: str) -> ModuleType | None:
    """Return the module of this package with a command of this name."""
    full = f"loramerge.cli.{name}"
    try:
        return import_module(full) if name.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name == full:
            return None
        raise
