"""The LoRA of one or several models as an adapter, and an adapter's on models.

Nothing here knows a key of a file: modules get their canonical names, and `adapter.encode` spells them.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

from loramerge.adapter import Adapter, Delta, Info, LowRank, Scale, Site
from loramerge.adapter.kinds.dora import DoRA
from loramerge.adapter.kinds.lora import as_lora
from loramerge.adapter.load import load
from loramerge.adapter.save import save
from loramerge.dialects.detect import NO_FAMILY, Detection
from loramerge.errors import AdapterError, UnsupportedKind, listed
from loramerge.events import Note, Notify, ignore
from loramerge.families import family as family_of
from loramerge.files.dtypes import dtype_of
from loramerge.files.tensors import ArrayTensor
from loramerge.train.lora.branch import Branch, weight_shape
from loramerge.train.lora.header import training_header
from loramerge.train.lora.modules import attach_all, lora_layers, refuse_injected
from loramerge.train.lora.names import (
    NAMING,
    Models,
    by_component,
    canonical,
    detection_of,
    homes_of,
)

__all__ = ["load_lora_weight", "lora_adapter", "save_lora_weight"]


def lora_adapter(
    models: Models,
    *,
    family: str | None = None,
    prediction: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Adapter:
    """Return what is injected into models as an adapter: a copy, with the scales as they are tuned.

    Args:
        models: a model, or component (`unet`, `text_encoder`, …) → model; the component of a single
            one follows from its class.
        family: `sd15`, `sd21`, `sdxl`, …; None finds it by the models' layers. Models of no known
            family keep their own names.
        prediction: `epsilon` or `v_prediction`, for the header.
        metadata: further entries of the header.

    Raises:
        AdapterError: if a model has no LoRA, or its scale is tuned to 0.
        FamilyError: if there is no such family, or it lacks a module that is injected.
    """
    named = by_component(models)
    chosen = None if family is None else family_of(family)
    places = [(c, path) for c, model in named.items() for path in lora_layers(model)]
    detection = (
        detection_of(named, places) if chosen is None else Detection((chosen,), "as it was stated")
    )
    deltas: dict[Site, Delta] = {}
    for component, model in named.items():
        for path, layer in lora_layers(model).items():
            deltas[Site((canonical(component, path, detection.naming),))] = _delta(path, layer)
    header = training_header(detection.family, prediction) | dict(metadata or {})
    dialects: dict[str, int] = {}
    if detection.naming is None:
        dialects = {NAMING.name: len(deltas)}
        header |= [NO_FAMILY]
    info = Info(detection=detection, metadata=header, dialects=dialects)
    return Adapter(deltas, info=info)


def save_lora_weight(
    models: Models,
    path: str | PathLike[str],
    *,
    dialect: str | None = None,
    dtype: str | None = None,
    family: str | None = None,
    prediction: str | None = None,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> int:
    """Write what is injected into models, atomically, and return the bytes written.

    The file gives the models' own output: the scale tuned by `tune_lora_scale` is in it. Each module
    has its alpha: a tensor in kohya files, an entry of the header in diffusers files.

    Args:
        dialect: a dialect or a program; None: the family's common one, `diffusers` without family.
        dtype: `float32` (default), `float16`, `bfloat16`.
        models, family, prediction, metadata: see `lora_adapter`.
        force: replace an existing file.

    Raises:
        LoramergeError: see `lora_adapter` and `adapter.save.save`.
    """
    adapter = lora_adapter(models, family=family, prediction=prediction, metadata=metadata)
    if dialect is None and adapter.info.detection.naming is not None:
        dialect = adapter.info.detection.naming.common_dialect
    stored = None if dtype is None else dtype_of(dtype)
    return save(adapter, path, to=dialect or NAMING.name, dtype=stored, force=force)


def load_lora_weight(
    models: Models,
    source: str | PathLike[str] | Adapter,
    *,
    dropout_p: float = 0.0,
    notify: Notify = ignore,
) -> tuple[list[nn.Parameter], list[str]]:
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
        UnsupportedKind: if a module is no LoRA.
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
            made[component][path] = _branch(site.name, delta, layer, dropout_p)
        elif "" in named or site.component in named:
            strangers.append(site.name)
        else:
            elsewhere[site.component] = elsewhere.get(site.component, 0) + 1
    _refuse_strangers(adapter, strangers, sum(map(len, made.values())), elsewhere, list(named))
    for component, count in elsewhere.items():
        notify(Note(f"{count} modules of {component} belong to none of the models given"))
    parameters: list[nn.Parameter] = []
    names: list[str] = []
    for component, model in named.items():
        found = made[component]
        branches = {path: found[path] for path, _ in model.named_modules() if path in found}
        own, paths = attach_all(model, branches)
        parameters += own
        names += [f"{component}.{p}" if len(named) > 1 else p for p in paths]
    return parameters, names


# --- values ------------------------------------------------------------------------------------


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


def _branch(name: str, delta: Delta, layer: Any, dropout: float) -> Branch:
    """Return the branch that adds a delta to a layer."""
    shape, rank = weight_shape(layer), delta.rank
    if rank is None or len(shape) not in (2, 4):
        raise UnsupportedKind(
            f"a delta of kind {delta.kind} cannot be trained as a LoRA",
            module=name,
            hint="resize --rank makes a LoRA of it",
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
