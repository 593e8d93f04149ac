"""PEFT's LoRA of parameters that hold many experts (`target_parameters`): split by expert, and joined.

All experts of a parameter share two tensors: A `(experts·r, in)`, expert by expert, and B
`(out, r·experts)`, whose columns are those of rank 1 of all experts, then of rank 2, and so on. Of two
parameters of a module the inner one has the keys of `base_layer`. Here each expert becomes a module
`NAME.EXPERT` with ordinary factors of rank r.

Source: PEFT's `ParamWrapper.get_delta_weight`, by its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from loramerge.adapter.delta import Delta, ScaledFactors
from loramerge.adapter.formats.container import Unwritten
from loramerge.adapter.formats.peft_patterns import pattern_value
from loramerge.adapter.formats.source import AdapterSource
from loramerge.errors import FormatError, NotExpressible, Setting
from loramerge.files.tensors import Tensor
from loramerge.files.views import Derived, rows_of

__all__ = ["Expert", "expert_of", "join_experts", "split_experts", "with_parameters"]

_HEAD, _INNER = "base_model.model.", ".base_layer"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# parameters of one module in the order in which models of transformers register them
_ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
_EXPERT = re.compile(rf"(.+)\.({'|'.join(_ORDER)})\.(\d+)")


class Expert(NamedTuple):
    """An expert of a parameter: its module, the parameter's name, and its number."""

    module: str
    parameter: str
    number: int


def expert_of(module: str) -> Expert | None:
    """Return the expert that a module's name means, None for an ordinary module."""
    found = _EXPERT.fullmatch(module)
    return Expert(found[1], found[2], int(found[3])) if found else None


def split_experts(source: AdapterSource) -> None:
    """Give every expert of an adapter's parameters factors of its own.

    Raises:
        FormatError: if the tensors are not those of the parameters that the configuration names.
    """
    for component, config in source.configs.items():
        named = config.get("target_parameters")
        if not named:
            continue
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise FormatError("target_parameters is not a list of names", file=source.path)
        head = f"{component}/{_HEAD}" if component else _HEAD
        for outer in _wrapped(source.tensors, head):
            _split_module(source, config, head, outer, named)


def _wrapped(tensors: Mapping[str, Tensor], head: str) -> list[str]:
    """Return the keys of modules that have factors, without those of `base_layer`."""
    keys = (
        key.removesuffix(_DOWN) for key in tensors if key.startswith(head) and key.endswith(_DOWN)
    )
    return list(dict.fromkeys(key.split(_INNER)[0] for key in keys))


def _split_module(
    source: AdapterSource, config: Mapping[str, Any], head: str, stem: str, named: Sequence[str]
) -> None:
    path = stem.removeprefix(head)
    own = {name.rpartition(".")[2] for name in named if _is_of(name, path)}
    if not own:
        return
    if own == {"weight"}:  # that of an ordinary module
        source.paths[stem] = f"{path}.weight"
        return
    order = sorted(own, key=lambda name: _ORDER.index(name) if name in _ORDER else -1)
    layers = [stem + _INNER * depth for depth in range(len(order))]
    found = [layer for layer in layers if layer + _DOWN in source.tensors]
    if len(found) != len(order) or not own <= {*_ORDER}:
        raise FormatError(
            "it is not known which factors belong to which parameter of the experts",
            file=source.path,
            module=path,
            expected=f"{', '.join(_ORDER)}, each with factors",
            found=f"{', '.join(order)}; factors of {len(found)}",
            hint="merge the adapter in PEFT with merge_and_unload()",
        )
    for layer, name in zip(found, reversed(order), strict=True):
        down, up = source.tensors.pop(layer + _DOWN), source.tensors.pop(layer + _UP)
        full = f"{path}.{name}"
        rank = pattern_value(config.get("rank_pattern") or {}, full) or config.get("r", 8)
        if (
            not isinstance(rank, int)
            or rank < 1
            or down.shape[0] % rank
            or up.shape[1:] != down.shape[:1]
        ):
            raise FormatError(
                "the factors of experts and the rank of the configuration do not fit together",
                file=source.path,
                module=full,
                expected=f"A (experts · {rank}, in) and B (out, {rank} · experts)",
                found=f"A {list(down.shape)} and B {list(up.shape)}",
            )
        count = down.shape[0] // rank
        for number in range(count):
            key = f"{stem}.{name}.{number}"
            source.tensors[key + _DOWN] = rows_of(down, ((number * rank, (number + 1) * rank),))
            source.tensors[key + _UP] = _every(up, number, count)
            source.paths[key] = full


