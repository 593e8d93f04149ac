"""An architecture of another package, in one file, is trained and saved like those of loramerge."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import loramerge as lm  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.models import registry  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.run import train  # noqa: E402
from tests.builders.pictures import folder_of  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402

SOURCE = '''
"""A transformer of patches that reads pooled text; no package of ours knows it."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from loramerge.train.models.architecture import Encoder, Inputs, States
from loramerge.train.models.architectures.sd import StableDiffusion


class Weave(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels=4, width=16, text_width=12):
        super().__init__()
        self.to_q = nn.Linear(in_channels, width)
        self.to_k = nn.Linear(text_width, width)
        self.out = nn.Linear(width, in_channels)

    def forward(self, latents, text):
        rows = self.to_q(latents.flatten(2).transpose(1, 2))
        rows = rows * self.to_k(text.mean(1))[:, None]
        return self.out(rows).transpose(1, 2).reshape(latents.shape)


class Weaving(StableDiffusion):
    name = "weaving"
    pipelines = ("WeavePipeline",)
    families = ()
    component = "transformer"
    denoiser = "made_up_architecture.Weave"
    encoders = {"text_encoder": Encoder("CLIPTextModel", "CLIPTokenizer", "tokenizer")}
    refused = {"clip_skip": "a weave reads the last layer"}

    def channels(self, config):
        return config["in_channels"]

    def unit(self, config, factor):
        return factor

    def resolution(self, config, factor):
        return 16 * factor

    def predict(self, denoiser, latents, times, states, sizes=None, guidance=1.0):
        return denoiser(latents, states.text.to(latents.dtype))

    def inputs(self, config, batch, size, factor):
        latents = torch.empty(batch, 4, size[1] // factor, size[0] // factor)
        return Inputs(latents, States(torch.empty(batch, 16, config["text_width"])))

    def blocks(self, denoiser):
        return 1


ARCHITECTURE = Weaving()
'''


@pytest.fixture
def weave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the file as another package would, and write a base of it."""
    (tmp_path / "made_up_architecture.py").write_text(SOURCE, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("weaving", "made_up_architecture:ARCHITECTURE", "loramerge.architectures")
    monkeypatch.setattr(registry, "entry_points", lambda group: (point,))
    registry.known_architectures.cache_clear()
    base = tmp_path / "base"
    shutil.copytree(pipeline_folder(), base)
    shutil.rmtree(base / "unet")
    index = json.loads((base / "model_index.json").read_text("utf-8"))
    index |= {"_class_name": "WeavePipeline", "transformer": ["made_up", "Weave"]}
    del index["unet"]
    (base / "model_index.json").write_text(json.dumps(index), "utf-8")
    torch.manual_seed(0)
    sys.modules.pop("made_up_architecture", None)
    point.load().class_name  # noqa: B018 - imports the file
    sys.modules["made_up_architecture"].Weave().save_pretrained(base / "transformer")
    return base


def test_it_trains_is_saved_and_its_options_are_refused(weave: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "base": str(weave), "images": str(folder_of(tmp_path / "images", 2)), "trigger": "zuzu",
        "steps": 2, "rank": 2, "targets": "full-linear", "sample_every": 1, "sample_steps": 1,
        "lr": 1e-2, "resolution": 16,
    }  # fmt: skip
    try:
        path = tmp_path / "woven.safetensors"
        result = train(Train(**how, output=str(path)), Context(device="cpu"))
        assert result.steps == 2 and result.modules == 3
        assert {site.name for site in lm.load(path).deltas} == {
            f"transformer.{name}" for name in ("to_q", "to_k", "out")
        }
        assert (tmp_path / "woven-run" / "samples.png").is_file()
        with pytest.raises(lm.LoramergeError, match="a weave reads the last layer"):
            train(Train(**how, output=str(tmp_path / "b.safetensors"), clip_skip=1))
    finally:
        registry.known_architectures.cache_clear()
