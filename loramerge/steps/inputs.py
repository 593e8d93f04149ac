"""Opening adapters and bases by name, with one message for each mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.algebra.terms import apply_weight
from loramerge.algebra.weights import Weight
from loramerge.errors import (
    AdapterError,
    FamilyError,
    FileError,
    ForeignFile,
    FormatError,
    LoramergeError,
    Message,
    NotFound,
    Setting,
    UsageError,
)
from loramerge.events import Notify, Warn
from loramerge.library.lookup import find
from loramerge.library.shipped import told
from loramerge.steps.idle_weights import warn_of_idle
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference

if TYPE_CHECKING:
    from loramerge.checkpoint import Checkpoint

__all__ = [
    "adapter_of",
    "at_base",
    "base_path",
    "family_of_file",
    "find_told",
    "is_adapter",
    "is_checkpoint",
    "model_of",
    "open_base",
    "read_adapter",
    "require_whole",
    "weighted",
]


def adapter_of(reference: Reference, context: Context, *, whole: bool = False) -> Adapter:
    """Return the adapter a reference names; its weight is not applied.

    Warns of rules in its weight that match no module.

    Args:
        whole: refuse an adapter with unknown tensors.

    Raises:
        NotFound: if there is none of this name.
        AdapterError: see `whole`.
        LoramergeError: see `read_adapter`.
    """
    adapter = _adapter_of(reference, context, whole=whole)
    warn_of_idle(reference, adapter, context.notify)
    return adapter


def _adapter_of(reference: Reference, context: Context, *, whole: bool) -> Adapter:
    known = context.known.get(reference.name)
    whole = whole and not context.skip_unknown
    if isinstance(known, Adapter):
        return require_whole(known) if whole else known
    path = known if known is not None else _told(reference, context)
    adapter = (
        read_adapter(path) if context.kept is None else context.kept.adapter(path, read_adapter)
    )
    if adapter.deltas:
        warn_of(require_whole(adapter) if whole else adapter, context.notify)
    return adapter


def find_told(name: str, holds: str, context: Context) -> Path:
    """Return the file of a name, and note if it stands before what comes with loramerge.

    Raises:
        NotFound, UsageError: see `library.lookup.find`.
    """
    return told(name, find(name, holds, root=context.root), context.notify)


def _told(reference: Reference, context: Context) -> Path:
    return told(reference.name, reference.path(root=context.root), context.notify)


def model_of(reference: Reference, context: Context) -> Adapter | Checkpoint:
    """Return the adapter or the checkpoint that a reference names; its weight is not applied.

    Raises:
        NotFound: if there is neither of this name.
        UsageError: if a checkpoint is given a weight.
        LoramergeError: see `adapter.load.load`.
    """
    known = context.known.get(reference.name)
    if isinstance(known, Adapter):
        warn_of_idle(reference, known, context.notify)
        return known
    path = known
    if path is None:
        try:
            path = _told(reference, context)
        except NotFound:
            path = _base_instead(reference, context)
            if path is None:
                raise
    found = _opened(path)
    if isinstance(found, Adapter) and found.deltas:
        warn_of(found, context.notify)
        warn_of_idle(reference, found, context.notify)
    elif not isinstance(found, Adapter) and reference.weight != Weight():
        raise UsageError(
            "a checkpoint has no weight here", found=str(reference), hint=f"give {reference.name}"
        )
    return found


def _base_instead(reference: Reference, context: Context) -> Path | None:
    """Return the registered base of a name, None if there is none."""
    try:
        return find_told(reference.name, "bases", context)
    except NotFound:
        return None


def _opened(path: Path) -> Adapter | Checkpoint:
    """Return the adapter or the checkpoint at a path.

    Raises:
        LoramergeError: see `adapter.load.load`. FileError: if a file of a checkpoint cannot be read.
    """
    from loramerge.checkpoint import open_checkpoint

    try:
        adapter = load(path)
    except LoramergeError as error:  # a checkpoint may be of a format that adapters do not have
        try:
            found = open_checkpoint(path)
        except FileError:
            if isinstance(error, FormatError):  # not an adapter, but a checkpoint with a bad file
                raise
            raise error from None
        except LoramergeError:
            raise error from None
        if not found.slots:
            raise
        return found
    if adapter.only_replaces:
        with suppress(LoramergeError):
            found = open_checkpoint(path)
            return found if found.slots else adapter
    return adapter


def weighted(adapter: Adapter, weight: Weight) -> Adapter:
    """Return the adapter multiplied by a weight; sites of weight 0 are left out."""
    return adapter if weight == Weight() else apply_weight(adapter, weight)


def base_path(name: str, context: Context) -> Path:
    """Return the path of the base with a name.

    Raises:
        NotFound: if there is none of this name.
        UsageError: if the name is that of an adapter in memory.
    """
    known = context.known.get(name)
    if isinstance(known, Adapter):
        raise UsageError(f"{name!r} is an adapter, and a base is needed here")
    return known if known is not None else find_told(name, "bases", context)


_AN_ADAPTER: tuple[str, Message] = (
    "this is an adapter, and a base must be a checkpoint",
    ("give the checkpoint as ", Setting("base")),
)


def open_base(
    name: str, context: Context, an_adapter: tuple[str, Message] = _AN_ADAPTER
) -> Checkpoint:
    """Open a base.

    Args:
        an_adapter: problem and hint for a file that is one.

    Raises:
        NotFound: if there is none of this name.
        FamilyError: if it is not a checkpoint of a known family.
        FormatError: if it is an adapter.
    """
    from loramerge.checkpoint import open_checkpoint

    path = base_path(name, context)
    try:
        return open_checkpoint(path)
    except FamilyError:
        if not is_adapter(path):
            raise
        problem, hint = an_adapter
        raise FormatError(problem, file=path, hint=hint) from None


def is_adapter(path: Path) -> bool:
    """Return whether a file or folder is an adapter, rather than the weights of a model."""
    try:
        return not load(path).only_replaces
    except LoramergeError:
        return False


def at_base(adapter: Adapter, base: Checkpoint | None) -> Adapter:
    """Return the adapter with base-dependent modules computed for it; see `stream.against`."""
    if base is None:
        return adapter
    from loramerge.stream.against import against

    return against(adapter.require_sound(), base)


def require_whole(adapter: Adapter) -> Adapter:
    """Return an adapter, or refuse it if its file has unknown tensors.

    Raises:
        AdapterError: naming the first of them.
    """
    unknown = adapter.info.account.unknown
    if not unknown or adapter.info.path is None or not adapter.require_sound().deltas:
        return adapter
    raise AdapterError(
        f"{_tensors(len(unknown))} not known and would be left out",
        file=adapter.label,
        found=", ".join(_first_unknown(unknown)),
        hint=("leave them out with ", Setting("skip_unknown", True), ", if the rest is enough"),
    )


def _first_unknown(unknown: Mapping[str, str | None]) -> Iterator[str]:
    for key, close in list(unknown.items())[:3]:
        yield f"{key} (nearest known: {close})" if close else key


def read_adapter(path: Path) -> Adapter:
    """Load an adapter, or say that the file is a checkpoint rather than return an empty one.

    Raises:
        FormatError: if it is a checkpoint.
        LoramergeError: see `adapter.load.load`.
    """
    try:
        adapter = load(path)
    except FormatError:
        if not is_checkpoint(path):
            raise
    else:
        if not adapter.only_replaces or not is_checkpoint(path):
            return adapter
    raise FormatError(
        "this is a checkpoint, and an adapter is needed here",
        file=path,
        hint="only bake and inspect take checkpoints",
    )


def family_of_file(path: Path) -> str | None:
    """Return the family of a single file; None for a folder, whose configuration names it."""
    from loramerge.checkpoint import open_checkpoint

    if path.is_dir():
        return None
    try:
        return open_checkpoint(path).require_known().family_name
    except FormatError:
        return None


def is_checkpoint(path: Path) -> bool:
    """Return whether a file or folder is a base of a known family.

    Raises:
        ForeignFile: if it is a folder whose weights are of another format.
    """
    from loramerge.checkpoint import open_checkpoint

    try:
        return bool(open_checkpoint(path).slots)
    except ForeignFile:
        raise
    except LoramergeError:
        return False


def _tensors(count: int) -> str:
    return "1 tensor is" if count == 1 else f"{count} tensors are"


def warn_of(adapter: Adapter, notify: Notify) -> None:
    """Warn of unused tensors, so that none is dropped silently, and pass on warnings."""
    unknown = adapter.info.account.unknown
    if unknown:
        first = next(_first_unknown(unknown))
        notify(Warn(f"{adapter.label}: {_tensors(len(unknown))} not known and not used: {first}"))
    seen: dict[str, int] = {}
    for problem in adapter.info.problems:
        if problem.severity == "warning":
            seen[problem.message] = seen.get(problem.message, 0) + 1
    for message, count in seen.items():
        notify(Warn(f"{adapter.label}: {message}" + (f" ({count} modules)" if count > 1 else "")))
