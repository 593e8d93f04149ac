"""The training objective of a denoiser: noised latents, the target, and the weight of each time step.

Everything follows from the scheduler: its `alphas_cumprod` ᾱ (zero-terminal if it rescales them) and
its `prediction_type`. With x₀ the latents and ε the noise, `x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε`.

In a rectified flow `x_t = (1 − σ) x₀ + σ ε`, and the target is ε − x₀.

Source: Ho et al., DDPM (arXiv:2006.11239), equation 4; Salimans and Ho (arXiv:2202.00512), section 4,
for v; Hang et al., min-SNR (arXiv:2303.09556), section 3.4; Lin et al. (arXiv:2305.08891) for zero
terminal SNR; Esser et al. (arXiv:2403.03206), section 3.1, for flows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from loramerge.errors import UsageError
from loramerge.train.spec.timesteps import Timesteps

__all__ = ["Flow", "Noising", "Objective"]

_PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Objective(Protocol):
    """The training objective, as the loop uses it.

    Times are whole numbers that count the steps of a schedule, `(n,)`.
    """

    @property
    def prediction(self) -> str:
        """The prediction type, as diffusers names it."""

    def drawn(self, count: int, generator: Any, among: Timesteps | None = None) -> Any:
        """Return random times, int64, on the CPU.

        Args:
            among: their distribution; None: the usual one.
        """

    def told(self, times: Any) -> Any:
        """Return the times as inputs of the denoiser."""

    def noised(self, latents: Any, noise: Any, times: Any) -> Any:
        """Return the latents with noise of these times."""

    def target(self, latents: Any, noise: Any, times: Any) -> Any:
        """Return the target of a prediction."""

    def weights(self, times: Any, gamma: float) -> Any:
        """Return the min-SNR weight of each example, `(n,)` float32."""


@dataclass(frozen=True)
class Noising:
    """The objective of a diffusion model with a noise schedule.

    Args:
        alphas: ᾱ by time step, `(T,)`, float64, in `[0, 1)`.
        prediction: `epsilon`, `v_prediction` or `sample`.
    """

    alphas: Any
    prediction: str

    @classmethod
    def of(cls, scheduler: Any) -> Noising:
        """Read it from a diffusers scheduler (DDPM, DDIM, PNDM, Euler, …).

        Raises:
            UsageError: if the scheduler is of another kind of model, or predicts the noise from
                latents of which its last step leaves nothing.
        """
        alphas = getattr(scheduler, "alphas_cumprod", None)
        prediction = getattr(scheduler.config, "prediction_type", "epsilon")
        if alphas is None or prediction not in _PREDICTIONS:
            raise UsageError(
                "this scheduler cannot be trained with",
                expected=f"alphas_cumprod, and a prediction type of {', '.join(_PREDICTIONS)}",
                found=f"{type(scheduler).__name__}, {prediction}",
            )
        alphas = alphas.detach().to("cpu", torch.float64)
        if prediction == "epsilon" and float(alphas[-1]) < 1e-6:
            raise UsageError(
                "a model with zero terminal SNR cannot learn from predicting the noise of the last step",
                expected="prediction_type v_prediction (or sample)",
                found=f"epsilon, rescale_betas_zero_snr, and ᾱ {float(alphas[-1]):.1e} at the end",
            )
        return cls(alphas, prediction)

    def drawn(self, count: int, generator: Any, among: Timesteps | None = None) -> Any:
        """Return times, each as likely unless said."""
        if among is not None:
            return among.drawn(count, int(self.alphas.shape[0]), generator)
        return torch.randint(int(self.alphas.shape[0]), (count,), generator=generator)

    def told(self, times: Any) -> Any:
        """Return the times as they are."""
        return times

    def _roots(self, times: Any, like: Any) -> tuple[Any, Any]:
        """Return √ᾱ and √(1 − ᾱ) of each example, shaped to multiply `like`."""
        alphas = self.alphas[times.cpu()].reshape(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like), (1 - alphas).sqrt().to(like)

    def noised(self, latents: Any, noise: Any, times: Any) -> Any:
        """Return `√ᾱ x₀ + √(1 − ᾱ) ε`."""
        signal, spread = self._roots(times, latents)
        return signal * latents + spread * noise

    def target(self, latents: Any, noise: Any, times: Any) -> Any:
        """Return the target of a prediction: ε, `√ᾱ ε − √(1 − ᾱ) x₀`, or x₀."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        signal, spread = self._roots(times, latents)
        return signal * noise - spread * latents

    def weights(self, times: Any, gamma: float) -> Any:
        """Return the min-SNR weight of each example, `(n,)` float32.

        `min(SNR, γ)` times the weight that turns a loss on x₀ into one on what is predicted: 1 / SNR
        for ε, 1 / (SNR + 1) for v, 1 for x₀; finite where SNR is 0.
        """
        alphas = self.alphas[times.cpu()]
        snr = alphas / (1 - alphas)
        capped = snr.clamp(max=gamma)
        over = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
        return (capped / over[self.prediction]).to(torch.float32)


