"""The recipe of a merge that mergekit's YAML describes.

Each method here says what the parameters of mergekit's are called, and where mergekit's definition is
another one, what makes ours the same or why it cannot be. Names of layers are those of the models'
folders where those are here.

Source: mergekit 0.1.5, `config.py`, `merge_methods` and `sparsify.py`; `tests/peers/test_mergekit.py`
compares both programs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge.errors import CorruptFile, FormatError, listed
from loramerge.recipe.mergekit_values import (
    Gradient,
    Layers,
    Unreadable,
    combined,
    constant,
    rules_of,
    weight_of_rules,
)

__all__ = ["recipe_of_mergekit"]

_STEP = "merged"
_LAYERS = {"gpt2": "h", "gptj": "h", "gpt_neo": "h", "bloom": "h", "falcon": "h", "mpt": "blocks"}
_TYPES = ("float16", "bfloat16", "float32", "float64")
_KNOWN = {
    "models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source",
}  # fmt: skip


@dataclass
class _Merge:
    """A merge as mergekit's file describes it, and its counterpart as it grows.

    Args:
        models: what is merged, in order.
        own: parameters of each model.
        scopes: parameters that hold for all, the nearer ones first.
        layers: of the models.
        problems: what has no counterpart, in words.
    """

    method: str
    base: str | None
    models: list[str]
    own: list[Mapping[str, Any]]
    scopes: list[Mapping[str, Any]]
    layers: Layers
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Note what cannot be expressed, and go on."""
        try:
            yield
        except Unreadable as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))

    def rules(self, name: str, model: int | None = None) -> list[Gradient]:
        """Return the rules of a parameter, for all models or for one."""
        self.used.add(name)
        own = [] if model is None else [self.own[model]]
        return rules_of(name, [*own, *self.scopes])

    def number(self, name: str, default: float) -> float:
        """Return the one value of a parameter that all models share."""
        found = {default} if not self.models else set[float]()
        with self.trying():
            found |= {
                constant(name, self.rules(name, model), default)
                for model in range(len(self.models))
            }
            if len(found) > 1:
                raise Unreadable(f"{name}: other values for some models; here it is one number")
        return found.pop() if found else default

    def flag(self, name: str, default: bool) -> bool:
        """Return a switch."""
        return bool(self.number(name, default))

    def weights(self) -> list[list[Gradient]]:
        """Return the rules for the weight of each model."""
        found = []
        for number, model in enumerate(self.models):
            rules = self.rules("weight", number)
            if not rules:
                raise Unreadable(f"weight: none for {model}")
            found.append(rules)
        return found

    def shares(self) -> list[list[Gradient]]:
        """Return the rules for the weights over their sum."""
        return combined("weight", self.weights(), self.layers, _shares)


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values)
    if total == 0:
        raise Unreadable("weight: weights that sum to 0 cannot be normalised")
    return [value / total for value in values]


_Found = tuple[
    dict[str, Any], list[list[Gradient]]
]  # parameters of a `merge`, weights of its models


def recipe_of_mergekit(content: Any, file: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe of mergekit's file, and notes on what differs.

    Args:
        content: the file, read.
        file: for errors.
        folder: of the recipe, that paths are written relative to.

    Raises:
        CorruptFile: if it is not a file of mergekit.
        FormatError: naming everything that has no counterpart.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("merge_method"), str):
        raise CorruptFile(
            "this is not a recipe of mergekit",
            file=file,
            expected="merge_method, and models or slices",
        )
    merge = _read(content)
    step: dict[str, Any] = {}
    weights: list[list[Gradient]] = []
    make = _METHODS.get(merge.method)
    if make is None:
        merge.problems.append(
            f"merge_method: {merge.method} (there are {listed(list(_METHODS), 20)})"
        )
    else:
        with merge.trying():
            step, weights = make(merge)
        _require_known(merge)
    step |= _types(content, merge)
    models = []
    names = _names([*merge.models, *([merge.base] if merge.base is not None else [])])
    for model, rules in zip(merge.models, weights, strict=False):
        with merge.trying():
            weight = weight_of_rules("weight", rules, merge.layers)
            models.append(
                names[model] if weight == 1.0 else {"model": names[model], "weight": weight}
            )
    if merge.problems:
        raise FormatError(
            "mergekit's recipe cannot be expressed here",
            file=file,
            found="; ".join(merge.problems),
            hint="change these in it, or write the steps of a recipe yourself",
        )
    if "base" in step:
        step["base"] = names[step["base"]]
    inputs = {
        name: _path(model, folder) for model, name in names.items() if _is_used(name, models, step)
    }
    recipe = {
        "version": 1,
        "inputs": inputs,
        "steps": {_STEP: {"merge": {"models": models, **step}, "save": _STEP}},
    }
    return recipe, merge.notes + _on_places(merge, inputs)


