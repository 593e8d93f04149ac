"""Check that every injected module learns: gradients in the first steps, and the result.

In December 2022 reentrant checkpointing cut the gradients of a UNet's down blocks: the loss fell, the
file looked complete, and a third of it was never trained. The audit stops such a run in its first steps.

    audit = GradientAudit({"unet": unet}, optimizer)
    for batch in batches:
        loss(batch).backward()
        audit.after_backward()        # before clipping; after `unscale_` under a GradScaler
        optimizer.step()
        optimizer.zero_grad()
    audit.after_training()

Up is zero at first, so in the first step only up has a gradient; down has one from the second step on.
Within `steps` steps, each half of each module must get a finite gradient other than zero.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from loramerge.errors import GradientFlowError, listed
from loramerge.train.lora.causes import likely_cause, listed_by_block
from loramerge.train.lora.modules import lora_layers

__all__ = ["GradientAudit"]

_HALVES = ("up", "down")


class GradientAudit:
    """Watches the gradients of every injected module until each has learned.

    Args:
        models: a model, or component → model; component names are prefixes of module names.
        optimizer: must hold every parameter of the LoRA exactly once. Steps at a learning rate of 0
            (the first of a warm-up) do not count. None: it is not checked, and every step counts.
        steps: number of steps within which each half must get a gradient.
        allow: globs on names of modules that need no gradient, such as the layers after a CLIP skip.
        overflows: number of steps with NaN or infinity to ignore; a GradScaler causes some while it
            finds its scale.

    Raises:
        GradientFlowError: if a half is frozen, narrower than float32, on another device than its
            layer, or missing from the optimizer.
        AdapterError: if a model has no LoRA.
    """

    def __init__(
        self,
        models: nn.Module | Mapping[str, nn.Module],
        optimizer: Any = None,
        *,
        steps: int = 3,
        allow: Sequence[str] = (),
        overflows: int = 0,
    ) -> None:
        self._models = models if isinstance(models, Mapping) else {"": models}
        self._layers = {
            f"{component}.{name}" if component else name: layer
            for component, model in self._models.items()
            for name, layer in lora_layers(model).items()
        }
        self._optimizer = optimizer
        self._left = steps
        self._steps = steps
        self._overflows = overflows
        self._allow = tuple(allow)
        _check_ready(self._layers, optimizer)
        self._pairs = [(n, half) for n in self._layers for half in _HALVES]
        self._silent = {pair: "no gradient" for pair in self._pairs if not self._allowed(pair[0])}
        self._before = {name: _fingerprint(layer) for name, layer in self._layers.items()}

    @property
    def done(self) -> bool:
        """True once every module has learned; from then on calls cost nothing."""
        return not self._silent

    def _allowed(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._allow)

    def after_backward(self) -> None:
        """Check the gradients of one step; call it before clipping and before the optimizer's step.

        Raises:
            GradientFlowError: naming the modules, if a gradient is not finite, or if a module got
                none within `steps` steps.
        """
        if self.done:
            return
        norms = self._norms()
        broken = [pair for pair, norm in norms.items() if not math.isfinite(norm)]
        if broken:
            self._pass_over(broken)
            return
        for pair, norm in norms.items():
            if norm > 0:
                self._silent.pop(pair, None)
            elif pair in self._silent:
                self._silent[pair] = "a gradient of zero"
        self._left -= self._moves()
        if self._silent and self._left <= 0:
            self._stop()

    def after_training(self) -> None:
        """Check that training changed every module and that each changes its layer.

        Raises:
            GradientFlowError: naming the modules that did not change, or whose ΔW is zero.
        """
        same = [
            name
            for name, layer in self._layers.items()
            if not self._allowed(name)
            and (_fingerprint(layer) == self._before[name] or not layer.lora.up.any())
        ]
        if same:
            raise GradientFlowError(
                f"training changed nothing in {len(same)} of {len(self._layers)} modules",
                modules=same,
                expected="a LoRA that differs from its initial values",
                found=listed_by_block(same, self._layers),
                hint="raise the learning rate or train longer"
                if len(same) == len(self._layers)
                else likely_cause(same, self._layers),
            )

    def _moves(self) -> bool:
        """Return whether the optimizer's next step changes every half."""
        groups = self._optimizer.param_groups if self._optimizer is not None else []
        return all(float(group["lr"]) > 0 for group in groups)

    def _norms(self) -> dict[tuple[str, str], float]:
        """Return the norms of all existing gradients, with one transfer from each device."""
        by_device: dict[Any, list[tuple[tuple[str, str], Any]]] = {}
        for name, half in self._pairs:
            gradient = getattr(self._layers[name].lora, half).grad
            if gradient is not None:
                by_device.setdefault(gradient.device, []).append(((name, half), gradient))
        found: dict[tuple[str, str], float] = {}
        for pairs in by_device.values():
            norms = torch._foreach_norm([gradient for _, gradient in pairs])
            found |= zip((pair for pair, _ in pairs), torch.stack(norms).tolist(), strict=True)
        return found

    def _pass_over(self, broken: Sequence[tuple[str, str]]) -> None:
        self._overflows -= 1
        if self._overflows >= 0:
            return
        names = list(dict.fromkeys(name for name, _ in broken))
        culprits = [
            f"{component}.{name}".lstrip(".")
            for component, model in self._models.items()
            for name, value in model.named_parameters()
            if not torch.isfinite(value).all()
        ]
        raise GradientFlowError(
            f"NaN or infinity in the gradients of {len(names)} of {len(self._layers)} modules",
            modules=names,
            expected="finite gradients",
            found=listed_by_block(names, self._layers),
            hint=f"the model itself holds NaN or infinity: {listed(culprits, 5)}"
            if culprits
            else "look for NaN in the latents and text states, or train in bfloat16 or float32",
        )

    def _stop(self) -> None:
        names = list(dict.fromkeys(name for name, _ in self._silent))
        halves = {half for _, half in self._silent}
        kinds = " or ".join(sorted(set(self._silent.values()), reverse=True))
        which = "both halves" if len(halves) == 2 else f"the half {halves.pop()}"
        raise GradientFlowError(
            f"{len(names)} of {len(self._layers)} modules do not learn: {which} had {kinds} in "
            f"{self._steps} steps",
            modules=names,
            expected="a gradient in both halves of every module",
            found=listed_by_block(names, self._layers),
            hint=likely_cause(names, self._layers, which, kinds),
        )