@dataclass(frozen=True)
class Flow:
    """A rectified flow: a straight way from the picture to the noise, and its velocity.

    Args:
        sigmas: σ by time, `(T,)`, float32, falling from 1, shifted as the scheduler says.
        told_of: what the denoiser is told of each time, `(T,)`: σ of as many as there are.
        logit_normal: whether times in the middle are drawn more often, as SD3 was trained; all are as
            likely if not. All weigh the same in the loss.
    """

    sigmas: Any
    told_of: Any
    logit_normal: bool = False
    prediction: ClassVar[str] = "flow_prediction"

    @classmethod
    def of(cls, scheduler: Any, *, logit_normal: bool = False) -> Flow:
        """Read it from diffusers' `FlowMatchEulerDiscreteScheduler`.

        A shift that depends on the size of pictures is one of drawing; training takes none then, as
        diffusers' scripts do.

        Raises:
            UsageError: if the scheduler is of another kind of model.
        """
        if not hasattr(scheduler, "scale_noise") or scheduler.config.get("invert_sigmas"):
            raise UsageError(
                "this scheduler cannot be trained with",
                expected="the scheduler of a rectified flow",
                found=type(scheduler).__name__,
            )
        count = int(scheduler.config.num_train_timesteps)
        sigmas = scheduler.sigmas.detach().cpu().float()[:count]
        return cls(sigmas, scheduler.timesteps.detach().cpu().float(), logit_normal)

    def drawn(self, count: int, generator: Any, among: Timesteps | None = None) -> Any:
        """Return times: of a uniform number, or of the logistic function of a normal one."""
        if among is not None:  # σ falls
            return len(self.sigmas) - 1 - among.drawn(count, len(self.sigmas), generator)
        if self.logit_normal:
            share = torch.sigmoid(torch.randn(count, generator=generator))
        else:
            share = torch.rand(count, generator=generator)
        steps = len(self.sigmas)
        return (share * steps).long().clamp(max=steps - 1)

    def told(self, times: Any) -> Any:
        """Return σ of each, as the scheduler scales it, float32."""
        return self.told_of[times.cpu()].to(times.device)

    def noised(self, latents: Any, noise: Any, times: Any) -> Any:
        """Return `(1 − σ) x₀ + σ ε`."""
        sigmas = self.sigmas[times.cpu()].reshape(-1, *[1] * (latents.ndim - 1)).to(latents)
        return (1.0 - sigmas) * latents + sigmas * noise

    def target(self, latents: Any, noise: Any, times: Any) -> Any:
        """Return ε − x₀."""
        return noise - latents

    def weights(self, times: Any, gamma: float) -> Any:
        """Refuse.

        Raises:
            UsageError: always.
        """
        raise UsageError("a rectified flow has no min-SNR weights", found=gamma)
