"""Stack slices of layers of language models into one model, whose layers are numbered anew.

The first model decides the layout: its files, the names of its tensors, its configuration and its
types. What comes before the layers (embeddings) is taken from the model of the first slice, and what
comes after them (the last norm, the output layer) from that of the last.

Source: passthrough of mergekit, arcee-ai/mergekit at a6e4028, mergekit/plan.py and mergekit/merge.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.checkpoint.generic import model_config, named_tensors
from loramerge.errors import FamilyError, FormatError, Setting, ShapeError, UsageError, listed
from loramerge.files.tensors import Tensor
from loramerge.stream.sharing import tied

__all__ = ["Slice", "StackedModel", "stacked"]

# the number of layers in a configuration, by the names that models give it
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_NUMBERED = re.compile(r"((?:[^.\d][^.]*\.)+)(\d+)\.(.+)")  # a list, a number in it, and the rest
_BEFORE = re.compile(r"embed(?!_out)|\bw[tp]e\b")  # names of what comes before the layers


@dataclass(frozen=True)
class Slice:
    """Layers of one model, in their order.

    Args:
        model: its number among the models, from 0.
        first, last: numbers of the layers, from 0; both are taken.
    """

    model: int
    first: int
    last: int


@dataclass(frozen=True)
class StackedModel:
    """A model of stacked layers.

    Args:
        checkpoint: whose files hold the tensors of all models under their new names.
        config: fields of its configuration that differ from the first model's.
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any]


