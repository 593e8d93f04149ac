"""A training step of `run.loop` against the loop of diffusers' text-to-image LoRA script with PEFT.

    python benchmarks/step.py                    # all, in less than five minutes
    python benchmarks/step.py --models small --turns 40

Both train the same layers of the same UNet at the same rank on the same latents, with AdamW and
clipping, one thread, taking turns within one run. The script's loop is written out here: noise, time
steps, forward, mean squared error, backward, clip, step. Of each model with and without gradient
checkpointing, and in bfloat16 where the processor computes in it: CPU milliseconds of a step, and the
most bytes of tensors alive in it beyond those before it. Of the largest model also the peak memory of
a process of its own. Needs torch, diffusers and peft.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler is loud otherwise
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what lies here is measured

import torch
from measure import environment

RANK = 16
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
FIRST = 4  # steps that are not counted: the audit, the optimizer's moments, caches
MB = 1e6


@dataclass(frozen=True)
class Model:
    """A UNet to train: how it is made, on what, and how often it is timed."""

    batch: int
    side: int
    tokens: int
    turns: int
    config: dict[str, Any] | None = None  # None: of the model that comes with loramerge


MODELS = {
    "tiny": Model(16, 16, 24, 12),
    "small": Model(4, 16, 24, 12, {
        "layers_per_block": 1, "block_out_channels": (64, 128), "norm_num_groups": 16,
        "attention_head_dim": 32, "cross_attention_dim": 64, "use_linear_projection": True,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    }),
    "medium": Model(1, 32, 77, 4, {
        "layers_per_block": 1, "block_out_channels": (160, 320, 640, 640),
        "attention_head_dim": 8, "cross_attention_dim": 768,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    }),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The figures of both."""

    model: str
    checkpointed: bool = False
    half: bool = False

    def __str__(self) -> str:
        words = [self.model, "bfloat16" if self.half else "", "checkpointed" * self.checkpointed]
        return ", ".join(word for word in words if word)


def unet(case: Case) -> Any:
    """Return the UNet of a case, the same for both."""
    from diffusers import UNet2DConditionModel
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    how = MODELS[case.model]
    if how.config is None:
        from loramerge.library.shipped import shipped

        found = UNet2DConditionModel.from_pretrained(Path(shipped("tiny"), "unet"))
    else:
        found = UNet2DConditionModel(sample_size=how.side, **how.config)
    if case.checkpointed:
        found.enable_gradient_checkpointing()
    return found.to(torch.bfloat16) if case.half else found


def data(case: Case, model: Any) -> tuple[Any, Any]:
    """Return latents and text states of 32 examples."""
    how, config = MODELS[case.model], model.config
    torch.manual_seed(1)
    latents = torch.randn(32, config.in_channels, how.side, how.side)
    return latents, torch.randn(32, how.tokens, config.cross_attention_dim)


def ours(case: Case, steps: int) -> Callable[[], None]:
    """Return a step of loramerge."""
    from diffusers import DDPMScheduler

    import loramerge as lm
    from loramerge.train.models.objective import Noising
    from loramerge.train.run.batches import Batch, shuffled
    from loramerge.train.run.loop import advance, begin
    from loramerge.train.spec.settings import Settings

    model = unet(case)
    examples = Batch(*data(case, model))
    model.requires_grad_(False)
    lm.inject_trainable_lora(model, RANK, include=[f"*.{name}" for name in LAYERS])
    settings = Settings(steps=steps, schedule="constant", precision="bf16" if case.half else "no")
    batches = shuffled(examples, MODELS[case.model].batch)
    run = begin(model, Noising.of(DDPMScheduler()), batches, settings)

    def step() -> None:
        advance(run, run.done + 1)

    return step


