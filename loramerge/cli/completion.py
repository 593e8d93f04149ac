"""The command `completion`: let the shell complete commands, options, adapters and bases."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from loramerge.cli import show
from loramerge.errors import UsageError
from loramerge.library.registry import home

_VARIABLE = "_LORAMERGE_COMPLETE"
# without its completion system, zsh would complain at each start
_ZSH_BEFORE = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n"
_MARK = "# completion of loramerge"  # ends the line that it is about


class _Startup(NamedTuple):
    """The files of a shell's start.

    Args:
        script: the file that the completion is written to.
        start: the file that must read it, None where the shell finds the script by itself.
    """

    script: Callable[[], Path]
    start: Callable[[], Path] | None = None


def _below(variable: str, default: str, *names: str) -> Path:
    root = os.environ.get(variable)
    return (Path(root) if root else Path.home() / default).joinpath(*names)


_PLACES = {
    "bash": _Startup(lambda: home() / "completion.bash", lambda: Path.home() / ".bashrc"),
    "zsh": _Startup(lambda: home() / "completion.zsh", lambda: _below("ZDOTDIR", "", ".zshrc")),
    "fish": _Startup(
        lambda: _below("XDG_CONFIG_HOME", ".config", "fish", "completions", "loramerge.fish")
    ),
}
_SHELL = click.Option(
    ["--shell"],
    type=click.Choice(list(_PLACES)),
    help="The shell [default: the one that $SHELL names].",
)


@click.group("completion", epilog="Example: loramerge completion install --shell zsh")
def command() -> None:
    """Let the Tab key complete commands, options, and names of adapters and bases, in bash, zsh and
    fish."""


@command.command(
    "install", params=[_SHELL], epilog="Example: loramerge completion install --shell zsh"
)
def install(shell: str | None) -> None:
    """Install the completion for a shell; new shells have it.

    bash and zsh read it by one line at the end of ~/.bashrc or ~/.zshrc. Nothing else there is changed.
    """
    from loramerge.files.writer import write_bytes

    name = _chosen(shell)
    place = _PLACES[name]
    script = place.script()
    script.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(script, _source(name).encode(), force=True)
    show.line(f"written: {script}")
    if place.start is not None:
        start = place.start()
        before = _read(start)
        quoted = shlex.quote(str(script))
        line = f"[ -f {quoted} ] && . {quoted}  {_MARK}\n"
        _write(start, [*_others(before), line], before)
    show.line(f"Open a new {name}, type `loramerge ` and press Tab twice.")


@command.command("show", params=[_SHELL], epilog="Example: loramerge completion show --shell zsh")
def print_script(shell: str | None) -> None:
    """Print the completion script, for a place of your own."""
    click.echo(_source(_chosen(shell)), nl=False)


@command.command(
    "uninstall", params=[_SHELL], epilog="Example: loramerge completion uninstall --shell zsh"
)
def uninstall(shell: str | None) -> None:
    """Remove what `install` wrote."""
    name = _chosen(shell)
    place = _PLACES[name]
    script = place.script()
    if script.exists():
        script.unlink()
        show.line(f"removed: {script}")
    if place.start is not None:
        start = place.start()
        before = _read(start)
        _write(start, _others(before), before)


def _chosen(shell: str | None) -> str:
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in _PLACES:
        raise UsageError(
            "the shell is not known" if not name else f"there is no completion for {name}",
            expected=", ".join(_PLACES),
            hint="loramerge completion install --shell bash",
        )
    return name


def _source(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from loramerge.cli.main import group

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(group, {}, "loramerge", _VARIABLE).source() + "\n"
    return _ZSH_BEFORE + script if shell == "zsh" else script


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""


def _others(text: str) -> list[str]:
    """Return the lines of a start file apart from ours, the last one ended."""
    lines = [line for line in text.splitlines(keepends=True) if not line.rstrip().endswith(_MARK)]
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return lines


def _write(path: Path, lines: list[str], before: str) -> None:
    from loramerge.files.writer import write_bytes

    text = "".join(lines)
    if text != before:
        write_bytes(
            Path(os.path.realpath(path)), text.encode("utf-8", "surrogateescape"), force=True
        )
        show.line(f"changed: {path}")
