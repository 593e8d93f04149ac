"""The ways a run ends before its last step: out of memory, or by Ctrl-C."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from loramerge.errors import Message, Setting
from loramerge.train.device.exhaustion import joined, naming_exhaustion
from loramerge.train.run.loop import Run
from loramerge.train.spec.spec import Spec

__all__ = ["CONTINUED", "UNFINISHED", "naming_phase", "state_header"]

UNFINISHED, CONTINUED = "loramerge.unfinished", "loramerge.continued"  # in an adapter's header
_PHASES = {
    "loading": "loading the base",
    "regularisation": "generating regularisation images",
    "images": "encoding images",
    "texts": "encoding captions",
    "samples": "generating samples",
    "training": "training",
}


def state_header(run: Run, *, last: bool) -> dict[str, str]:
    """Return the entries that mark an adapter of a run that was interrupted or continued.

    Args:
        last: whether the run ends with this adapter.
    """
    found = {}
    if last and run.done < run.settings.steps:
        found[UNFINISHED] = f"step {run.done} of {run.settings.steps}"
    if run.earlier:
        found[CONTINUED] = ", ".join(map(str, (*run.earlier, run.settings.steps)))
    return found


def naming_phase(
    spec: Spec, device: Any, phase: str, run: Run | None = None
) -> AbstractContextManager[None]:
    """Return a context in which an exhausted memory names the phase and says what to change.

    Args:
        phase: as `memory.needs` calls it.
        run: None before there is one.
    """

    def doing() -> str:
        step = "" if run is None or phase != "training" else f", in step {run.done + 1}"
        return _PHASES[phase] + step

    return naming_exhaustion(device, doing, lambda: _advice(spec, device, run, phase))


_OTHERS = "end other programs, which hold memory"


def _advice(spec: Spec, device: Any, run: Run | None, phase: str) -> Message:
    """Return the changes to advise, first those that leave the result as it is."""
    free: list[Message] = []
    settings, data = spec.settings, spec.data
    if phase == "loading":
        return (
            _OTHERS
            if settings.precision == "bf16"
            else (_OTHERS, " · ", Setting("precision", "bf16"))
        )
    if phase == "samples":
        free.append((Setting("sample_every", 0), " generates no samples"))
    if phase == "training" and spec.checkpointing is not True and device.type != "cuda":
        free.append((Setting("checkpointing", "on"), " needs less"))
    if phase == "training" and spec.checkpointing is False:
        free.append(("leave out ", Setting("checkpointing", "off")))
    changing: list[Message] = [
        (Setting("vram"), " with less memory than there is chooses settings that fit"),
        ("a lower ", Setting("resolution")),
    ]
    if data.batch > 1:
        changing.append((Setting("batch", 1), " with ", Setting("accumulate", data.batch)))
    if settings.precision == "no" and device.type == "cuda":
        changing.append((Setting("precision", "bf16"),))
    if spec.targets.kind == "weights":
        changing.append((Setting("method", "lora"), " instead of whole weights"))
    if run is None or not run.done or not run.whole:
        return joined([*free, *changing])
    resume: Message = (Setting("resume", True), f" continues after step {run.done}")
    if free:
        return joined([*free, resume])
    later = " once other programs have left the device"
    return joined([(*resume, later), ("or start again with ", Setting("force", True)), *changing])
