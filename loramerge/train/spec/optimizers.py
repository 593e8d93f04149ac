"""Optimizers by name or import path."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from loramerge.errors import MissingExtra, Setting, UsageError, suggestion
from loramerge.train.spec.settings import Settings

__all__ = [
    "NAMES", "Known", "check_import", "fast", "known", "make_optimizer", "optimizer_memory", "path_of",
    "ready", "slow",
]  # fmt: skip


_MOST = 100  # times the usual rate


@dataclass(frozen=True)
class Known:
    """An optimizer with a short name.

    Args:
        path: to import its class from.
        package: to install.
        rate: that is usual for a LoRA.
        least: rate below which a LoRA hardly moves in a thousand steps.
        options: arguments of its class.
        one_rate: True if all groups must have the same rate.
    """

    path: str
    package: str
    rate: float = 1e-4
    least: float = 2e-5  # rates below are those of full fine-tuning
    options: Mapping[str, Any] = field(default_factory=dict)
    one_rate: bool = False


NAMES: Mapping[str, Known] = {
    "adamw": Known("torch.optim.AdamW", "torch"),
    # a step is no longer than rate × the clipped gradient, which all parameters share
    "sgd": Known("torch.optim.SGD", "torch", rate=1.0, least=2e-2),
    "adamw8bit": Known("bitsandbytes.optim.AdamW8bit", "bitsandbytes"),
    # every element moves by the whole rate: 3 to 10 times less than AdamW's is its authors' advice
    "lion": Known(
        "lion_pytorch.Lion", "lion-pytorch", rate=3e-5, least=2e-6, options={"betas": (0.9, 0.99)}
    ),
    # the rate is a factor of what it finds itself
    "prodigy": Known(
        "prodigyopt.Prodigy", "prodigyopt", rate=1.0, least=0.1,
        options={"safeguard_warmup": True}, one_rate=True,
    ),
    "adafactor": Known(
        "transformers.optimization.Adafactor", "transformers",
        options={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
}  # fmt: skip


def known(name: str) -> Known | None:
    """Return the facts about an optimizer, by its short name or import path."""
    paths = {one.path: one for one in NAMES.values()}
    return NAMES.get(name) or paths.get(name)


def path_of(name: str) -> str:
    """Return the import path of an optimizer's class."""
    return NAMES[name].path if name in NAMES else name


def check_import(name: str | None, *, allowed: bool) -> None:
    """Refuse an import path outside the packages of the known optimizers, unless that is allowed.

    Raises:
        UsageError: naming the path.
    """
    module, dot, _ = (name or "").rpartition(".")
    known_modules = {one.path.rpartition(".")[0] for one in NAMES.values()}
    if dot and not allowed and module not in known_modules:
        raise UsageError(
            "importing an optimizer outside the known packages runs its code, and is not allowed here",
            expected=f"{', '.join(NAMES)}, or a class of {', '.join(sorted(known_modules))}",
            found=name,
            hint="if you trust whoever wrote this, allow imports for the run: --allow-import, or "
            "allow_import=True in Python",
        )


def slow(settings: Settings) -> str | None:
    """Return the reason why a LoRA hardly moves at this rate, None if it moves or nobody knows."""
    found = known(settings.optimizer)
    if found is None or settings.lr >= found.least:
        return None
    name = next(name for name, one in NAMES.items() if one is found)
    return (
        f"a LoRA hardly moves at a learning rate of {settings.lr:g} with {name}; "
        f"{found.rate:g} is usual"
    )


def fast(settings: Settings) -> str | None:
    """Return the reason why this rate is likely to destroy a LoRA, None if it is not or nobody knows."""
    found = known(settings.optimizer)
    if found is None or settings.lr <= _MOST * found.rate:
        return None
    name = next(name for name, one in NAMES.items() if one is found)
    return (
        f"a learning rate of {settings.lr:g} with {name} mostly destroys what is trained; "
        f"{found.rate:g} is usual"
    )


def ready(settings: Settings, *, text: bool = False) -> None:
    """Refuse an optimizer that is not available or does not fit the settings, before any work.

    Args:
        text: True if text encoders are trained too.

    Raises:
        UsageError, MissingExtra: see `make_optimizer`.
    """
    factors = {1.0, settings.lora_plus} | ({settings.text_factor} if text else set())
    _check_rates(settings, factors)
    _found(settings.optimizer)


