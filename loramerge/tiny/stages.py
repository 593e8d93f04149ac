"""A stage of training from random weights: weights, their mean over time, and a state to resume
from."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loramerge.train.spec.settings import Settings, learning_rate

__all__ = ["Stage"]

_SAVE_EVERY = 200  # steps


@dataclass
class Stage:
    """One network (or several) on its way: weights, their mean over time, optimizer, step.

    Args:
        loss: function of the step's number.
        ema: how much of the mean is kept each step; it starts lower, at `(1 + n) / (10 + n)`.
    """

    name: str
    model: nn.Module
    loss: Callable[[int], Any]
    settings: Settings
    work: Path
    ema: float = 0.999
    done: int = 0
    seconds: float = 0.0
    mean: dict[str, Any] = field(default_factory=dict)

    def run(self, say: Callable[[str], None]) -> None:
        """Train to the end, from the last state saved if there is one; leave the mean in the model."""
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
        )
        self.mean = {n: v.clone() for n, v in self.model.state_dict().items()}
        self._load(optimizer)
        begun, smooth = time.process_time() - self.seconds, None
        while self.done < self.settings.steps:
            rate = learning_rate(self.settings, self.done)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.done)
            loss.backward()
            nn.utils.clip_grad_norm_(
                self.model.parameters(), self.settings.max_grad_norm or math.inf
            )
            optimizer.step()
            self.done += 1
            self._average()
            value = float(loss.detach())
            smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
            self.seconds = time.process_time() - begun
            if self.done % _SAVE_EVERY == 0 or self.done == self.settings.steps:
                self._save(optimizer)
                say(f"{self.name} {self.done} loss {smooth:.4f} cpu {self.seconds:.0f} s")
        self.model.load_state_dict(self.mean)
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def _average(self) -> None:
        kept = min(self.ema, (1 + self.done) / (10 + self.done))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1 - kept)

    def _save(self, optimizer: Any) -> None:
        state = {
            "model": self.model.state_dict(),
            "mean": self.mean,
            "optimizer": optimizer.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
        }
        path = self.work / f"{self.name}.pt"
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def _load(self, optimizer: Any) -> None:
        path = self.work / f"{self.name}.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        self.mean, self.done, self.seconds = state["mean"], state["done"], state["seconds"]
