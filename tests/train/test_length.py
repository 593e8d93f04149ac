"""Epochs, validation and adapters to start from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge.errors import AdapterError, UsageError  # noqa: E402
from loramerge.events import Progress  # noqa: E402
from loramerge.files.run_log import read_log  # noqa: E402
from loramerge.steps.parameters import Context  # noqa: E402
from loramerge.train.dataset.arrange import Arranged  # noqa: E402
from loramerge.train.dataset.captions import Captioning  # noqa: E402
from loramerge.train.dataset.length import in_steps, interval  # noqa: E402
from loramerge.train.dataset.scan import Dataset, Picture  # noqa: E402
from loramerge.train.lora.modules import lora_layers  # noqa: E402
from loramerge.train.lora.starting import start_from  # noqa: E402
from loramerge.train.run import loop  # noqa: E402
from loramerge.train.spec.settings import Settings  # noqa: E402
from loramerge.train.spec.spec import Data, Spec, Targets  # noqa: E402
from loramerge.verbs.train.parameters import Train  # noqa: E402
from loramerge.verbs.train.run import train  # noqa: E402
from tests.builders.samples import read_safetensors  # noqa: E402
from tests.builders.unets import tiny_unet  # noqa: E402
from tests.train.test_data import order  # noqa: E402
from tests.train.test_verb import asked  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def test_intervals() -> None:
    assert interval("250") == (250, None) and interval(0) == (0, None)
    assert interval("2epochs") == (0, 2.0) and interval("0.5 epoch") == (0, 0.5)
    for wrong in ("-1", "x", "0epochs", "epochs", "2 steps"):
        with pytest.raises(UsageError, match="is not an interval"):
            interval(wrong)


def test_epochs_are_steps_of_the_images_at_hand() -> None:
    here = Path()
    spec = Spec(here, here, here, Targets(), Data(here), Settings(accumulate=2), epochs=3, warmup=0.5,
                save_epochs=1)  # fmt: skip
    shown = order()  # 5 images of one bucket and 3 of another, in batches of 2: 5 batches
    assert shown.batches_of(3) == 15 and shown.batches_of(0.5) == 3
    found = in_steps(spec, shown)
    assert (found.settings.steps, found.settings.warmup_steps, found.save_every) == (8, 4, 3)
    assert in_steps(spec, shown, processes=2).settings.steps == 4
    with pytest.raises(UsageError, match="given twice"):
        Train(base="a", images="b", steps=5, epochs=2).check()


def test_images_are_held_back_by_the_seed() -> None:
    pictures = [Picture(Path(f"{n}.png"), (8, 8), None, regular=n > 9) for n in range(12)]
    whole = Arranged(Dataset(Path(), pictures), [(8, 8)] * 12, 8, Captioning())
    rest, held = whole.divided(0.2, seed=1)
    assert held is not None and len(held.pictures) == 2 == len(held.buckets)
    assert len(rest.pictures) == 10 and not any(p.regular for p in held.pictures)
    again = whole.divided(0.2, seed=1)[1]
    assert again is not None and again.pictures == held.pictures
    assert whole.divided(0.0, seed=1) == (whole, None)
    assert len(whole.divided(0.999, seed=1)[0].dataset.subject) == 1
    with pytest.raises(UsageError, match="cannot be divided"):
        whole._only(lambda n: n == 3).divided(0.5, 0)


def test_a_lora_starts_from_an_adapter(tmp_path: Path) -> None:
    source, other = tiny_unet(), tiny_unet()
    lm.inject_trainable_lora(source, 2, alpha=4, include=["*attn2*"])
    with torch.no_grad():
        for layer in lora_layers(source).values():
            layer.lora.up.normal_()
    lm.save_lora_weight(source, tmp_path / "a.safetensors")
    adapter = lm.load(tmp_path / "a.safetensors")
    lm.inject_trainable_lora(other, 3, preset="attn-only")
    start_from({"unet": other}, adapter)
    wanted, found = lora_layers(source), lora_layers(other)
    for name, layer in found.items():
        product = layer.lora.product()
        if name in wanted:
            own = wanted[name].lora
            assert torch.allclose(product, own.product(), atol=1e-5)
        else:
            assert not product.any()
    low, elsewhere = tiny_unet(), tiny_unet()
    lm.inject_trainable_lora(low, 1, preset="attn-only")
    with pytest.raises(UsageError, match="a higher rank"):
        start_from({"unet": low}, adapter)
    lm.inject_trainable_lora(elsewhere, 3, include=["*attn1*"])
    with pytest.raises(AdapterError, match="are not trained"):
        start_from({"unet": elsewhere}, adapter)


def test_a_run_of_epochs_validates_and_starts_from_an_earlier_one(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "targets": "attn-only",
        "epochs": 1.0,
        "validation": 0.2,
        "save_every": "1epochs",
    }
    del (params := asked(tmp_path).__dict__.copy())["steps"]
    how = params | how | {"validate_every": 2, "rank": 2}
    said: list[Any] = []
    first = train(Train(**how), Context(device="cpu", notify=said.append))
    assert first.done == first.steps == 4  # of 5 images one is held back
    log = list(read_log(tmp_path / "out-run" / "log.jsonl"))
    assert [e["step"] for e in log if "validation" in e] == [1, 3]
    assert (
        first.validation is not None and (tmp_path / "out-run" / "out-000004.safetensors").exists()
    )
    page = (tmp_path / "out-run" / "report.html").read_text("utf-8")
    assert "All settings" in page and "caption dropout" in page and "held back" in page
    assert first.json()["settings"]["lr"] == 0.01 and "epochs" in str(
        read_safetensors(tmp_path / "out.safetensors")[1]["loramerge.recipe"]
    )
    steps = [e.said for e in said if isinstance(e, Progress) and e.task == "train"]
    assert steps[3].startswith("step 4  mean loss ")
    again = how | {"init_from": str(tmp_path / "out.safetensors"), "rank": 3, "save_every": 0,
                   "output": str(tmp_path / "b.safetensors")}  # fmt: skip
    second = train(Train(**again), Context(device="cpu"))
    assert second.output is not None and "out.safetensors" in str(
        read_safetensors(Path(second.output))[1]["loramerge.recipe"]
    )


def test_the_shown_loss_is_a_running_mean() -> None:
    run: Any = SimpleNamespace(done=1, smoothed=None)
    for number, loss in enumerate((1.0, 3.0, float("nan"))):
        text = loop._said(run, loop.TrainStep(number, loss, 0.1, 1.0))
    assert "mean loss 2.0000" in text and run.smoothed == 2.0
