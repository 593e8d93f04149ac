"""The fault of December 2022 in a UNet of today: checkpoints cut the gradients of the down blocks."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge.errors import GradientFlowError  # noqa: E402
from tests.builders.unets import checkpoint_as_in_2022, loss_of, tiny_unet  # noqa: E402
from tests.train.test_audit import run  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


def unet(**options: Any) -> tuple[Any, list[str]]:
    model = tiny_unet()
    _, names = lm.inject_trainable_lora(model, 2, **options)
    return model, names


def test_reentrant_checkpoints_stop_the_run_within_three_steps_and_the_cut_modules_are_named() -> (
    None
):
    model, names = unet()
    checkpoint_as_in_2022(model)
    losses: list[float] = []

    def loss(step: int) -> Any:
        found = loss_of(model, step)
        losses.append(float(found.detach()))
        return found

    with pytest.raises(GradientFlowError) as error:
        run(model, loss, 10)
    assert len(losses) <= 3
    down = [name for name in names if name.startswith("down_blocks.")]
    assert list(error.value.modules) == down and 0 < len(down) < len(names)
    said = str(error.value)
    assert "down_blocks.0: all 9 modules" in said and "down_blocks.1: all 9 modules" in said
    assert "mid_block" not in said and "up_blocks" not in said
    assert "use_reentrant=False" in said


def test_the_cut_is_there_without_the_audit() -> None:
    """So that the test above tests what it says: the loss falls, the down blocks never move."""
    model, names = unet()
    checkpoint_as_in_2022(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(6):
        loss = loss_of(model)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    still = [n for n in names if not model.get_submodule(n).lora.up.any()]
    assert still == [n for n in names if n.startswith("down_blocks.")]


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize(
    "case",
    ["plain", "not reentrant", "inputs need gradients", "proj_in learns before the checkpoint"],
)
def test_sound_ways_of_training_pass(case: str) -> None:
    model, _ = unet(preset="attn-ff" if case.startswith("proj_in") else "attn")
    if case == "not reentrant":
        model.enable_gradient_checkpointing()
        model.train()
    if case in ("inputs need gradients", "proj_in learns before the checkpoint"):
        checkpoint_as_in_2022(model)
    needs = case == "inputs need gradients"
    audit, done = run(model, lambda step: loss_of(model, step, latents_need_gradient=needs), 4)
    assert done == 2
    audit.after_training()


def test_detached_text_states_are_told() -> None:
    model, names = unet(preset="attn")
    for name, module in model.named_modules():
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            module.register_forward_hook(lambda _m, _i, out: out.detach())
    with pytest.raises(GradientFlowError) as error:
        run(model, lambda step: loss_of(model, step))
    cut = [n for n in names if n.endswith(("attn2.to_k", "attn2.to_v"))]
    assert list(error.value.modules) == cut
    assert "text states" in str(error.value)
