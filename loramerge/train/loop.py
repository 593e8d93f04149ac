"""The training loop of a UNet (SD1, SD2, SDXL): pure functions of the step, and a small state.

    inject_trainable_lora(unet, r=16)
    run = begin(unet, Noising.of(scheduler), shuffled(examples, 4, seed=0), Settings(steps=1000))
    advance(run, 500)
    save_state(run, "half.pt")        # begin, then load_state, goes on bit for bit on the same CPU
    advance(run)
    save_lora_weight(unet, "mine.safetensors", metadata=run_header(run))

Batches, noise, time steps, dropout and the learning rate of a step follow from the seed and its
number alone. So all there is to keep is the LoRA, the optimizer's moments, and the number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loramerge.errors import NumericsError
from loramerge.events import Notify, Progress, Warn, ignore
from loramerge.train.audit import GradientAudit
from loramerge.train.batches import Batches, generator_of, seed_of
from loramerge.train.modules import lora_layers
from loramerge.train.objective import Noising
from loramerge.train.settings import Settings, learning_rate

__all__ = ["Run", "Step", "advance", "begin"]

_LEAST_RATE = 2e-5  # below it a LoRA hardly moves: such rates are those of full fine-tuning
_MOST_SKIPPED = 10


@dataclass(frozen=True)
class Step:
    """What a step did: the loss before it, the rate, and the norm of the gradients before clipping."""

    number: int
    loss: float
    rate: float
    norm: float
    skipped: bool = False


@dataclass
class Run:
    """The state of a training run; `begin` makes it.

    Args:
        done: number of steps that are done.
        skipped: steps left out because their gradients were not finite.
    """

    unet: nn.Module
    noising: Noising
    batches: Batches
    settings: Settings
    optimizer: Any
    audit: GradientAudit
    done: int = 0
    skipped: int = 0
    parameters: list[nn.Parameter] = field(default_factory=list)


def begin(
    unet: nn.Module,
    noising: Noising,
    batches: Batches,
    settings: Settings = Settings(),
    *,
    notify: Notify = ignore,
) -> Run:
    """Return a run of no steps yet, of a UNet that has a LoRA.

    Args:
        batches: a function of the step's number, such as `shuffled` makes; it may encode pictures
            when it is called.
        notify: warned about a rate that cannot learn.

    Raises:
        AdapterError: if the UNet has no LoRA.
        GradientFlowError: if it cannot learn as it is; see `GradientAudit`.
    """
    layers = lora_layers(unet).values()
    parameters = [half for layer in layers for half in (layer.lora.down, layer.lora.up)]
    if settings.rate < _LEAST_RATE:
        notify(Warn(f"a LoRA hardly moves at a learning rate of {settings.rate:g}; 1e-4 is usual"))
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.rate, betas=settings.betas, weight_decay=settings.decay
    )
    audit = GradientAudit(unet, optimizer)
    unet.train()
    return Run(unet, noising, batches, settings, optimizer, audit, parameters=parameters)


def advance(
    run: Run,
    until: int | None = None,
    *,
    on_step: Callable[[Step], None] = lambda step: None,
    notify: Notify = ignore,
) -> Run:
    """Train until so many steps are done in all, or to the end; return the same run.

    At the end the audit checks that every module has changed.

    Raises:
        GradientFlowError: if a module does not learn.
        NumericsError: if gradients are not finite, for the eleventh time.
    """
    last = run.settings.steps if until is None else min(until, run.settings.steps)
    while run.done < last:
        on_step(_step(run))
        notify(Progress("train", run.done, run.settings.steps, "steps"))
    if run.done == run.settings.steps:
        run.audit.after_training()
    return run


# --- one step ----------------------------------------------------------------------------------


def _step(run: Run) -> Step:
    settings, number = run.settings, run.done
    rate = learning_rate(settings, number)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    first = run.parameters[0]
    cards = [first.device] if first.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(seed_of(settings.seed, "dropout", number))
        loss = _loss(run, number)
        loss.backward()
    # where nothing was ever finite the audit, which looks first, says more than a skipped step
    run.audit.after_backward()
    ceiling = math.inf if settings.clip is None else settings.clip
    norm = float(nn.utils.clip_grad_norm_(run.parameters, ceiling))
    skipped = not math.isfinite(norm)
    if skipped:
        run.skipped += 1
        _refuse_many_skipped(run, number)
    else:
        run.optimizer.step()
    run.done += 1
    return Step(number, float(loss.detach()), rate, norm, skipped)


def _refuse_many_skipped(run: Run, number: int) -> None:
    if run.skipped > _MOST_SKIPPED:
        raise NumericsError(
            f"the gradients of {run.skipped} steps were not finite, the last one in step {number}",
            hint="lower the learning rate, or train in bfloat16 or float32",
        )


def _loss(run: Run, number: int) -> Any:
    """Return the mean squared error of a step's batch, in float32."""
    place = run.parameters[0].device
    dtype = next(value.dtype for value in run.unet.parameters() if not value.requires_grad)
    batch = run.batches(number).mapped(lambda values: values.to(place))
    noise, times = _draws(run, number, batch.latents)
    latents = batch.latents.to(torch.float32)
    noisy = run.noising.noised(latents, noise, times)
    added = None
    if batch.pooled is not None:
        added = {"text_embeds": batch.pooled.to(dtype), "time_ids": batch.time_ids.to(dtype)}
    options = {} if added is None else {"added_cond_kwargs": added}
    found = run.unet(noisy.to(dtype), times, batch.text.to(dtype), **options).sample
    target = run.noising.target(latents, noise, times)
    errors = (found.to(torch.float32) - target).square().flatten(1).mean(1)
    if run.settings.min_snr is not None:
        errors = errors * run.noising.weights(times, run.settings.min_snr).to(place)
    return errors.mean()


def _draws(run: Run, number: int, latents: Any) -> tuple[Any, Any]:
    """Return noise like the latents, float32, and a time step for each example."""
    generator = generator_of(run.settings.seed, "noise", number)
    noise = torch.randn(latents.shape, generator=generator)
    if run.settings.noise_offset:
        offsets = torch.randn((*latents.shape[:2], 1, 1), generator=generator)
        noise = noise + run.settings.noise_offset * offsets
    steps = int(run.noising.alphas.shape[0])
    times = torch.randint(steps, latents.shape[:1], generator=generator)
    return noise.to(latents.device), times.to(latents.device)
