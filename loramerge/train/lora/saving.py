"""Save the LoRA of models as an adapter, and load an adapter into models.

Modules have their canonical names here; `adapter.encode` turns them into the keys of a file.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from loramerge.adapter import Adapter, Delta, LowRank, Scale, Site
from loramerge.adapter.encode import Encoded, encode
from loramerge.adapter.kinds.dora import DoRA
from loramerge.adapter.kinds.lora import as_lora
from loramerge.adapter.load import load
from loramerge.adapter.save import save, write_encoded
from loramerge.dialects import DIALECTS
from loramerge.dialects.detection import Detection
from loramerge.errors import AdapterError, NotExpressible, Setting, UnsupportedKind, listed
from loramerge.events import Note, Notify, ignore
from loramerge.families import family as family_of
from loramerge.files.dtypes import dtype_of
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.writer import write_bytes
from loramerge.train.lora.branch import Branch, weight_shape
from loramerge.train.lora.header import trained_adapter
from loramerge.train.lora.modules import Groups, attach_all, lora_layers, refuse_injected
from loramerge.train.lora.names import (
    NAMING,
    Models,
    by_component,
    canonical,
    detection_of,
    homes_of,
)

__all__ = ["branch_of", "load_lora_weight", "lora_adapter", "save_lora_weight"]


def lora_adapter(
    models: Models,
    *,
    family: str | None = None,
    prediction: str | None = None,
    metadata: Mapping[str, str] | None = None,
    target_replace_module: Iterable[str] | None = None,
) -> Adapter:
    """Return the LoRA of models as an adapter: a copy, with the tuned scales.

    Args:
        models: a model, or component (`unet`, `text_encoder`, …) → model; the component of a single
            one follows from its class.
        family: `sd15`, `sd21`, `sdxl`, …; None finds it by the models' layers. Models of no known
            family keep their own names.
        prediction: `epsilon` or `v_prediction`, for the header.
        metadata: further entries of the header.
        target_replace_module: names of classes; only layers inside modules of these.

    Raises:
        AdapterError: if a model has no LoRA, or its scale is tuned to 0.
        FamilyError: if there is no such family, or it lacks a module that is injected.
    """
    named = by_component(models)
    chosen = None if family is None else family_of(family)
    inside = None if target_replace_module is None else frozenset(target_replace_module)
    layers = {
        (component, path): layer
        for component, model in named.items()
        for path, layer in lora_layers(model, inside).items()
    }
    detection = (
        detection_of(named, list(layers))
        if chosen is None
        else Detection((chosen,), "as it was stated")
    )
    deltas: dict[Site, Delta] = {
        Site((canonical(component, path, detection.naming),)): _delta(path, layer)
        for (component, path), layer in layers.items()
    }
    return trained_adapter(deltas, detection, prediction, metadata or {})


def save_lora_weight(
    models: Models,
    path: str | PathLike[str] = "./lora.pt",
    target_replace_module: Iterable[str] | None = None,
    *,
    dialect: str | None = None,
    dtype: str | None = None,
    family: str | None = None,
    prediction: str | None = None,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> int:
    """Write the LoRA of models to a file, atomically, and return the bytes written.

    The file holds the scale tuned by `tune_lora_scale`, so loading it gives the models' own output.
    Each module has its alpha: a tensor in kohya files, a header entry in diffusers files.

    Args:
        path: `.safetensors`; or `.pt`: lora_diffusion's list of tensors, if the layers are those that it
            trained in a model of a known family, else a dictionary of tensors by name.
        dialect: a dialect or a program; None: the family's common one, `diffusers` without family.
        dtype: `float32` (default), `float16`, `bfloat16`.
        models, target_replace_module, family, prediction, metadata: see `lora_adapter`.
        force: replace an existing file.

    Raises:
        LoramergeError: see `lora_adapter` and `adapter.save.save`.
    """
    adapter = lora_adapter(
        models, family=family, prediction=prediction, metadata=metadata,
        target_replace_module=target_replace_module,
    )  # fmt: skip
    place, stored = Path(path), None if dtype is None else dtype_of(dtype)
    naming = adapter.info.detection.naming
    usual = NAMING.name if naming is None else naming.common_dialect
    if place.suffix != ".pt" or dialect is not None:
        return save(adapter, place, to=dialect or usual, dtype=stored, force=force)
    lists = _as_lists(adapter, stored)
    if lists is not None:
        return write_encoded(lists, place, force=force)
    return _save_dictionary(encode(adapter, DIALECTS[usual], stored), place, force=force)


def _as_lists(adapter: Adapter, dtype: str | None) -> Encoded | None:
    """Return the adapter as lora_diffusion's lists; None where their places need other modules.

    The lists name nothing: a module is what its place in the family's list says.
    """
    try:
        found = encode(adapter, DIALECTS["lora_diffusion"], dtype)
    except NotExpressible:
        return None
    return found if len(found.tensors) == 2 * len(adapter.deltas) else None


def _save_dictionary(encoded: Encoded, path: Path, *, force: bool) -> int:
    """Write tensors by name as torch's state dicts are, the header in `_metadata`; return the bytes."""
    content: Any = OrderedDict((name, _in_torch(tensor)) for name, tensor in encoded.tensors)
    content._metadata = dict(encoded.metadata)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue(), force=force)
    return len(buffer.getvalue())


