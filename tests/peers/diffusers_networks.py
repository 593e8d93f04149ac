"""Loaders of diffusers on networks of a family's names and narrow shapes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.adapter import Adapter
from loramerge.families import FAMILIES, parameters
from tests.clients.readers.job import Array, base_of, narrow

# family → the loader of its pipelines
LOADERS = {
    "sd15": "StableDiffusionLoraLoaderMixin",
    "sd21": "StableDiffusionLoraLoaderMixin",
    "sdxl": "StableDiffusionXLLoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
    "sd35-medium": "SD3LoraLoaderMixin",
    "sd35-large": "SD3LoraLoaderMixin",
    "flux1": "FluxLoraLoaderMixin",
    "flux2-dev": "Flux2LoraLoaderMixin",
    "flux2-klein-4b": "Flux2LoraLoaderMixin",
    "flux2-klein-9b": "Flux2LoraLoaderMixin",
    "qwen-image": "QwenImageLoraLoaderMixin",
    "z-image": "ZImageLoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "anima": "AnimaLoraLoaderMixin",
    "cosmos2-2b": "CosmosLoraLoaderMixin",
    "cosmos2-14b": "CosmosLoraLoaderMixin",
    "wan": "WanLoraLoaderMixin",
    "hunyuan-video": "HunyuanVideoLoraLoaderMixin",
    "ltx-video": "LTXVideoLoraLoaderMixin",
    "ltx-video-13b": "LTXVideoLoraLoaderMixin",
    "ltx-2": "LTX2LoraLoaderMixin",
    "krea2": "Krea2LoraLoaderMixin",
    "qwen-image-21": "QwenImageLoraLoaderMixin",
    "chroma": "FluxLoraLoaderMixin",
    "ideogram4": "Ideogram4LoraLoaderMixin",
    "minimax-h3": "MiniMaxH3LoraLoaderMixin",
    "ernie-image": "ErnieImageLoraLoaderMixin",
    "hidream-i1": "HiDreamImageLoraLoaderMixin",
    "flux3": "Flux3LoraLoaderMixin",
    "auraflow": "AuraFlowLoraLoaderMixin",
    "mochi": "Mochi1LoraLoaderMixin",
    "hunyuan-video-15": "HunyuanVideoLoraLoaderMixin",
    "kandinsky5": "KandinskyLoraLoaderMixin",
    "cogvideox": "CogVideoXLoraLoaderMixin",
    "cogview4": "CogView4LoraLoaderMixin",
    "sana": "SanaLoraLoaderMixin",
    "ace-step": "AceStepLoraLoaderMixin",
}

Place = tuple[str, tuple[int, int]]  # tensor, rows


@cache
def places(family: str) -> tuple[dict[tuple[str, str], Place], dict[str, tuple[int, ...]]]:
    """(module, parameter) → where diffusers holds it; and the shape of every tensor, narrow."""
    found: dict[tuple[str, str], Place] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    spellings = FAMILIES[family].spellings
    for component in FAMILIES[family].components:
        if component.name.startswith("text_encoder"):
            continue
        spelling = next(s for s in spellings[component.name] if s.layout == "diffusers")
        rows: dict[str, int] = {}
        slots = []
        for module in component.modules:
            for parameter in parameters(module):
                slot = spelling.slot(module, parameter)
                if slot is None:
                    continue
                tag = f"{component.name}.{slot.tensor}"
                shape = module.shape if parameter == "weight" else module.shape[:1]
                rows[tag] = rows.get(tag, 0) + shape[0]
                slots.append((f"{component.name}.{module.path}", parameter, tag, slot, shape))
        for name, parameter, tag, slot, shape in slots:
            small = narrow((rows[tag], *shape[1:]))
            shapes[tag] = small
            part = small[0] // slot.parts
            found[name, parameter] = (tag, (slot.part * part, (slot.part + slot.span) * part))
    return found, shapes


def expected(family: str, adapter: Adapter) -> dict[str, Array]:
    """Tensor of diffusers' network → what the adapter adds to it, by our formulas."""
    held, shapes = places(family)
    changes: dict[str, Array] = {}
    for site, delta in adapter.deltas.items():
        place = held.get((site.modules[0], site.parameter))
        if place is not None:
            tag, (first, last) = place
            part = base_of(tag, shapes[tag])[first:last].astype(np.float64)
            whole = changes.setdefault(tag, np.zeros(shapes[tag]))
            whole[first:last] += delta.dense(part).reshape(part.shape)
    return changes


