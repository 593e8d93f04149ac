"""Folders in which other programs keep adapters and checkpoints."""

from __future__ import annotations

from pathlib import Path

from loramerge.errors import CorruptFile, NotFound
from loramerge.files.yaml_values import yaml_values
from loramerge.library.registry import Folder, expanded

__all__ = ["PROGRAM_FOLDERS", "program_folders"]

# program → (folder below its own, what it holds)
PROGRAM_FOLDERS: dict[str, tuple[tuple[str, str], ...]] = {
    "comfyui": (
        ("models/loras", "adapters"),
        ("models/checkpoints", "bases"),
        ("models/diffusion_models", "bases"),
        ("models/unet", "bases"),
    ),
    "a1111": (
        ("models/Lora", "adapters"),
        ("models/LyCORIS", "adapters"),
        ("models/Stable-diffusion", "bases"),
    ),
}
_EXTRA = "extra_model_paths.yaml"
_EXTRA_HOLDS = {
    "loras": "adapters",
    "checkpoints": "bases",
    "diffusion_models": "bases",
    "unet": "bases",
}


def program_folders(program: str, root: Path) -> list[Folder]:
    """Return the existing folders of a program, those of ComfyUI's `extra_model_paths.yaml` too.

    Raises:
        NotFound: if none of its folders is below `root`.
    """
    folders = [
        Folder(str((root / below).resolve()), holds)
        for below, holds in PROGRAM_FOLDERS[program]
        if (root / below).is_dir()
    ]
    extra = root / _EXTRA
    if program == "comfyui" and extra.is_file():
        folders += _extra_folders(extra)
    if not folders:
        raise NotFound(
            f"no folder of {program} is here",
            file=root,
            expected=", ".join(below for below, _ in PROGRAM_FOLDERS[program]),
            hint="give the folder the program is installed in",
        )
    return list(dict.fromkeys(folders))


def _extra_folders(path: Path) -> list[Folder]:
    """Read ComfyUI's extra folders: sections with a `base_path` and one or more folders per sort."""
    try:
        content = yaml_values(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise CorruptFile(f"cannot be read as YAML ({error})", file=path) from None
    if not isinstance(content or {}, dict):
        raise CorruptFile("the file does not map names to folders", file=path)
    found = []
    for section in (content or {}).values():
        if not isinstance(section, dict):
            continue
        base = path.parent / expanded(str(section.get("base_path") or "."))
        for sort, holds in _EXTRA_HOLDS.items():
            for line in str(section.get(sort) or "").splitlines():
                folder = base / line.strip()
                if line.strip() and folder.is_dir():
                    found.append(Folder(str(folder.resolve()), holds))
    return found
