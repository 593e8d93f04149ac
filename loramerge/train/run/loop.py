"""The training loop of a denoiser: pure functions of the step, and a small state.

    inject_trainable_lora(unet, r=16)
    run = begin(unet, Noising.of(scheduler), shuffled(examples, 4, seed=0), Settings(steps=1000))
    advance(run, 500)
    save_state(run, "half.pt")        # begin, then load_state, goes on bit for bit on the same CPU
    advance(run)
    save_lora_weight(unet, "mine.safetensors", metadata=run_header(run))

Batches, noise, time steps, dropout and the learning rate of a step follow from the seed and its
number alone. So all there is to keep is what is trained, the optimizer's moments, and the number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loramerge.errors import NumericsError
from loramerge.events import Notify, Progress, Warn, ignore
from loramerge.interruption import deferred
from loramerge.train.device.workers import ALONE, Workers
from loramerge.train.lora.trainees import Audit, Branches, Trainee
from loramerge.train.models.architecture import States
from loramerge.train.models.objective import Objective
from loramerge.train.models.registry import architecture_of_denoiser
from loramerge.train.run.batches import Batch, Batches
from loramerge.train.spec.optimizers import fast, make_optimizer, slow
from loramerge.train.spec.seeds import generator_of, seed_of
from loramerge.train.spec.settings import Settings, learning_rate
from loramerge.train.spec.timesteps import Timesteps

__all__ = ["Run", "TrainStep", "advance", "autocast", "averaged", "begin", "errors_of"]

_MOST_SKIPPED = 10
_SMOOTHED = 0.02  # share of the newest loss in the running mean that is shown
_OVERFLOWS = 20  # steps in which a scaler of float16 may look for its scale
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Encode = Callable[[tuple[str, ...]], States]


@dataclass(frozen=True)
class TrainStep:
    """The figures of a step: loss before it, learning rate, norm of the gradients before clipping.

    For an optimizer that finds its own learning rate, such as Prodigy, `rate` is the current one.
    """

    number: int
    loss: float
    rate: float
    norm: float
    skipped: bool = False


@dataclass
class Run:
    """The state of a training run; `begin` makes it.

    Args:
        denoiser: a UNet or a transformer of diffusers.
        trainee: what is trained.
        encode: makes states of captions, where text encoders are trained.
        scaler: of float16's gradients.
        ema: the running means of what is trained, or None.
        done: number of steps that are done.
        skipped: steps left out because their gradients were not finite.
        skipped_in_a_row: the last of them, without one between that was not left out.
        smoothed: the running mean of the loss, which is only shown.
        whole: False while a step changes what is trained, so that half of it may be changed.
        earlier: numbers of all steps that the run was begun and continued with before.
    """

    denoiser: nn.Module
    noising: Objective
    batches: Batches
    settings: Settings
    trainee: Trainee
    optimizer: Any
    audit: Audit
    encode: Encode | None = None
    workers: Workers = ALONE
    scaler: Any = None
    ema: list[Any] | None = None
    done: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    whole: bool = True
    smoothed: float | None = None
    earlier: tuple[int, ...] = ()

    @property
    def parameters(self) -> list[Any]:
        """All that is trained, in a fixed order."""
        return self.trainee.parameters


def begin(
    denoiser: nn.Module,
    noising: Objective,
    batches: Batches,
    settings: Settings = Settings(),
    *,
    trainee: Trainee | None = None,
    encode: Encode | None = None,
    workers: Workers = ALONE,
    notify: Notify = ignore,
) -> Run:
    """Return a run of no steps yet.

    Args:
        batches: a function of the batch's number, such as `shuffled` makes; it may encode pictures
            when it is called. A step takes `accumulate` batches in each process.
        trainee: what is trained; None: the LoRA that the denoiser has.
        encode: see `Run`.
        notify: warned about a rate that cannot learn.

    Raises:
        AdapterError: if the denoiser has no LoRA.
        GradientFlowError: if it cannot learn as it is; see `GradientAudit`.
    """
    trainee = trainee or Branches({"": denoiser})
    if isinstance(trainee, Branches) and (why := slow(settings)):
        notify(Warn(why))
    if why := fast(settings):
        notify(Warn(why))
    optimizer = make_optimizer(settings, trainee.groups(settings))
    half = settings.precision == "fp16"
    audit = trainee.audit(optimizer, _OVERFLOWS if half else 0)
    denoiser.train()
    run = Run(denoiser, noising, batches, settings, trainee, optimizer, audit, encode, workers)
    if half:
        run.scaler = torch.amp.GradScaler(run.parameters[0].device.type)
    if settings.ema is not None:
        run.ema = [value.detach().clone() for value in run.parameters]
    return run


def advance(
    run: Run,
    until: int | None = None,
    *,
    on_step: Callable[[TrainStep], None] = lambda step: None,
    notify: Notify = ignore,
) -> Run:
    """Train until so many steps are done in all, or to the end; return the same run.

    At the end the audit checks that every module has changed. Ctrl-C ends a step before it is obeyed.

    Raises:
        GradientFlowError: if a module does not learn.
        NumericsError: if gradients are not finite eleven times in a row.
        KeyboardInterrupt: between two steps, in all processes after the same one.
    """
    last = run.settings.steps if until is None else min(until, run.settings.steps)
    while run.done < last:
        with deferred() as interrupted:
            step = _step(run)
            on_step(step)
            stop = run.workers.any(interrupted(), run.parameters[0].device)
        if stop:
            raise KeyboardInterrupt
        notify(Progress("train", run.done, run.settings.steps, "steps", _said(run, step)))
    if run.done == run.settings.steps:
        run.audit.after_training()
    return run


def _said(run: Run, step: TrainStep) -> str:
    """Return the figures of a step: of the loss its running mean, as single ones say little."""
    share = max(_SMOOTHED, 1 / (1 + step.number))
    if math.isfinite(step.loss):
        before = step.loss if run.smoothed is None else run.smoothed
        run.smoothed = before + share * (step.loss - before)
    shown = step.loss if run.smoothed is None else run.smoothed
    return (
        f"step {run.done}  mean loss {shown:.4f}  loss {step.loss:.4f}  rate {step.rate:.2e}  "
        f"gradient {step.norm:.3g}"
    )


@contextmanager
@torch.no_grad()
def averaged(run: Run) -> Iterator[None]:
    """Put the running means, if there are any, in the place of what is trained."""
    if run.ema is None:
        yield
        return
    kept = [value.detach().clone() for value in run.parameters]
    for value, mean in zip(run.parameters, run.ema, strict=True):
        value.copy_(mean)
    try:
        yield
    finally:
        for value, own in zip(run.parameters, kept, strict=True):
            value.copy_(own)


# --- one step ----------------------------------------------------------------------------------


def _step(run: Run) -> TrainStep:
    settings, number = run.settings, run.done
    rate = learning_rate(settings, number)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    rate *= float(run.optimizer.param_groups[0].get("d", 1.0))
    run.optimizer.zero_grad(set_to_none=True)
    first = number * settings.accumulate
    numbers = [
        (first + part) * run.workers.count + run.workers.rank for part in range(settings.accumulate)
    ]
    # batches at the end of a bucket are smaller; every image weighs the same
    batches = [run.batches(batch) for batch in numbers] if len(numbers) > 1 else None
    images = 0 if batches is None else sum(map(len, batches))
    total = 0.0
    for index, batch in enumerate(numbers):
        if batches is None:
            loss, images = _backward(run, batch)
        else:
            loss, _ = _backward(run, batch, batches[index], images)
        total += loss
    total = run.workers.mean(run.parameters, total, images)
    if run.scaler is not None:
        run.scaler.unscale_(run.optimizer)
    # where nothing was ever finite the audit, which looks first, says more than a skipped step
    run.audit.after_backward()
    ceiling = settings.max_grad_norm or math.inf
    norm = float(nn.utils.clip_grad_norm_(run.parameters, ceiling))
    skipped = not math.isfinite(norm)
    run.whole = False
    if skipped:
        run.skipped += 1
        run.skipped_in_a_row += 1
        _refuse_many_skipped(run, number)
    else:
        run.skipped_in_a_row = 0
        run.optimizer.step()
        _average(run)
    if run.scaler is not None:
        run.scaler.update()
    run.done += 1
    run.whole = True
    return TrainStep(number, total, rate, norm, skipped)


def _backward(
    run: Run, number: int, batch: Batch | None = None, images: int | None = None
) -> tuple[float, int]:
    """Add the gradients of a batch; return its part of the loss, and its number of images.

    Args:
        batch: None: what the run has of this number.
        images: of all batches of the step; None: those of this one.
    """
    first = run.parameters[0]
    cards = [first.device] if first.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(seed_of(run.settings.seed, "dropout", number))
        batch = run.batches(number) if batch is None else batch
        count = len(batch)
        with autocast(run):
            loss = _loss(run, number, batch) / ((images or count) / count)
        (loss if run.scaler is None else run.scaler.scale(loss)).backward()
    return float(loss.detach()), count


def autocast(run: Run) -> AbstractContextManager[Any]:
    """Return the mixed precision of a run's forward passes."""
    if run.settings.precision == "no":
        return nullcontext()
    kind = run.parameters[0].device.type
    found: AbstractContextManager[Any] = torch.autocast(kind, dtype=_DTYPES[run.settings.precision])
    return found


