"""Check that the trained weights of a model learn, as `GradientAudit` does for a LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from loramerge.errors import GradientFlowError
from loramerge.train.lora.causes import listed_by_block

__all__ = ["WeightAudit"]


class WeightAudit:
    """Stops a run in which a weight gets no finite gradient other than zero in the first steps.

    Args:
        weights: full name → parameter.
        before: copies of what they were at first, on the CPU.
        overflows: steps with NaN or infinity to pass over.

    Biases may stay without one: before a norm they change nothing.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        before: Mapping[str, Any],
        *,
        steps: int = 3,
        overflows: int = 0,
    ) -> None:
        self._weights = dict(weights)
        self._steps = self._left = steps
        self._overflows = overflows
        self._silent = {name for name in self._weights if not name.endswith(".bias")}
        self._before = before

    @property
    def done(self) -> bool:
        """True once every weight has learned."""
        return not self._silent

    def after_backward(self) -> None:
        """Check the gradients of one step.

        Raises:
            GradientFlowError: naming what does not learn, by block.
        """
        if self.done:
            return
        there = {n: v.grad for n, v in self._weights.items() if v.grad is not None}
        norms = torch._foreach_norm(list(there.values())) if there else []
        found = dict(zip(there, (float(norm) for norm in norms), strict=True))
        broken = [name for name, norm in found.items() if not math.isfinite(norm)]
        if broken:
            self._overflows -= 1
            if self._overflows < 0:
                self._stop(broken, "NaN or infinity in the gradients of", "finite gradients")
            return
        self._silent -= {name for name, norm in found.items() if norm > 0}
        self._left -= 1
        if self._silent and self._left <= 0:
            names = [name for name in self._weights if name in self._silent]
            self._stop(
                names, f"no gradient in {self._steps} steps for", "a gradient for each weight"
            )

    def after_training(self) -> None:
        """Check that training changed every weight.

        Raises:
            GradientFlowError: naming those that are as they were.
        """
        same = [
            name
            for name, value in self._weights.items()
            if not name.endswith(".bias") and torch.equal(value.detach().cpu(), self._before[name])
        ]
        if same:
            self._stop(same, "training changed nothing in", "weights that differ from the base")

    def _stop(self, names: list[str], problem: str, expected: str) -> None:
        raise GradientFlowError(
            f"{problem} {len(names)} of {len(self._weights)} weights",
            modules=names,
            expected=expected,
            found=listed_by_block(names, self._weights),
            hint="look for NaN in the data, torch.no_grad, or checkpointing with use_reentrant=True",
        )
