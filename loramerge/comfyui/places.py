"""Files that nodes read and write: those in ComfyUI's own folders, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from loramerge.comfyui.node import NOTHING, NodeInput
from loramerge.errors import MissingFile, OutputExists, UsageError
from loramerge.files.atomic import may_be_in_name

__all__ = [
    "adapters",
    "bases",
    "output_path",
    "output_slots",
    "path_of_adapter",
    "path_of_base",
    "state_of",
]

_BASES = ("checkpoints", "diffusion_models")
_APART = frozenset('\\:*?"<>|')  # what some system keeps out of names
_WAYS = ("number", "replace", "refuse")


def _folders() -> Any:
    """Return ComfyUI's module of folders."""
    return import_module("folder_paths")


def adapters() -> Sequence[str]:
    """List the adapters in ComfyUI's folders."""
    found: Sequence[str] = _folders().get_filename_list("loras")
    return found


def bases() -> Sequence[str]:
    """List the checkpoints and diffusion models in ComfyUI's folders: `checkpoints/sd15.safetensors`."""
    listed = _folders().get_filename_list
    return tuple(f"{folder}/{name}" for folder in _BASES for name in listed(folder))


def path_of_adapter(name: str) -> Path:
    """Return the path of an adapter by its name in ComfyUI.

    Raises:
        MissingFile: if it is no longer there.
    """
    return _path("loras", name)


def path_of_base(name: str) -> Path:
    """Return the path of a base, see `bases`.

    Raises:
        UsageError: if no base is chosen. MissingFile: if it is no longer there.
    """
    folder, _, rest = name.partition("/")
    if name == NOTHING or folder not in _BASES:
        raise UsageError("no checkpoint is chosen", expected="one of the list", found=repr(name))
    return _path(folder, rest)


def _path(folder: str, name: str) -> Path:
    found = _folders().get_full_path(folder, name)
    if found is None:
        raise MissingFile(
            f"ComfyUI has no such file in {folder}", file=name, hint="refresh the list, press R"
        )
    return Path(found).absolute()


def state_of(path: Path) -> tuple[str, int, int]:
    """Return what changes where a file does: path, time and size."""
    there = path.stat()
    return str(path), there.st_mtime_ns, there.st_size


def output_slots(default: str, folder: str) -> tuple[NodeInput, ...]:
    """Return the inputs that say where a file is written.

    Args:
        default: name without its suffix.
        folder: of models that ComfyUI loads such files from.
    """
    return (
        NodeInput(
            kind="text",
            name="name",
            help="Name of the file without its suffix; parts before a / are folders.",
            default=default,
        ),
        NodeInput(
            kind="choice",
            name="folder",
            help=f"ComfyUI's output folder, or models/{folder}. Loaders look in models/{folder}, and in "
            f"output/{folder}.",
            default="output",
            choices=lambda: ("output", folder),
        ),
        NodeInput(
            kind="choice",
            name="if_exists",
            help="What to do if a file of this name exists: number the new one, replace it, or refuse.",
            default="number",
            choices=lambda: _WAYS,
        ),
    )


def output_path(
    name: str, folder: str, if_exists: str, suffixes: Sequence[str] = (".safetensors",)
) -> Path:
    """Return the path to write, in one of ComfyUI's folders.

    Args:
        suffixes: of the files that are written beside each other; the path has the first.

    Raises:
        UsageError: if the name is empty, leaves the folder, or has characters that files cannot have.
        OutputExists: if it exists and is not to be replaced.
    """
    parts = name.strip().replace("\\", "/").split("/")
    for part in parts:
        wrong = part in ("", ".", "..") or part != part.lstrip().rstrip(" .")
        if wrong or any(c in _APART or not may_be_in_name(c) for c in part):
            raise UsageError(
                "this cannot be the name of a file",
                expected="a name, or folders and a name: mixes/style",
                found=repr(name),
            )
    folders = _folders()
    root = folders.get_output_directory() if folder == "output" else None
    root = Path(root or folders.get_folder_paths(folder)[0]).absolute()
    stem = root.joinpath(*parts)
    if not stem.resolve().is_relative_to(root.resolve()):
        raise UsageError("this name leads out of the folder", file=root, found=repr(name))

    def taken(stem: Path) -> Path | None:
        paths = [stem.with_name(stem.name + suffix) for suffix in suffixes]
        return next((path for path in paths if path.exists()), None)

    if if_exists == "number":
        number, first = 1, stem
        while taken(stem):
            number += 1
            stem = first.with_name(f"{first.name}-{number}")
    elif if_exists == "refuse" and (there := taken(stem)):
        raise OutputExists("the output exists", file=there, hint="choose another name")
    stem.parent.mkdir(parents=True, exist_ok=True)
    return stem.with_name(stem.name + suffixes[0])
