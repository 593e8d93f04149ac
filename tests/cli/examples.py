"""The examples of help and documents, and the files that they speak of."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from loramerge.cli.command import MergingCommand
from loramerge.cli.main import group
from tests.builders.world import tune

__all__ = [
    "Shown",
    "blocks",
    "examples_of",
    "named_files",
    "prepare",
    "prepare_training",
    "shown_in",
    "walk",
]


_RECIPE = """\
version: 1
vars: {w: 0.7}
inputs: {character: character.safetensors, style: style.safetensors}
steps:
  blend:
    mix: {adapters: ["character:${w}", "style:0.3"]}
    save: out/blend.safetensors
"""


def walk() -> Iterator[tuple[str, click.Command]]:
    """Yield (words, command) of the program, its commands, and theirs."""
    context = click.Context(group)
    yield "", group
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, MergingCommand):
            command.refresh()  # a test before may have added operators for a while
        yield name, command
        if isinstance(command, click.Group):
            for part, inner in command.commands.items():
                yield f"{name} {part}", inner


def examples_of(command: click.Command) -> list[str]:
    """Return the command lines that a command's help shows."""
    epilog = command.epilog or ""
    return [line.strip() for line in epilog.removeprefix("Example: ").split(";")] if epilog else []


def prepare(run: Any, monkeypatch: Any, *, resized: bool = False, pictures: bool = False) -> None:
    """Make the files that examples name, fresh, with the library and the base registered.

    Args:
        pictures: also pictures to train on.
    """
    folder, home = run.folder, run.folder.parent / "home"
    for place in (folder, home):
        if place == folder:
            for path in folder.iterdir():
                if path.name not in ("a.safetensors", "b.safetensors", "base.safetensors"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            shutil.rmtree(place, ignore_errors=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (folder / "models").mkdir()
    os.link(folder / "base.safetensors", folder / "models" / "sd21-custom.safetensors")
    base, tuned = folder / "base.safetensors", folder / "my-model.safetensors"
    _once(tuned, lambda: tune(base, tuned))
    for source, name in (("a", "style"), ("b", "character"), ("b", "gochiusa")):
        shutil.copy(folder / f"{source}.safetensors", folder / f"{name}.safetensors")
    (folder / "recipe.yaml").write_text(_RECIPE, "utf-8")
    mix = ("mix", "style:0.5", "character:0.5", "-o", "mixed.safetensors")
    _once(folder / "mixed.safetensors", lambda: run.ok(*mix))
    if resized:
        resize = ("resize", "--rank", "4", "character", "-o", "character-r8.safetensors")
        _once(folder / "character-r8.safetensors", lambda: run.ok(*resize))
    for place in (home / "loras", home / "ComfyUI" / "models" / "loras"):
        place.mkdir(parents=True)
        shutil.copy(folder / "a.safetensors", place / "style.safetensors")
    (home / "ComfyUI" / "custom_nodes").mkdir()
    for name in ("nodes.py", "folder_paths.py"):
        (home / "ComfyUI" / name).write_text("comfy_entrypoint = None\n", "utf-8")
    if pictures:
        prepare_training(folder)
    run.ok("base", "add", "sd21-custom", folder / "models" / "sd21-custom.safetensors", "--force")
    run.ok("library", "add", home / "loras")


_MADE: dict[tuple[str, int], bytes] = {}  # by name, and by the base of the world it is made from


def _once(path: Path, make: Callable[[], object]) -> None:
    """Make a file, or write it as it was made the first time in this world."""
    key = (path.name, (path.parent / "base.safetensors").stat().st_ino)
    if key not in _MADE:
        make()
        _MADE[key] = path.read_bytes()
    else:
        path.write_bytes(_MADE[key])


def prepare_training(folder: Path) -> None:
    """Make pictures to train on."""
    from tests.builders.pictures import folder_of

    folder_of(folder / "pictures")
    folder_of(folder / "things", 3)


def blocks(path: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language in a document."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


def named_files(path: Path) -> dict[str, str]:
    """Return the files that a document shows: YAML blocks whose first line is `# NAME.yaml`."""
    found = {}
    for block in blocks(path, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block)
        if name:
            found[name[1]] = block
    return found


@dataclass
class Shown:
    """A command line in a console block.

    Args:
        code: the exit code it ends with, as a comment `# exit code 6` says.
        output: the lines below it; none where the document does not show what it prints.
    """

    command: str
    code: int = 0
    output: list[str] = field(default_factory=list)


def shown_in(block: str) -> list[Shown]:
    """Return the command lines of a console block, without comments; `a && b` are two."""
    found: list[Shown] = []
    for line in block.splitlines():
        if not line.startswith("$ "):
            found[-1].output.append(line)
            continue
        text, _, comment = line[2:].partition("  #")
        code = re.search(r"exit code (\d+)", comment)
        found += [Shown(part.strip()) for part in text.split("&&")]
        found[-1].code = int(code[1]) if code else 0
    return found
