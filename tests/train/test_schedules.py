"""Noise schedules and times: read where known, refused where not; CLIP's layers as kohya counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

from loramerge.errors import UsageError  # noqa: E402
from loramerge.events import Warn  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.steps.provenance import RECIPE_KEY, recipe_in  # noqa: E402
from loramerge.train.models import loading as pipelines  # noqa: E402
from loramerge.train.models.architectures.sd import ARCHITECTURE  # noqa: E402
from loramerge.train.models.objective import Flow, Noising  # noqa: E402
from loramerge.train.models.schedules import (  # noqa: E402
    config_of_keys,
    predicting,
    refuse_schedule,
)
from loramerge.train.spec.timesteps import Timesteps  # noqa: E402
from loramerge.verbs.train.memory import Fit  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.run import train  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.samples import safetensors_bytes  # noqa: E402
from tests.train.test_objective import scheduler  # noqa: E402

HERE = Path("x")


@pytest.mark.parametrize("name", [
    "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler",
    "KarrasVeScheduler", "SomethingNewScheduler", "DDPMWuerstchenScheduler", "IPNDMScheduler", "",
])  # fmt: skip
def test_another_schedule_is_never_trained_as_noise(name: str) -> None:
    with pytest.raises(UsageError, match="not of a noise schedule"):
        refuse_schedule({"_class_name": name}, flow=False, file=HERE)


def test_samplers_of_the_same_schedule_are_read_and_others_by_their_fields() -> None:
    for name in ("DDIMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler"):
        refuse_schedule({"_class_name": name, "use_karras_sigmas": True}, flow=False, file=HERE)
    for field in ({"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"},
                  {"timestep_type": "continuous"}):  # fmt: skip
        with pytest.raises(UsageError, match="not of a noise schedule"):
            refuse_schedule(
                {"_class_name": "EulerDiscreteScheduler", **field}, flow=False, file=HERE
            )
    refuse_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"}, flow=True, file=HERE)
    with pytest.raises(UsageError, match="rectified flow"):
        refuse_schedule({"_class_name": "DDPMScheduler"}, flow=True, file=HERE)


def test_a_folder_of_another_schedule_is_refused_when_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "scheduler"
    folder.mkdir()
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler"}))
    with pytest.raises(UsageError, match="EDMEulerScheduler"):
        pipelines._scheduler(tmp_path, ARCHITECTURE, diffusers)


def test_keys_and_header_of_a_single_file_tell_what_it_predicts(tmp_path: Path) -> None:
    both = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert config_of_keys({"v_pred", "ztsnr"}, {}, HERE) == both
    assert config_of_keys({"a"}, {"modelspec.prediction_type": "epsilon"}, HERE) == {
        "prediction_type": "epsilon"
    }
    with pytest.raises(UsageError, match="EDM"):
        config_of_keys({"edm_vpred.sigma_max", "v_pred"}, {}, HERE)
    with pytest.raises(UsageError, match="not known"):
        config_of_keys((), {"modelspec.prediction_type": "score"}, HERE)
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        safetensors_bytes({k: np.zeros(0, "float32") for k in ("v_pred", "ztsnr")}, {})
    )
    assert pipelines._schedule_facts(path, "sd21") == both
    noising = Noising.of(predicting(scheduler("epsilon"), None, both))
    assert noising.prediction == "v_prediction" and float(noising.alphas[-1]) == 0.0
    assert Noising.of(predicting(scheduler("epsilon"), "v")).prediction == "v_prediction"
    one = scheduler("epsilon")
    assert predicting(one, None) is one


def test_times_are_drawn_as_asked() -> None:
    def drawn(text: str, length: int = 1000) -> Any:
        return Timesteps.of(text).drawn(4000, length, torch.Generator().manual_seed(0))

    part = drawn("200..300")
    assert (int(part.min()), int(part.max())) == (200, 299)
    assert abs(float(drawn("uniform").float().mean()) - 500) < 20
    middle = drawn("sigmoid").float()
    assert float(middle.std()) < 230 < float(drawn("sigmoid=3").float().std())
    assert float(drawn("shift=3").float().mean()) > 620 > float(drawn("shift=0.5").float().mean())
    assert int(drawn("200..300, sigmoid, shift=2").min()) >= 200
    for wrong in ("300..200", "sigmod", "shift", "shift=0", "shift=x", "-5..7", "5"):
        with pytest.raises(UsageError):
            Timesteps.of(wrong)
    with pytest.raises(UsageError, match="larger than the schedule"):
        drawn("0..1001")


def test_a_range_means_the_same_noise_for_noise_and_flows() -> None:
    high = Timesteps.of("900..1000")
    generator = torch.Generator().manual_seed(0)
    noising = Noising.of(scheduler("epsilon"))
    assert float(noising.alphas[noising.drawn(50, generator, high)].max()) < 0.1
    flow = Flow.of(diffusers.FlowMatchEulerDiscreteScheduler())
    assert float(flow.sigmas[flow.drawn(50, generator, high)].min()) > 0.89


class Encoder:
    """Counts its layers: the state of each is its number."""

    config = SimpleNamespace(num_hidden_layers=3)
    device = "cpu"

    def __call__(self, tokens: Any, output_hidden_states: bool = False) -> Any:
        if not output_hidden_states:
            return (torch.tensor(3.0),)
        return SimpleNamespace(hidden_states=[torch.tensor(float(n)) for n in range(4)])

    final_layer_norm = staticmethod(lambda value: value)


def test_clip_skip_counts_as_kohya_does() -> None:
    tokens = SimpleNamespace(input_ids=torch.zeros(1, 4))
    loaded: Any = SimpleNamespace(
        encoders={"text_encoder": Encoder()}, windows=1,
        tokenizers={"text_encoder": type("T", (), {
            "model_max_length": 4, "__call__": lambda self, *a, **b: tokens})()},
    )  # fmt: skip
    found = {skip: float(ARCHITECTURE.encode(loaded, ["a"], skip).text) for skip in (None, 1, 2, 3)}
    assert found == {None: 3.0, 1: 3.0, 2: 2.0, 3: 1.0}
    for skip in (0, 4, 9):
        with pytest.raises(UsageError, match="no such layer"):
            ARCHITECTURE.encode(loaded, ["a"], skip)
    assert ARCHITECTURE.unread_text(Encoder(), 3) == ("*encoder.layers.2.*", "*encoder.layers.1.*")
    assert ARCHITECTURE.unread_text(Encoder()) == ARCHITECTURE.unread_text(Encoder(), 1) == ()


def test_older_headers_counted_from_zero() -> None:
    def read(value: Any) -> Any:
        recipe = {"inputs": {}, "steps": {"result": {"train": {"clip_skip": value}}}}
        found = recipe_in({RECIPE_KEY: json.dumps(recipe)})
        assert found is not None
        return found["steps"]["result"]["train"]["clip_skip"]

    assert read(1) == "2" and read("2") == "2"
    assert Train(base="a", images="b", clip_skip=2).clip_layer == 2
    with pytest.raises(UsageError):
        Train(base="a", images="b", clip_skip=0).check()


def test_a_text_encoder_is_trained_to_the_layer_that_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", 2)
    result = train(
        Train(base=str(pipeline_folder()), images=str(tmp_path / "images"), text_encoder=True,
              clip_skip=2, steps=3, rank=2, sample_every=0, targets="attn-only", trigger="zuzu",
              timesteps="100..900", lr=1e-3, output=str(tmp_path / "a.safetensors")),
        Context(device="cpu"),
    )  # fmt: skip
    assert result.adapter is None or result.adapter.deltas
    import loramerge as lm

    names = [site.name for site in lm.load(tmp_path / "a.safetensors").deltas]
    read = {name for name in names if name.startswith("text_encoder")}
    assert read and not any("layers.1" in name for name in read)


def test_a_dry_run_warns_of_a_rank_and_a_rate_that_cannot_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "images", 1)
    monkeypatch.setattr("loramerge.verbs.train.memory._fit", lambda p, *_: Fit(p))  # it takes long
    said: list[Any] = []
    train(
        Train(base=str(pipeline_folder()), images=str(tmp_path / "images"), dry_run=True, rank=9999,
              lr=1.0, targets="attn-only"),
        Context(device="cpu", notify=said.append),
    )  # fmt: skip
    warned = " ".join(str(event.text) for event in said if isinstance(event, Warn))
    assert "mostly destroys" in warned and "more than any layer can hold" in warned
    assert not list(tmp_path.glob("*-run"))
    shutil.rmtree(tmp_path / "images")