@dataclass(frozen=True)
class _Layers:
    """The layers of one model.

    Args:
        key: name of their number in the configuration; `inside`: that of the part it stands in, or ''.
        prefix: of the names of their tensors.
        names: of each layer, the rest of a tensor's name → its file and itself.
        others: names of tensors outside of the layers → their file and themselves.
    """

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    key: str
    inside: str
    prefix: str
    names: Sequence[Mapping[str, tuple[CheckpointFile, Tensor]]]
    others: Mapping[str, tuple[CheckpointFile, Tensor]]

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the configuration that describes the layers."""
        part: Mapping[str, Any] = self.config[self.inside] if self.inside else self.config
        return part


def stacked(
    models: Sequence[Checkpoint],
    slices: Sequence[Slice],
    outside: Mapping[str, int] | None = None,
    *,
    same_types: bool = True,
) -> StackedModel:
    """Return a model whose layers are slices of those of models of one architecture.

    Args:
        outside: names of modules outside of the layers → number of the model that gives them, where
            that is not the usual one.
        same_types: refuse tensors of other types than the first model's.

    Raises:
        FamilyError: if a model is not a language model, or of another architecture than the first.
        UsageError: if a model does not have a layer.
        FormatError: if the layers of a model are not found, or its types differ.
        ShapeError: if tensors differ in shape.
    """
    known = {one.model: _layers_of(models[one.model]) for one in (Slice(0, 0, 0), *slices)}
    first = known[0]
    for one in slices:
        _require_like(first, known[one.model])
        _require_range(one, known[one.model])
    chosen = [(one.model, number) for one in slices for number in range(one.first, one.last + 1)]
    files: dict[CheckpointFile, dict[str, Tensor]] = {
        file: {} for file in first.checkpoint.files.weights
    }
    for name, (file, tensor) in first.others.items():
        usual = slices[0].model if _BEFORE.search(name) else slices[-1].model
        number = (outside or {}).get(name.rpartition(".")[0], usual)
        source = known.get(number) or _layers_of(models[number])
        files[file][name] = _other(source, name, tensor)
    for new, (model, number) in enumerate(chosen):
        like = first.names[new * len(first.names) // len(chosen)]
        home = next(iter(like.values()))[0]
        for rest, (_, tensor) in known[model].names[number].items():
            files[home][f"{first.prefix}{new}.{rest}"] = tensor
    _require_alike(first, [known[model].names[number] for model, number in chosen])
    if same_types:
        _require_types(first, known.values(), files)
    return StackedModel(_with_files(first.checkpoint, files), _config(first, known, chosen))


def _with_files(
    first: Checkpoint, tensors: Mapping[CheckpointFile, Mapping[str, Tensor]]
) -> Checkpoint:
    """Return the first model with other tensors in its files; files without any are left out."""
    weights = [
        CheckpointFile(
            file.path, file.relative, file.component, given=found, _opened=(found, file.open()[1])
        )
        for file, found in tensors.items()
        if found
    ]
    files = replace(first.files, weights=weights)
    slots = {key: [Place(*where)] for key, where in named_tensors(files).items()}
    return replace(first, files=files, slots=slots)


def _layers_of(checkpoint: Checkpoint) -> _Layers:
    """Return the layers of a model: the one list of modules as long as its configuration says.

    Raises:
        FamilyError: if it is not a language model. FormatError: if there is no such list, or several.
    """
    if checkpoint.candidates:
        raise FamilyError(
            "layers can be stacked of language models only",
            file=checkpoint.path,
            expected="a folder that transformers can load",
            found=f"the family {checkpoint.family_name}",
        )
    config = model_config(checkpoint.files)
    tensors = {
        name: (file, tensor)
        for file in checkpoint.files.weights
        for name, tensor in file.open()[0].items()
    }
    lists: dict[str, dict[int, dict[str, tuple[CheckpointFile, Tensor]]]] = {}
    for name, where in tensors.items():
        if found := _NUMBERED.fullmatch(name):
            prefix, number, rest = found.groups()
            lists.setdefault(prefix, {}).setdefault(int(number), {})[rest] = where
    for inside in ("text_config", ""):
        part = config.get(inside) if inside else config
        key = next((k for k in _COUNTS if isinstance(part, dict) and k in part), None)
        if key is None or not isinstance(part, dict):
            continue
        wanted = set(range(part[key])) if type(part[key]) is int else set()
        fitting = [prefix for prefix, layers in lists.items() if layers.keys() == wanted]
        if len(fitting) == 1 and wanted:
            names = [lists[fitting[0]][number] for number in sorted(wanted)]
            others = {
                name: where
                for name, where in tensors.items()
                if not ((m := _NUMBERED.fullmatch(name)) and m.group(1) == fitting[0])
            }
            return _Layers(checkpoint, config, key, inside, fitting[0], names, others)
        raise FormatError(
            "the layers of the model are not found by their number",
            file=checkpoint.path,
            expected=f"one list of {part[key]} modules, as {key} in config.json says",
            found=listed([f"{p}* ({len(n)})" for p, n in lists.items()], 4) or "no list",
        )
    raise FormatError(
        "the configuration of the model does not say how many layers it has",
        file=checkpoint.path,
        expected=f"one of {', '.join(_COUNTS)} in config.json",
    )


def _other(source: _Layers, name: str, like: Tensor) -> Tensor:
    """Return a tensor outside of the layers from a model.

    Raises:
        FormatError: if it lacks the tensor. ShapeError: if its shape differs from the first model's.
    """
    found = source.others.get(name)
    if found is None:
        embedding, head = tied(source.checkpoint)  # an output layer that shares its weight
        found = source.others.get(f"{embedding}.weight") if name == f"{head}.weight" else None
    if found is None:
        raise FormatError(
            "a model that gives what lies outside of the layers lacks a tensor of the first",
            file=source.checkpoint.path,
            module=name,
            hint=("take it from another: ", Setting("take", f"{name.rpartition('.')[0]}=NAME")),
        )
    if found[1].shape != like.shape:
        raise ShapeError(
            "the models differ in shape",
            file=source.checkpoint.path,
            module=name,
            expected=list(like.shape),
            found=list(found[1].shape),
            hint=("take it from another: ", Setting("take", f"{name.rpartition('.')[0]}=NAME")),
        )
    return found[1]


def _require_like(first: _Layers, other: _Layers) -> None:
    """Refuse a model of another architecture.

    Raises:
        FamilyError: naming both.
    """
    ours, theirs = first.config.get("model_type"), other.config.get("model_type")
    if ours != theirs or first.prefix != other.prefix:
        raise FamilyError(
            "layers can be stacked of models of one architecture only",
            file=other.checkpoint.path,
            expected=f"{ours}, layers called {first.prefix}N",
            found=f"{theirs}, layers called {other.prefix}N",
        )


def _require_range(one: Slice, layers: _Layers) -> None:
    """Refuse a slice of layers that a model does not have.

    Raises:
        UsageError: naming them.
    """
    if one.last >= len(layers.names):
        raise UsageError(
            f"the model has no layer {one.last}",
            file=layers.checkpoint.path,
            expected=f"layers 0 to {len(layers.names) - 1}",
            found=f"layers {one.first} to {one.last}",
        )


def _require_alike(first: _Layers, layers: Sequence[Mapping[str, Any]]) -> None:
    """Refuse layers whose tensors are not those of some layer of the first model.

    Raises:
        ShapeError: naming a tensor.
    """
    forms = [{rest: one.shape for rest, (_, one) in layer.items()} for layer in first.names]
    for number, layer in enumerate(layers):
        shapes = {rest: one.shape for rest, (_, one) in layer.items()}
        if shapes not in forms:
            unlike = [rest for rest in shapes if shapes[rest] != forms[0].get(rest)]
            raise ShapeError(
                f"layer {number} of the result is like no layer of the first model",
                file=first.checkpoint.path,
                module=listed(unlike or [n for n in forms[0] if n not in shapes], 3),
                hint="stack layers of models of one size",
            )


def _require_types(
    first: _Layers, models: Any, files: Mapping[CheckpointFile, Mapping[str, Tensor]]
) -> None:
    """Refuse tensors of types that the first model does not have.

    Raises:
        FormatError: naming the types.
    """
    own = {tensor.dtype for file in first.checkpoint.files.weights
           for tensor in file.open()[0].values()}  # fmt: skip
    others = {tensor.dtype for tensors in files.values() for tensor in tensors.values()} - own
    if others:
        raise FormatError(
            "the models are stored in different types",
            file=first.checkpoint.path,
            expected=", ".join(sorted(own)),
            found=", ".join(sorted(others)),
            hint=("choose one: ", Setting("dtype", "bfloat16")),
        )


def _config(
    first: _Layers, models: Mapping[int, _Layers], chosen: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return the fields of the configuration that follow from the layers: number, and lists."""
    found: dict[str, Any] = {first.key: len(chosen)}
    for name, value in first.text_config.items():
        if isinstance(value, list) and len(value) == len(first.names):
            parts = {number: models[number].text_config.get(name) for number, _ in chosen}
            if all(
                isinstance(part, list) and len(part) == len(models[number].names)
                for number, part in parts.items()
            ):
                found[name] = [parts[model][number] for model, number in chosen]  # type: ignore[index]
    return found
