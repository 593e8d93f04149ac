"""The state of a run in a file, from which another goes on bit for bit, and what headers tell of it."""

from __future__ import annotations

import io
from dataclasses import asdict
from os import PathLike

import torch

from loramerge.errors import CorruptFile, MissingFile, UsageError
from loramerge.files.writer import AtomicFile
from loramerge.train.loop import Run
from loramerge.train.modules import lora_layers

__all__ = ["load_state", "run_header", "save_state"]


def save_state(run: Run, path: str | PathLike[str]) -> None:
    """Write all that is needed to go on, atomically; an earlier file is replaced."""
    buffer = io.BytesIO()
    halves = [half.detach().cpu() for half in run.parameters]
    torch.save(
        {
            "names": list(lora_layers(run.unet)),
            "halves": halves,
            "optimizer": run.optimizer.state_dict(),
            "settings": asdict(run.settings),
            "done": run.done,
            "skipped": run.skipped,
        },
        buffer,
    )
    with AtomicFile(path, force=True) as file:
        file.write(0, buffer.getbuffer())


@torch.no_grad()
def load_state(run: Run, path: str | PathLike[str]) -> Run:
    """Put a run where another was when it was saved; return it.

    Raises:
        MissingFile, CorruptFile: if it cannot be read.
        UsageError: if the run has other settings or modules, with which it could not go on exactly.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        kept = {name: state[name] for name in ("names", "halves", "settings", "done", "skipped")}
    except FileNotFoundError:
        raise MissingFile("there is no such state", file=path) from None
    except Exception as error:
        raise CorruptFile("this is no state of a training run", file=path) from error
    own = asdict(run.settings)
    other = [name for name in own if own[name] != kept["settings"].get(name)]
    if other:
        raise UsageError(
            f"the state is of a run with another {', '.join(other)}",
            file=path,
            expected={name: kept["settings"].get(name) for name in other},
            found={name: own[name] for name in other},
        )
    shapes = [tuple(half.shape) for half in run.parameters]
    if kept["names"] != list(lora_layers(run.unet)) or shapes != [
        tuple(half.shape) for half in kept["halves"]
    ]:
        raise UsageError("the state is of other modules, or of other ranks", file=path)
    for half, values in zip(run.parameters, kept["halves"], strict=True):
        half.copy_(values)
    run.optimizer.load_state_dict(state["optimizer"])
    run.done, run.skipped = kept["done"], kept["skipped"]
    return run


def run_header(run: Run) -> dict[str, str]:
    """Return the `ss_*` entries of the header that tell how a run trained, as sd-scripts names them."""
    settings = run.settings
    entries = {
        "ss_learning_rate": settings.rate,
        "ss_lr_scheduler": settings.schedule,
        "ss_lr_warmup_steps": settings.warmup,
        "ss_max_train_steps": settings.steps,
        "ss_steps": run.done,
        "ss_optimizer": f"torch.optim.adamw.AdamW(betas={settings.betas},weight_decay={settings.decay})",
        "ss_max_grad_norm": settings.clip,
        "ss_min_snr_gamma": settings.min_snr,
        "ss_noise_offset": settings.noise_offset or None,
        "ss_seed": settings.seed,
    }
    return {name: str(value) for name, value in entries.items()}
