"""A sampler of few steps, where it does not matter what is in the images."""

from __future__ import annotations

import pytest

__all__ = ["few_steps"]

_MOST = 2


def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sampler take two steps at most, whatever is asked for."""
    sampling = pytest.importorskip("loramerge.train.drawing.sampling")

    def steps(self: object) -> int:
        return min(_MOST, vars(self)["steps"])

    def keep(self: object, value: int) -> None:
        vars(self)["steps"] = value

    monkeypatch.setattr(sampling.Drawing, "steps", property(steps, keep), raising=False)
