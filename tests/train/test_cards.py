"""Choices that depend on a card, without one: its types, and its memory between phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

from loramerge.errors import DiskFull  # noqa: E402
from loramerge.files.positioned import PositionedFile  # noqa: E402
from loramerge.train.device.exhaustion import release_cache  # noqa: E402
from loramerge.train.device.placing import elsewhere, placed  # noqa: E402
from loramerge.train.device.workers import half_precision  # noqa: E402
from loramerge.train.run import resume  # noqa: E402


@pytest.mark.parametrize(("native", "kind"), [(True, "bf16"), (False, "fp16")])
def test_emulated_bfloat16_is_not_chosen(
    native: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older cards emulate it, slower than float32, and torch calls that supported."""

    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert half_precision(torch.device("cuda")) == kind


class _Model:
    """Records where it is moved."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def to(self, place: Any) -> None:
        self.places.append(str(place))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_phase_gives_back_what_torch_keeps_for_later(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    for name, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        monkeypatch.setattr(backend, "is_available", lambda: True)
        monkeypatch.setattr(
            getattr(torch, name), "empty_cache", lambda name=name: given.append(name)
        )
    model = _Model()
    with placed(device, model):
        assert given == []
    assert model.places == [device, "cpu"] and given == [device]
    with elsewhere(device, model):
        assert given == [device, device]
    assert model.places[-2:] == ["cpu", device]
    release_cache(torch.device("cpu"))
    assert given == [device, device]


def test_a_state_is_written_tensor_by_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy of the whole state is made in memory first."""
    state = {f"weight {i}": torch.full((1000,), float(i)) for i in range(8)}
    monkeypatch.setattr(resume, "_state", lambda run, origin: state)
    sizes: list[int] = []
    write = resume._Stream.write

    def recording(self: Any, data: Any) -> int:
        sizes.append(write(self, data))
        return sizes[-1]

    monkeypatch.setattr(resume._Stream, "write", recording)
    resume.save_state(object(), tmp_path / "state.pt")  # type: ignore[arg-type]
    assert sum(sizes) == (tmp_path / "state.pt").stat().st_size
    assert max(sizes) < 2 * 4000
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_state_that_does_not_fit_is_not_a_bug_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch answers a refused write with a RuntimeError of its own."""
    state = {f"weight {i}": torch.zeros(100_000) for i in range(8)}
    monkeypatch.setattr(resume, "_state", lambda run, origin: state)
    left = 3

    def full(*_: object) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise DiskFull("the disk is full")
        return 0

    monkeypatch.setattr(PositionedFile, "write", full)
    with pytest.raises(DiskFull):
        resume.save_state(object(), tmp_path / "state.pt")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
