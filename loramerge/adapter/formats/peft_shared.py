"""Tensors that all modules of a PEFT adapter share: each module gets them, and they are written once.

PEFT keeps them beside the model, as `base_model.vera_A`. Here each module has them among its own
tensors, as `NAME.vera_A`, so that a delta holds all that it is made of.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

from loramerge.adapter.formats.container import Unwritten
from loramerge.adapter.formats.source import AdapterSource
from loramerge.adapter.kinds.bases.draws import first_normals
from loramerge.errors import NotExpressible, Setting
from loramerge.files.tensors import RawTensor, Tensor

__all__ = ["join_shared", "shares", "spread_shared"]

_ROOT, _HEAD = "base_model.", "base_model.model."
# PEFT type → (a tensor that every module has, those that all share)
_SHARED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "VERA": ("vera_lambda_b", ("vera_A", "vera_B")),
    "PVERA": ("pvera_lambda_b", ("pvera_A", "pvera_B")),
    "VBLORA": ("vblora_logits_A", ("vblora_vector_bank",)),
    "UNILORA": ("unilora_indices_A", ("unilora_theta_d",)),
    "RANDLORA": ("randlora_lambda", ("randlora_A", "randlora_B")),
    "TINYLORA": ("tinylora_A", ("tinylora_v",)),
}
_KEPT = ("randlora_A", "randlora_B")  # of which PEFT writes a copy for every module, too
_PLACE = "tinylora_place"  # which vector a module has, of how many modules
_NAMES = frozenset(name for _, names in _SHARED.values() for name in names)
_NUMBERED = re.compile(r"tinylora_v\.(\d+)")


def shares(config: Mapping[str, Any]) -> bool:
    """Return whether the modules of an adapter share tensors, according to its configuration."""
    return str(config.get("peft_type")) in _SHARED


def spread_shared(source: AdapterSource) -> None:
    """Give every module the tensors that it shares with others."""
    for component, config in source.configs.items():
        if not shares(config):
            continue
        own, names = _SHARED[config["peft_type"]]
        root = f"{component}/{_ROOT}" if component else _ROOT
        stems = [
            key.partition(f".{own}")[0]
            for key in source.tensors
            if key.startswith(f"{root}model.") and _is_of(key, own)
        ]
        stems = list(dict.fromkeys(stems))
        if config["peft_type"] == "TINYLORA":
            _spread_numbered(source, config, root, stems)
            continue
        for name in names:
            keys = (f"{root}{name}", f"{root}{name}.default")
            shared = next(
                (t for key in keys if (t := source.tensors.pop(key, None)) is not None), None
            )
            if shared is not None:
                for stem in stems:
                    source.tensors.setdefault(f"{stem}.{name}", shared)


def _is_of(key: str, own: str) -> bool:
    """Return whether a key is that of a module's own tensor, or of its part."""
    return key.rpartition(".")[2].startswith(own) or key.endswith(f".{own}.default")


def _spread_numbered(
    source: AdapterSource, config: Mapping[str, Any], root: str, stems: list[str]
) -> None:
    """Give every module its vector of TinyLoRA, if the file tells its number."""
    vectors = {
        int(found[1]): key
        for key in source.tensors
        if key.startswith(root) and (found := _NUMBERED.fullmatch(key.removeprefix(root)))
    }
    numbers = _numbers(source.tensors, config, stems, len(vectors)) if vectors else {}
    if not stems or numbers.keys() != set(stems) or set(numbers.values()) != vectors.keys():
        return  # the modules are refused, and the reason named
    for stem, number in numbers.items():
        source.tensors[f"{stem}.tinylora_v"] = source.tensors[vectors[number]]
        place = struct.pack("<2q", number, len(stems))
        source.tensors[f"{stem}.{_PLACE}"] = RawTensor(place, "I64", (2,))
    for key in vectors.values():
        del source.tensors[key]


def _numbers(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], stems: list[str], groups: int
) -> dict[str, int]:
    """Return the number of each module's vector; nothing where the file does not tell it.

    PEFT counts the layers of the model and gives as many neighbours one vector. Its number seeds the
    projection of a layer, which the file has: so the file tells the number, too.
    """
    if groups == 1:
        return dict.fromkeys(stems, 0)
    seed = config.get("projection_seed", 42)
    if not isinstance(seed, int):
        return {}
    found: dict[str, int] = {}
    for stem in stems:
        projection = tensors.get(f"{stem}.tinylora_P")
        layer = None if projection is None else _layer_of(projection, seed, len(stems))
        if layer is None:
            return {}
        found[stem] = min(layer // max(1, len(stems) // groups), groups - 1)
    return found


def _layer_of(projection: Tensor, seed: int, layers: int) -> int | None:
    """Return the layer whose number drew a projection."""
    import numpy as np

    first = projection.numpy().astype("float64").reshape(-1)[:8] * projection.shape[-1] ** 0.5
    for layer in range(layers):
        drawn = first_normals(projection.size, seed + layer)
        if drawn is not None and np.allclose(first, drawn, rtol=0.01, atol=0.01):
            return layer
    return None


def join_shared(content: Unwritten) -> None:
    """Write what modules share once, where PEFT looks for it.

    Raises:
        NotExpressible: if modules of a TinyLoRA are left out, because PEFT counts them.
    """
    numbers = _pop_places(content)
    for key in list(content.pairs):
        stem, _, name = key.removesuffix(".default").rpartition(".")
        if name not in _NAMES or _HEAD not in stem:
            continue
        component = content.components[key]
        shared = content.pairs[key] if name in _KEPT else content.pairs.pop(key)
        root = f"{stem.partition(_HEAD)[0]}{_ROOT}{name}{numbers.get(stem, '')}"
        content.pairs.setdefault(root, shared)
        content.components.setdefault(root, component)


def _pop_places(content: Unwritten) -> dict[str, str]:
    """Take out which vector of a TinyLoRA each module has, as the end of its key."""
    found: dict[str, str] = {}
    end = f".{_PLACE}"
    places = [key for key in content.pairs if key.endswith(end)]
    for key in places:
        number, layers = struct.unpack("<2q", bytes(content.pairs.pop(key).raw()))
        found[key.removesuffix(end)] = f".{number}"
        if layers != len(places):
            raise NotExpressible(
                "PEFT counts the layers of a TinyLoRA, so that none of its modules can be left out",
                expected=f"{layers} modules",
                found=str(len(places)),
                hint=("make it plain LoRA: ", Setting("to_lora", True)),
            )
    return found
