"""The layers of a model that get a LoRA, and their ranks: presets and patterns.

Patterns are case-sensitive globs on the full dotted name. If several match, the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from loramerge.errors import AdapterError, UsageError, listed, nearest, suggestion
from loramerge.train.lora.branch import supported

__all__ = [
    "PRESETS",
    "Preset",
    "as_patterns",
    "chosen_layers",
    "find_preset",
    "last_match",
    "lineage_of",
]

Layers = Literal["linear", "linear and 1x1", "all"]

_ATTENTION = (
    "CrossAttention", "Attention", "SelfAttention", "FluxAttention", "CLIPAttention",
    "T5Attention",
)  # fmt: skip
_BLOCKS = (
    "Transformer2DModel", "BasicTransformerBlock", "JointTransformerBlock",
    "SD3SingleTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock",
    "CLIPAttention", "CLIPMLP", "T5Block",
)  # fmt: skip
_RESNETS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")


@dataclass(frozen=True)
class Preset:
    """A choice of layers.

    Args:
        title: for people.
        inside: classes; layers anywhere below a module of one (or of a subclass) are chosen. None
            for the whole model.
        layers: which sorts of layers.
        names: further layers, by pattern.
        aliases: what LyCORIS calls it.
    """

    title: str
    inside: tuple[str, ...] | None
    layers: Layers
    names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


PRESETS: dict[str, Preset] = {
    "attn": Preset(
        "linear layers of attention, and of the first half of the feed-forward (as in lora_diffusion)",
        (*_ATTENTION, "GEGLU", "GELU"),
        "linear",
        ("*.proj_mlp",),
    ),
    "attn-only": Preset("linear layers of attention", _ATTENTION, "linear"),
    "attn-ff": Preset(
        "linear layers and 1×1 convolutions of transformer blocks (kohya's default)",
        _BLOCKS,
        "linear and 1x1",
        aliases=("attn-mlp", "unet-transformer-only"),
    ),
    "attn-resnet": Preset(
        "those of attn, and every layer of residual blocks (lora_diffusion's extended)",
        (*_ATTENTION, "GEGLU", "ResnetBlock2D"),
        "all",
    ),
    "resnet": Preset(
        "every layer of residual blocks and of what resamples between them",
        _RESNETS,
        "all",
        ("conv_in", "conv_out"),
        ("unet-convblock-only",),
    ),
    "full-linear": Preset(
        "every linear layer and 1×1 convolution", None, "linear and 1x1", aliases=("full-lin",)
    ),
    "full": Preset("every linear layer and convolution", None, "all", aliases=("unet-only",)),
}


def find_preset(name: str) -> Preset:
    """Return a preset by its name or by LyCORIS' name for it.

    Raises:
        UsageError: if there is none, naming the nearest.
    """
    by_name = PRESETS | {alias: p for p in PRESETS.values() for alias in p.aliases}
    if name in by_name:
        return by_name[name]
    raise UsageError(
        f"{name!r} is not a preset",
        expected=", ".join(by_name),
        hint=suggestion(name, by_name),
    )


def last_match(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return the value of the last pattern that matches a name, or `default`."""
    found = default
    for pattern, value in patterns.items():
        if fnmatchcase(name, pattern):
            found = value
    return found


def as_patterns(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return patterns as a tuple; a single one may be given as text."""
    return (given,) if isinstance(given, str) else tuple(given)


def _fits(layer: nn.Module, layers: Layers) -> bool:
    if isinstance(layer, nn.Linear) or layers == "all":
        return True
    return layers == "linear and 1x1" and set(layer.kernel_size) == {1}


def lineage_of(model: nn.Module) -> dict[str, frozenset[str]]:
    """Return module name → names of the classes of the module and of all that it lies in."""
    found: dict[str, frozenset[str]] = {}
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0] if name else None
        above = found.get(parent, frozenset()) if parent is not None else frozenset()
        own = {base.__name__ for base in type(module).__mro__[:-2]}  # without Module and object
        found[name] = above | own
    return found


def _select(
    model: nn.Module, layers: Mapping[str, nn.Module], choice: Preset
) -> dict[str, nn.Module]:
    """Return the layers that a preset chooses."""
    lineage = lineage_of(model)
    inside = None if choice.inside is None else frozenset(choice.inside)
    return {
        name: layer
        for name, layer in layers.items()
        if any(fnmatchcase(name, pattern) for pattern in choice.names)
        or (
            _fits(layer, choice.layers)
            and (inside is None or not inside.isdisjoint(lineage[name.rpartition(".")[0]]))
        )
    }


def chosen_layers(
    model: nn.Module,
    choice: Preset | None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    others: Iterable[str] = (),
) -> dict[str, nn.Module]:
    """Return full name → layer, in the model's order, of the layers that get a branch.

    Args:
        choice: None for every layer that can have one.
        include: patterns; of what the preset chose, only what one of them matches is kept.
        exclude: patterns; what one of them matches is left out.
        others: patterns of ranks and alphas, which must match something too.

    Raises:
        UsageError: if a pattern matches no layer of the model, which is a spelling mistake.
        AdapterError: if nothing is chosen.
    """
    include, exclude = as_patterns(include), as_patterns(exclude)
    everything = {name: layer for name, layer in model.named_modules() if supported(layer)}
    _refuse_idle([*include, *others], list(everything))
    _refuse_idle(exclude, [name for name, _ in model.named_modules()])
    found = everything if choice is None else _select(model, everything, choice)
    found = {
        name: layer
        for name, layer in found.items()
        if (not include or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if found:
        return found
    raise AdapterError(
        "no layer of this model is chosen",
        module=type(model).__name__,
        expected=_expectation(choice),
        found=f"{len(everything)} layers that could be, such as {listed(list(everything), 3)}"
        if everything
        else "no linear layer and no convolution",
        hint="choose another preset (full takes every layer), or patterns with include",
    )


def _expectation(choice: Preset | None) -> str:
    if choice is None or choice.inside is None:
        return "a layer that include matches and exclude does not"
    return f"layers inside {', '.join(choice.inside)}"


def _refuse_idle(patterns: Iterable[str], names: Sequence[str]) -> None:
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if not idle:
        return
    inner = f"*.{idle[0]}"  # a name as people see it, without the path before it
    close = nearest(idle[0].strip("*."), names)
    hint = f"the nearest name is {close}" if close else None
    if any(fnmatchcase(name, inner) for name in names):
        hint = f"write {inner!r}"
    raise UsageError(
        f"no layer matches {listed([repr(pattern) for pattern in idle])}",
        expected="globs on full names, such as '*.attn2.*'",
        found=f"names such as {listed(list(names), 2)}" if names else "a model without layers",
        hint=hint,
    )
