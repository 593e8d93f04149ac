"""Read mergekit's file: what is merged, which layers of it, and by which parameters.

`models` is one slice of all layers; `slices` put layers of models together, each a merge of its own.

Source: mergekit 0.1.5, `config.py`, and `normalize_config` of `plan.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge.files.json_values import read_values
from loramerge.recipe.mergekit.gradients import Layers

__all__ = ["Description", "MergedSlice", "ModelLayers", "misshapen", "read"]

_LAYERS = {"gpt2": "h", "gptj": "h", "gpt_neo": "h", "bloom": "h", "falcon": "h", "mpt": "blocks"}
_TYPES = ("float16", "bfloat16", "float32", "float64")
_KNOWN = {
    "models", "slices", "modules", "merge_method", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer",
}  # fmt: skip
_LISTS = ("models", "slices", "sources")
_MAPPINGS = ("modules", "parameters")
_KNOWN_IN_SLICES = {"sources", "base_model", "parameters"}


@dataclass(frozen=True)
class ModelLayers:
    """Layers of a model.

    Args:
        range: the first and the one after the last; None for all.
        parameters: of this model alone.
    """

    model: str
    range: tuple[int, int] | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class MergedSlice:
    """Layers of the result, merged of layers of models.

    Args:
        base: model that the others were trained from, None without one.
        scopes: parameters that hold for all models, the nearer ones first.
    """

    sources: Sequence[ModelLayers]
    base: str | None
    scopes: Sequence[Mapping[str, Any]]

    @property
    def count(self) -> int | None:
        """The number of layers, None for all of the models."""
        range_of = self.sources[0].range if self.sources else None
        return None if range_of is None else range_of[1] - range_of[0]


@dataclass
class Description:
    """A merge as mergekit's file describes it.

    Args:
        layers: of the models, as far as they are known: number and name.
        problems: what has no counterpart, in words.
        notes: what differs, in words.
    """

    method: str
    base: str | None
    slices: Sequence[MergedSlice]
    dtype: str | None
    layers: Layers
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """All models, each once, in order; the base last where it is not merged."""
        found = [source.model for one in self.slices for source in one.sources]
        bases = [one.base for one in self.slices] + [self.base]
        return list(dict.fromkeys([*found, *(base for base in bases if base is not None)]))

    @property
    def is_whole(self) -> bool:
        """True if all layers of the models are merged, and none change their numbers."""
        if len(self.slices) != 1:
            return False
        ranges = {source.range for source in self.slices[0].sources}
        return ranges == {None} or ranges == {(0, self.layers.count)}


def misshapen(content: Mapping[str, Any], place: str = "") -> list[str]:
    """Return the entries of another shape than mergekit gives them, in words."""
    found = []
    for key, value in content.items():
        where = f"{place}{key}"
        if value is None or key not in (*_LISTS, *_MAPPINGS):
            continue
        if not isinstance(value, list if key in _LISTS else Mapping):
            found.append(f"{where} is not a {'list' if key in _LISTS else 'mapping'}")
        elif key != "parameters":
            inner = value.items() if isinstance(value, Mapping) else enumerate(value, 1)
            for name, one in inner:
                if isinstance(one, Mapping):
                    found += misshapen(one, f"{where} {name}: ")
                else:
                    found.append(f"{where} {name} is not a mapping")
    return found


def read(content: Mapping[str, Any]) -> Description:
    """Return what the file says, with problems where that has no counterpart."""
    problems = [f"{key}" for key in content if key not in _KNOWN]
    base = content.get("base_model")
    named = None if base is None else _model(base, problems)
    holder, scopes = _holder(content, problems)
    slices = _slices(holder, named, scopes, problems)
    models = [source.model for one in slices for source in one.sources]
    if "+" in "".join(models):
        problems.append("models: adapters (MODEL+ADAPTER); bake them first")
    count, word = _layers_of(models)
    notes = []
    ranges = {source.range for one in slices for source in one.sources}
    only = ranges.pop() if count is None and len(slices) == len(ranges) == 1 else None
    if only is not None and only[0] == 0:
        count = only[1]
        notes.append(f"the models are taken to have {count} layers, named *.layers.N")
    found = Description(content["merge_method"], named, slices, _dtype(content, problems),
                        Layers(count, word), problems, notes)  # fmt: skip
    _check_tokenizer(content, found)
    return found


def _holder(
    content: Mapping[str, Any], problems: list[str]
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Return what holds `models` or `slices`, and the parameters around it."""
    scopes: list[Mapping[str, Any]] = [content.get("parameters") or {}]
    modules = content.get("modules")
    if not modules:
        return content, scopes
    if not isinstance(modules, Mapping) or len(modules) != 1:
        problems.append("modules: several, merged in ways of their own")
        return {}, scopes
    (only,) = modules.values()
    return only, [only.get("parameters") or {}, *scopes]


