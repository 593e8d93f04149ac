"""The state of a run in a file, from which another goes on bit for bit, and what headers tell of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from typing import Any

import torch

from loramerge.errors import CorruptFile, FileError, MissingFile, Setting, UsageError
from loramerge.files.atomic import AtomicFile
from loramerge.files.positioned import PositionedFile
from loramerge.train.run.loop import Run
from loramerge.train.spec.optimizers import path_of
from loramerge.train.spec.settings import Settings

__all__ = ["load_state", "run_header", "save_state"]


def save_state(run: Run, path: str | PathLike[str], origin: str = "") -> None:
    """Write all that is needed to go on, atomically; an earlier file is replaced.

    Tensors go to the file one after another, so memory holds no second copy of them.

    Args:
        origin: says what the run was made from, its number of steps apart; another run cannot go on
            from this state.

    Raises:
        FileError: if it cannot be written.
    """
    with AtomicFile(path, force=True) as file:
        stream = _Stream(file)
        try:
            torch.save(_state(run, origin), stream)
        except Exception:
            if stream.refused is not None:  # torch raises an error of its own over it
                raise stream.refused from None
            raise


class _Stream:
    """An atomic file as torch writes to it: from its beginning on."""

    def __init__(self, file: PositionedFile) -> None:
        self._file, self._place = file, 0
        self.refused: FileError | None = None

    def write(self, data: Any) -> int:
        """Write bytes behind those before."""
        size = memoryview(data).nbytes
        try:
            self._file.write(self._place, data)
        except FileError as error:
            self.refused = error
            raise
        self._place += size
        return size

    def flush(self) -> None:
        """Do nothing: the file is flushed before it gets its name."""


def _state(run: Run, origin: str) -> dict[str, Any]:
    return {
        "names": run.trainee.names,
        "halves": [half.detach() for half in run.parameters],
        "optimizer": run.optimizer.state_dict(),
        "settings": asdict(run.settings),
        "done": run.done,
        "skipped": run.skipped,
        "skipped_in_a_row": run.skipped_in_a_row,
        "earlier": list(run.earlier),
        "ema": run.ema,
        "scaler": None if run.scaler is None else run.scaler.state_dict(),
        "origin": origin,
    }


@torch.no_grad()
def load_state(
    run: Run, path: str | PathLike[str], origin: str = "", former_origin: str | None = None
) -> Run:
    """Put a run where another was when it was saved; return it.

    The run may have another number of steps than the other, if that many are not done yet. The learning
    rate then follows its own schedule from here on.

    Args:
        origin: what the run is made from; see `save_state`.
        former_origin: the same with the number of steps, as older states have it.

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
        raise CorruptFile("this is not the state of a training run", file=path) from error
    own = asdict(run.settings)
    kept["settings"] = asdict(Settings()) | _in_current_words(kept["settings"])
    longer = own["steps"] != kept["settings"]["steps"] and own["steps"] >= kept["done"]
    free = ("steps", "warmup_steps") if longer else ()  # the warm-up is a share of the steps
    other = [name for name in own if name not in free and own[name] != kept["settings"].get(name)]
    if other:
        raise UsageError(
            f"the state belongs to a run with another {', '.join(other)}",
            file=path,
            expected={name: kept["settings"].get(name) for name in other},
            found={name: own[name] for name in other},
        )
    if state.get("origin", "") not in (origin, former_origin):
        raise UsageError(
            "the state belongs to a run with another base, other images or other parameters",
            file=path,
            hint=(
                "give the parameters that the run was started with, or start again with ",
                Setting("force", True),
            ),
        )
    shapes = [tuple(half.shape) for half in run.parameters]
    if kept["names"] != run.trainee.names or shapes != [
        tuple(half.shape) for half in kept["halves"]
    ]:
        raise UsageError("the state is of other modules, or of other ranks", file=path)
    for half, values in zip(run.parameters, kept["halves"], strict=True):
        half.copy_(values)
    run.optimizer.load_state_dict(state["optimizer"])
    if run.ema is not None:
        for mean, values in zip(run.ema, state["ema"], strict=True):
            mean.copy_(values)
    if run.scaler is not None:
        run.scaler.load_state_dict(state["scaler"])
    run.done, run.skipped = kept["done"], kept["skipped"]
    run.skipped_in_a_row = state.get("skipped_in_a_row", 0)
    run.earlier = tuple(state.get("earlier", ()))
    if longer and run.done:
        run.earlier += (kept["settings"]["steps"],)
    return run


# names that fields of the settings had when older states were written
_FORMER = {
    "rate": "lr", "text_rate": "text_lr", "warmup": "warmup_steps", "decay": "weight_decay",
    "clip": "max_grad_norm", "options": "optimizer_options", "plus": "lora_plus",
}  # fmt: skip


def _in_current_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {_FORMER.get(name, name): value for name, value in settings.items()}
    if found.get("max_grad_norm", 0.0) is None:  # once the word for no clipping
        found["max_grad_norm"] = 0.0
    return found


def run_header(run: Run) -> dict[str, str]:
    """Return the `ss_*` entries of the header that tell how a run trained, as sd-scripts names them."""
    settings = run.settings
    own = f"betas={settings.betas},weight_decay={settings.weight_decay}"
    options = "".join(f",{name}={value}" for name, value in settings.optimizer_options)
    entries = {
        "ss_learning_rate": settings.lr,
        "ss_unet_lr": settings.lr,
        "ss_lr_scheduler": settings.schedule,
        "ss_lr_warmup_steps": settings.warmup_steps,
        "ss_max_train_steps": settings.steps,
        "ss_steps": run.done,
        "ss_optimizer": f"{path_of(settings.optimizer)}({own}{options})",
        "ss_gradient_accumulation_steps": settings.accumulate,
        "ss_mixed_precision": settings.precision,
        "ss_max_grad_norm": settings.max_grad_norm or None,
        "ss_min_snr_gamma": settings.min_snr,
        "ss_noise_offset": settings.noise_offset or None,
        "ss_seed": settings.seed,
    }
    return {name: str(value) for name, value in entries.items()}
