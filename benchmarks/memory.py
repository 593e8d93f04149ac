"""Compare the prediction of `loramerge train --vram` with what torch allocates in a training step.

    python benchmarks/memory.py [tiny] [medium] [sd15]

A UNet with random weights trains for a few steps on the CPU; torch's profiler counts the bytes that are
allocated in the last one, at most, and the tensors that rest between steps are added. The same run is
predicted from configurations alone. Needs torch and diffusers; sd15 takes 6 GB of memory and minutes.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from loramerge.train.lora.trainees import Branches, Weights
from loramerge.train.memory.estimate import denoiser_of, made_trainable, shape_of
from loramerge.train.memory.needs import Base, Needs, base_of, needs
from loramerge.train.models.objective import Noising
from loramerge.train.run.batches import Batch, shuffled
from loramerge.train.run.loop import Run, advance, begin
from loramerge.train.spec.settings import Settings
from loramerge.train.spec.spec import Data, Samples, Spec, Targets

_CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_HALF = {"bf16": torch.bfloat16}


def _unet(channels: tuple[int, ...], layers: int, heads: int, groups: int) -> dict[str, Any]:
    inner = len(channels) - 1
    return {
        "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": layers,
        "block_out_channels": channels, "attention_head_dim": heads, "cross_attention_dim": 768,
        "norm_num_groups": groups,
        "down_block_types": (_CROSS[0],) * inner + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + (_CROSS[1],) * inner,
    }  # fmt: skip


# name → UNet, and pixels of a side
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (_unet((16, 32), 1, 4, 8), 128),
    "medium": (_unet((128, 256, 512, 512), 2, 8, 32), 256),
    "sd15": (_unet((320, 640, 1280, 1280), 2, 8, 32), 256),
}
_VAE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4}  # fmt: skip


def configured(folder: Path, unet: dict[str, Any]) -> Base:
    """Returns a base of configurations alone."""
    for name, config in {"unet": unet, "vae": _VAE}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    shape = shape_of(folder)
    assert shape is not None
    return base_of(folder, shape)


def most_allocated(call: Callable[[], object]) -> int:
    """Returns the most bytes that a call has allocated at a time on the CPU."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def begun(spec: Spec, base: Base, side: int) -> Run:
    """Returns the run itself, on the CPU, with latents and texts of noise."""
    settings, batch = spec.settings, spec.data.batch
    unet = denoiser_of(base.shape, "cpu")
    unet.requires_grad_(False)
    full = spec.targets.kind == "weights"
    if settings.precision != "no" and not full:
        for value in (*unet.parameters(), *unet.buffers()):
            value.data = value.data.to(_HALF[settings.precision])
    if not full:
        made_trainable(spec, unet, base.shape)
    if spec.checkpointing:
        unet.enable_gradient_checkpointing()
    data = Batch(torch.randn(8, 4, side // 8, side // 8), torch.randn(8, 77, 768))
    trainee = Weights(unet, spec.targets.blocks) if full else Branches({"unet": unet})
    return begin(
        unet, Noising.of(DDPMScheduler()), shuffled(data, batch), settings, trainee=trainee
    )


def measured(run: Run) -> int:
    """Returns the bytes of tensors that rest, and of those that a step makes, at most."""
    advance(run, 4)  # the audit has looked by then, and the optimizer has its state
    kept = [*run.denoiser.parameters(), *run.denoiser.buffers(), *(run.ema or [])]
    kept += [
        value
        for state in run.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    kept += getattr(run.trainee, "_first", [])  # what weights were at first
    run.optimizer.zero_grad(set_to_none=True)
    resting = sum(value.numel() * value.element_size() for value in kept)
    return resting + most_allocated(lambda: advance(run, 5))


def predicted(spec: Spec, base: Base, side: int) -> int:
    """Returns the same as `needs` predicts it, without the VAE, which is not there."""
    found: Needs = needs(spec, base, side, 8, "cpu")
    return found.training - sum(value.numel() * 4 for value in base.vae.parameters())


def spec_of(method: str, precision: Any, checkpointing: bool, batch: int, optimizer: str) -> Spec:
    """Returns what a run is told."""
    return Spec(
        Path("base"), Path("run"), Path("cache"), Targets(method=method),
        Data(Path("pictures"), batch=batch),
        Settings(steps=9, precision=precision, optimizer=optimizer), Samples(sample_every=0),
        checkpointing=checkpointing,
    )  # fmt: skip


def cases(model: str) -> Iterator[Spec]:
    """Yields the runs of a model, as many as its size allows."""
    methods = ("lora",) if model == "sd15" else ("lora", "dora", "full")
    batches = (1,) if model == "sd15" else (1, 4)
    for case in itertools.product(
        methods, ("no", "bf16"), (False, True), batches, ("adamw", "adafactor")
    ):
        spec = spec_of(*case)
        yield spec
        if model == "tiny" and case[2:] == (False, 1, "adamw"):
            yield replace(spec, settings=replace(spec.settings, accumulate=2))
            yield replace(spec, settings=replace(spec.settings, ema=0.9))


def main(models: list[str]) -> None:
    torch.set_num_threads(1)
    print("model | what is trained | type | checkpointing | batch | optimizer "
          "| predicted MB | measured MB | ratio\n--|--|--|--|--|--|--|--|--")  # fmt: skip
    ratios = []
    for model in models:
        config, side = MODELS[model]
        with tempfile.TemporaryDirectory() as folder:
            base = configured(Path(folder), config)
        for spec in cases(model):
            torch.manual_seed(0)
            found, true = predicted(spec, base, side), measured(begun(spec, base, side))
            ratios.append(found / true)
            how = spec.settings
            more = "".join(
                [" ×2" if how.accumulate > 1 else "", ", mean" if how.ema is not None else ""]
            )
            print(
                f"{model} | {spec.targets.method}{more} | {how.precision} | "
                f"{'on' if spec.checkpointing else 'off'} | {spec.data.batch} | "
                f"{how.optimizer} | {found / 1e6:.1f} | {true / 1e6:.1f} | {ratios[-1]:.3f}",
                flush=True,
            )
    print(f"\n{len(ratios)} runs, ratios from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["tiny", "medium"])
