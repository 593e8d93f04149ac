"""The audit stops a run whose modules do not learn, and names them; it lets every sound run pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")

import loramerge as lm  # noqa: E402
from loramerge.errors import GradientFlowError  # noqa: E402
from loramerge.train.lora.audit import GradientAudit  # noqa: E402
from loramerge.train.lora.causes import block_of  # noqa: E402
from tests.builders.models import images, small  # noqa: E402

nn = torch.nn


def run(
    model: Any, loss: Callable[[int], Any], steps: int = 5, *, lrs: Any = None, **options: Any
) -> tuple[GradientAudit, int]:
    """Train; return the audit, and after how many steps it was done."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    audit = GradientAudit(model, optimizer, **options)
    done = 0
    for step in range(steps):
        if lrs is not None:
            optimizer.param_groups[0]["lr"] = lrs[step]
        loss(step).backward()
        audit.after_backward()
        done = done or (step + 1 if audit.done else 0)
        optimizer.step()
        optimizer.zero_grad()
    return audit, done


def simple(model: Any) -> Callable[[int], Any]:
    return lambda step: model(images(step)).square().mean()


def injected(**options: Any) -> Any:
    model = small()
    lm.inject_trainable_lora(model, 2, **{"preset": "full", **options})
    return model


# --- sound runs --------------------------------------------------------------------------------


def test_a_sound_run_is_done_after_two_steps() -> None:
    model = injected()
    audit, done = run(model, simple(model))
    assert done == 2
    audit.after_training()


def test_up_alone_has_a_gradient_in_the_first_step() -> None:
    model = injected()
    simple(model)(0).backward()
    branches = [m.lora for m in model.modules() if hasattr(m, "lora")]
    assert all(b.up.grad.any() and not b.down.grad.any() for b in branches)


def test_steps_of_a_warm_up_at_nought_do_not_count() -> None:
    model = injected()
    _, done = run(model, simple(model), 7, lrs=[0, 0, 0, 0, 1e-3, 1e-3, 1e-3])
    assert done == 6


def test_what_is_allowed_to_stay_silent_may() -> None:
    model = injected()
    head = model.head
    model.head = nn.Identity()
    model.unused = head
    with pytest.raises(GradientFlowError):
        run(model, simple(model))
    model.zero_grad()
    assert run(model, simple(model), allow=["unused"])[0].done


# --- what must stop ----------------------------------------------------------------------------


def test_a_module_that_is_not_used_is_named_with_its_block() -> None:
    model = injected()
    model.blocks[1].to_k.forward = lambda x: x  # nothing reaches the layer any more
    with pytest.raises(GradientFlowError) as error:
        run(model, simple(model))
    assert error.value.modules == ("blocks.1.to_k",) and error.value.exit_code == 7
    assert str(error.value) == (
        "1 of 9 modules do not learn: both halves had no gradient in 3 steps\n"
        "  expected: a gradient in both halves of every module\n"
        "  found: \n    blocks.1: 1 of 3 modules: to_k\n"
        "  hint: the forward pass does not use these layers, or uses their weights without calling "
        "them (fused projections, layers after a CLIP skip): leave them out with exclude="
    )


def test_it_stops_in_the_third_step_and_not_before() -> None:
    model = injected()
    model.blocks[1].to_k.forward = lambda x: x
    seen: list[int] = []
    loss = simple(model)
    with pytest.raises(GradientFlowError):
        run(model, lambda step: seen.append(step) or loss(step))
    assert seen == [0, 1, 2]


def test_a_loss_that_reaches_nothing() -> None:
    model = injected()
    zero = nn.Parameter(torch.zeros(()))
    with pytest.raises(GradientFlowError, match="9 of 9") as error:
        run(model, lambda step: simple(model)(step).detach() + zero)
    assert "torch.no_grad, detach" in str(error.value) and len(error.value.modules) == 9


def test_a_branch_masked_to_zero_has_a_gradient_of_zero() -> None:
    model = injected()
    block = model.blocks[0]
    block.forward = lambda x: 0.0 * type(block).forward(block, x)
    with pytest.raises(GradientFlowError, match="both halves had a gradient of zero") as error:
        run(model, simple(model))
    assert set(error.value.modules) == {f"blocks.0.{n}" for n in ("to_q", "to_k", "to_out.0")}
    assert "blocks.0: all 3 modules" in str(error.value)
    assert "checkpoint" not in str(error.value)


def test_an_optimizer_that_does_not_step() -> None:
    model = injected()
    audit = GradientAudit(model)
    with pytest.raises(GradientFlowError, match="the half down had a gradient of zero") as error:
        for step in range(3):
            simple(model)(step).backward()
            audit.after_backward()
    assert "the optimizer does not change it" in str(error.value)


