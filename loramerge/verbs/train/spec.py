"""The specification of a run: each group takes its fields from the parameters of the same names."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from loramerge.steps.inputs import adapter_of, base_path, family_of_file
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import Made, recipe_text
from loramerge.steps.references import Reference
from loramerge.verbs.train.parameters import Train
from loramerge.verbs.train.places import (
    images_folder,
    own_folders,
    regularisation_folder,
    run_folder,
)

if TYPE_CHECKING:
    from loramerge.train.session import Trained
    from loramerge.train.spec.settings import Settings
    from loramerge.train.spec.spec import Prior, Spec

__all__ = ["spec_of", "used_settings"]

_LENGTH = ("steps", "epochs")  # of which a run may get more
Group = TypeVar("Group")


def spec_of(parameters: Train, path: Path, made: Made, context: Context) -> Spec:
    """Return the specification of a run.

    Args:
        path: of the adapter.
        made: what the result follows from; a state of another origin is not resumed.
    """
    from loramerge.train.dataset.length import interval
    from loramerge.train.spec.spec import Data, Samples, Spec, Targets

    p, folder = parameters, run_folder(parameters, path)
    base = base_path(p.base, context)
    every, epochs = interval(p.save_every)
    return _taken(
        Spec, p,
        base=base,
        folder=folder,
        cache=folder / "cache" if p.cache is None else Path(p.cache),
        config=None if p.config is None else base_path(p.config, context),
        family=family_of_file(base),
        targets=_taken(Targets, p, rank_pattern=p.ranks(), alpha_pattern=p.alphas()),
        data=_taken(
            Data, p, images=images_folder(p.images, context),
            regularisation=regularisation_folder(p, context), without=own_folders(p, path),
            clip_skip=p.clip_layer,
        ),
        settings=_settings(p, context),
        samples=_taken(Samples, p, sparing=p.vram is not None),
        prior=_prior(p),
        init=None if p.init_from is None else adapter_of(Reference(p.init_from), context),
        save_every=every, save_epochs=epochs,
        checkpointing=None if p.checkpointing is None else p.checkpointing == "on",
        device=context.device,
        threads=context.torch_threads,
        origin=_digest(Made(made.verb, {k: v for k, v in made.content.items() if k not in _LENGTH})),
        former_origin=_digest(made),
    )  # fmt: skip


def used_settings(spec: Spec, found: Trained) -> dict[str, Any]:
    """Return all settings used in a run; of folders only the names."""
    said: dict[str, Any] = {"base": spec.base.name, "predicts": found.prediction}
    for group in (spec.targets, spec.data, spec.settings, spec.samples, spec.prior):
        if group is not None:
            said |= {one.name: getattr(group, one.name) for one in fields(group)}
    said["resolution"] = found.arranged.resolution
    said["text_lr"] = spec.settings.lr * spec.settings.text_factor
    for name in ("checkpointing", "device", "threads", "save_every", "state_every", "validation"):
        said[name] = getattr(spec, name)
    del said["without"]
    return {name: value.name if isinstance(value, Path) else value for name, value in said.items()}


def _digest(made: Made) -> str:
    return hashlib.sha256(recipe_text(made, {}).encode()).hexdigest()


def _settings(p: Train, context: Context) -> Settings:
    """Return the settings, with what is usual for the optimizer and the device."""
    from loramerge.train.device.workers import usual_precision
    from loramerge.train.spec.optimizers import NAMES, known
    from loramerge.train.spec.settings import Settings

    optimizer = p.optimizer or "adamw"
    chosen = known(optimizer) or NAMES["adamw"]
    lr = chosen.rate if p.lr is None else p.lr
    return _taken(
        Settings, p,
        optimizer=optimizer,
        optimizer_options=p.optimizer_options(),
        lr=lr,
        timesteps=p.timesteps or "",
        text_lr=lr if p.text_lr is None and chosen.one_rate else p.text_lr,
        precision=p.precision or usual_precision(context.device),
    )  # fmt: skip


def _prior(p: Train) -> Prior | None:
    from loramerge.train.spec.spec import Prior

    return _taken(Prior, p) if p.regularisation == "auto" else None


def _taken(kind: type[Group], parameters: Train, **own: Any) -> Group:
    """Make a group of what is given and, for its other fields, of parameters of the same names."""
    names = [one.name for one in fields(kind) if one.name not in own]  # type: ignore[arg-type]
    shared = {name: getattr(parameters, name) for name in names if hasattr(parameters, name)}
    return kind(**shared, **own)
