"""Targets, noised latents and weights against diffusers' schedulers and the papers' formulas."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")

from loramerge.errors import UsageError  # noqa: E402
from loramerge.train.models.objective import Noising  # noqa: E402

pytestmark = pytest.mark.peers
SD: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}  # fmt: skip


def scheduler(prediction: str, **options: Any) -> Any:
    return diffusers.DDPMScheduler(**SD, prediction_type=prediction, **options)


def draws() -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(4, 4, 3, 3, generator=generator) for _ in range(2))
    return latents, noise, torch.tensor([0, 10, 500, 999])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_it_is_the_schedulers(prediction: str) -> None:
    latents, noise, times = draws()
    theirs = scheduler(prediction)
    ours = Noising.of(theirs)
    assert ours.prediction == prediction
    noisy = ours.noised(latents, noise, times)
    assert torch.allclose(noisy, theirs.add_noise(latents, noise, times), atol=1e-5)
    expected = {
        "epsilon": noise, "sample": latents,
        "v_prediction": theirs.get_velocity(latents, noise, times),
    }[prediction]  # fmt: skip
    target = ours.target(latents, noise, times)
    assert torch.allclose(target, expected, atol=1e-5)
    for i, time in enumerate(times):  # a perfect model gives the latents back
        found = theirs.step(target[i : i + 1], time, noisy[i : i + 1])
        assert torch.allclose(
            found.pred_original_sample.clamp(-1, 1), latents[i].clamp(-1, 1), atol=2e-3
        )


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
def test_other_schedulers_say_the_same(name: str) -> None:
    other = getattr(diffusers, name)(**SD, prediction_type="v_prediction")
    assert torch.equal(Noising.of(other).alphas, Noising.of(scheduler("v_prediction")).alphas)


def test_min_snr_is_the_papers_and_finite_at_zero_terminal_snr() -> None:
    _, _, times = draws()
    for prediction in ("epsilon", "v_prediction", "sample"):
        noising = Noising.of(scheduler(prediction))
        found = noising.weights(times, 5.0)
        for weight, time in zip(found, times, strict=True):
            alpha = float(noising.alphas[time])
            snr = alpha / (1 - alpha)
            over = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[prediction]
            assert float(weight) == pytest.approx(min(snr, 5.0) / over, rel=1e-5)
    zero = Noising.of(scheduler("v_prediction", rescale_betas_zero_snr=True))
    assert float(zero.alphas[-1]) == 0.0
    assert torch.isfinite(zero.weights(times, 5.0)).all()
    latents, noise, _ = draws()
    last = torch.full((4,), 999)
    assert torch.equal(zero.target(latents, noise, last), -latents)
    assert torch.equal(zero.noised(latents, noise, last), noise)


def test_what_cannot_be_trained_with_is_refused() -> None:
    with pytest.raises(UsageError, match="zero terminal SNR"):
        Noising.of(scheduler("epsilon", rescale_betas_zero_snr=True))
    with pytest.raises(UsageError, match="FlowMatch"):
        Noising.of(diffusers.FlowMatchEulerDiscreteScheduler())