def _is_used(name: str, models: Sequence[Any], step: Mapping[str, Any]) -> bool:
    used = [one if isinstance(one, str) else one["model"] for one in models]
    return name in (*used, step.get("base"))


# --- reading ---------------------------------------------------------------------------------------


def _read(content: Mapping[str, Any]) -> _Merge:
    """Return what the file says, with problems where that has no counterpart."""
    problems = [f"{key}" for key in content if key not in _KNOWN]
    sources: list[Mapping[str, Any]] = list(content.get("models") or ())
    scopes = [content.get("parameters") or {}]
    base = content.get("base_model")
    count: int | None = None
    slices = content.get("slices") or ()
    if len(slices) > 1:
        problems.append(f"slices: {len(slices)} of them, which put layers of models together")
    for one in slices[:1]:
        sources = list(one.get("sources") or ())
        scopes.insert(0, one.get("parameters") or {})
        base = one.get("base_model", base)
        ranges = {tuple(source.get("layer_range") or ()) for source in sources}
        start, stop = ranges.pop() if len(ranges) == 1 else (None, None)
        if start != 0 or not isinstance(stop, int):
            problems.append("slices: layers that do not begin at the first, the same of each model")
        else:
            count = stop
    models = [_model(source.get("model"), problems) for source in sources]
    word, found = "layers", None
    for folder in models:
        with suppress(OSError, ValueError, AttributeError):
            config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
            found = next((config[k] for k in ("num_hidden_layers", "n_layer") if k in config), None)
            word = _LAYERS.get(config.get("model_type"), "layers")
            break
    if count is not None and found is not None and found != count:
        problems.append(f"slices: {count} of the {found} layers")
    own: list[Mapping[str, Any]] = [source.get("parameters") or {} for source in sources]
    named = None if base is None else _model(base, problems)
    layers = Layers(count if found is None else found, word)
    if "+" in "".join(models):
        problems.append("models: adapters (MODEL+ADAPTER); bake them first")
    merge = _Merge(content["merge_method"], named, models, own, scopes, layers, problems)
    tokenizer = content.get("tokenizer_source")
    if tokenizer not in (None, "base", *models[:1]):
        problems.append(f"tokenizer_source: {tokenizer}; the result has the first model's")
    if found is None and count is not None:
        merge.notes.append(f"the models are taken to have {count} layers, named *.layers.N")
    return merge


def _model(reference: Any, problems: list[str]) -> str:
    """Return the path or name of a model."""
    if isinstance(reference, Mapping):
        if reference.get("lora") is not None:
            problems.append("models: adapters (lora); bake them first")
        return _model(reference.get("model", reference.get("path")), problems)
    return str(reference)


def _require_known(merge: _Merge) -> None:
    """Note parameters that the method does not have here."""
    for scope in (*merge.own, *merge.scopes):
        for name in scope:
            if name not in merge.used | {"int8_mask"}:
                text = f"{name}: the method {merge.method} has no such parameter here"
                if text not in merge.problems:
                    merge.problems.append(text)


def _types(content: Mapping[str, Any], merge: _Merge) -> dict[str, Any]:
    dtype = content.get("out_dtype") or content.get("dtype")
    if dtype is None:
        return {}
    if dtype not in _TYPES:
        merge.problems.append(f"dtype: {dtype} (there are {', '.join(_TYPES)})")
    return {"dtype": str(dtype)}


