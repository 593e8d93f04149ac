"""A small stand-in for what the nodes use of ComfyUI: its V3 schema, folders, and LoRA loader.

It is stricter than ComfyUI: an unknown argument, a default that is not among the options, or an id
given twice is an error here.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Array = np.ndarray[Any, Any]


# --- comfy_api.latest -----------------------------------------------------------------------------


@dataclass
class Input:
    id: str
    display_name: str
    tooltip: str
    optional: bool
    io_type: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


def _type(io_type: str, *allowed: str) -> Any:
    class Made:
        class Output:
            def __init__(self, *, display_name: str, tooltip: str) -> None:
                self.io_type, self.display_name, self.tooltip = io_type, display_name, tooltip

        @staticmethod
        def Input(id: str, *, display_name: str, tooltip: str, optional: bool, **more: Any) -> Any:
            assert set(more) <= set(allowed), f"{io_type} takes no {set(more) - set(allowed)}"
            return Input(id, display_name, tooltip, optional, io_type, more)

    return Made


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Any]
    outputs: list[Any]
    is_output_node: bool


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


class ComfyNode:
    """Nodes are classes that are never made; ComfyUI calls their methods."""


class NumberDisplay:
    number, slider = "number", "slider"


_NUMBER = ("default", "min", "max", "step", "display_mode")


def _io() -> types.SimpleNamespace:
    return types.SimpleNamespace(
        Schema=Schema,
        NodeOutput=NodeOutput,
        ComfyNode=ComfyNode,
        NumberDisplay=NumberDisplay,
        Custom=_type,
        Model=_type("MODEL"),
        Clip=_type("CLIP"),
        Image=_type("IMAGE"),
        Boolean=_type("BOOLEAN", "default"),
        String=_type("STRING", "default", "multiline"),
        Combo=_type("COMBO", "default", "options"),
        Int=_type("INT", *_NUMBER, "control_after_generate"),
        Float=_type("FLOAT", *_NUMBER, "round"),
    )


# --- folders --------------------------------------------------------------------------------------


def _folder_paths(root: Path) -> types.ModuleType:
    found: Any = types.ModuleType("folder_paths")
    models = {name: root / "models" / name for name in ("loras", "checkpoints", "diffusion_models")}
    for folder in (*models.values(), root / "output"):
        folder.mkdir(parents=True, exist_ok=True)

    def listed(name: str) -> list[str]:
        paths = sorted(models[name].rglob("*.safetensors"))
        return [path.relative_to(models[name]).as_posix() for path in paths]

    def full(name: str, file: str) -> str | None:
        path = models[name] / file
        return str(path) if path.is_file() else None

    found.get_filename_list = listed
    found.get_full_path = full
    found.get_output_directory = lambda: str(root / "output")
    found.get_folder_paths = lambda name: [str(models[name])]
    return found


# --- models, and the loader -----------------------------------------------------------------------


@dataclass(frozen=True)
class Patch:
    """A LoRA as the loader keeps it, as `comfy.weight_adapter` does."""

    weights: tuple[Any, Any, float | None, Any]
    name: str = "lora"

    def change(self) -> Array:
        up, down, alpha, _ = self.weights
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        flat = up.numpy().reshape(up.shape[0], -1) @ down.numpy().reshape(down.shape[0], -1)
        return np.asarray(scale * flat, np.float64)


class Network:
    """A module of torch, as far as its names and weights go."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = dict(weights)

    def state_dict(self) -> dict[str, Array]:
        return self.weights


class Patcher:
    """A model, or text encoders, with patches that are not applied yet."""

    def __init__(self, network: Network) -> None:
        self.model = self.cond_stage_model = network
        self.patches: dict[str, list[tuple[float, Patch]]] = {}

    def clone(self) -> Patcher:
        other = Patcher(self.model)
        other.patches = {key: list(value) for key, value in self.patches.items()}
        return other

    def add_patches(self, patches: Mapping[str, Patch], strength: float = 1.0) -> list[str]:
        known = [key for key in patches if key in self.model.weights]
        for key in known:
            self.patches.setdefault(key, []).append((strength, patches[key]))
        return known

    def patched(self) -> dict[str, Array]:
        """Return the weights as they are when the model is used, in float64."""
        found = {key: value.astype(np.float64) for key, value in self.model.weights.items()}
        for key, patches in self.patches.items():
            for strength, patch in patches:
                found[key] = found[key] + strength * patch.change().reshape(found[key].shape)
        return found


def _keys(prefix: str) -> Any:
    def keys(network: Network, found: dict[str, str]) -> dict[str, str]:
        for key in network.state_dict():
            if key.endswith(".weight"):
                found[f"{prefix}_{key.removesuffix('.weight').replace('.', '_')}"] = key
        return found

    return keys


def _load_lora(tensors: Any, keys: Mapping[str, str], log_missing: bool = True) -> dict[str, Patch]:
    assert not log_missing
    found = {}
    for name, key in keys.items():
        if f"{name}.lora_up.weight" in set(tensors):
            alpha = tensors.get(f"{name}.alpha")
            found[key] = Patch(
                (
                    tensors[f"{name}.lora_up.weight"],
                    tensors[f"{name}.lora_down.weight"],
                    None if alpha is None else float(alpha),
                    None,
                )
            )
    return found


class Bar:
    """The progress bar of the running node."""

    def __init__(self, total: int) -> None:
        self.total, self.seen = total, []

    def update_absolute(self, value: int, total: int) -> None:
        self.seen.append((value, total))
        assert 0 <= value <= total


class Interrupted(Exception):
    """The user cancelled."""


class World:
    """ComfyUI's folders, and whether the user has cancelled."""

    def __init__(self, root: Path) -> None:
        self.root, self.cancelled = root, False
        self.loras, self.checkpoints = root / "models" / "loras", root / "models" / "checkpoints"
        self.output = root / "output"

    def check(self) -> None:
        if self.cancelled:
            raise Interrupted


@contextmanager
def comfyui(root: Path) -> Iterator[World]:
    """Have the stand-in in the place of ComfyUI's modules."""
    world = World(root)
    latest: Any = types.ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = _io(), type("ComfyExtension", (), {})
    lora: Any = types.ModuleType("comfy.lora")
    lora.model_lora_keys_unet, lora.model_lora_keys_clip = _keys("lora_unet"), _keys("lora_te")
    lora.load_lora = _load_lora
    convert: Any = types.ModuleType("comfy.lora_convert")
    convert.convert_lora = lambda tensors: tensors
    utils: Any = types.ModuleType("comfy.utils")
    utils.ProgressBar = Bar
    management: Any = types.ModuleType("comfy.model_management")
    management.throw_exception_if_processing_interrupted = world.check
    modules = {
        "comfy_api": types.ModuleType("comfy_api"), "comfy_api.latest": latest,
        "comfy": types.ModuleType("comfy"), "comfy.lora": lora, "comfy.lora_convert": convert,
        "comfy.utils": utils, "comfy.model_management": management,
        "folder_paths": _folder_paths(root),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield world