def _is_of(name: str, path: str) -> bool:
    """Return whether a parameter that a configuration names is one of the module at a path."""
    module = name.rpartition(".")[0]
    return path == module or path.endswith(f".{module}")


def _every(up: Tensor, number: int, count: int) -> Tensor:
    """Return the columns of an expert."""
    shape = (up.shape[0], up.shape[1] // count)
    return Derived(up.dtype, shape, partial(_columns, up, number, count))


def _columns(up: Tensor, number: int, count: int) -> Any:
    """Return every count-th column, as an array. Other processes must be able to do this, too."""
    return up.numpy()[:, number::count]


# --- writing


def join_experts(content: Unwritten) -> None:
    """Put the factors of experts into the two tensors that PEFT reads for each parameter.

    Experts of lower ranks get zeros.

    Raises:
        NotExpressible: if experts of a parameter lack factors, or differ in scale or type.
    """
    groups: dict[tuple[str, str], dict[int, str]] = {}
    for key in content.pairs:
        expert = expert_of(key.removesuffix(_DOWN)) if key.endswith(_DOWN) else None
        if expert is not None:
            group = groups.setdefault((expert.module, expert.parameter), {})
            group[expert.number] = key.removesuffix(_DOWN)
    factors = {site.modules[0]: delta.core for site, delta in content.deltas.items()}
    modules: dict[str, list[str]] = {}
    for module, parameter in groups:
        modules.setdefault(module, []).append(parameter)
    for module, parameters in modules.items():
        order = sorted(parameters, key=_ORDER.index, reverse=True)
        for depth, parameter in enumerate(order):
            experts = groups[module, parameter]
            scales = {n: _factor(factors, stem) for n, stem in experts.items()}
            _join(content, module + _INNER * depth, module, experts, scales)


def _factor(factors: Mapping[str, ScaledFactors | None], stem: str) -> float:
    """Return the scale of the factors of a stem; its sign is already in them."""
    core = factors.get(stem.partition(_HEAD)[2])
    return 1.0 if core is None else abs(core.factor)


def with_parameters(deltas: Mapping[str, Delta]) -> tuple[dict[str, Delta], set[str]]:
    """Return deltas by path, the expert of the highest rank in place of each parameter's, and those."""
    found: dict[str, Delta] = {}
    parameters: set[str] = set()
    for path, delta in deltas.items():
        expert = expert_of(path)
        if expert is None:
            found[path] = delta
            continue
        name = f"{expert.module}.{expert.parameter}"
        parameters.add(name)
        if name not in found or (delta.rank or 0) > (found[name].rank or 0):
            found[name] = delta
    return found, parameters


def _join(
    content: Unwritten,
    key: str,
    module: str,
    experts: Mapping[int, str],
    scales: Mapping[int, float],
) -> None:
    stems = [experts.get(number) for number in range(max(experts) + 1)]
    pairs = [
        (content.pairs.pop(stem + _DOWN), content.pairs.pop(stem + _UP)) for stem in stems if stem
    ]
    dtypes = {tensor.dtype for pair in pairs for tensor in pair}
    if None in stems or len(dtypes) > 1:
        raise NotExpressible(
            "PEFT keeps the factors of all experts of a parameter in one tensor, and some are missing "
            "or of another type",
            module=module,
            hint=("give all one type: ", Setting("dtype", "float32")),
        )
    rank = max(down.shape[0] for down, _ in pairs)
    scale = next(scales[n] for n, (down, _) in enumerate(pairs) if down.shape[0] == rank)
    count, (dtype,) = len(pairs), dtypes
    inside, out = pairs[0][0].shape[1], pairs[0][1].shape[0]

    def down() -> Any:
        import numpy as np

        found = np.zeros((count, rank, inside), pairs[0][0].numpy().dtype)
        for number, (a, _) in enumerate(pairs):
            found[number, : a.shape[0]] = a.numpy()
        return found

    def up() -> Any:
        import numpy as np

        found = np.zeros((out, rank, count), pairs[0][1].numpy().dtype)
        for number, (_, b) in enumerate(pairs):
            same = scales[number] == scale
            found[:, : b.shape[1], number] = (
                b.numpy() if same else b.numpy() * (scales[number] / scale)
            )
        return found

    for suffix, shape, make in (
        (_DOWN, (count * rank, inside), down),
        (_UP, (out, rank * count), up),
    ):
        content.pairs[key + suffix] = Derived(dtype, shape, make)
        content.components[key + suffix] = content.components[experts[0] + suffix]