@cache
def _sort() -> Any:
    """A network that diffusers' own adapter code takes for one of its models."""
    torch: Any = import_module("torch")
    mixin: Any = import_module("diffusers.loaders.peft").PeftAdapterMixin
    unet: Any = import_module("diffusers.loaders.unet").UNet2DConditionLoadersMixin

    def begin(self: Any) -> None:
        torch.nn.Module.__init__(self)
        self.config = _Config({"layers_per_block": 2})

    return type("Network", (torch.nn.Module, mixin, unet), {"__init__": begin})


class _Config(dict[str, Any]):
    """A model's configuration, in which what is not said is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "to_dict":
            raise AttributeError(name)
        return self.get(name)


@cache
def _level() -> Any:
    """A level of the tree: a list, as far as loaders look for blocks by their numbers."""
    torch: Any = import_module("torch")
    take = {"__getitem__": lambda self, index: self._modules[str(index)]}
    return type("Level", (torch.nn.Module,), take)


@cache
def network(component: str, family: str) -> Any:
    """Make a component's layers, with the weights of the base."""
    torch: Any = import_module("torch")
    root = _sort()()
    _, shapes = places(family)
    for tag, shape in shapes.items():
        head, _, rest = tag.partition(".")
        path, _, word = rest.rpartition(".")
        if head != component or word != "weight":
            continue
        bias = shapes.get(f"{head}.{path}.bias")
        layer = _layer(torch, shape, bias is not None)
        layer.weight.data = torch.from_numpy(base_of(tag, shape))
        if bias is not None:
            layer.bias.data = torch.from_numpy(base_of(f"{head}.{path}.bias", bias))
        *above, last = path.split(".")
        here = root
        for name in above:
            if name not in here._modules:
                here.add_module(name, _level()())
            here = here._modules[name]
        here.add_module(last, layer)
    return root


def _layer(torch: Any, shape: tuple[int, ...], bias: bool) -> Any:
    make = torch.nn.utils.skip_init
    if len(shape) == 5:
        return make(torch.nn.Conv3d, shape[1], shape[0], shape[2:], bias=bias)
    if len(shape) == 3:
        return make(torch.nn.Conv1d, shape[1], shape[0], shape[2], bias=bias)
    if len(shape) == 4:
        return make(torch.nn.Conv2d, shape[1], shape[0], shape[2], bias=bias)
    if len(shape) == 2:
        return make(torch.nn.Linear, shape[1], shape[0], bias=bias)
    return torch.nn.LayerNorm(shape[0])


def load(path: Path, family: str) -> Mapping[str, Array]:
    """Load a file as the family's pipeline does, and merge it: tensor → change.

    Raises:
        Exception: of whatever sort, where diffusers refuses the file.
    """
    tuner: Any = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    mixin = getattr(import_module("diffusers.loaders.lora_pipeline"), LOADERS[family])
    components = {tag.partition(".")[0] for tag in places(family)[1]}
    models = {component: deepcopy(network(component, family)) for component in components}
    encoders = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"))
    pipeline = type("Pipeline", (mixin,), encoders | models)()
    pipeline.components = models
    pipeline.hf_device_map = None
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipeline.load_lora_weights(str(path), adapter_name="ours")
    changes = {}
    for component, model in models.items():
        for layer in model.modules():
            if isinstance(layer, tuner):
                layer.merge()
        for name, value in model.named_parameters():
            tag = f"{component}.{name.replace('.base_layer.', '.')}"
            if tag in places(family)[1]:
                moved = value.detach().numpy() - base_of(tag, places(family)[1][tag])
                if np.abs(moved).max() > 0:
                    changes[tag] = moved
    return changes