@torch.no_grad()
def _average(run: Run) -> None:
    """Move the running means; they follow faster at first, when there is little to average."""
    if run.ema is None:
        return
    decay = min(float(run.settings.ema or 0.0), (1 + run.done) / (10 + run.done))
    for mean, value in zip(run.ema, run.parameters, strict=True):
        mean.lerp_(value, 1 - decay)


def _refuse_many_skipped(run: Run, number: int) -> None:
    most = _MOST_SKIPPED if run.scaler is None else _MOST_SKIPPED + _OVERFLOWS
    if run.skipped_in_a_row > most:
        raise NumericsError(
            f"the gradients of {run.skipped_in_a_row} steps in a row were not finite, "
            f"the last one in step {number}",
            hint="lower the learning rate, or train in bfloat16 or float32",
        )


def _loss(run: Run, number: int, batch: Batch) -> Any:
    """Return the mean squared error of a batch, in float32."""
    noise, times = _draws(run, number, batch.latents)
    errors = errors_of(run, batch, noise, times)
    if run.settings.min_snr is not None:
        errors = errors * run.noising.weights(times, run.settings.min_snr).to(errors.device)
    if batch.weights is not None:
        errors = errors * batch.weights.to(errors.device)
    return errors.mean()


def errors_of(run: Run, batch: Batch, noise: Any, times: Any) -> Any:
    """Return the squared error of each example, `(n,)` float32.

    Args:
        noise: shaped as the latents are, float32.
        times: time step of each example, `(n,)`.
    """
    place = run.parameters[0].device
    dtype = _dtype(run.denoiser)
    noise, times = noise.to(place), times.to(place)
    batch = batch.mapped(lambda values: values.to(place))
    states = States(batch.text, batch.pooled)
    if batch.text is None:
        assert run.encode is not None
        states = run.encode(batch.captions)
    latents = batch.latents.to(torch.float32)
    noisy = run.noising.noised(latents, noise, times)
    found = architecture_of_denoiser(run.denoiser).predict(
        run.denoiser, noisy.to(dtype), run.noising.told(times), states, batch.time_ids
    )
    target = run.noising.target(latents, noise, times)
    return (found.to(torch.float32) - target).square().flatten(1).mean(1)


def _dtype(denoiser: nn.Module) -> Any:
    """Return the type of the base: that of what is frozen, if anything is."""
    values = list(denoiser.parameters())
    return next((value.dtype for value in values if not value.requires_grad), values[0].dtype)


def _draws(run: Run, number: int, latents: Any) -> tuple[Any, Any]:
    """Return noise like the latents, float32, and a time step for each example."""
    generator = generator_of(run.settings.seed, "noise", number)
    noise = torch.randn(latents.shape, generator=generator)
    if run.settings.noise_offset:
        offsets = torch.randn((*latents.shape[:2], 1, 1), generator=generator)
        noise = noise + run.settings.noise_offset * offsets
    if run.settings.timesteps:
        among = Timesteps.of(run.settings.timesteps)
        times = run.noising.drawn(len(latents), generator, among)
    else:
        times = run.noising.drawn(len(latents), generator)
    return noise.to(latents.device), times.to(latents.device)
