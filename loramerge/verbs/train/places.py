"""The places of a run, and what its result was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loramerge.adapter.encode import choose_dialect, suffix_of
from loramerge.checkpoint.files import find_files
from loramerge.errors import UsageError
from loramerge.files.folders import dataset_files
from loramerge.library.lookup import find
from loramerge.steps.inputs import adapter_of, base_path
from loramerge.steps.outputs import default_name
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import FileInput, Made, input_of, step_of
from loramerge.steps.references import Reference
from loramerge.verbs.train.parameters import Train

__all__ = [
    "images_folder",
    "made_of_training",
    "output_path",
    "own_folders",
    "regularisation_folder",
    "run_folder",
]


def output_path(parameters: Train, context: Context) -> Path:
    """Return the path of the adapter: as given, or a name made of base and subject."""
    if parameters.output is not None:
        return Path(parameters.output)
    base = base_path(parameters.base, context).name.removesuffix(".safetensors")
    subject = parameters.trigger or images_folder(parameters.images, context).resolve().name
    asked = parameters.target()
    suffix = suffix_of(choose_dialect(asked, [])) if asked else ".safetensors"
    return default_name(f"{base}-{subject}", suffix)


def images_folder(name: str, context: Context) -> Path:
    """Return a folder of images by its path or name.

    Raises:
        UsageError: if the name is that of an adapter.
        NotFound: if there is no such folder.
    """
    known = context.known.get(name)
    if isinstance(known, Path):
        return known
    if known is not None:
        raise UsageError(f"{name!r} is an adapter, and a folder is needed here")
    return find(name, "folders", root=context.root)


def regularisation_folder(parameters: Train, context: Context) -> Path | None:
    """Return the folder of regularisation images, if one is named."""
    name = parameters.regularisation
    return None if name in ("auto", "none") else images_folder(name, context)


def run_folder(parameters: Train, path: Path) -> Path:
    """Return the folder of log, state, samples and report; unless it is given, beside the adapter."""
    if parameters.folder is not None:
        return Path(parameters.folder)
    stem = path.name.removesuffix(".safetensors").removesuffix(".pt")
    return path.with_name(f"{stem}-run")


def own_folders(parameters: Train, path: Path) -> tuple[Path, ...]:
    """Return the folders that a run writes, in which no training data is looked for."""
    folder = run_folder(parameters, path)
    return (folder,) if parameters.cache is None else (folder, Path(parameters.cache))


# --- what was it made from ----------------------------------------------------------------------


def made_of_training(parameters: Train, path: Path, context: Context) -> Made:
    """Return the step, with base and images as inputs.

    Args:
        path: of the adapter.
    """
    own = own_folders(parameters, path)
    given: dict[tuple[str, str], Any] = {
        ("bases", parameters.base): _base_input(base_path(parameters.base, context))
    }
    if parameters.config is not None:
        config = base_path(parameters.config, context)
        given["bases", parameters.config] = _base_input(config)
    if parameters.init_from is not None:
        start = parameters.init_from
        given["adapters", start] = input_of(adapter_of(Reference(start), context))
    folders = {parameters.images: images_folder(parameters.images, context)}
    if (regular := regularisation_folder(parameters, context)) is not None:
        folders[parameters.regularisation] = regular
    for name, folder in folders.items():
        given["folders", name] = FileInput(folder, tuple(dataset_files(folder, own)), folder)
    made = step_of("train", parameters, given)
    if made is None:
        raise UsageError(
            "the origin of this adapter is not known, so it could not be recorded in the result",
            found=parameters.init_from,
            hint="save it, and give the file",
        )
    return made


def _base_input(path: Path) -> FileInput:
    files = find_files(path)
    paths = tuple(file.path for file in files.weights)
    return FileInput(path, paths, None if files.root is None or len(paths) == 1 else path)
