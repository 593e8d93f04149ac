"""Samples of a family: every layer, in every dialect and kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any
from zlib import crc32

import numpy as np

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.elsewhere import computed_elsewhere
from loramerge.adapter.info import Info
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.dora import DoRA
from loramerge.adapter.kinds.full import Full
from loramerge.adapter.kinds.glora import GLoRA
from loramerge.adapter.kinds.ia3 import IA3
from loramerge.adapter.kinds.loha import LoHa
from loramerge.adapter.kinds.lokr import LoKr
from loramerge.adapter.kinds.lora import LowRank
from loramerge.adapter.kinds.oft import OFT
from loramerge.adapter.kinds.tucker import Tucker
from loramerge.dialects.detection import Detection
from loramerge.families import FAMILIES, Module, Spelling, parameters
from loramerge.files.tensors import ArrayTensor
from tests.clients.readers.job import SHARE, base_of, narrow

Array = np.ndarray[Any, Any]
Make = Callable[[str, tuple[int, ...]], Delta | None]
RANK = 2


def _values(name: str, *shape: int, scale: float = 0.3) -> ArrayTensor:
    random = np.random.default_rng(crc32(name.encode()))
    return ArrayTensor((scale * random.standard_normal(shape)).astype(np.float32))


def _lora(name: str, shape: tuple[int, ...]) -> LowRank:
    tail = (1,) * (len(shape) - 2)
    up = _values(name + "u", shape[0], RANK, *tail)
    return LowRank.of(up, _values(name + "d", RANK, *shape[1:]), Scale(0.5 * RANK))


def _tucker(name: str, shape: tuple[int, ...]) -> Delta | None:
    if len(shape) != 4 or shape[2] == 1:
        return None
    return Tucker.of(
        _values(name + "u", shape[0], RANK, 1, 1),
        _values(name + "d", RANK, shape[1], 1, 1),
        _values(name + "m", RANK, RANK, *shape[2:]),
        Scale(0.5 * RANK),
    )


def _loha(name: str, shape: tuple[int, ...]) -> LoHa:
    sides = {"a": (shape[0], RANK), "b": (RANK, int(np.prod(shape[1:])))}
    parts = {
        f"hada_w{i}_{side}": _values(f"{name}{i}{side}", *size, scale=0.5)
        for i in "12"
        for side, size in sides.items()
    }
    return LoHa.of(parts, Scale(0.5 * RANK), shape)


def _loha_cores(name: str, shape: tuple[int, ...]) -> Delta | None:
    if len(shape) != 4 or shape[2] == 1:
        return None
    sides = {"a": (RANK, shape[0]), "b": (RANK, shape[1])}
    parts = {
        f"hada_w{i}_{side}": _values(f"{name}{i}{side}", *size, scale=0.5)
        for i in "12"
        for side, size in sides.items()
    }
    cores = {f"hada_t{i}": _values(f"{name}{i}t", RANK, RANK, *shape[2:]) for i in "12"}
    return LoHa.of({**parts, **cores}, Scale(0.5 * RANK), shape)


def _lokr(name: str, shape: tuple[int, ...]) -> Delta | None:
    if shape[0] % 2 or shape[1] % 2:
        return None
    rest = (shape[1] // 2) * int(np.prod(shape[2:]))
    parts = {
        "lokr_w1": _values(name + "1", 2, 2),
        "lokr_w2_a": _values(name + "a", shape[0] // 2, RANK),
        "lokr_w2_b": _values(name + "b", RANK, rest),
    }
    return LoKr.of(parts, Scale(0.5 * RANK), shape)


def _lokr_core(name: str, shape: tuple[int, ...]) -> Delta | None:
    if len(shape) != 4 or shape[2] == 1 or shape[0] % 2 or shape[1] % 2:
        return None
    parts = {
        "lokr_w1": _values(name + "1", 2, 2),
        "lokr_t2": _values(name + "t", RANK, RANK, *shape[2:]),
        "lokr_w2_a": _values(name + "a", RANK, shape[0] // 2),
        "lokr_w2_b": _values(name + "b", RANK, shape[1] // 2),
    }
    return LoKr.of(parts, Scale(0.5 * RANK), shape)


def _dora(axis: str, inner: Make = _lora) -> Make:
    def make(name: str, shape: tuple[int, ...]) -> Delta | None:
        within = inner(name, shape)
        if not isinstance(within, Scaled):
            return None
        size = (shape[0], 1) if axis == "out" else (1, shape[1])
        size = (*size, *(1,) * (len(shape) - 2))
        positive = ArrayTensor(np.abs(_values(name + "m", *size).numpy()) + 4.0)
        return DoRA.of(within, positive, "dora_scale")

    return make


def _full(name: str, shape: tuple[int, ...]) -> Delta:
    return Full.of(_values(name, *shape), "diff")


def _ia3(name: str, shape: tuple[int, ...]) -> Delta:
    flag = ArrayTensor(np.array([False]))
    return IA3.of({"ia3_weight": _values(name, shape[0]), "on_input": flag}, "out", shape)


def _oft(**more: float) -> Make:
    def make(name: str, shape: tuple[int, ...]) -> Delta | None:
        if shape[0] % 2:
            return None
        parts = {"oft_blocks": _values(name, shape[0] // 2, 2, 2)}
        if "rescale" in more:
            parts["rescale"] = ArrayTensor(1.0 + _values(name + "r", shape[0], 1).numpy())
        parts["alpha"] = ArrayTensor(np.array(more.get("alpha", 0.0), np.float32))
        return OFT.of(parts, shape)

    return make


def _glora(name: str, shape: tuple[int, ...]) -> Delta | None:
    if len(shape) != 2:
        return None
    parts = {
        "a1": _values(name + "a1", shape[1], RANK),
        "a2": _values(name + "a2", RANK, shape[1]),
        "b1": _values(name + "b1", shape[0], RANK),
        "b2": _values(name + "b2", RANK, shape[1]),
    }
    return GLoRA.of(parts, Scale(0.5 * RANK))


KINDS: Mapping[str, Make] = {
    "lora": _lora,
    "tucker": _tucker,
    "loha": _loha,
    "loha, cores": _loha_cores,
    "lokr": _lokr,
    "lokr, core": _lokr_core,
    "dora of outputs": _dora("out"),
    "dora of inputs": _dora("in"),
    "dora of outputs over loha": _dora("out", _loha),
    "dora of outputs over lokr": _dora("out", _lokr),
    "full": _full,
    "ia3": _ia3,
    "oft": _oft(),
    "oft, rescaled": _oft(rescale=1.0),
    "oft, constrained": _oft(alpha=0.01),
    "glora": _glora,
}
# differences of vectors stand beside a difference of the weight, or alone
VECTORS = ("bias", "lone bias", "norm")

_RADIANCE = r"^transformer\.(?:img_in_patch|nerf_)"
_LATENTS = r"^transformer\.(?:x_embedder|proj_out)$"
_IMAGES = r"image_embedder|attn2\.(?:add_[kv]_proj|norm_added_k)$"
_VACE, _ANIMATE = r"^transformer\.vace_", r"^transformer\.(?:face_adapter|pose_patch)"
_S2V = r"^transformer\.(?:audio_|casual_|cond_encoder|frame_packer|trainable_cond_mask)"
# family → the networks that no checkpoint holds together: pattern of the modules that each lacks
NETWORKS: Mapping[str, Mapping[str, str]] = {
    "chroma": {
        "latents": _RADIANCE,
        "radiance": rf"{_LATENTS}|nerf_final_layer_conv",
        "radiance, conv": rf"{_LATENTS}|nerf_final_layer\.",
    },
    "wan": {
        "vace": rf"{_IMAGES}|{_ANIMATE}|{_S2V}",
        "animate": rf"{_VACE}|{_S2V}",
        "s2v": rf"{_IMAGES}|{_VACE}|{_ANIMATE}",
    },
}


def adapter_of(family: str, kind: str, lacks: str = "") -> Adapter:
    """An adapter of a kind in small shapes.

    LoRA is on every layer of a family; other kinds are on the first and the last of each sort. Layers
    are of one sort where their names differ by the numbers of blocks alone.

    Args:
        lacks: pattern of the modules that it is not to have, as in `NETWORKS`; none by default.
    """
    found: dict[Site, Delta] = {}
    for name, module in layers(family, every=kind == "lora"):
        if lacks and re.search(lacks, name):
            continue
        found |= {Site((name,), p): d for p, d in _deltas(name, module, kind)}
    info = Info(detection=Detection((FAMILIES[family],), "made in memory"), dtype="F32")
    return Adapter(found, {}, info)


def layers(family: str, *, every: bool) -> list[tuple[str, Module]]:
    """The layers of a family, or the first and the last of each sort."""
    found = [
        (f"{component.name}.{module.path}", module)
        for component in FAMILIES[family].components
        if not component.second_of  # read by the programs that read the first
        for module in component.modules
    ]
    if every:
        return found
    sorts: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(found):
        sorts.setdefault(re.sub(r"\.\d+(?=\.|$)", ".#", name), []).append(place)
    ends = {place for places in sorts.values() for place in (places[0], places[-1])}
    return [found[place] for place in sorted(ends)]


def _deltas(name: str, module: Module, kind: str) -> Iterator[tuple[Any, Delta]]:
    shape = narrow(module.shape)
    if kind in VECTORS:
        if (module.layer == "norm") == (kind == "norm"):
            rows = shape[:1]
            if kind != "lone bias":
                yield (
                    "weight",
                    Full.of(_values(name, *shape), "w_norm" if kind == "norm" else "diff"),
                )
            if module.bias:
                role = "b_norm" if kind == "norm" else "diff_b"
                yield "bias", Full.of(_values(name + "b", *rows), role)
    elif module.layer in ("linear", "conv"):
        made = KINDS[kind](name, shape)
        if made is not None:
            yield "weight", made


# what ComfyUI saves, which no trainer's network is called like
_NOT_OF_TRAINERS = {"hidream-o1": frozenset({"comfyui"})}


def _network(family: str) -> Iterator[tuple[str, Spelling]]:
    """Each component of the single file, and how programs on the original's code name it."""
    seconds = {one.name for one in FAMILIES[family].components if one.second_of}
    for component, spellings in FAMILIES[family].spellings.items():
        if component.startswith("text_encoder") or component in seconds:
            continue
        known = {s.layout for s in spellings} - _NOT_OF_TRAINERS.get(family, frozenset())
        layout = "comfyui" if "comfyui" in known else spellings[0].layout
        yield (
            component,
            min((s for s in spellings if s.layout == layout), key=lambda s: len(s.prefix)),
        )


