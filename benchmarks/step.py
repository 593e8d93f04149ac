"""A training step of `train.loop` against the loop of diffusers' text-to-image LoRA script with PEFT.

    python benchmarks/step.py [STEPS]

Both train the same layers of the same UNet at the same rank on the same latents, with AdamW and
clipping, one thread, taking turns within one run. The script's loop is written out here: noise, time
steps, forward, mean squared error, backward, clip, step. Needs torch, diffusers and peft.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch  # noqa: TID253
from diffusers import DDPMScheduler, UNet2DConditionModel  # noqa: TID253
from peft import LoraConfig

import loramerge as lm
from loramerge.train.batches import Batch, shuffled
from loramerge.train.loop import advance, begin
from loramerge.train.objective import Noising
from loramerge.train.settings import Settings

RANK, SIZE = 16, 4
LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(64, 128),
        norm_num_groups=16,
        attention_head_dim=32,
        cross_attention_dim=64,
        use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )


def ours(data: Batch, steps: int) -> Callable[[], None]:
    model = unet()
    lm.inject_trainable_lora(model, RANK, include=[f"*.{name}" for name in LAYERS])
    settings = Settings(steps=steps, schedule="constant")
    run = begin(model, Noising.of(DDPMScheduler()), shuffled(data, SIZE), settings)
    return lambda: void(advance(run, run.done + 1))


def theirs(data: Batch, steps: int) -> Callable[[], None]:
    model, scheduler = unet(), DDPMScheduler()
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS)))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    batches = shuffled(data, SIZE)
    done = 0

    def step() -> None:
        nonlocal done
        batch = batches(done)
        done += 1
        noise = torch.randn_like(batch.latents)
        times = torch.randint(0, 1000, (SIZE,))
        noisy = scheduler.add_noise(batch.latents, noise, times)
        found = model(noisy, times, batch.text, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(found.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # the script logs it

    return step


def void(_: object) -> None:
    """Forgets a result."""


def main(steps: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = Batch(torch.randn(32, 4, 16, 16), torch.randn(32, 24, 64))
    cases = {"ours": ours(data, steps + 5), "diffusers and PEFT": theirs(data, steps + 5)}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(steps + 5):
        for name, step in cases.items():
            start = time.perf_counter()
            step()
            if number >= 5:  # the first are for the audit and the caches
                taken[name].append(time.perf_counter() - start)
    for name, times in taken.items():
        print(f"{name}: {statistics.median(times) * 1e3:.1f} ms")
    ratios = [a / b for a, b in zip(*taken.values(), strict=True)]
    print(f"ours / theirs, median over {steps} turns: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
