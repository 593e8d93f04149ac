"""Measure the gradient audit: its time against that of a training step, in one run.

    python benchmarks/audit.py [STEPS]

The audit never retires here (each call looks at all gradients), so this is its cost in the first
steps; afterwards a call returns at once.
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import chain

import torch
from diffusers import UNet2DConditionModel

import loramerge as lm


def main(steps: int) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(64, 96),
        norm_num_groups=16,
        attention_head_dim=32,
        cross_attention_dim=64,
        use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )
    groups, names = lm.inject_trainable_lora(unet, 4)
    parameters = list(chain(*groups))
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    start = time.perf_counter()
    audit = lm.GradientAudit(unet, optimizer, steps=10**9)
    made = time.perf_counter() - start
    latents, text = torch.randn(16, 4, 8, 8), torch.randn(16, 24, 64)
    whole, alone = [], []
    for _ in range(steps):
        audit._silent = dict.fromkeys(audit._pairs, "")
        start = time.perf_counter()
        unet(latents, 500, text).sample.square().mean().backward()
        before = time.perf_counter()
        audit.after_backward()
        alone.append(time.perf_counter() - before)
        optimizer.step()
        optimizer.zero_grad()
        whole.append(time.perf_counter() - start)
    step, look = statistics.median(whole), statistics.median(alone)
    print(f"{len(names)} modules, {len(parameters)} halves, {torch.get_num_threads()} threads")
    print(f"step {step * 1e3:.1f} ms, audit {look * 1e3:.2f} ms: {look / step:.2%}")
    print(f"made once: {made * 1e3:.1f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 25)
