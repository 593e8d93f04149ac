"""Optimizers by name, rates of groups, the running mean, curves of the report, and estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge.errors import GradientFlowError, MissingExtra, UsageError  # noqa: E402
from loramerge.report.document import Report, Section  # noqa: E402
from loramerge.report.page import page  # noqa: E402
from loramerge.report.results.train import curve  # noqa: E402
from loramerge.train.lora.trainees import Branches, Weights  # noqa: E402
from loramerge.train.memory.estimate import estimate, shape_of  # noqa: E402
from loramerge.train.models.objective import Noising  # noqa: E402
from loramerge.train.run.loop import advance, averaged, begin  # noqa: E402
from loramerge.train.spec.optimizers import make_optimizer  # noqa: E402
from loramerge.train.spec.settings import Settings  # noqa: E402
from loramerge.train.spec.spec import Data, Spec, Targets  # noqa: E402
from tests.builders.pipelines import pipeline_folder  # noqa: E402
from tests.builders.unets import tiny_unet  # noqa: E402
from tests.train.test_loop import examples, shuffled  # noqa: E402
from tests.train.test_objective import scheduler  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


def groups() -> list[dict[str, Any]]:
    return [{"params": [torch.zeros(2, requires_grad=True)], "factor": 1.0}]


def test_optimizers() -> None:
    named = make_optimizer(Settings(lr=1e-3, weight_decay=0.5), groups())
    assert type(named) is torch.optim.AdamW and named.param_groups[0]["weight_decay"] == 0.5
    path = Settings(optimizer="torch.optim.SGD", optimizer_options=(("momentum", 0.9),))
    assert make_optimizer(path, groups()).param_groups[0]["momentum"] == 0.9
    with pytest.raises(UsageError, match="did you mean adamw"):
        make_optimizer(Settings(optimizer="adamw8"), groups())
    with pytest.raises(UsageError, match="no such optimizer"):
        make_optimizer(Settings(optimizer="torch.optim.Nothing"), groups())
    with pytest.raises(MissingExtra, match="cannot be imported") as caught:
        make_optimizer(Settings(optimizer="prodigy_of_nobody.Prodigy"), groups())
    assert caught.value.hint == "pip install prodigy_of_nobody"
    with pytest.raises(UsageError, match="refuses its options"):
        make_optimizer(Settings(optimizer_options=(("eps", -1.0),)), groups())


def test_rates_of_groups() -> None:
    unet = tiny_unet()
    groups, _ = lm.inject_trainable_lora(unet, 2, include=["*attn2.to_q"])
    run = begin(unet, Noising.of(scheduler("epsilon")), shuffled(examples(), 2),
                Settings(steps=2, lr=1e-3, lora_plus=4.0, schedule="constant"))  # fmt: skip
    advance(run, 1)
    rates = {id(p): g["lr"] for g in run.optimizer.param_groups for p in g["params"]}
    downs, ups = zip(*groups, strict=True)
    assert {rates[id(p)] for p in downs} == {1e-3} and {rates[id(p)] for p in ups} == {4e-3}
    both = Branches({"unet": unet, "text_encoder": unet})
    text = both.groups(Settings(lr=1e-3, text_lr=2e-4))
    assert sorted(g["factor"] for g in text) == pytest.approx([0.2, 1.0])


def test_the_running_mean_stands_in_and_steps_back() -> None:
    unet = tiny_unet()
    lm.inject_trainable_lora(unet, 2, include=["*attn2.to_q"])
    settings = Settings(steps=6, lr=1e-2, ema=0.5)
    run = begin(unet, Noising.of(scheduler("epsilon")), shuffled(examples(), 2), settings)
    mean = [p.detach().clone() for p in run.parameters]
    for step in range(6):
        advance(run, step + 1)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = [m.lerp(p.detach(), 1 - decay) for m, p in zip(mean, run.parameters, strict=True)]
    last = [p.detach().clone() for p in run.parameters]
    with averaged(run):
        assert all(torch.allclose(p, m) for p, m in zip(run.parameters, mean, strict=True))
        assert not torch.equal(run.parameters[1], last[1])
    assert all(torch.equal(p, v) for p, v in zip(run.parameters, last, strict=True))


def test_weights_that_do_not_learn_are_named() -> None:
    unet = tiny_unet()
    weights = Weights(unet, ["up_blocks.1"])
    assert all(name.startswith("up_blocks.1.") for name in weights.names)
    assert {n for n, p in unet.named_parameters() if p.requires_grad} == set(weights.names)
    audit = weights.audit(None)
    with pytest.raises(GradientFlowError, match="no gradient in 3 steps") as caught:
        for _ in range(3):
            loss = sum(p.square().sum() for n, p in unet.named_parameters()
                       if p.requires_grad and "attn1.to_q" not in n)  # fmt: skip
            loss.backward()
            audit.after_backward()
    assert all("attn1.to_q" in name for name in caught.value.modules)
    with pytest.raises(GradientFlowError, match="changed nothing"):
        audit.after_training()
    with pytest.raises(UsageError, match="did you mean up_blocks"):
        Weights(tiny_unet(), ["up_block"])


def test_a_page_stands_alone_and_escapes() -> None:
    sections = [Section("x & y", [curve([3.0, 1.0, 2.0], "<loss>")]), Section("empty", [])]
    text = page(Report("<a>", "", sections)).decode()
    assert "&lt;a&gt;" in text and "x &amp; y" in text and "empty" not in text
    assert (
        text.count('class="faint"') == text.count('class="line l0"') == 1 and "&lt;loss&gt;" in text
    )
    assert not curve([1.0], "x")
    long = [Section("x", [curve([float(n % 7) for n in range(5000)], "x")])]
    assert len(page(Report("x", "", long))) - len(page(Report("x"))) < 40_000


@pytest.mark.long_tail
def test_estimates_grow_with_what_is_asked() -> None:
    shape = shape_of(pipeline_folder("sdxl"))
    assert shape is not None and (shape.factor, shape.unit, shape.resolution) == (2, 4, 32)
    assert shape_of(Path("nothing")) is None

    def asked(size: int = 32, **how: Any) -> Any:
        batch = how.pop("batch", 1)
        spec = Spec(
            Path("b"), Path("f"), Path("c"), Targets(**how), Data(Path("p"), batch=batch),
            Settings(steps=10),
        )  # fmt: skip
        return estimate(spec, shape, (size, size), torch.device("cpu"))

    plain = asked()
    assert asked(64).operations > 3 * plain.operations
    assert asked(rank=4).parameters < plain.parameters
    assert asked(method="full").parameters > asked(method="blocks:up_blocks").parameters
