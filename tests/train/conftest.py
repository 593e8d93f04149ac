"""One thread, as two of torch are slower at these sizes; and memory is counted where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders.unmeasured import unmeasured


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("measured"):
        unmeasured(monkeypatch)