def _names(models: Iterable[str]) -> dict[str, str]:
    """Return short names of models, each another."""
    found: dict[str, str] = {}
    for model in models:
        if model in found:
            continue
        stem = model.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "model"
        name, count = stem.replace(":", "_"), 1
        while name in found.values() or name == _STEP:
            count += 1
            name = f"{stem}-{count}"
        found[model] = name
    return found


def _path(model: str, folder: Path) -> dict[str, str]:
    """Return the input of a model: where it is, or what the file calls it."""
    here = Path(model)
    if here.exists() and not here.is_absolute():
        with suppress(ValueError):
            import os

            return {"path": Path(os.path.relpath(here, folder)).as_posix()}
    return {"path": model}


def _on_places(merge: _Merge, inputs: Mapping[str, Mapping[str, str]]) -> list[str]:
    models = [*merge.models, *([merge.base] if merge.base is not None else [])]
    away = sorted({model for model in models if not Path(model).exists()})
    if not away:
        return []
    return [
        f"not found here: {listed(away, 4)}; download them, and write their folders under inputs"
    ]


# --- methods ---------------------------------------------------------------------------------------


def _on_base(merge: _Merge) -> dict[str, Any]:
    """Return the base of the changes, and leave it out of what is merged."""
    if merge.base is None:
        raise Unreadable(f"base_model: {merge.method} needs one")
    kept = [number for number, model in enumerate(merge.models) if model != merge.base]
    merge.models = [merge.models[number] for number in kept]
    merge.own = [merge.own[number] for number in kept]
    return {"base": merge.base}


def _with_base_among(merge: _Merge) -> None:
    """Add the base to what is merged where the file leaves it out."""
    if merge.base is not None and merge.base not in merge.models:
        merge.models.append(merge.base)
        merge.own.append({})


def _scaled(merge: _Merge, name: str, factor: float = 1.0) -> dict[str, Any]:
    """Return our method with mergekit's λ as its final scale."""
    scale = merge.number("lambda", 1.0) * factor
    if scale == 0:
        raise Unreadable("lambda: 0 leaves the base")
    return {"method": name, "scale": "literal" if scale == 1.0 else repr(scale)}


def _linear(merge: _Merge) -> _Found:
    _with_base_among(merge)
    if merge.flag("normalize", True):
        return {}, merge.shares()
    weights = merge.weights()
    combined("weight", weights, merge.layers, _require_one)
    return {}, weights


def _require_one(values: Sequence[float]) -> Sequence[float]:
    if abs(sum(values) - 1.0) > 1e-6:
        raise Unreadable("normalize: false, and weights without a base must sum to 1")
    return values


def _slerp(merge: _Merge) -> _Found:
    _with_base_among(merge)
    if merge.base is None or len(merge.models) != 2:
        raise Unreadable("slerp needs two models, one of them base_model")
    share = merge.rules("t")
    if not share:
        raise Unreadable("t: it has no value")
    rest = [Gradient(rule.part, tuple(1 - value for value in rule.values)) for rule in share]
    first = merge.models[0] == merge.base
    merge.notes.append("mergekit goes straight between models whose cosine is above 0.9995")
    return {"method": "slerp"}, [rest, share] if first else [share, rest]


def _nuslerp(merge: _Merge) -> _Found:
    base = _on_base(merge) if merge.base is not None else {}
    if len(merge.models) != 2:
        raise Unreadable("nuslerp needs two models")
    flat, columns = merge.flag("nuslerp_flatten", True), merge.flag("nuslerp_row_wise", False)
    if columns and not flat:
        raise Unreadable("nuslerp_row_wise: true takes columns of weights; here are rows")
    return base | {"method": "slerp" if flat else "nuslerp"}, merge.shares()


