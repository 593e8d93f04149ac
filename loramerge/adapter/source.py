"""Opening adapters in every form: a safetensors file, a PEFT folder, or pickled lists."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from loramerge.adapter.formats.source import AdapterSource
from loramerge.errors import FormatError
from loramerge.files.forms import is_gguf, is_pickle
from loramerge.files.reader import TensorFile
from loramerge.files.signatures import foreign_in

__all__ = ["AdapterSource", "open_source", "pipeline_file"]

# files of folders without a configuration: those of diffusers' pipelines
_PIPELINE_WEIGHTS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_ALONE = "lora.safetensors"  # diffusion-pipe's of SDXL; beside others, it is one adapter of several


def open_source(path: str | PathLike[str]) -> AdapterSource:
    """Open an adapter in any form.

    Raises:
        MissingFile, CorruptFile, UnsafeFile: as the files are.
        FormatError: if a folder holds no adapter.
    """
    place = Path(path)
    if "#" in place.name:
        from loramerge.adapter.formats.named import choose_named, split_name

        place, name = split_name(place)
        if name:
            source = open_source(place)
            choose_named(source, name)
            return source
    if place.is_dir():
        return _open_folder(place)
    if is_gguf(place):
        from loramerge.adapter.formats.gguf_reading import open_gguf

        return open_gguf(place)
    if is_pickle(place):
        from loramerge.adapter.formats.lora_diffusion import open_pickle

        return open_pickle(place)
    if place.name == "adapters.safetensors":
        from loramerge.adapter.formats.peft import open_of_mlx

        other = open_of_mlx(place, place)
        if other is not None:
            return other
    source = _open_file(place)
    if place.name.startswith("adapter_model"):
        from loramerge.adapter.formats.peft import add_configuration

        add_configuration(source, place)
    return source


def pipeline_file(folder: Path) -> Path | None:
    """Return the file of a folder that a pipeline or diffusion-pipe saved, None for other folders."""
    for name in _PIPELINE_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    return folder / _ALONE if [p.name for p in folder.glob("*.safetensors")] == [_ALONE] else None


def _open_file(path: Path) -> AdapterSource:
    file = TensorFile(path)
    source = AdapterSource(str(path), dict(file.tensors), dict(file.metadata), files=[path])
    if "lora_adapter_metadata" in file.metadata:
        from loramerge.adapter.formats.diffusers import header_configurations

        source.configs.update(header_configurations(file.metadata, path))
    return source


def _open_folder(folder: Path) -> AdapterSource:
    """Open a PEFT folder, one with a PEFT folder per component, or a saved pipeline adapter."""
    from loramerge.adapter.formats.peft import CONFIG_NAME, open_folder

    source = open_folder(folder)
    if source is not None:
        return source
    file = pipeline_file(folder)
    if file is not None:
        source = open_source(file)
        source.path = str(folder)
        return source
    raise FormatError(
        "the folder holds no adapter",
        file=folder,
        expected=f"{CONFIG_NAME} (PEFT), also one level down, or {_PIPELINE_WEIGHTS[0]}",
        found=foreign_in(folder),
        hint="give the adapter file itself",
    )