def _fingerprint(layer: Any) -> bytes:
    """Return a digest of both halves."""
    digest = hashlib.blake2b(digest_size=16)
    for half in _HALVES:
        values = getattr(layer.lora, half).detach().cpu().contiguous()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.digest()


def _check_ready(layers: Mapping[str, Any], optimizer: Any) -> None:
    """Refuse halves that cannot learn with any loss."""
    halves = [
        (name, half, getattr(layer.lora, half), layer)
        for name, layer in layers.items()
        for half in _HALVES
    ]
    counts = _optimized(optimizer)
    _refuse(
        "frozen", [name for name, _, p, _ in halves if not p.requires_grad], layers,
        "the model was frozen after the injection (requires_grad_(False)); freeze it before",
    )  # fmt: skip
    _refuse(
        "narrower than float32",
        [name for name, _, p, _ in halves if p.element_size() < torch.float32.itemsize], layers,
        "updates vanish in half precision; keep the LoRA in float32 and use autocast for the rest",
    )  # fmt: skip
    _refuse(
        "on another device than their layer",
        [name for name, _, p, layer in halves if p.device != layer.weight.device], layers,
        "move the model as a whole: model.to(device)",
    )  # fmt: skip
    if counts is None:
        return
    _refuse(
        "not in the optimizer", [name for name, _, p, _ in halves if not counts.get(id(p))],
        layers, "give the optimizer the parameters that inject_trainable_lora returns",
    )  # fmt: skip
    _refuse(
        "in the optimizer more than once",
        [name for name, _, p, _ in halves if counts.get(id(p), 0) > 1], layers,
        "put every parameter into one group only",
    )  # fmt: skip


def _optimized(optimizer: Any) -> dict[int, int] | None:
    """Count the places of each parameter in the optimizer, by identity."""
    if optimizer is None:
        return None
    counts: dict[int, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return counts


def _refuse(what: str, names: Iterable[str], layers: Mapping[str, Any], hint: str) -> None:
    found = list(dict.fromkeys(names))
    if found:
        raise GradientFlowError(
            f"{len(found)} of {len(layers)} modules cannot learn: they are {what}",
            modules=found,
            found=listed_by_block(found, layers),
            hint=hint,
        )
