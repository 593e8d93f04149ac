"""PEFT's folders: `adapter_config.json` beside the weights, one folder per component if several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from loramerge.adapter.encoded import Encoded
from loramerge.adapter.formats.container import Check, Container, Unwritten
from loramerge.adapter.formats.mlx import MLX_WEIGHTS, is_mlx, open_mlx
from loramerge.adapter.formats.peft_biases import add_zero_biases
from loramerge.adapter.formats.peft_experts import join_experts
from loramerge.adapter.formats.peft_fields import FIELDS
from loramerge.adapter.formats.peft_patterns import pattern_value
from loramerge.adapter.formats.peft_shared import join_shared
from loramerge.adapter.formats.peft_types import MERGE_IN_PEFT, REFUSED
from loramerge.adapter.formats.source import AdapterSource
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.errors import (
    CorruptFile,
    FormatError,
    MissingFile,
    NotExpressible,
    Setting,
    ShapeError,
)
from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.atomic import AtomicFolder, Contents
from loramerge.files.json_values import read_values
from loramerge.files.pickled import pickled_tensors
from loramerge.files.reader import TensorFile, release
from loramerge.files.tensors import Tensor
from loramerge.files.writer import write_bytes, write_tensors

__all__ = [
    "CONFIG_NAME",
    "CONTAINER",
    "CONTENTS",
    "WEIGHTS_NAME",
    "add_configuration",
    "open_folder",
    "open_of_mlx",
    "scale_of",
]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"
_COMPONENTS = frozenset(name for names in COMPONENT_WORDS.values() for name in names)


class _Peft(Container):
    def complete(self, content: Unwritten) -> None:
        _require_names_of_transformers(content)
        add_zero_biases(content)
        join_experts(content)
        join_shared(content)

    def configurations(self, content: Unwritten) -> dict[str, dict[str, Any]]:
        from loramerge.adapter.formats.peft_configuration import by_component, peft_config

        components = by_component(content.adapter, content.deltas)
        _check_components(components)
        return {
            component: peft_config(content.adapter, component, deltas)
            for component, deltas in components.items()
        }

    def write(self, encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
        encoded.metadata |= encoded.late_entries()
        return _write_folder(encoded, place, force, check)


CONTAINER = _Peft()


def _require_names_of_transformers(content: Unwritten) -> None:
    """Refuse modules in llama.cpp's names, which no model of transformers has.

    Raises:
        NotExpressible: naming the first of them.
    """
    found = [site.name for site in content.deltas if site.name.startswith("blk.")]
    if found:
        raise NotExpressible(
            f"{len(found)} modules have the names of llama.cpp, which PEFT cannot use",
            module=found[0],
            expected="a base that names them and tells how many attention heads it has",
            hint=("give it as ", Setting("base")),
        )


def _check_components(components: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse components that cannot be separate folders.

    Raises:
        NotExpressible: for a name that would lead elsewhere, or modules of no component beside
            those of one, whose folders would not be read.
    """
    for name, deltas in components.items():
        strange = any(c in '/\\:*?"<>|' or ord(c) < 32 for c in name) or name in (".", "..")
        if strange or (not name and len(components) > 1):
            raise NotExpressible(
                f"{name!r} cannot be the name of a component's folder",
                module=next(iter(deltas), None),
                expected="names without separators",
            )


def _is_adapter_file(path: PurePosixPath) -> bool:
    """Return whether a path below a folder is that of an adapter's or a component's file."""
    component = path.parent.name in _COMPONENTS and len(path.parts) == 2
    files = (CONFIG_NAME, WEIGHTS_NAME, _PICKLED_WEIGHTS)
    return path.name in files and (component or len(path.parts) == 1)


CONTENTS = Contents("an adapter", _is_adapter_file)


def _write_folder(encoded: Encoded, place: Path, force: bool, check: Check | None) -> int:
    if place.suffix in (".safetensors", ".pt", ".bin"):
        raise FormatError(
            "a PEFT adapter is a folder",
            file=place,
            hint=("give the name of a folder: ", Setting("output", str(place.with_suffix("")))),
        )
    total = 0
    single = len(encoded.configs) == 1 and {*encoded.configs} <= {"", *encoded.dialect.alone}
    with AtomicFolder(place, force=force, contents=CONTENTS) as folder:
        for component, config in encoded.configs.items():
            part = folder if single else folder / component
            own = [
                (key.removeprefix(f"{component}/"), tensor)
                for key, tensor in encoded.tensors
                if single or encoded.components[key] == component
            ]
            total += write_tensors(part / WEIGHTS_NAME, own, encoded.metadata)
            raw = json.dumps(config, indent=2, sort_keys=True).encode()
            write_bytes(part / CONFIG_NAME, raw)
            total += len(raw)
        if check is not None:
            check(folder)
            for path in folder.rglob("*"):
                release(path)
    return total


# --- reading