def test_nan_stops_at_once_and_the_weight_that_holds_it_is_named() -> None:
    model = injected()
    with torch.no_grad():
        model.blocks[0].to_q.weight[0, 0] = float("nan")
    seen: list[int] = []
    loss = simple(model)
    with pytest.raises(GradientFlowError, match="NaN or infinity in the gradients") as error:
        run(model, lambda step: seen.append(step) or loss(step))
    assert seen == [0] and "holds NaN or infinity: blocks.0.to_q.weight" in str(error.value)


def test_overflows_of_a_scaler_are_passed_over_but_not_for_ever() -> None:
    model = injected()

    def loss(step: int) -> Any:
        return simple(model)(step) * (float("inf") if step < 2 else 1.0)

    def train(overflows: int) -> GradientAudit:
        lm.remove_lora(model)
        lm.inject_trainable_lora(model, 2, preset="full")
        audit = GradientAudit(model, overflows=overflows)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        for step in range(5):
            loss(step).backward()
            audit.after_backward()
            if step >= 2:
                optimizer.step()
            optimizer.zero_grad()
        return audit

    assert train(2).done
    with pytest.raises(GradientFlowError, match="NaN or infinity") as error:
        train(1)
    assert "latents" in str(error.value)


# --- before the first step ---------------------------------------------------------------------


def test_what_cannot_learn_is_said_before_the_first_step() -> None:
    model = injected()
    parameters = [p for p in model.parameters() if p.requires_grad]
    with pytest.raises(
        GradientFlowError, match="1 of 9 modules cannot learn: they are not in"
    ) as e:
        GradientAudit(model, torch.optim.SGD(parameters[:-1], 0.1))
    assert e.value.modules == ("head",)
    twice = torch.optim.SGD(parameters, 0.1)
    twice.param_groups.append({**twice.param_groups[0], "params": parameters[:2]})
    with pytest.raises(GradientFlowError, match="more than once"):
        GradientAudit(model, twice)
    model.head.lora.up.data = model.head.lora.up.data.half()
    with pytest.raises(GradientFlowError, match="narrower than float32"):
        GradientAudit(model)
    model = injected()
    model.head.lora.to("meta")
    with pytest.raises(GradientFlowError, match="another device"):
        GradientAudit(model)
    model = injected()
    model.requires_grad_(False)
    with pytest.raises(GradientFlowError, match="9 of 9 modules cannot learn: they are frozen"):
        GradientAudit({"unet": model})


def test_a_made_optimizer_is_one_of_lists() -> None:
    """What the generators of 2022 gave was empty the second time; a list is not."""
    model = small()
    parameters = list(chain(*lm.inject_trainable_lora(model, 2)[0]))
    optimizer = torch.optim.AdamW(parameters)
    GradientAudit(model, optimizer)
    simple(model)(0).backward()
    for p in parameters:
        p.grad.mul_(1e4) if p.grad is not None else None
    before = nn.utils.clip_grad_norm_(parameters, 1.0)
    after = sum(p.grad.square().sum() for p in parameters if p.grad is not None) ** 0.5
    assert before > 1 and after <= 1.0001


# --- at the end --------------------------------------------------------------------------------


def test_training_that_changed_nothing_is_told() -> None:
    model = injected()
    audit, _ = run(model, simple(model), 0)
    with pytest.raises(GradientFlowError, match="changed nothing in 9 of 9") as error:
        audit.after_training()
    assert "learning rate" in str(error.value) and len(error.value.modules) == 9


def test_one_module_that_stayed_is_named() -> None:
    model = injected()
    audit, _ = run(model, simple(model))
    model.blocks[0].to_q.lora.reset()
    with pytest.raises(GradientFlowError, match="in 1 of 9 modules") as error:
        audit.after_training()
    assert error.value.modules == ("blocks.0.to_q",)


def test_a_resumed_lora_that_stays_is_told_too() -> None:
    model = injected()
    run(model, simple(model))
    audit, _ = run(model, simple(model), 0)
    with pytest.raises(GradientFlowError, match="changed nothing in 9 of 9"):
        audit.after_training()


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("unet.down_blocks.0.attentions.1.to_q", "unet.down_blocks.0"),
        ("unet.mid_block.attentions.0.to_q", "unet.mid_block"), ("mid_block.a.0.b", "mid_block"),
        ("text_encoder.text_model.encoder.layers.3.q_proj", "text_encoder.text_model.encoder.layers.3"),
        ("transformer_blocks.11.attn.to_q", "transformer_blocks.11"), ("conv_in", "conv_in"),
    ],
)  # fmt: skip
def test_blocks_by_name(name: str, block: str) -> None:
    assert block_of(name) == block
