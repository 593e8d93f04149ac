"""Inputs that tests of merging share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import small_models


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A base and two models that were trained from it, in float16."""
    base = small_models.weights(0, "F16")
    paths = [small_models.write(tmp_path / "base", base)]
    common = small_models.weights(3, "F32", 0.1)  # so that their changes are alike
    for number in (1, 2):
        own = small_models.weights(number, "F32", 0.1)
        tuned = {n: (v + common[n] + own[n]).astype("float16") for n, v in base.items()}
        paths.append(small_models.write(tmp_path / f"tuned-{number}", tuned))
    return paths
