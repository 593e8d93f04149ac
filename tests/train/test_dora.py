"""DoRA as PEFT trains it, in files that every kind's oracle reads, and merged."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

import loramerge as lm  # noqa: E402
from loramerge.errors import AdapterError, UsageError  # noqa: E402
from tests.builders.models import images, small  # noqa: E402

CHOICE = {"include": ["*to_q", "*to_k", "stem.conv1", "head"]}


def trained(steps: int = 4, **how: Any) -> Any:
    model = small(padding="zeros")
    torch.manual_seed(1)
    groups, _ = lm.inject_trainable_lora(model, 2, alpha=3.0, decompose=True, **CHOICE, **how)
    optimizer = torch.optim.AdamW(chain(*groups), lr=1e-2)
    for _ in range(steps):
        (model(images()) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def out(model: Any) -> Any:
    return model(images())


def test_it_begins_as_the_base_and_learns_in_all_parts() -> None:
    model = small(padding="zeros")
    base = out(model)
    torch.manual_seed(1)
    groups, names = lm.inject_trainable_lora(model, 2, decompose=True, **CHOICE)
    parameters = list(chain(*groups))
    assert len(parameters) == 3 * len(names)
    assert torch.allclose(out(model), base, atol=1e-6)
    moved = trained()
    assert not torch.allclose(out(moved), base, atol=1e-2)
    for a, b in zip(parameters, (p for p in moved.parameters() if p.requires_grad), strict=True):
        assert a.shape == b.shape and not torch.equal(a, b)
    with pytest.raises(UsageError, match="DoRA takes no dropout"):
        lm.inject_trainable_lora(small(), 2, decompose=True, dropout_p=0.1)


def test_peft_trains_the_same(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ours = trained()
    model = small(padding="zeros")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=3, use_dora=True,
                             target_modules=r".*to_q|.*to_k|stem\.conv1|head")  # fmt: skip
    theirs = peft.get_peft_model(model, config)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(4):
        (theirs(images()) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(out(ours), out(theirs), atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_file_means_what_the_model_does(rslora: bool, tmp_path: Path) -> None:
    model = trained(rslora=rslora)
    path = tmp_path / "dora.safetensors"
    lm.save_lora_weight({"unet": model}, path)
    adapter = lm.load(path)
    assert adapter.kinds() == {"dora": 6} and not adapter.info.account.unknown
    base = dict(small(padding="zeros").named_parameters())
    merged = copy.deepcopy(model)
    lm.collapse_lora(merged)
    assert torch.allclose(out(merged), out(model), atol=1e-5)
    for name, delta in adapter.modules():
        name = f"{name.removeprefix('unet.')}.weight"
        before, after = (
            w.detach().double().numpy() for w in (base[name], merged.get_parameter(name))
        )
        assert abs(delta.dense(before) - (after - before)).max() < 1e-6


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_a_weight_interpolates(weight: float, tmp_path: Path) -> None:
    model = trained()
    lm.tune_lora_scale(model, weight)
    if weight == 0.0:
        assert torch.equal(out(model), out(small(padding="zeros")))
        return
    with pytest.raises(AdapterError, match="cannot be stored at a weight other than 1"):
        lm.save_lora_weight({"unet": model}, tmp_path / "x.safetensors")
    half = out(model)
    lm.collapse_lora(model)
    assert torch.allclose(out(model), half, atol=1e-5)
