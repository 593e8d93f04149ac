"""Adapters on a model that ComfyUI has loaded, by patches of its own.

An adapter is spelled as ComfyUI reads it, in float32, and ComfyUI's loader makes patches of it. These
hold the factors; the weights of the model are computed when they are needed. Modules with different
weights become patches of different strengths, so no factor is multiplied or rounded before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

from loramerge.adapter import Adapter, Site
from loramerge.adapter.encode import choose_dialect, encode
from loramerge.adapter.readers import reading
from loramerge.algebra.weights import Weight
from loramerge.comfyui.running import Stack
from loramerge.dialects.programs import READERS
from loramerge.errors import FamilyError, NotExpressible, Setting, ShapeError, listed

__all__ = ["apply"]

_LOG = logging.getLogger("loramerge")
_PROGRAM = "comfyui"


def apply(
    stack: Stack, model: Any, clip: Any, *, skip: bool = False, skip_denoiser: bool = False
) -> tuple[Any, Any]:
    """Return a model and text encoders with the adapters of a stack.

    Args:
        model: of ComfyUI (`ModelPatcher`); it is not changed.
        clip: of ComfyUI, or None.
        skip: leave out modules of text encoders that are not there, and say so.
        skip_denoiser: leave out modules of the denoiser, too.

    Raises:
        FamilyError: if the model lacks modules of an adapter that are not to be left out.
        NotExpressible: if ComfyUI would compute an adapter otherwise, or not at all.
        ShapeError: if a module of the model has another shape.
    """
    lora: Any = import_module("comfy.lora")
    keys = lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        keys = lora.model_lora_keys_clip(clip.cond_stage_model, keys)
    shapes = _shapes(model.model)
    if clip is not None:
        shapes |= _shapes(clip.cond_stage_model)
    model, clip = model.clone(), None if clip is None else clip.clone()
    allowed = _Allowed(skip, skip_denoiser, clip is not None)
    for adapter, weight in stack:
        adapter.require_sound()
        if adapter.embeddings:
            names = listed(list(adapter.embeddings), 4)
            _LOG.warning("loramerge: embeddings are not applied: %s (%s)", names, adapter.label)
        for strength, part in _by_weight(adapter, weight):
            patches = _patches(part, keys, allowed)
            _check_shapes(part, patches, shapes)
            added = set(model.add_patches(patches, strength))
            if clip is not None:
                added |= set(clip.add_patches(patches, strength))
            if left := [str(key) for key in patches if key not in added]:
                raise FamilyError(
                    "the model lacks weights that ComfyUI names for it",
                    file=part.info.path,
                    found=listed(left, 4),
                )
    return model, clip


def _by_weight(adapter: Adapter, weight: Weight) -> Iterator[tuple[float, Adapter]]:
    """Yield (weight, the modules that have it); those of weight 0 are left out."""
    weight_of = weight.on(adapter)
    parts: dict[float, dict[Site, Any]] = {}
    for site, delta in adapter.deltas.items():
        weights = {weight_of(site._replace(modules=(one,))) for one in site.modules}
        if len(weights) > 1:
            raise NotExpressible(
                "its modules are stored as one, and the weights differ within it",
                file=adapter.info.path,
                module=site.name,
                hint="mix the stack first, and give the mix to Apply with weight 1",
            )
        parts.setdefault(weights.pop(), {})[site] = delta
    for strength, deltas in parts.items():
        if strength != 0.0:
            yield strength, replace(adapter, deltas=deltas, embeddings={})


class _Allowed(NamedTuple):
    """The components whose modules may be left out, and whether CLIP is connected."""

    encoders: bool
    denoiser: bool
    clip: bool


def _patches(adapter: Adapter, keys: Mapping[str, Any], allowed: _Allowed) -> dict[Any, Any]:
    """Return the patches that ComfyUI's loader makes of an adapter.

    Raises:
        FamilyError, NotExpressible: see `apply`.
    """
    lora: Any = import_module("comfy.lora")
    known = adapter.family is not None  # modules of others have only the names of their file
    dialect = choose_dialect(_PROGRAM if known else None, [adapter])
    said = reading(adapter, READERS[_PROGRAM], dialect)
    if said is not None and (said.refused or said.otherwise):
        raise NotExpressible(
            f"ComfyUI {said.words(len(adapter.deltas))}",
            file=adapter.info.path,
            hint="use Bake LoRAs into checkpoint, or convert it to ordinary LoRA",
        )
    tensors = _Watched(
        import_module("comfy.lora_convert").convert_lora(
            {key: _torch(tensor) for key, tensor in encode(adapter, dialect, "F32").tensors}
        )
    )
    patches: dict[Any, Any] = lora.load_lora(tensors, keys, log_missing=False)
    unread = sorted(tensors.keys() - tensors.read)
    if unread:
        _leave_out(adapter, unread, allowed)
    return patches


def _leave_out(adapter: Adapter, unread: list[str], allowed: _Allowed) -> None:
    """Log the tensors that are left out, or refuse to leave them out."""
    encoders = {key for key in unread if _is_encoder(key)}
    may = {key: allowed.encoders if key in encoders else allowed.denoiser for key in unread}
    refused = [key for key in unread if not may[key]]
    if refused:
        only = encoders.issuperset(refused)
        connect = "connect clip, or " if only and not allowed.clip else ""
        raise FamilyError(
            "text encoders of the adapter have no place in the model"
            if only
            else "the model lacks modules of the adapter",
            file=adapter.info.path,
            found=f"{len(refused)} tensors: {listed(refused, 3)}",
            hint=(
                f"{connect}choose ",
                Setting("missing", "skip text encoders" if only else "skip all"),
            ),
        )
    _LOG.warning(
        "loramerge: left out, because the model lacks them: %s (%s)",
        listed(unread, 4),
        adapter.label,
    )


def _is_encoder(key: str) -> bool:
    return key.startswith(("lora_te", "text_encoder", "te_", "te1_", "te2_", "text_model"))


class _Watched(dict[str, Any]):
    """Tensors by key, and the keys that were read: the loader makes nothing of the others."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            self.read.add(key)
        return super().get(key, default)


def _torch(tensor: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(tensor.numpy(), np.float32))


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _check_shapes(
    adapter: Adapter, patches: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse patches of another shape than the weight, which ComfyUI would log and leave out.

    Raises:
        ShapeError: naming the weight.
    """
    for place, patch in patches.items():
        key, offset = (place, None) if isinstance(place, str) else (place[0], place[1])
        there, made = shapes.get(key), _shape_of(patch)
        if there is None or made is None:
            continue
        if offset is not None:
            there = tuple(
                offset[2] if axis == offset[0] else size for axis, size in enumerate(there)
            )
        if _flat(there) != _flat(made):
            raise ShapeError(
                "the adapter is for a model of other shapes",
                file=adapter.info.path,
                module=key,
                expected=there,
                found=made,
            )


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    rest = 1
    for size in shape[1:]:
        rest *= size
    return (shape[0] if shape else 1), rest


def _shape_of(patch: Any) -> tuple[int, ...] | None:
    """Return the shape of the change that a patch makes, None for kinds that do not tell it."""
    if isinstance(patch, tuple) and patch[0] in ("diff", "set"):
        return tuple(patch[1][0].shape)
    if getattr(patch, "name", "") == "lora":
        up, down, _, mid = patch.weights[:4]
        width = down.shape[1] if mid is not None else down.shape[1:].numel()
        inner = mid.shape[2:].numel() if mid is not None else 1
        return (up.shape[0], width * inner)
    return None
