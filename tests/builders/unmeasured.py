"""Training without counting memory first, which takes longer than a short training itself."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["uncounted", "unmeasured"]


def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training choose as it does where all fits; dry runs and `--vram` still count."""
    memory = pytest.importorskip("loramerge.verbs.train.memory")
    counting = memory._fit

    def fit(parameters: Any, spec: Any, given: Any, device: Any, whole: bool) -> Any:
        if whole or parameters.vram is not None:
            return counting(parameters, spec, given, device, whole)
        return memory.Fit(parameters, given)

    monkeypatch.setattr(memory, "_fit", fit)


def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes need a mebibyte each: dry runs are as they are, but for their figures."""
    needs = pytest.importorskip("loramerge.train.memory.needs")
    for name in ("step_peak", "call_peak"):
        monkeypatch.setattr(needs, name, lambda *_, **__: 1 << 20)
    monkeypatch.setattr("loramerge.train.memory.base._COUNTED", {})
