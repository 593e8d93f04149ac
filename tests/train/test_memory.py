"""The predicted memory against the memory that torch allocates in the same step."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

from benchmarks.memory import (  # noqa: E402
    MODELS,
    begun,
    configured,
    measured,
    most_allocated,
    predicted,
    spec_of,
)
from loramerge.train.memory import needs as counting  # noqa: E402
from loramerge.train.memory.base import base_of  # noqa: E402
from loramerge.train.memory.estimate import shape_of  # noqa: E402
from loramerge.train.memory.held import call_peak  # noqa: E402
from loramerge.train.memory.needs import Measure  # noqa: E402
from loramerge.train.models.loading import load_pipeline  # noqa: E402
from loramerge.train.spec.spec import Samples  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.tail import first  # noqa: E402

LEAST, MOST = 0.9, 1.1
SIDE = 64
CASES = [
    ("lora", "no", False, 4, "adamw"),
    ("lora", "no", True, 1, "adafactor"),
    ("lora", "bf16", True, 4, "adamw"),
    ("dora", "no", False, 4, "adamw"),
    ("full", "no", False, 1, "adafactor"),
    ("full", "no", True, 1, "adamw"),
    ("full", "bf16", False, 4, "adamw"),
]


@cache
def base() -> Any:
    with TemporaryDirectory() as folder:
        return configured(Path(folder), MODELS["tiny"][0])


@cache
def true(*case: Any) -> int:
    torch.manual_seed(0)
    return measured(begun(spec_of(*case), base(), SIDE))


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("case", first(3, CASES), ids=lambda case: "-".join(map(str, case)))
def test_a_step_takes_what_is_predicted(case: Any) -> None:
    assert LEAST < predicted(spec_of(*case), base(), SIDE) / true(*case) < MOST


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (CASES[0], {"data": {"batch": 1}}),
        (CASES[2], {"checkpointing": False}),
        (CASES[3], {"targets": {"method": "lora"}}),
        (CASES[5], {"targets": {"method": "lora"}}),
        (CASES[5], {"settings": {"optimizer": "adafactor"}}),
    ],
    ids=["batch", "checkpointing", "magnitudes", "weights", "moments"],
)
def test_a_formula_that_forgets_something_is_far_off(case: Any, wrong: dict[str, Any]) -> None:
    """Checkpointing, the batch, DoRA's wide weights, gradients and moments of whole weights."""
    spec: Any = spec_of(*case)
    told = {
        name: replace(getattr(spec, name), **value) if isinstance(value, dict) else value
        for name, value in wrong.items()
    }
    assert not LEAST < predicted(replace(spec, **told), base(), SIDE) / true(*case) < MOST


def test_without_the_optimizers_state_it_is_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "optimizer_memory", lambda *_: (0, 0))
    assert predicted(spec_of(*CASES[5]), base(), SIDE) / true(*CASES[5]) < LEAST


def test_encoding_and_drawing_take_what_is_predicted() -> None:
    folder = pipeline_folder()
    shape = shape_of(folder)
    assert shape is not None
    foreseen, real = base_of(folder, shape).vae, load_pipeline(folder).vae
    sizes = {"encode": (1, 3, 128, 128), "decode": (1, 4, 64, 64)}
    for name, size in sizes.items():
        found = call_peak(
            [foreseen], lambda n=name, s=size: getattr(foreseen, n)(torch.zeros(s, device="meta")),
            device="cpu",
        )  # fmt: skip

        @torch.no_grad()
        def call(n: str = name, s: tuple[int, ...] = size) -> Any:
            return getattr(real, n)(torch.zeros(s))

        call()
        # a convolution on the CPU may need some room of its own
        assert 0.8 < found / most_allocated(call) < 1.25, name


@pytest.mark.long_tail
def test_phases_follow_from_what_is_asked() -> None:
    spec = replace(spec_of("lora", "no", False, 1, "adamw"), base=pipeline_folder("sdxl"))
    measure = Measure(spec, "cuda")
    choice = counting.Choice(True, "no", "adamw", 32)
    found = measure(choice)
    assert found.samples == found.encoders == 0 and measure.resolution == 32
    texts = sum(
        v.numel() * 4 for e in load_pipeline(spec.base).encoders.values() for v in e.parameters()
    )
    tags = replace(spec, data=replace(spec.data, shuffle_tags=True))
    kept = Measure(tags, "cuda")(choice)
    assert kept.encoders == texts and kept.training - found.training == texts
    trained = replace(spec, targets=replace(spec.targets, text_encoder=True))
    assert Measure(trained, "cuda")(choice).training > kept.training
    drawn = Measure(replace(spec, samples=Samples(sample_every=5)), "cuda")(choice)
    assert drawn.samples > 0 and drawn.training == found.training
    # a CPU holds all that is loaded, a GPU a context beside
    assert Measure(spec, "cpu")(choice).images > found.images - counting._OVERHEAD["cuda"]
    assert found.peak == max(found.images, found.texts, found.training)
    # attention without a kernel of its own keeps its scores
    assert Measure(spec, "mps")(choice).training > found.training - counting._OVERHEAD["cuda"]
    # under autocast on CUDA norms are float32
    half = replace(choice, precision="bf16", checkpointing=False)
    cuda, cpu = (Measure(spec, name)(half).training for name in ("cuda", "cpu"))
    assert cuda - counting._OVERHEAD["cuda"] > cpu - sum(
        v.numel() * 4 for v in load_pipeline(spec.base).vae.parameters()
    )
