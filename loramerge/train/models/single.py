"""A single file without a configuration: its models from shapes, its tokenizers from this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from loramerge.errors import FormatError, LoramergeError, Setting, UsageError
from loramerge.families import FAMILIES, Family
from loramerge.files.reader import TensorFile
from loramerge.train.models.architecture import Architecture, Network
from loramerge.train.models.clip_vocabulary import vocabulary

__all__ = ["configured", "networks_of"]

_VAE = "first_stage_model."


@dataclass(frozen=True)
class Configured:
    """The configurations and tokenizers of a single file, for diffusers.

    Args:
        folder: with the configuration of every component; it lasts as long as the context.
        tokenizers: by the name of their folder in a pipeline.
    """

    folder: Path
    tokenizers: dict[str, Any]


@contextmanager
def configured(
    path: Path, kind: Architecture, family: str | None, predicts: str | None, transformers: Any
) -> Iterator[Configured | None]:
    """Give configurations for a single file; None where its kind, or its format, tells too little.

    Args:
        predicts: as diffusers calls it; None where nobody says.

    Raises:
        UsageError: if nobody says what it predicts, or no vocabulary for its text encoders is here.
    """
    networks = networks_of(path, None if family is None else FAMILIES.get(family))
    described = {} if networks is None else kind.configurations(networks, predicts)
    if networks is None or not described:
        yield None
        return
    assert family is not None
    if predicts is None and FAMILIES[family].metadata.v_prediction is not None:
        raise UsageError(
            "bases of this family predict noise or v, and this file does not say which",
            file=path,
            hint=("give ", Setting("prediction", "v"), " for 768 pixels, else ",
                  Setting("prediction", "epsilon")),
        )  # fmt: skip
    with TemporaryDirectory(prefix="loramerge-") as place:
        tokenizers = {}
        for name, encoder in kind.encoders.items():
            if name not in networks:
                continue
            rows, _ = networks[name].shapes["text_model.embeddings.token_embedding"]
            length, _ = networks[name].shapes["text_model.embeddings.position_embedding"]
            padding = {"pad_token": "!"} if networks[name].openclip else {}
            tokenizers[encoder.folder] = transformers.CLIPTokenizer.from_pretrained(
                vocabulary(path, rows, Path(place)),
                local_files_only=True,
                model_max_length=length,
                **padding,
            )
        for file, content in described.items():
            target = Path(place, file)
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(content), "utf-8")
        yield Configured(Path(place), tokenizers)


def networks_of(path: Path, family: Family | None) -> dict[str, Network] | None:
    """Return component → modules with the shapes in a single file; None where they are not told."""
    try:
        file = TensorFile(path)
    except LoramergeError:  # a pickle
        return None
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    finally:
        file.close()
    if family is None:
        return None
    found = {one.name: _network(family, one.name, shapes, path) for one in family.components}
    vae = {n.removeprefix(_VAE): s for n, s in shapes.items() if n.startswith(_VAE)}
    networks = {name: one for name, one in found.items() if one.shapes}
    return networks | {"vae": Network(_Whole(vae, path))}


class _Whole(dict[str, tuple[int, ...]]):
    """Shapes of which none that is asked for may be missing."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
        super().__init__(shapes)
        self._path = path

    def __missing__(self, name: str) -> NoReturn:
        raise FormatError(
            "the file lacks a layer of its model",
            file=self._path,
            expected=name,
            hint="give a whole checkpoint or a diffusers folder",
        )


def _network(
    family: Family, name: str, shapes: Mapping[str, tuple[int, ...]], path: Path
) -> Network:
    """Return a component by that of its spellings of which the file has most."""
    (component,) = (one for one in family.components if one.name == name)
    found = []
    for spelling in family.spellings[name]:
        own = {}
        for module, parameter, slot in spelling.slots(component):
            if parameter == "weight" and slot.tensor in shapes:
                rows, *rest = shapes[slot.tensor][:: -1 if slot.transposed else 1]
                own[module.path] = (rows * slot.span // slot.parts, *rest)
        found.append(Network(_Whole(own, path), openclip=spelling.prefix.endswith(".model.")))
    return max(found, key=lambda one: len(one.shapes))
