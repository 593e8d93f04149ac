"""plan of steps that train and draw: what a dry run knows, without reading weights or whole images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from loramerge.recipe.plan import Plan, plan
from loramerge.steps.parameters import Context
from loramerge.verbs.train.parameters import Train
from loramerge.verbs.train.run import predict, train
from tests.builders.pictures import folder_of
from tests.builders.pipelines import pipeline_folder
from tests.builders.unmeasured import uncounted

STEPS = """
version: 1
inputs: {{base: "{base}", images: "{images}"}}
steps:
  zuzu:
    train: {{base: base, images: images, steps: 4, rank: 2, sample_every: 0, trigger: zuzu{more}}}
    save: zuzu.safetensors
  half:
    mix: {{adapters: ["zuzu:0.5"]}}
    save: half.safetensors
  sheet:
    preview: {{adapters: [zuzu], base: [base], prompt: ["a", "b"], seed: [1, 2, 3], steps: 2}}
    save: sheet.png
"""


def _plan(place: Path, more: str = "") -> Plan:
    if not (place / "images").exists():
        folder_of(place / "images", 5)
    recipe = place / "recipe.yaml"
    recipe.write_text(
        STEPS.format(base=pipeline_folder("sd15"), images=place / "images", more=more), "utf-8"
    )
    return plan(recipe, device="cpu")


@pytest.mark.long_tail
def test_training_is_predicted_and_so_is_what_uses_it(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = _plan(tmp_path).json()["tasks"]
    one = found["zuzu"]
    assert one["reason"] is None and one["ranks"] == {2: 48} and one["modules"] == 48
    assert one["memory"] > 10**6 and one["seconds"] > 0
    assert any(text.startswith("4 steps are ") for text in one["remarks"])
    assert found["half"]["reason"] is None and found["half"]["ranks"] == {2: 48}
    assert found["sheet"]["remarks"] == ["images to generate: 12, columns: 2"]
    assert found["sheet"]["seconds"] > 0
    assert {path.name for path in set(tmp_path.rglob("*")) - set(before)} & {"zuzu-run"} == set()


@pytest.mark.long_tail
def test_the_prediction_is_that_of_the_run(tmp_path: Path) -> None:
    folder_of(tmp_path / "images", 5)
    parameters = Train(
        base=str(pipeline_folder("sd15")), images=str(tmp_path / "images"), trigger="zuzu", rank=2,
        steps=1, sample_every=0, lr=1e-2, output=str(tmp_path / "a.safetensors"),
    )  # fmt: skip
    found = predict(parameters, Context(device="cpu"))
    result: Any = train(parameters, Context(device="cpu"))
    assert found.modules == result.modules and found.ranks == result.adapter.ranks()
    assert found.adapter is not None and found.adapter.deltas.keys() == result.adapter.deltas.keys()
    assert found.size is not None and 0.5 * result.size < found.size < 1.5 * result.size + 8192


def test_what_the_run_would_refuse_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uncounted(monkeypatch)
    one = _plan(tmp_path, ", optimizer: sgd, vram: 1KB").json()["tasks"]["zuzu"]
    assert one["modules"] is None and "vram" in one["reason"]