def _check_rates(settings: Settings, factors: set[float]) -> None:
    found = known(settings.optimizer)
    if found is not None and found.one_rate and len(factors) > 1:
        raise UsageError(
            "this optimizer takes one learning rate for all parameters",
            found=f"{settings.optimizer} with rates of {', '.join(f'{f:g} ×' for f in sorted(factors))}",
            hint=(
                "leave out ",
                Setting("lora_plus"),
                ", and give ",
                Setting("text_lr"),
                " the value of ",
                Setting("lr"),
            ),
        )


_WIDE = 4  # bytes of a float32
_LEAST_8BIT = 4096  # numbers; bitsandbytes keeps the moments of smaller tensors in float32


def _moments(count: int) -> Callable[[Sequence[int]], int]:
    return lambda shape: count * _WIDE * math.prod(shape)


def _in_8_bits(shape: Sequence[int]) -> int:
    size = math.prod(shape)
    return 2 * size * (1 if size >= _LEAST_8BIT else _WIDE)


def _factored(shape: Sequence[int]) -> int:
    """Return the bytes of Adafactor's means over rows and columns, or of one number each."""
    size = math.prod(shape)
    if len(shape) < 2:
        return _WIDE * size
    return _WIDE * (size // shape[-1] + size // shape[-2])


# short name → bytes that it keeps of a parameter of a shape; what is not here is taken for AdamW
_STATES: Mapping[str, Callable[[Sequence[int]], int]] = {
    "adamw": _moments(2),
    "sgd": _moments(1),  # with momentum
    "adamw8bit": _in_8_bits,
    "lion": _moments(1),
    "prodigy": _moments(4),
    "adafactor": _factored,
}


def optimizer_memory(name: str, shapes: Sequence[Sequence[int]], device: str) -> tuple[int, int]:
    """Return the bytes an optimizer keeps between steps, and those that a step needs for a while.

    Args:
        name: as in the settings.
        shapes: of all that is trained, in float32.
        device: type of the device; on a CPU parameters are moved one after another, elsewhere all at
            once.
    """
    state = _STATES.get(name, _STATES["adamw"])
    sizes = [math.prod(shape) for shape in shapes]
    passing = 3 * max(sizes, default=0)
    if device != "cpu":
        passing = max(passing, sum(sizes))
    return sum(map(state, shapes)), _WIDE * passing


def make_optimizer(settings: Settings, groups: Sequence[Mapping[str, Any]]) -> Any:
    """Return the optimizer of the settings over groups of parameters.

    The rate of each group is set before every step, so an optimizer with a schedule of its own must
    be told not to use it.

    Raises:
        UsageError: if there is no such class, or it does not take the options, or not these rates.
        MissingExtra: if its package is not installed.
    """
    _check_rates(settings, {float(group.get("factor", 1.0)) for group in groups})
    path, kind = path_of(settings.optimizer), _found(settings.optimizer)
    own = NAMES[settings.optimizer].options if settings.optimizer in NAMES else {}
    takes = inspect.signature(kind).parameters
    options: dict[str, Any] = {"lr": settings.lr}
    if "betas" in takes:
        options["betas"] = settings.betas
    if "weight_decay" in takes:
        options["weight_decay"] = settings.weight_decay
    options |= {**own, **dict(settings.optimizer_options)}
    strange = [name for name in options if name not in takes]
    if strange and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise UsageError(
            f"the optimizer has no {strange[0]!r}",
            found=path,
            expected=", ".join(name for name in takes if name != "params"),
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where results stand; Prodigy prints there
            return kind([dict(group) for group in groups], **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"the optimizer refuses its options: {error}", found=path) from None


def _found(called: str) -> Any:
    """Return the class of a short name or import path."""
    path = path_of(called)
    package = NAMES[called].package if called in NAMES else ""
    module, _, name = path.rpartition(".")
    if not module:
        raise UsageError(
            f"{path!r} is not an optimizer",
            expected=f"{', '.join(NAMES)}, or an import path such as torch.optim.AdamW",
            hint=suggestion(path, NAMES),
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
