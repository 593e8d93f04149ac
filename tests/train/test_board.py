"""Events of TensorBoard: what log and samples hold, once for each step, however often it stops."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from loramerge.errors import MissingExtra  # noqa: E402
from loramerge.files.run_log import read_log  # noqa: E402
from loramerge.train.run import board as boards  # noqa: E402
from loramerge.train.run.board import Board  # noqa: E402
from loramerge.train.run.loop import TrainStep  # noqa: E402
from tests.train.test_verb import run  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
HOW: dict[str, Any] = {
    "tensorboard": True, "steps": 6, "sample_every": 3, "sample_steps": 1, "state_every": 2,
    "prompt": ("zuzu", "red, round"),
}  # fmt: skip


def shown(folder: Path) -> Any:
    """What TensorBoard shows of a folder."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


@pytest.mark.long_tail
def test_events_are_the_log_and_the_samples(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    folder = Path(run(tmp_path / "a", **HOW).folder)
    found = shown(folder / "tensorboard")
    entries = list(read_log(folder / "log.jsonl"))
    assert sorted(found.Tags()["scalars"]) == ["gradient", "loss", "rate"]
    for name in ("loss", "rate", "gradient"):
        points = found.Scalars(name)
        assert [p.step for p in points] == [1, 2, 3, 4, 5, 6]
        assert [p.value for p in points] == pytest.approx([e[name] for e in entries], rel=1e-6)
    tags = found.Tags()["images"]
    assert len(tags) == 2 and "zuzu" in tags[0] and "red, round" in tags[1]
    for tag in tags:
        assert [image.step for image in found.Images(tag)] == [0, 3, 6]
    # watching changes nothing
    run(tmp_path / "b", **(HOW | {"tensorboard": False}), images=str(tmp_path / "a" / "pictures"))
    ours, other = (tmp_path / name / "out.safetensors" for name in "ab")
    assert ours.read_bytes() == other.read_bytes()
    assert not (tmp_path / "b" / "out-run" / "tensorboard").exists()


class Killed(BaseException):
    """Stands for a kill, after which nothing is saved."""


@pytest.mark.long_tail
def test_a_resumed_run_shows_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a purge the steps after the last state stand twice; one step too early loses samples."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    before = Board.__call__

    def stopped(self: Board, step: TrainStep) -> None:
        before(self, step)
        if step.number == 4:  # after the state and the sample of step 3 (and 4), before those of 6
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Board, "__call__", stopped)
        run(tmp_path, **HOW)
    assert run(tmp_path, **HOW, resume=True).resumed == 4
    found = shown(tmp_path / "out-run" / "tensorboard")
    assert [p.step for p in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [i.step for i in found.Images(found.Tags()["images"][0])] == [0, 3, 6]
    # begun anew, nothing of the old run is left
    run(tmp_path, **HOW, force=True)
    found = shown(tmp_path / "out-run" / "tensorboard")
    assert [p.step for p in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [i.step for i in found.Images(found.Tags()["images"][0])] == [0, 3, 6]


def test_events_are_on_the_disk_before_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that is flushed later leaves a hole where a run is killed."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from loramerge.train import session

    seen: list[tuple[int, int]] = []

    def watched(run: Any, path: Path, origin: str) -> None:
        points = shown(path.parent / "tensorboard").Scalars("loss")
        seen.append((run.done, len(points)))

    monkeypatch.setattr(session, "save_state", watched)
    run(tmp_path, **HOW)
    assert seen == [(2, 2), (3, 3), (4, 4), (6, 6)]


@pytest.mark.long_tail
def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for how in ({}, {"dry_run": True}):
        with pytest.raises(MissingExtra) as caught:
            run(tmp_path, **HOW, **how)
        assert caught.value.hint == "pip install 'loramerge[tensorboard]'"
    assert not (tmp_path / "out-run").exists()
    assert boards.BOARD == "tensorboard"
