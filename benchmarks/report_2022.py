"""Seconds of a training step as docs/report-2022.md compares them: LoRA, cut LoRA, some weights, all.

    python benchmarks/report_2022.py [STEPS]

On the tiny model, batches of 16, one thread, taking turns within one run: a step of each after the
other, so that what else the machine does meets all alike. CPU seconds, medians.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

import loramerge as lm
from loramerge.library.shipped import shipped
from loramerge.tiny.adapters import examples, zuzu_pictures
from loramerge.tiny.pictures import pipeline
from loramerge.train.lora.trainees import Weights
from loramerge.train.models.objective import Noising
from loramerge.train.run.batches import shuffled
from loramerge.train.run.loop import Run, advance, begin
from loramerge.train.spec.settings import Settings

CASES: dict[str, dict[str, Any]] = {
    "full": {"weights": "*"},
    "up blocks": {"weights": "up_blocks"},
    "full, checkpointed": {"weights": "*", "saving": "sound"},
    "LoRA, rank 4": {"rank": 4},
    "LoRA, rank 64": {"rank": 64},
    "LoRA, rank 64, checkpointed": {"rank": 64, "saving": "sound"},
    "LoRA, rank 64, checkpointed, cut": {"rank": 64, "saving": "cut"},
}


def run_of(steps: int, *, rank: int = 0, weights: str = "", saving: str = "") -> Run:
    """Return a run of the character's lesson.

    Args:
        weights: blocks whose own weights are trained in the place of a LoRA; `*`: all.
        saving: how activations are saved: `sound`, or `cut` as in 2022.
    """
    pipe = pipeline(shipped("tiny"))
    batches = shuffled(examples(pipe, zuzu_pictures(0)), 16)
    trainee = None
    if weights:
        trainee = Weights(pipe.unet, () if weights == "*" else (weights,))
    else:
        lm.inject_trainable_lora(pipe.unet, rank, preset="attn")
    if saving == "sound":
        pipe.unet.enable_gradient_checkpointing()
    elif saving == "cut":
        cut_gradients(pipe.unet)
    settings = Settings(steps=steps, lr=1e-4, schedule="constant")
    run = begin(pipe.unet, Noising.of(pipe.scheduler), batches, settings, trainee=trainee)
    if saving == "cut":
        run.audit = SimpleNamespace(after_backward=nothing, after_training=nothing)
    return run


def cut_gradients(unet: Any) -> None:
    """Checkpoint as in 2022: reentrant, everywhere but in the middle block."""
    unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=True))
    for module in unet.mid_block.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False


def nothing() -> None:
    """Do nothing, in the place of the audit."""


def main() -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "None of the inputs have requires_grad=True")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    runs = {name: run_of(count, **case) for name, case in CASES.items()}
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for step in range(1, count + 1):
        for name, run in runs.items():
            start = time.process_time()
            advance(run, step)
            taken[name].append(time.process_time() - start)
    print("| trained | parameters | ms a step | of full |\n|---|---|---|---|")
    whole = statistics.median(taken["full"][3:])
    for name, run in runs.items():
        step = statistics.median(taken[name][3:])
        size = sum(value.numel() for value in run.parameters)
        print(f"| {name} | {size:,} | {1000 * step:.0f} | {step / whole:.2f} |")


if __name__ == "__main__":
    main()
