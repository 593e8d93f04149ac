"""The adapters: one for each task and seed, trained with PEFT, and kept as PEFT writes them."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from shutil import rmtree

import torch

from benchmarks.languagebench.network import Batch, Language
from benchmarks.languagebench.tasks import TASKS, Task

__all__ = ["EXAMPLES", "train"]

EXAMPLES = 96  # that a task teaches
_STEPS, _BATCH, _RATE = 120, 8, 2e-3
_WARM = 10  # steps until the rate is reached
_ATTENTION, _MLP = ("q_proj", "v_proj"), ("down_proj",)


def train(language: Language, task: Task, seed: int, batch: Batch, path: Path) -> float:
    """Train the adapter of a task, write it to a folder, and return the loss at the end.

    Args:
        batch: the examples.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=task.rank,
        lora_alpha=task.rank,
        target_modules=[*_ATTENTION, *(_MLP if task.mlp else ())],
        layers_to_transform=list(language.layers),
        layers_pattern="layers",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(100 * (1 + seed) + list(TASKS).index(task.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model has no name on the hub
        model = get_peft_model(language.model, config)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    smooth = 0.0
    for step in range(_STEPS):
        along = math.cos(step / _STEPS * math.pi / 2)
        optimizer.param_groups[0]["lr"] = _RATE * min(1.0, (step + 1) / _WARM) * along
        chosen = torch.randint(len(batch.hidden), (_BATCH,))
        loss = language.losses(batch.rows(chosen))[0].mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        smooth += max(0.1, 1 / (1 + step)) * (loss.item() - smooth)
    part = path.with_suffix(".part")
    rmtree(part, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(part)
    os.replace(part, path)
    language.model = model.unload().requires_grad_(False).eval()
    return smooth
