"""Optimizers by name or import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from loramerge.errors import MissingExtra, UsageError, nearest
from loramerge.train.settings import Settings

__all__ = ["NAMES", "make_optimizer"]

# short name → (import path, package to install, options it is made with)
NAMES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "adamw": ("torch.optim.AdamW", "torch", {}),
    "sgd": ("torch.optim.SGD", "torch", {}),
    "adamw8bit": ("bitsandbytes.optim.AdamW8bit", "bitsandbytes", {}),
    "lion": ("lion_pytorch.Lion", "lion-pytorch", {"betas": (0.9, 0.99)}),
    "prodigy": ("prodigyopt.Prodigy", "prodigyopt", {"safeguard_warmup": True}),
    "adafactor": (
        "transformers.optimization.Adafactor",
        "transformers",
        {"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
}


def make_optimizer(settings: Settings, groups: Sequence[Mapping[str, Any]]) -> Any:
    """Return the optimizer of the settings over groups of parameters.

    The rate of each group is set before every step, so an optimizer with a schedule of its own must
    be told not to use it.

    Raises:
        UsageError: if there is no such class, or it does not take the options.
        MissingExtra: if its package is not installed.
    """
    path, package, own = NAMES.get(settings.optimizer, (settings.optimizer, "", {}))
    kind = _found(path, package)
    takes = inspect.signature(kind).parameters
    options: dict[str, Any] = {"lr": settings.rate}
    if "betas" in takes:
        options["betas"] = settings.betas
    if "weight_decay" in takes:
        options["weight_decay"] = settings.decay
    options |= {**own, **dict(settings.options)}
    strange = [name for name in options if name not in takes]
    if strange and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise UsageError(
            f"the optimizer has no {strange[0]!r}",
            found=path,
            expected=", ".join(name for name in takes if name != "params"),
        )
    try:
        return kind([dict(group) for group in groups], **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the optimizer refuses its options: {error}", found=path) from None


def _found(path: str, package: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module:
        close = nearest(path, NAMES)
        raise UsageError(
            f"{path!r} is no optimizer",
            expected=f"{', '.join(NAMES)}, or an import path such as torch.optim.AdamW",
            hint=f"did you mean {close}?" if close else None,
        )
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise MissingExtra(
            f"the optimizer cannot be imported ({error})",
            found=path,
            hint=f"pip install {package or module.partition('.')[0]}",
        ) from None
    except AttributeError:
        raise UsageError("the module has no such optimizer", found=path) from None
