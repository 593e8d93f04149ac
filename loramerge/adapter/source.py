"""Where an adapter's tensors come from: a safetensors file, a PEFT folder, or pickled lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from loramerge.errors import CorruptFile, FormatError, MissingFile
from loramerge.files.pickled import is_pickle, load_pickle, pickled_tensors, tensor_from_torch
from loramerge.files.reader import TensorFile
from loramerge.files.tensors import Tensor

__all__ = ["CONFIG_NAME", "PEFT_TYPES", "WEIGHTS_NAME", "Source", "open_source"]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PEFT_TYPES = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3")
_PICKLED_WEIGHTS = "adapter_model.bin"
_PIPELINE_WEIGHTS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_HEADER_CONFIG = "lora_adapter_metadata"


@dataclass
class Source:
    """Named tensors, the header's strings, and PEFT configurations by component.

    Args:
        files: every file read, for digests.
    """

    path: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.stat().st_size for file in self.files)


def open_source(path: str | PathLike[str]) -> Source:
    """Open whatever holds an adapter.

    Raises:
        MissingFile, CorruptFile, UnsafeFile: as the files are.
        FormatError: if a folder holds no adapter.
    """
    place = Path(path)
    if place.is_dir():
        return _folder(place)
    if is_pickle(place):
        return _pickled(place)
    source = _tensor_file(place)
    if place.name.startswith("adapter_model") and (place.parent / CONFIG_NAME).is_file():
        source.configs[""] = _config(place.parent / CONFIG_NAME)
        source.files.append(place.parent / CONFIG_NAME)
    return source


def _tensor_file(path: Path) -> Source:
    file = TensorFile(path)
    configs = _header_configs(file.metadata, path)
    return Source(str(path), dict(file.tensors), dict(file.metadata), configs, [path])


def _header_configs(metadata: Mapping[str, str], path: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations that diffusers writes into the header, by component."""
    raw = metadata.get(_HEADER_CONFIG)
    if raw is None:
        return {}
    try:
        flat = json.loads(raw)
    except ValueError as error:
        raise CorruptFile(
            f"{_HEADER_CONFIG} in the header is not JSON ({error})", file=path
        ) from None
    if not isinstance(flat, dict):
        raise CorruptFile(f"{_HEADER_CONFIG} in the header is not a JSON object", file=path)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        configs.setdefault(component, {})[name] = value
    return configs


def _config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise CorruptFile(f"the configuration cannot be read ({error})", file=path) from None
    if not isinstance(content, dict):
        raise CorruptFile("the configuration is not a JSON object", file=path)
    kind = content.get("peft_type", "LORA")
    if kind not in PEFT_TYPES:
        raise FormatError(
            f"a PEFT adapter of type {kind} cannot be read",
            file=path,
            expected=f"peft_type {', '.join(PEFT_TYPES)}",
            found=kind,
        )
    return content


def _folder(folder: Path) -> Source:
    """Open a PEFT folder, one with a PEFT folder per component, or a saved pipeline adapter."""
    if (folder / CONFIG_NAME).is_file():
        tensors, metadata, files = _peft_weights(folder)
        return Source(str(folder), tensors, metadata, {"": _config(folder / CONFIG_NAME)}, files)
    parts = sorted(p.parent for p in folder.glob(f"*/{CONFIG_NAME}"))
    if parts:
        source = Source(str(folder), {})
        for part in parts:
            tensors, metadata, files = _peft_weights(part)
            source.tensors.update({f"{part.name}/{key}": t for key, t in tensors.items()})
            source.metadata.update(metadata)
            source.configs[part.name] = _config(part / CONFIG_NAME)
            source.files += files
        return source
    for name in _PIPELINE_WEIGHTS:
        if (folder / name).is_file():
            source = open_source(folder / name)
            source.path = str(folder)
            return source
    raise FormatError(
        "the folder holds no adapter",
        file=folder,
        expected=f"{CONFIG_NAME} (PEFT), also one level down, or {_PIPELINE_WEIGHTS[0]}",
        hint="give the adapter file itself",
    )


def _peft_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str], list[Path]]:
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if weights.is_file():
        file = TensorFile(weights)
        return dict(file.tensors), dict(file.metadata), [weights, config]
    pickled = folder / _PICKLED_WEIGHTS
    if pickled.is_file():
        return pickled_tensors(pickled), {}, [pickled, config]
    raise MissingFile(f"the PEFT folder has no {WEIGHTS_NAME}", file=folder)


def _pickled(path: Path) -> Source:
    """Open a pickled state dict, or lora_diffusion's lists with their sister files.

    lora_diffusion wrote `x.pt` (UNet), `x.text_encoder.pt` and `x.ti.pt` (embeddings).
    """
    content = load_pickle(path)
    if isinstance(content, Mapping):
        return Source(str(path), pickled_tensors(path), _header(content), files=[path])
    source = Source(str(path), {}, files=[path])
    component = "text_encoder" if path.stem.endswith(".text_encoder") else "unet"
    source.tensors |= _positional(content, component, path)
    if component == "unet":
        encoder = path.with_name(f"{path.stem}.text_encoder{path.suffix}")
        if encoder.is_file():
            source.tensors |= _positional(load_pickle(encoder), "text_encoder", encoder)
            source.files.append(encoder)
        embeddings = path.with_name(f"{path.stem}.ti{path.suffix}")
        if embeddings.is_file():
            tokens = pickled_tensors(embeddings)
            source.tensors |= tokens
            source.metadata |= dict.fromkeys(tokens, "<embed>")
            source.files.append(embeddings)
    return source


def _header(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that `save_lora_weight` puts where torch's state dicts keep versions."""
    entries = getattr(content, "_metadata", None)
    if not isinstance(entries, Mapping):
        return {}
    return {k: v for k, v in entries.items() if isinstance(k, str) and isinstance(v, str)}


def _positional(content: Any, component: str, path: Path) -> dict[str, Tensor]:
    """Name the tensors of a list up, down, up, down, … as the safetensors form would."""
    if (
        not isinstance(content, list)
        or len(content) % 2
        or not all(hasattr(value, "detach") for value in content)
    ):
        raise FormatError(
            "the pickle is neither a dictionary nor a list of up and down tensors",
            file=path,
            found=type(content).__name__,
        )
    return {
        f"{component}:{i // 2}:{'down' if i % 2 else 'up'}": tensor_from_torch(value)
        for i, value in enumerate(content)
    }