def load_lora_weight(
    models: Models,
    source: str | PathLike[str] | Adapter,
    *,
    dropout_p: float = 0.0,
    notify: Notify = ignore,
) -> tuple[Groups, list[str]]:
    """Inject an adapter of any dialect, with its own ranks and alphas, ready to be trained on.

    Args:
        models: a model, or component → model.
        source: a file, a PEFT folder, or an adapter in memory.
        notify: called with a note about components that none of the models is.

    Returns:
        As `inject_trainable_lora`; the names of several models begin with their component.

    Raises:
        LoramergeError: if it cannot be read.
        AdapterError: if the file holds tensors of unknown meaning, if a module is not in the model
            or has another shape there, if nothing is for these models, or if a model has a LoRA
            already; then no model is changed.
        UnsupportedKind: if a module is not a LoRA.
    """
    adapter = source if isinstance(source, Adapter) else load(source)
    adapter.require_sound()
    _refuse_unknown(adapter)
    named = by_component(models)
    for model in named.values():
        refuse_injected(model)
    homes = homes_of(named, adapter.info.detection.naming)
    made: dict[str, dict[str, Branch]] = {component: {} for component in named}
    strangers: list[str] = []
    elsewhere: dict[str, int] = {}
    for site, delta in adapter.deltas.items():
        home = homes.get(site.name)
        if home is not None:
            component, path = home
            layer = named[component].get_submodule(path)
            made[component][path] = branch_of(site.name, delta, layer, dropout_p)
        elif "" in named or site.component in named:
            strangers.append(site.name)
        else:
            elsewhere[site.component] = elsewhere.get(site.component, 0) + 1
    _refuse_strangers(adapter, strangers, sum(map(len, made.values())), elsewhere, list(named))
    for component, count in elsewhere.items():
        notify(Note(f"{count} modules of {component} belong to none of the models given"))
    groups: Groups = []
    names: list[str] = []
    for component, model in named.items():
        found = made[component]
        branches = {path: found[path] for path, _ in model.named_modules() if path in found}
        own, paths = attach_all(model, branches)
        groups += own
        names += [f"{component}.{p}" if len(named) > 1 else p for p in paths]
    return groups, names


# --- values ------------------------------------------------------------------------------------

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _in_torch(tensor: Tensor) -> Any:
    """Return a copy of a tensor of the adapter, for torch."""
    raw = bytearray(tensor.raw())
    return torch.frombuffer(raw, dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)


def _delta(path: str, layer: Any) -> Delta:
    branch: Branch = layer.lora
    if branch.weight == 0.0:
        raise AdapterError(
            "the scale is tuned to 0, so there is nothing to save",
            module=path,
            hint="tune_lora_scale(model, 1.0) first",
        )
    if branch.magnitude is None:
        scale = Scale(branch.alpha, root=branch.rslora, weight=branch.weight)
        return LowRank.of(_stored(branch.up), _stored(branch.down), scale, path)
    inner = LowRank.of(
        _stored(branch.up), _stored(branch.down), Scale(branch.alpha, root=branch.rslora), path
    )
    magnitude = branch.magnitude.reshape(-1, *[1] * (branch.up.ndim - 1))
    return DoRA.of(inner, _stored(magnitude), "dora_scale", path).scaled(branch.weight)


def _stored(half: Any) -> ArrayTensor:
    return ArrayTensor(half.detach().cpu().clone().numpy())


def branch_of(name: str, delta: Delta, layer: Any, dropout: float) -> Branch:
    """Return the branch that adds a delta to a layer."""
    shape, rank = weight_shape(layer), delta.rank
    if rank is None or not 2 <= len(shape) <= 5:
        raise UnsupportedKind(
            f"a delta of kind {delta.kind} cannot be trained as a LoRA",
            module=name,
            hint=("make a LoRA of it first: loramerge resize with ", Setting("rank")),
        )
    delta = delta.conformed(shape)
    if delta.shape != shape:
        raise AdapterError(
            "the module has another shape in the model",
            module=name,
            expected=list(shape),
            found=list(delta.shape),
            hint="the adapter is of another base",
        )
    lora = as_lora(delta)
    if lora is not None and lora.factor:
        up, down = lora.up.numpy(), lora.down.numpy()
        alpha = lora.factor * rank
    else:
        (up, down), alpha = delta.factors(), float(rank)
    if layer.weight.is_meta:
        raise AdapterError("the model has no values yet", module=name, found="the meta device")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        branch = Branch(layer, rank, alpha, dropout=dropout)
        for half, values in ((branch.up, up), (branch.down, down)):
            half.copy_(torch.from_numpy(values.astype("float32").reshape(half.shape)))
    return branch


def _refuse_unknown(adapter: Adapter) -> None:
    unknown = list(adapter.info.account.unknown)
    if unknown:
        raise AdapterError(
            f"{len(unknown)} tensors of the file belong to no module that loramerge knows",
            file=adapter.info.path,
            found=listed(unknown, 3),
            hint="training on would lose them; loramerge inspect FILE lists them",
        )


def _refuse_strangers(
    adapter: Adapter,
    strangers: list[str],
    taken: int,
    elsewhere: Mapping[str, int],
    named: list[str],
) -> None:
    if strangers:
        raise AdapterError(
            f"{len(strangers)} of {len(adapter.deltas)} modules are not in the model",
            file=adapter.info.path,
            module=listed(strangers, 5),
            hint="the adapter is of another base",
        )
    if not taken:
        raise AdapterError(
            "no module of this adapter belongs to these models",
            file=adapter.info.path,
            expected=", ".join(named),
            found=", ".join(elsewhere),
        )
