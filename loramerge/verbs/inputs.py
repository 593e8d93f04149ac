"""Opening what a verb works on: the adapters that references name, with what is wrong said once."""

from __future__ import annotations

from pathlib import Path

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.errors import FormatError, LoramergeError
from loramerge.events import Notify, Warn

__all__ = ["is_checkpoint", "open_adapter"]


def open_adapter(path: Path, notify: Notify) -> Adapter:
    """Load an adapter to compute with, and warn of what is not used of it.

    Raises:
        FormatError: if the file is a checkpoint.
        LoramergeError: see `adapter.load.load`.
    """
    adapter = load(path)
    if adapter.deltas:
        warn_of_unknown(adapter, notify)
    elif is_checkpoint(path):
        raise FormatError(
            "this is a checkpoint, and an adapter is needed here",
            file=path,
            hint="checkpoints go to bake --base and inspect",
        )
    return adapter


def is_checkpoint(path: Path) -> bool:
    """Say whether a file or folder is a base of a known family."""
    from loramerge.checkpoint import open_checkpoint

    try:
        return bool(open_checkpoint(path).slots)
    except LoramergeError:
        return False


def warn_of_unknown(adapter: Adapter, notify: Notify) -> None:
    """Warn of tensors that are not used, so that none is dropped silently, and of warnings."""
    unknown = adapter.info.account.unknown
    if unknown:
        key, close = next(iter(unknown.items()))
        tail = f" (nearest known: {close})" if close else ""
        notify(
            Warn(f"{adapter.label}: {len(unknown)} tensors are not known and not used: {key}{tail}")
        )
    seen: dict[str, int] = {}
    for problem in adapter.info.problems:
        if problem.severity == "warning":
            seen[problem.message] = seen.get(problem.message, 0) + 1
    for message, count in seen.items():
        notify(Warn(f"{adapter.label}: {message}" + (f" ({count} modules)" if count > 1 else "")))
