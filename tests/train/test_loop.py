"""The loop learns, clips, repeats itself, and goes on after a stop bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

import loramerge as lm  # noqa: E402
from loramerge.errors import (  # noqa: E402
    AdapterError,
    CorruptFile,
    GradientFlowError,
    MissingFile,
    NumericsError,
    UsageError,
)
from loramerge.train.models.objective import Noising  # noqa: E402
from loramerge.train.run import loop  # noqa: E402
from loramerge.train.run.batches import Batch, shuffled  # noqa: E402
from loramerge.train.run.loop import Run, TrainStep, advance, begin  # noqa: E402
from loramerge.train.run.resume import load_state, run_header, save_state  # noqa: E402
from loramerge.train.spec.settings import Settings, learning_rate  # noqa: E402
from tests.builders.unets import checkpoint_as_in_2022, tiny_unet  # noqa: E402
from tests.train.test_objective import scheduler  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
SHORT = Settings(steps=6, lr=1e-2, warmup_steps=2)


def examples(count: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(
        torch.randn(count, 4, 8, 8, generator=generator) * 0.1,
        torch.randn(count, 5, 12, generator=generator),
    )


def fresh(
    settings: Settings = SHORT, prediction: str = "epsilon", dtype: Any = None, **how: Any
) -> Run:
    unet = tiny_unet()
    if dtype is not None:
        unet.to(dtype)
    torch.manual_seed(1)
    lm.inject_trainable_lora(unet, 2, **{"include": ["*attn2.to_q", "*ff.net.2"], **how})
    noising = Noising.of(scheduler(prediction))
    return begin(unet, noising, shuffled(examples(), 3, settings.seed), settings)


def values(run: Run) -> list[Any]:
    moments = [
        value for state in run.optimizer.state.values() for _, value in sorted(state.items())
    ]
    return [p.detach().clone() for p in run.parameters] + [
        torch.as_tensor(m).clone() for m in moments
    ]


def same(first: Run, second: Run) -> bool:
    a, b = values(first), values(second)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_learns() -> None:
    run = fresh(Settings(steps=30, lr=2e-2, schedule="constant"), preset="full", include=())
    steps: list[TrainStep] = []
    before = torch.get_rng_state()
    advance(run, on_step=steps.append)
    assert torch.equal(before, torch.get_rng_state())
    assert [step.number for step in steps] == list(range(30)) and run.audit.done
    first, last = (sum(s.loss for s in part) for part in (steps[:8], steps[-8:]))
    assert last < 0.8 * first
    assert all(not p.requires_grad for n, p in run.denoiser.named_parameters() if ".lora." not in n)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "dropout": ({}, {"dropout_p": 0.2}),
    "min-SNR, offset, v": ({"min_snr": 5.0, "noise_offset": 0.1}, {"prediction": "v_prediction"}),
    "bfloat16 base": ({}, {"dtype": torch.bfloat16}),
}


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(case: str, tmp_path: Path) -> None:
    asked, how = CASES[case]
    settings = replace(SHORT, **asked)
    whole = advance(fresh(settings, **how))
    half = advance(fresh(settings, **how), 3)
    save_state(half, tmp_path / "state.pt")
    torch.manual_seed(12345)
    again = load_state(fresh(settings, **how), tmp_path / "state.pt")
    assert again.done == 3 and same(again, half)
    advance(again)
    assert same(again, whole) and again.done == 6
    assert not same(half, whole)


def test_another_seed_is_another_run() -> None:
    assert same(advance(fresh(), 2), advance(fresh(), 2))
    assert not same(advance(fresh(), 2), advance(fresh(replace(SHORT, seed=1)), 2))


def test_clipping_clips() -> None:
    free, held = (
        fresh(replace(SHORT, max_grad_norm=0.0)),
        fresh(replace(SHORT, max_grad_norm=1e-3)),
    )
    norms: dict[int, list[float]] = {}
    for index, run in enumerate((free, held)):
        advance(run, 1, on_step=lambda step, i=index: norms.setdefault(i, []).append(step.norm))
    assert norms[0] == norms[1] and norms[0][0] > 1e-3
    after = [torch.stack([p.grad.norm() for p in r.parameters]).norm() for r in (free, held)]
    assert float(after[0]) == pytest.approx(norms[0][0], rel=1e-5)
    assert float(after[1]) <= 1e-3 * (1 + 1e-5)


def test_the_rate_rises_and_falls_as_told() -> None:
    settings = Settings(steps=10, lr=1.0, warmup_steps=4, schedule="linear")
    rates = [learning_rate(settings, n) for n in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[5:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    cosine = [learning_rate(replace(settings, schedule="cosine"), n) for n in range(10)]
    assert cosine[7] == pytest.approx(0.5) and sorted(cosine[4:], reverse=True) == cosine[4:]
    assert min(rates + cosine) > 0
    assert learning_rate(replace(settings, schedule="constant"), 9) == 1.0
    seen: list[float] = []
    advance(fresh(), 3, on_step=lambda step: seen.append(step.rate))
    assert seen == [learning_rate(SHORT, n) for n in range(3)]


def test_every_example_counts_alike_and_order_changes() -> None:
    marked = Batch(torch.arange(5.0).reshape(5, 1, 1, 1), torch.zeros(5, 1, 1))
    batches = shuffled(marked, 2)
    seen = [int(v) for n in range(10) for v in batches(n).latents.flatten()]
    assert all(sorted(seen[i : i + 5]) == list(range(5)) for i in range(0, 20, 5))
    assert len({tuple(seen[i : i + 5]) for i in range(0, 20, 5)}) > 1
    assert batches(3).latents.flatten().tolist() == [float(v) for v in seen[6:8]]  # any order


def test_sdxl_gets_its_pooled_text_and_sizes() -> None:
    from tests.peers.test_diffusers_loads import unet_of

    unet = unet_of("sdxl")
    lm.inject_trainable_lora(unet, 2, include=["up_blocks.1.*attn2.to_q"])
    base = examples(2)
    full = replace(base, pooled=torch.randn(2, 16), time_ids=torch.ones(2, 4))
    noising = Noising.of(scheduler("epsilon"))
    run = begin(unet, noising, shuffled(full, 2), replace(SHORT, steps=3))
    assert advance(run).done == 3
    other = replace(full, pooled=full.pooled + 1)
    losses: list[float] = []
    for examples_ in (full, other):
        now = begin(unet, noising, shuffled(examples_, 2), SHORT)
        advance(now, 1, on_step=lambda step: losses.append(step.loss))
    assert losses[0] != losses[1]


def test_cut_gradients_stop_it_in_the_third_step() -> None:
    run = fresh(preset="attn", include=())
    checkpoint_as_in_2022(run.denoiser)
    with pytest.raises(GradientFlowError, match="down_blocks"):
        advance(run)
    assert run.done == 2


def test_steps_that_are_not_finite_are_skipped_some_times_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loop._MOST_SKIPPED == 10
    monkeypatch.setattr(loop, "_MOST_SKIPPED", 3)
    run = fresh(replace(SHORT, steps=24, warmup_steps=0))
    advance(run, 4)
    good = run.batches
    run.batches = lambda n: good(n).mapped(lambda v: v * float("nan"))
    kept, steps = values(run), []
    advance(run, 6, on_step=steps.append)
    assert all(step.skipped for step in steps) and run.skipped == 2
    assert all(torch.equal(a, b) for a, b in zip(values(run), kept, strict=True))
    every_other = lambda n: run_batches(n) if n % 2 else good(n)  # noqa: E731
    run_batches, run.batches = run.batches, every_other
    advance(run, 16)  # five more, none after another
    assert run.skipped == 7
    run.batches = run_batches
    with pytest.raises(NumericsError, match="the gradients of 4 steps in a row were not finite"):
        advance(run)


def test_every_image_weighs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = examples(3)
    parts = [whole.mapped(lambda v: v[:2]), whole.mapped(lambda v: v[2:])]

    def draws(run: Any, number: int, latents: Any) -> tuple[Any, Any]:
        return torch.ones_like(latents), torch.full((len(latents),), 300)

    monkeypatch.setattr(loop, "_draws", draws)
    found = []
    for batches, accumulate in ((lambda n: whole, 1), (lambda n: parts[n % 2], 2)):
        run = fresh(replace(SHORT, accumulate=accumulate, max_grad_norm=0.0))
        run.batches = batches
        advance(run, 1, on_step=found.append)
    one, other = found
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert other.norm == pytest.approx(one.norm, rel=1e-3)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="warmup_steps 9, schedule cosin"):
        Settings(steps=9, warmup_steps=9, schedule="cosin")  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="has no LoRA"):
        begin(tiny_unet(), Noising.of(scheduler("epsilon")), shuffled(examples(), 2))
    with pytest.raises(MissingFile):
        load_state(fresh(), tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(CorruptFile):
        load_state(fresh(), tmp_path / "bad.pt")
    save_state(fresh(), tmp_path / "state.pt")
    with pytest.raises(UsageError, match="another lr"):
        load_state(fresh(replace(SHORT, steps=9, lr=1e-3)), tmp_path / "state.pt")
    with pytest.raises(UsageError, match="other modules"):
        load_state(fresh(include=["*attn2.to_q"]), tmp_path / "state.pt")


def test_a_rate_that_cannot_learn_is_warned_about_and_the_header_tells_the_run() -> None:
    said: list[Any] = []
    unet = fresh().denoiser
    settings = Settings(lr=2e-6)
    run = begin(unet, Noising.of(scheduler("epsilon")), shuffled(examples(), 2), settings,
                notify=said.append)  # fmt: skip
    assert "hardly moves at a learning rate of 2e-06" in said[0].text
    header = run_header(run)
    assert header["ss_learning_rate"] == "2e-06" and header["ss_min_snr_gamma"] == "None"
    assert all(isinstance(value, str) for value in header.values())


def test_a_state_written_with_former_names_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    run = advance(fresh(replace(SHORT, max_grad_norm=0.0)), 2)
    save_state(run, path)
    state = torch.load(path, weights_only=True)
    former = {
        "lr": "rate", "text_lr": "text_rate", "warmup_steps": "warmup", "weight_decay": "decay",
        "max_grad_norm": "clip", "optimizer_options": "options", "lora_plus": "plus",
    }  # fmt: skip
    state["settings"] = {former.get(n, n): v for n, v in state["settings"].items()} | {"clip": None}
    torch.save(state, path)
    assert load_state(fresh(replace(SHORT, max_grad_norm=0.0)), path).done == 2
