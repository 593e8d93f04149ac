"""The same seed gives what PEFT gives: values, outputs, gradients, training, merged weights."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")

import loramerge as lm  # noqa: E402
from tests.builders.models import images, small  # noqa: E402

pytestmark = pytest.mark.peers

TARGETS = ["to_q", "to_k", "to_out.0", "head", "conv1", "conv2"]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kaiming": ({}, {}),
    "gaussian": ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
    "rslora": ({"rslora": True}, {"use_rslora": True}),
    "dropout": ({"dropout_p": 0.3}, {"lora_dropout": 0.3}),
    "patterns": (
        {"rank_pattern": {"*.to_q": 3}, "alpha_pattern": {"*conv1": 5.0}},
        {"rank_pattern": {"to_q": 3}, "alpha_pattern": {"conv1": 5.0}},
    ),
}


def both(case: str) -> tuple[Any, Any]:
    # PEFT's convolutions forget the layer's padding mode
    ours, theirs = small(padding="zeros"), small(padding="zeros")
    mine, other = CASES[case]
    torch.manual_seed(11)
    lm.inject_trainable_lora(ours, 2, alpha=3.0, **{"include": [f"*{t}" for t in TARGETS], **mine})
    torch.manual_seed(11)
    config = peft.LoraConfig(r=2, lora_alpha=3.0, target_modules=TARGETS, **other)
    return ours, peft.get_peft_model(theirs, config)


def pairs(ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    """(name, our half, PEFT's half) of every module."""
    found = []
    for name, layer in theirs.base_model.model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            branch = ours.get_submodule(name).lora
            found.append((f"{name} down", branch.down, layer.lora_A["default"].weight))
            found.append((f"{name} up", branch.up, layer.lora_B["default"].weight))
    return found


def train(model: Any, parameters: list[Any], steps: int) -> list[Any]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    outputs = []
    for step in range(steps):
        torch.manual_seed(100 + step)  # for dropout
        out = model(images(step))
        outputs.append(out.detach())
        optimizer.zero_grad()
        (out - 1).square().mean().backward()
        optimizer.step()
    return outputs


@pytest.mark.parametrize("case", CASES)
def test_values_outputs_gradients_and_training_are_equal(case: str) -> None:
    ours, theirs = both(case)
    found = pairs(ours, theirs)
    assert len(found) == 18 and all(torch.equal(mine, other) for _, mine, other in found)
    first = train(ours, [mine for _, mine, _ in found], 4)
    second = train(theirs, [other for _, _, other in found], 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for name, mine, other in found:
        assert torch.equal(mine.grad, other.grad) and torch.equal(mine, other), name
        assert mine.grad.any()


@pytest.mark.parametrize("case", ["kaiming", "rslora", "patterns"])
def test_merged_weights_are_equal(case: str) -> None:
    ours, theirs = both(case)
    train(ours, [mine for _, mine, _ in pairs(ours, theirs)], 3)
    for _, mine, other in pairs(ours, theirs):
        other.data.copy_(mine.data)
    lm.collapse_lora(ours)
    merged = theirs.merge_and_unload().state_dict()
    mine = ours.state_dict()
    assert list(mine) == list(merged)
    assert all(torch.allclose(mine[n], merged[n], rtol=0, atol=1e-7) for n in mine)
    changed = sum(not torch.equal(mine[n], small(padding="zeros").state_dict()[n]) for n in mine)
    assert changed == 9


def test_another_seed_or_scale_would_be_seen() -> None:
    ours, theirs = both("kaiming")
    again, _ = both("gaussian")
    assert not any(torch.equal(a, b) for n, a, b in pairs(again, theirs) if n.endswith("down"))
    lm.tune_lora_scale(ours, 1.5)
    found = pairs(ours, theirs)
    first = train(ours, [mine for _, mine, _ in found], 2)
    second = train(theirs, [other for _, _, other in found], 2)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
