"""Installing the nodes: a folder in ComfyUI's `custom_nodes` that imports them from this package.

The folder holds no code but that import, so an update of the package updates the nodes. A list in it
says which files were written and their digests, and `uninstall` removes just these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from loramerge import __version__
from loramerge.comfyui.words import LANGUAGES, definitions, menu
from loramerge.errors import CorruptFile, FileError, MissingFile, OutputExists
from loramerge.files.forms import PARTIAL
from loramerge.files.json_values import read_values
from loramerge.files.writer import write_bytes

__all__ = ["Installed", "Removed", "install", "uninstall"]

_LIST = "installed.json"
_EXAMPLES = "example_workflows"
_PARTS = {
    "nodes.py": "nodes.py, which every ComfyUI has",
    "folder_paths.py": "folder_paths.py, which every ComfyUI has",
    "custom_nodes": "the folder custom_nodes",
}

_INIT = '''"""The nodes of loramerge. `loramerge comfyui uninstall` removes this folder."""

try:
    from loramerge.comfyui import comfy_entrypoint
except ImportError as error:
    import sys

    raise ImportError(
        f"{error}. The nodes need the package loramerge in ComfyUI's own Python. "
        f"Install it from a copy of its repository: {sys.executable} -m pip install ."
    ) from error

__all__ = ["comfy_entrypoint"]
'''

_PROJECT = f'''[project]
name = "loramerge"
description = "Mix, resize, inspect, extract, bake and apply LoRAs, exactly"
version = "{__version__}"
license = {{ text = "Apache-2.0" }}
dependencies = ["loramerge>={__version__}"]

[tool.comfy]
DisplayName = "loramerge"
'''


@dataclass(frozen=True)
class Installed:
    """The folder of the nodes, and the files in it, as relative paths."""

    folder: Path
    files: tuple[str, ...]
    nodes: int


@dataclass(frozen=True)
class Removed:
    """The files that `uninstall` removed, and those that stay.

    Args:
        removed: files, as relative paths.
        kept: files that were changed since, or that it did not write.
    """

    folder: Path
    removed: tuple[str, ...]
    kept: tuple[str, ...]


def install(root: Path) -> Installed:
    """Write the folder, or renew the one that an earlier version wrote.

    Args:
        root: the folder of ComfyUI.

    Raises:
        FileError: if this is not a ComfyUI that has these nodes' schema.
        OutputExists: if there is another folder of this name, or one of its files was changed.
    """
    folder = _folder_in(root)
    before = _list_of(folder)
    contents = dict(_contents())
    if before is None and not _is_begun(folder, contents):
        raise OutputExists(
            "there is a folder of this name that this command did not write",
            file=folder,
            hint="move it away first",
        )
    for name in {**contents, **(before or {})}:
        path = folder / name
        ours = {(before or {}).get(name), _digest(contents[name]) if name in contents else None}
        if path.exists() and (not path.is_file() or _digest(path.read_bytes()) not in ours):
            raise OutputExists(
                "this file was changed since it was installed",
                file=path,
                hint="move it away first",
            )
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content, force=True)
    listing = {name: _digest(content) for name, content in contents.items()}
    for name in (before or {}).keys() - listing.keys():
        (folder / name).unlink(missing_ok=True)
    write_bytes(folder / _LIST, _json({"files": listing}), force=True)
    return Installed(folder, (*listing, _LIST), len(definitions("en")))


def _is_begun(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Return whether a folder is not there, or holds only what an install that was killed left."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    files = {name: path for name, path in found.items() if not path.is_dir()}
    return all(
        path.name.endswith(PARTIAL)
        or (path.is_file() and name in contents and path.read_bytes() == contents[name])
        for name, path in files.items()
    )


def uninstall(root: Path) -> Removed:
    """Remove the files that `install` wrote, and folders that are then empty.

    Files that were changed since, and others, stay.

    Raises:
        FileError: if this is not a ComfyUI, or there is a folder of this name that it did not write.
    """
    folder = _folder_in(root, for_install=False)
    listing = _list_of(folder)
    if listing is None and folder.exists():
        raise FileError("this command did not write this folder", file=folder)
    if listing is None:
        return Removed(folder, (), ())
    removed = []
    for name, digest in listing.items():
        path = folder / name
        if path.is_file() and _digest(path.read_bytes()) == digest:
            path.unlink()
            removed.append(name)
    (folder / _LIST).unlink()
    _remove_caches(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    kept = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    if not any(folder.iterdir()):
        folder.rmdir()
    return Removed(folder, (*removed, _LIST), tuple(kept))


def _folder_in(root: Path, *, for_install: bool = True) -> Path:
    """Return the folder of the nodes in a ComfyUI.

    Raises:
        FileError: saying what is missing.
    """
    if not root.is_dir():
        raise MissingFile("there is no such folder", file=root, expected="the folder of ComfyUI")
    inner = root / "ComfyUI"
    for name, words in _PARTS.items():
        if not (root / name).exists():
            near = all((inner / part).exists() for part in _PARTS)
            raise FileError(
                "this folder is not a ComfyUI",
                file=root,
                expected=words,
                hint=f"give the folder below it: {inner}" if near else None,
            )
    if for_install and b"comfy_entrypoint" not in (root / "nodes.py").read_bytes():
        raise FileError(
            "this ComfyUI is older than the interface that the nodes are written for",
            file=root,
            expected="a nodes.py that knows comfy_entrypoint (the V3 schema)",
            hint="update ComfyUI",
        )
    return root / "custom_nodes" / "loramerge"


def _contents() -> Iterator[tuple[str, bytes]]:
    """Yield the files and their contents."""
    yield "__init__.py", _INIT.encode()
    yield "pyproject.toml", _PROJECT.encode()
    for language in LANGUAGES:
        yield f"locales/{language}/nodeDefs.json", _json(definitions(language))
        yield f"locales/{language}/main.json", _json(menu(language))
    for path in sorted(Path(__file__).with_name(_EXAMPLES).iterdir()):
        if path.suffix in (".json", ".jpg"):
            yield f"{_EXAMPLES}/{path.name}", path.read_bytes()


def _list_of(folder: Path) -> Mapping[str, str] | None:
    """Return file → digest of what was installed, None if nothing was.

    Raises:
        CorruptFile: if the list cannot be read, or names files outside of the folder.
    """
    path = folder / _LIST
    if not path.is_file():
        return None
    try:
        files = read_values(path)["files"]
        found = {str(name): str(digest) for name, digest in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorruptFile("the list of installed files cannot be read", file=path) from None
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in found):
        raise CorruptFile("the list of installed files names others", file=path)
    return found


def _remove_caches(folder: Path) -> None:
    """Remove what Python compiled from the file that was removed."""
    for path in folder.glob("__pycache__/__init__.*.pyc"):
        path.unlink()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(content: object) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