def _slices(
    holder: Mapping[str, Any],
    base: str | None,
    scopes: list[Mapping[str, Any]],
    problems: list[str],
) -> list[MergedSlice]:
    if holder.get("models"):
        sources = [_source(one, problems) for one in holder["models"]]
        return [MergedSlice(_with_base(sources, base), base, scopes)]
    found = []
    for number, one in enumerate(holder.get("slices") or ()):
        unknown = [f"slices: {key}" for key in one if key not in _KNOWN_IN_SLICES]
        problems += [text for text in unknown if text not in problems]
        own = base if one.get("base_model") is None else _model(one["base_model"], problems)
        sources = [_source(source, problems) for source in one.get("sources") or ()]
        _check_ranges(number, sources, problems)
        found.append(MergedSlice(sources, own, [one.get("parameters") or {}, *scopes]))
    return found


def _source(content: Mapping[str, Any], problems: list[str]) -> ModelLayers:
    layers = content.get("layer_range")
    range_of = None
    if layers is not None:
        try:
            first, stop = layers
            range_of = int(first), int(stop)
        except (TypeError, ValueError):
            problems.append(f"layer_range: {layers!r} is not a pair of numbers")
    return ModelLayers(
        _model(content.get("model"), problems), range_of, content.get("parameters") or {}
    )


def _with_base(sources: list[ModelLayers], base: str | None) -> list[ModelLayers]:
    """Return sources with the base among them, as mergekit adds it to `models`."""
    if base is None or any(source.model == base for source in sources):
        return sources
    return [*sources, ModelLayers(base, None, {})]


def _check_ranges(number: int, sources: Sequence[ModelLayers], problems: list[str]) -> None:
    """Note a slice whose sources are not as many layers of several models."""
    where = f"slice {number + 1}"
    ranges = [source.range for source in sources]
    if not sources or None in ranges:
        problems.append(f"slices: {where} has a source without layer_range" if sources
                        else f"slices: {where} has no sources")  # fmt: skip
    lengths = {stop - first for first, stop in filter(None, ranges)}
    if len(lengths) > 1 or any(length < 1 for length in lengths):
        problems.append(f"slices: {where} has sources of other numbers of layers")
    if len({source.model for source in sources}) < len(sources):
        problems.append(f"slices: {where} names one model twice, of which mergekit takes one")


def _model(reference: Any, problems: list[str]) -> str:
    """Return the path or name of a model."""
    if isinstance(reference, Mapping):
        if reference.get("lora") is not None:
            problems.append("models: adapters (lora); bake them first")
        return _model(reference.get("model", reference.get("path")), problems)
    return str(reference)


def _layers_of(models: Sequence[str]) -> tuple[int | None, str]:
    """Return the number of layers of the first model that is here, and their name."""
    for folder in models:
        with suppress(OSError, ValueError, AttributeError):
            config = read_values(Path(folder) / "config.json")
            found = next((config[k] for k in ("num_hidden_layers", "n_layer") if k in config), None)
            return found, _LAYERS.get(config.get("model_type"), "layers")
    return None, "layers"


def _dtype(content: Mapping[str, Any], problems: list[str]) -> str | None:
    dtype = content.get("out_dtype") or content.get("dtype")
    if dtype is not None and dtype not in _TYPES:
        problems.append(f"dtype: {dtype} (there are {', '.join(_TYPES)})")
    return None if dtype is None else str(dtype)


def _check_tokenizer(content: Mapping[str, Any], found: Description) -> None:
    """Note a tokenizer that is another than the first model's, whose files the result has."""
    tokenizer = content.get("tokenizer") or {}
    source = content.get("tokenizer_source") or tokenizer.get("source")
    if tokenizer.keys() - {"source"}:
        found.problems.append("tokenizer: tokens of its own, and padding")
    first = found.models[:1]
    if source not in (None, "base", *first):
        found.problems.append(f"tokenizer_source: {source}; the result has the first model's")
    if source == "base" and [found.base] != first:
        found.notes.append("the tokenizer is the first model's; mergekit brings all to the base's")
