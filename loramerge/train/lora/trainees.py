"""The trained parameters: a LoRA on layers, or weights of the model itself.

Both give the training loop the same things: parameters in a fixed order with their names, groups for
the optimizer, an audit, and the result as an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import nn

from loramerge.adapter import Adapter, Delta, Full, Site
from loramerge.dialects.detection import Detection
from loramerge.errors import UsageError, listed, suggestion
from loramerge.files.tensors import ArrayTensor
from loramerge.train.lora.audit import GradientAudit
from loramerge.train.lora.header import trained_adapter
from loramerge.train.lora.modules import lora_layers
from loramerge.train.lora.names import canonical, detection_of
from loramerge.train.lora.saving import lora_adapter
from loramerge.train.lora.weight_audit import WeightAudit
from loramerge.train.spec.settings import Settings

__all__ = ["Branches", "Trainee", "Weights", "chosen_modules"]


class Audit(Protocol):
    """A check that training changes every module; see `GradientAudit`."""

    @property
    def done(self) -> bool: ...

    def after_backward(self) -> None: ...

    def after_training(self) -> None: ...


class Trainee(Protocol):
    """The trained parameters, as the training loop uses them."""

    names: list[str]
    parameters: list[Any]

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """Return groups of parameters; `factor` multiplies the learning rate of a group."""

    def audit(self, optimizer: Any, overflows: int = 0) -> Audit:
        """Return the audit of the gradients."""

    def adapter(self, prediction: str | None, metadata: Mapping[str, str]) -> Adapter:
        """Return the result as an adapter: a copy."""


class Branches:
    """LoRA or DoRA that was injected into models.

    Args:
        models: component → model.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.models = dict(models)
        self._layers = {
            (component, path): layer
            for component, model in self.models.items()
            for path, layer in lora_layers(model).items()
        }
        self.names = [f"{c}.{p}" if c else p for c, p in self._layers]
        self.parameters: list[Any] = [
            part for layer in self._layers.values() for part in layer.lora.parts
        ]

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        found: dict[float, list[Any]] = {}
        for (component, _), layer in self._layers.items():
            factor = settings.text_factor if component.startswith("text_encoder") else 1.0
            for part in layer.lora.parts:
                own = factor * settings.lora_plus if part is layer.lora.up else factor
                found.setdefault(own, []).append(part)
        return [{"params": params, "factor": factor} for factor, params in found.items()]

    def audit(self, optimizer: Any, overflows: int = 0) -> Audit:
        models: Any = self.models
        if len(self.models) == 1:  # named as the model names them
            (models,) = self.models.values()
        return GradientAudit(models, optimizer, overflows=overflows)

    def adapter(self, prediction: str | None, metadata: Mapping[str, str]) -> Adapter:
        return lora_adapter(self.models, prediction=prediction, metadata=metadata)


_ROLES = {("weight", False): "diff", ("bias", False): "diff_b",
          ("weight", True): "w_norm", ("bias", True): "b_norm"}  # fmt: skip


class Weights:
    """Weights of a model itself: all, or those of some blocks.

    They become float32. Their original values stay in main memory, because the result is the
    difference.

    Args:
        model: the denoiser.
        unread: patterns of modules to leave out, because their output is not used.
        patterns: globs on module names; each takes the matching modules and everything below them.
            Without patterns the whole model is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        patterns: Sequence[str] = (),
        component: str = "unet",
        unread: Sequence[str] = (),
    ) -> None:
        self._model, self._component = model, component
        places = chosen_modules(model, patterns, unread)
        model.requires_grad_(False)
        self._places: list[tuple[str, str, Any]] = []
        self._first: list[Any] = []
        for path, module in places.items():
            for name, value in module.named_parameters(recurse=False):
                value.data = value.data.float()
                value.requires_grad_(True)
                self._places.append((path, name, value))
                self._first.append(value.detach().cpu().clone())
        self.names = [f"{path}.{name}" for path, name, _ in self._places]
        self.parameters: list[Any] = [value for _, _, value in self._places]

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        return [{"params": self.parameters, "factor": 1.0}]

    def audit(self, optimizer: Any, overflows: int = 0) -> Audit:
        named = dict(zip(self.names, self.parameters, strict=True))
        before = dict(zip(self.names, self._first, strict=True))
        return WeightAudit(named, before, overflows=overflows)

    def adapter(self, prediction: str | None, metadata: Mapping[str, str]) -> Adapter:
        injected = [(self._component, path) for path, _, value in self._places if value.ndim > 1]
        detection: Detection = detection_of({self._component: self._model}, injected)
        deltas: dict[Site, Delta] = {}
        for (path, name, value), first in zip(self._places, self._first, strict=True):
            norm = self._model.get_submodule(path).weight.ndim == 1
            change = (value.detach().cpu() - first).numpy()
            module = canonical(self._component, path, detection.naming)
            site = Site((module,), "weight" if name == "weight" else "bias")
            deltas[site] = Full.of(ArrayTensor(change), _ROLES[name, norm])
        return trained_adapter(deltas, detection, prediction, metadata)


def chosen_modules(
    model: nn.Module, patterns: Sequence[str], unread: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Return path → module of the chosen modules that have parameters.

    Raises:
        UsageError: if a pattern matches nothing, or a module has parameters that cannot be kept.
    """
    holders = {
        path: module
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    for pattern in patterns:
        if not any(_below(path, pattern) for path in holders):
            raise UsageError(
                f"no module matches {pattern!r}",
                expected="a block such as up_blocks or up_blocks.1, or a pattern",
                hint=suggestion(pattern, {part for path in holders for part in _ancestors(path)}),
            )
    chosen = {
        path: module
        for path, module in holders.items()
        if (not patterns or any(_below(path, pattern) for pattern in patterns))
        and not any(_below(path, pattern) for pattern in unread)
    }
    strange = [
        f"{path}.{name}"
        for path, module in chosen.items()
        for name, _ in module.named_parameters(recurse=False)
        if name not in ("weight", "bias")
    ]
    if strange:
        raise UsageError("an adapter cannot hold these parameters", found=listed(strange, 4))
    return chosen


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _below(path: str, pattern: str) -> bool:
    """Return whether a pattern matches a module or one of its ancestors."""
    return any(fnmatchcase(part, pattern) for part in _ancestors(path))
