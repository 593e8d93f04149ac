"""The command `comfyui`: install the nodes for ComfyUI, or remove them."""

from __future__ import annotations

from pathlib import Path

import click

from loramerge.cli import show
from loramerge.errors import listed

_EXAMPLE = "Example: loramerge comfyui install ~/ComfyUI"


@click.group("comfyui", epilog=_EXAMPLE)
def command() -> None:
    """Install the nodes for ComfyUI: load, mix, resize, inspect, extract, bake, merge, apply, save.

    loramerge itself must be installed in ComfyUI's own Python, too.
    """


@command.command("install", epilog=_EXAMPLE)
@click.argument("folder", metavar="DIR")
def install(folder: str) -> None:
    """Install the nodes in the ComfyUI in DIR, as the folder custom_nodes/loramerge.

    It holds an import of this package, names in English and Japanese, and example workflows. Start
    ComfyUI again to have them.
    """
    from loramerge.comfyui.install import install as install_nodes

    done = install_nodes(Path(folder).expanduser())
    show.line(f"written: {done.folder} ({len(done.files)} files, {done.nodes} nodes)")
    show.line("ComfyUI's own Python needs loramerge, too. In a copy of it: python -m pip install .")
    show.line("Start ComfyUI again; the nodes are in the menu loramerge.")


@command.command("uninstall", epilog="Example: loramerge comfyui uninstall ~/ComfyUI")
@click.argument("folder", metavar="DIR")
def uninstall(folder: str) -> None:
    """Remove what `install` wrote in the ComfyUI in DIR.

    Files that were changed since, and others in that folder, stay.
    """
    from loramerge.comfyui.install import uninstall as uninstall_nodes

    done = uninstall_nodes(Path(folder).expanduser())
    if not done.removed:
        show.line(f"not installed: {done.folder}")
        return
    show.line(f"removed: {len(done.removed)} files in {done.folder}")
    if done.kept:
        show.line(f"kept, because this command did not write them: {listed(done.kept, 6)}")