def _task_arithmetic(merge: _Merge) -> _Found:
    step = _on_base(merge) | _scaled(merge, "linear")
    del step["method"]
    if step["scale"] == "literal":
        del step["scale"]
    return step, merge.shares() if merge.flag("normalize", False) else merge.weights()


def _signs(merge: _Merge, normalize: bool) -> dict[str, Any]:
    """Return how entries that agree are averaged."""
    if not merge.flag("normalize", normalize):
        return {"divide_by": "none"}
    if any(value < 0 for rules in merge.weights() for rule in rules for value in rule.values):
        raise Unreadable("weight: negative weights with normalize, whose sum may vanish")
    return {"divide_by": "weights"}


def _without_rescale(merge: _Merge) -> None:
    if merge.flag("rescale", False):
        raise Unreadable("rescale: true, for entries that are not chosen at random")


def _drops(merge: _Merge) -> tuple[float, float]:
    """Return the density, and the factor without the rescaling of what is kept."""
    density = merge.number("density", 1.0)
    if merge.flag("rescale", True):
        if density < 1:
            merge.notes.append(
                "what is kept is divided by the density, as in the paper; mergekit brings it to the "
                "sum of sizes before, and draws other numbers"
            )
        return density, 1.0
    return density, density


def _ties(merge: _Merge) -> _Found:
    step = _on_base(merge) | _scaled(merge, "ties")
    _without_rescale(merge)
    step["density"] = merge.number("density", 1.0)
    return step | _signs(merge, True), merge.weights()


def _dare_linear(merge: _Merge) -> _Found:
    step = _on_base(merge)
    density, factor = _drops(merge)
    step |= _scaled(merge, "dare", factor) | {"density": density}
    return step, merge.shares() if merge.flag("normalize", False) else merge.weights()


def _dare_ties(merge: _Merge) -> _Found:
    step = _on_base(merge)
    density, factor = _drops(merge)
    step |= _scaled(merge, "dare-ties", factor) | {"density": density}
    return step | _signs(merge, False), merge.weights()


def _della(merge: _Merge) -> _Found:
    step = _on_base(merge)
    if not merge.flag("rescale", True):
        raise Unreadable("rescale: false, where entries are kept with several probabilities")
    density, _ = _drops(merge)
    width = 2 * merge.number("epsilon", 0.15)  # to either side there, from end to end here
    step |= _scaled(merge, "della") | {"density": density, "epsilon": width if density < 1 else 0.0}
    return step | _signs(merge, True), merge.weights()


def _breadcrumbs(merge: _Merge) -> _Found:
    density, gamma = merge.number("density", 1.0), merge.number("gamma", 0.01)
    _without_rescale(merge)
    if density >= 1:  # then mergekit leaves out nothing at all
        return _task_arithmetic(merge)
    step = _on_base(merge) | _scaled(merge, "breadcrumbs")
    step |= {"density": density, "gamma": round(min(gamma, 1 - density), 12)}
    return step, merge.shares() if merge.flag("normalize", False) else merge.weights()


def _ones(merge: _Merge, value: float = 1.0) -> list[list[Gradient]]:
    return [[Gradient(None, (value,))] for _ in merge.models]


def _sce(merge: _Merge) -> _Found:
    step = _on_base(merge) | {"method": "sce", "scale": "literal"}
    step["select"] = merge.number("select_topk", 1.0)
    return step, _ones(merge)


def _model_stock(merge: _Merge) -> _Found:
    step = _on_base(merge) | {"method": "model-stock"}
    if merge.flag("filter_wise", False):
        raise Unreadable("filter_wise: true; here a tensor is one vector")
    return step, _ones(merge)


def _karcher(merge: _Merge) -> _Found:
    _with_base_among(merge)
    merge.used |= {"max_iter", "tol"}  # steps until the mean stands still here
    return {"method": "karcher"}, _ones(merge, 1 / len(merge.models))


_METHODS: Mapping[str, Callable[[_Merge], _Found]] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "karcher": _karcher,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
    "della": _della,
    "breadcrumbs": _breadcrumbs,
    "sce": _sce,
    "model_stock": _model_stock,
}