def theirs(case: Case, steps: int) -> Callable[[], None]:
    """Return a step of the script's."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    model, scheduler = unet(case), DDPMScheduler()
    latents, text = data(case, model)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS)))
    cast_training_params(model, dtype=torch.float32)  # as the script does in float16
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    size, dtype = MODELS[case.model].batch, torch.bfloat16 if case.half else torch.float32
    orders = torch.cat([torch.randperm(32) for _ in range(steps * size // 32 + 1)])
    done = 0

    def step() -> None:
        nonlocal done
        rows = orders[done * size : (done + 1) * size]
        done += 1
        clean = latents[rows].to(dtype)
        noise = torch.randn_like(clean)
        times = torch.randint(0, 1000, (size,))
        noisy = scheduler.add_noise(clean, noise, times)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.half):
            found = model(noisy, times, text[rows].to(dtype), return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(found.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # the script logs it

    return step


SIDES = {"ours": ours, "theirs": theirs}


def alive(step: Callable[[], None]) -> int:
    """Return the most bytes of tensors that are alive in a step, beyond those before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in found.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    most = now = 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        now += change
        most = max(most, now)
    return most


def timed(case: Case, turns: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return CPU seconds of each step, and bytes alive in one, of both."""
    steps = {name: make(case, turns + FIRST + 2) for name, make in SIDES.items()}
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(turns + FIRST):
        names = list(SIDES) if turn % 2 else list(SIDES)[::-1]
        for name in names:
            start = time.process_time()
            steps[name]()
            if turn >= FIRST:
                taken[name].append(time.process_time() - start)
    return taken, {name: alive(step) for name, step in steps.items()}


def peak(case: Case, name: str) -> float | None:
    """Return the peak memory in MB of a process while it trains; None where it is not known."""
    words = [name, case.model, *(["checkpointed"] * case.checkpointed), *(["half"] * case.half)]
    done = subprocess.run(
        [sys.executable, __file__, "--one", *words], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[1], env=environment(),
    )  # fmt: skip
    said = done.stdout.split()
    return float(said[-1]) if said else None


def one(name: str, model: str, *words: str) -> None:
    """Make a few steps and print the most memory in MB that this process had in them.

    Making the model takes more than training it, so the kernel is told to count anew; Linux alone can.
    """
    step = SIDES[name](Case(model, "checkpointed" in words, "half" in words), FIRST)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
    for _ in range(FIRST):
        step()
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB)


def cases(models: list[str]) -> Iterator[Case]:
    """Yield what is measured."""
    for model, half in product(models, (False, True)):
        if not half or (model == "medium" and has_bfloat16()):
            for checkpointed in (False, True):
                yield Case(model, checkpointed, half)


def has_bfloat16() -> bool:
    """Say whether this processor computes in bfloat16 itself."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Training steps against diffusers and PEFT.")
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
    parser.add_argument("--turns", type=int, help="steps of each that are timed")
    parser.add_argument("--no-processes", action="store_true", help="leave out peak memory")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        one(*asked.one)
        return
    start = time.perf_counter()
    found = list(cases(asked.models.split(",")))
    print(
        "| model | ms a step, ours / theirs | ratio | MB alive | ratio | MB of a process | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in found:
        taken, bytes_ = timed(case, asked.turns or MODELS[case.model].turns)
        a, b = (1e3 * statistics.median(times) for times in taken.values())
        ratio = statistics.median(x / y for x, y in zip(*taken.values(), strict=True))
        row = [f"{a:.0f} / {b:.0f}", f"{ratio:.2f}"]
        a, b = (bytes_[name] / MB for name in SIDES)
        row += [f"{a:.1f} / {b:.1f}", f"{a / b:.2f}"]
        if case.model == "medium" and not asked.no_processes:
            peaks = [peak(case, name) for name in SIDES]
            if None not in peaks:
                row += [f"{peaks[0]:.0f} / {peaks[1]:.0f}", f"{peaks[0] / peaks[1]:.2f}"]
        print(f"| {case} | {' | '.join([*row, '', ''][:6])} |", flush=True)
    print(f"\n{time.perf_counter() - start:.0f} seconds; {torch.__version__}, one thread")


if __name__ == "__main__":
    main()