def add_configuration(source: AdapterSource, weights: Path) -> None:
    """Add the configuration beside a file of weights, if there is one."""
    place = weights.parent / CONFIG_NAME
    if place.is_file():
        source.configs[""] = configuration(place)
        source.files.append(place)


def open_of_mlx(path: Path, weights: Path) -> AdapterSource | None:
    """Open an adapter of MLX-LM, None if the configuration beside the weights is not one of it.

    Args:
        path: of the folder or file, as it was given.
    """
    config = weights.parent / CONFIG_NAME
    if weights.name != MLX_WEIGHTS or not weights.is_file() or not config.is_file():
        return None
    content = _read_configuration(config)
    return open_mlx(path, weights, config, content) if is_mlx(content) else None


def open_folder(folder: Path) -> AdapterSource | None:
    """Open a PEFT folder, or one with a PEFT folder per component; None if it is neither.

    Raises:
        MissingFile, CorruptFile, FormatError: if there are no weights, or no configuration to read.
    """
    if (folder / CONFIG_NAME).is_file():
        other = open_of_mlx(folder, folder / MLX_WEIGHTS)
        if other is not None:
            return other
        tensors, metadata, files = _peft_weights(folder)
        return AdapterSource(
            str(folder), tensors, metadata, {"": configuration(folder / CONFIG_NAME)}, files
        )
    parts = sorted(p.parent for p in folder.glob(f"*/{CONFIG_NAME}"))
    if parts:
        source = AdapterSource(str(folder), {})
        for part in parts:
            tensors, metadata, files = _peft_weights(part)
            source.tensors.update({f"{part.name}/{key}": t for key, t in tensors.items()})
            source.metadata.update(metadata)
            source.configs[part.name] = configuration(part / CONFIG_NAME)
            source.files += files
        return source
    return None


def _peft_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str], list[Path]]:
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if weights.is_file():
        file = TensorFile(weights)
        return dict(file.tensors), dict(file.metadata), [weights, config]
    pickled = folder / _PICKLED_WEIGHTS
    if pickled.is_file():
        return pickled_tensors(pickled), {}, [pickled, config]
    raise MissingFile(f"the PEFT folder has no {WEIGHTS_NAME}", file=folder)


def configuration(path: Path) -> dict[str, Any]:
    """Read an `adapter_config.json`.

    Raises:
        CorruptFile: if it cannot be read.
        FormatError: if it is of a type that loramerge does not know.
    """
    content = _read_configuration(path)
    said = content.get("peft_type")
    kind = "LORA" if said is None or said == "" else str(said)
    if kind not in FIELDS:
        raise FormatError(
            f"a PEFT adapter of type {kind} cannot be read"
            + (f": {REFUSED[kind].reason}" if kind in REFUSED else ""),
            file=path,
            expected=f"peft_type {', '.join(FIELDS)}",
            found=kind,
            hint=REFUSED[kind].remedy if kind in REFUSED else MERGE_IN_PEFT,
        )
    return content


def _read_configuration(path: Path) -> dict[str, Any]:
    try:
        content = read_values(path)
    except (ValueError, OSError) as error:
        raise CorruptFile(f"the configuration cannot be read ({error})", file=path) from None
    if not isinstance(content, dict):
        raise CorruptFile("the configuration is not a JSON object", file=path)
    return content


_OF_OTHER_TYPES = ("lokr_", "hada_")  # roles of types that have an alpha of their own


def scale_of(
    config: Mapping[str, Any], path: str, module: str, tensors: Mapping[str, Tensor]
) -> Scale:
    """Return the scale of a module's factors as its configuration states it.

    Args:
        path: the module's name in the configuration; `module` is ours, for errors.

    Raises:
        ShapeError: if the configuration does not state a number.
    """
    word = "lora_alpha" if config.get("peft_type", "LORA") == "LORA" else "alpha"
    if word == "lora_alpha" and any(role.startswith(_OF_OTHER_TYPES) for role in tensors):
        return Scale()  # in a lone file, beside the LoRA that its header speaks of
    alpha = _stated(config, "alpha_pattern", word, path, module)
    if alpha is None:
        return Scale()
    if config.get("peft_type") == "LOKR" and {"lokr_w1", "lokr_w2"} <= tensors.keys():
        # PEFT divides by the rank it was given also where no factor shows it
        rank = _stated(config, "rank_pattern", "r", path, module)
        return Scale(alpha, ratio=alpha / (rank or 8))
    return Scale(alpha, root=bool(config.get("use_rslora")))


def _stated(
    config: Mapping[str, Any], patterns: str, word: str, path: str, module: str
) -> float | None:
    """Return a number of a PEFT configuration: that of the first pattern that matches, or of all."""
    table = config.get(patterns) or {}
    if not isinstance(table, Mapping):
        raise ShapeError(f"{patterns} is not a mapping", module=module, found=table)
    value = pattern_value(table, path)
    if value is None:
        value = config.get(word)
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        what = "alpha" if word.endswith("alpha") else word
        raise ShapeError(f"{what} is not a number", module=module, found=value)
    return float(value)
