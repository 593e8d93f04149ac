"""Whole sessions on a device that is not there: what lies on another than it should is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.steps.provenance import Made  # noqa: E402
from loramerge.train.run.batches import Batch  # noqa: E402
from loramerge.train.session import train  # noqa: E402
from loramerge.verbs.preview import Preview, compute_preview  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.spec import spec_of  # noqa: E402
from tests.builders.flows import flow_folder  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.pretended import DEVICE, pretended  # noqa: E402
from tests.tail import tail  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def test_the_pretended_device_catches_what_a_real_one_would() -> None:
    with pretended():
        layer = torch.nn.Linear(4, 4)
        layer.to(DEVICE)
        assert layer.weight.device == DEVICE
        there = torch.zeros(2, 4, device=DEVICE)
        layer(there).square().sum().backward()
        assert layer.weight.grad.device == DEVICE
        for wrong in (
            lambda: layer(torch.zeros(2, 4)),
            lambda: there + torch.zeros(4),
            lambda: there.numpy(),
            lambda: there.double(),
        ):
            with pytest.raises((RuntimeError, TypeError), match=r"device|MPS"):
                wrong()
        assert (there + 1).cpu().device.type == "cpu"


def base_of(kind: str) -> Path:
    kinds: Any = kind
    return pipeline_folder(kinds) if kind in ("sd15", "sd21", "sdxl") else flow_folder(kinds)


def session(kind: str, place: Path, **how: Any) -> Any:
    """Run a session without what commands do around it."""
    folder_of(place / "images", 2)
    usual: dict[str, Any] = {
        "steps": 2, "rank": 2, "targets": "attn-only", "lr": 1e-2, "trigger": "zuzu", "sample_every": 2,
        "sample_steps": 1, "validation": 0.5, "validate_every": 2,
    }  # fmt: skip
    asked = Train(base=str(base_of(kind)), images=str(place / "images"), **(usual | how))
    context = Context(device=str(DEVICE))
    return train(spec_of(asked, place / "out.safetensors", Made("train", {}), context))


KINDS = [
    "sd15", tail("flux-dev"),
    *(pytest.param(one, marks=pytest.mark.slow)
      for one in ("sd21", "sdxl", "sd3", "sd35", "flux-schnell")),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_session(kind: str, tmp_path: Path) -> None:
    with pretended():
        found = session(kind, tmp_path, text_encoder=kind == "sd15")
        if kind == "sd15":
            assert session(kind, tmp_path, text_encoder=True, resume=True, steps=3).resumed == 2
            compute_preview(
                Preview(base=(str(base_of(kind)),), adapters=(), steps=1),
                Context(device=str(DEVICE)),
            )
    assert found.adapter.deltas


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"method": "blocks:up_blocks"}, {"method": "dora", "ema": 0.5}])
def test_other_methods(how: dict[str, Any], tmp_path: Path) -> None:
    with pretended():
        session("sd21", tmp_path, **how)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_mismatch_is_caught(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "mapped", lambda self, function: self)
    with pretended(), pytest.raises(RuntimeError, match="at least two devices"):
        session(kind, tmp_path)