Place = tuple[str, tuple[int, int], bool]  # tensor, rows, whether their halves are exchanged


@cache
def places(
    family: str, share: int = SHARE
) -> Mapping[tuple[str, str], tuple[Place, tuple[int, ...]]]:
    """(module, parameter) → where it lies in the original file, and the full shape of the tensor."""
    found = {}
    spelled = dict(_network(family))
    for component in FAMILIES[family].components:
        if component.second_of:
            continue
        heights: dict[str, int] = {}
        rows = []
        for module in component.modules:
            for parameter in parameters(module):
                shape = module.shape if parameter == "weight" else module.shape[:1]
                spelling = spelled.get(component.name)
                if spelling is None:
                    path = module.path if module.layer == "matrix" else f"{module.path}.{parameter}"
                    tag, part, parts, span, swapped = f"{component.name}.{path}", 0, 1, 1, False
                else:
                    slot = spelling.slot(module, parameter)
                    if slot is None:
                        continue
                    tag, part, parts = spelling.prefix + slot.tensor, slot.part, slot.parts
                    span, swapped = slot.span, slot.swapped
                heights[tag] = heights.get(tag, 0) + shape[0]
                rows.append((module.path, parameter, shape, tag, part, parts, span, swapped))
        for path, parameter, shape, tag, part, parts, span, swapped in rows:
            whole = (heights[tag], *shape[1:])
            small = narrow(whole, share)[0]
            ends = (small * part // parts, small * (part + span) // parts)
            found[f"{component.name}.{path}", parameter] = ((tag, ends, swapped), whole)
    return found


def job_of(family: str, lacks: str = "") -> dict[str, Any]:
    """Return the job of a reader for a family, or for one of its `NETWORKS`; see `readers.job.Job`."""
    network: dict[str, tuple[int, ...]] = {}
    encoders: dict[str, dict[str, tuple[int, ...]]] = {}
    for (module, _), ((tag, _, _), shape) in places(family).items():
        if lacks and re.search(lacks, module):
            continue
        component = module.partition(".")[0]
        if component.startswith("text_encoder"):
            encoders.setdefault(component, {})[tag.partition(".")[2]] = shape
        else:
            network[tag] = shape
    plain = {
        f"{module.partition('.')[2]}.{parameter}": (tag, *rows, swapped)
        for (module, parameter), ((tag, rows, swapped), _) in places(family).items()
        if not module.startswith("text_encoder") and tag.endswith((".weight", ".bias"))
        if not (lacks and re.search(lacks, module))
    }
    return {"family": family, "network": network, "encoders": encoders, "plain": plain}


def turned(rows: Array, swapped: bool) -> Array:
    return np.concatenate(np.split(rows, 2)[::-1]) if swapped else rows


def expected(family: str, adapter: Adapter, otherwise: Mapping[str, str] = {}) -> dict[str, Array]:
    """Tensor of the original file → what the adapter adds to it, by our formulas.

    Args:
        otherwise: site → what a program computes there in the place of what is defined.
    """
    changes: dict[str, Array] = {}
    for site, delta in adapter.deltas.items():
        (tag, (first, last), swapped), whole = places(family)[site.modules[0], site.parameter]
        base = base_of(tag, narrow(whole))
        part = turned(base[first:last], swapped).astype(np.float64)
        what = otherwise.get(site.name)
        change = computed_elsewhere(what, delta, part) if what else delta.dense(part)
        change = change.reshape(part.shape)
        changes.setdefault(tag, np.zeros(base.shape))[first:last] += turned(change, swapped)
    return changes
