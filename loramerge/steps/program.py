"""Check, before a file is written, how its target program reads it."""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.adapter import Adapter
from loramerge.adapter.readers import Reading, reading, readings
from loramerge.adapter.sites import for_dialect
from loramerge.dialects import Dialect
from loramerge.dialects.programs import READERS
from loramerge.errors import Message, NotExpressible, Setting, listed
from loramerge.events import Note, Notify, Warn

__all__ = ["check_program"]

_SHOWN = 4


def check_program(adapter: Adapter, program: str | None, target: Dialect, notify: Notify) -> None:
    """Refuse modules that the target program does not read; warn about those that it computes
    differently.

    Without a program, possible other families are warned about.

    Args:
        program: the value of `--for`; None warns about every program that computes the result
            differently.
        target: the dialect that will be written.

    Raises:
        NotExpressible: naming the modules that it would leave out, or why it refuses the file.
    """
    detection = adapter.info.detection
    if detection.twins and target.name not in adapter.info.dialects:
        notify(
            Warn(
                f"{adapter.label} may also belong to {listed(list(detection.twins), 9)}, whose "
                "attention has the same names and shapes; the result has the names of "
                f"{detection.naming.name if detection.naming else 'no family'} in the dialect "
                f"{target.name}"
            )
        )
    for warning in _of_others(adapter, target):
        notify(warning)
    if program is not None and program not in READERS:
        notify(
            Warn(f"no test runs the loader of {program}; docs/formats.md says what was read of it")
        )
    if program is None or program not in READERS:
        _tell(adapter, target, notify)
        return
    reader = READERS[program]
    found = reading(adapter, reader, target)
    if found is None:
        notify(Warn(_unseen(adapter, reader.title, target)))
        return
    _refuse(adapter, found, target)
    for what, modules in found.otherwise.items():
        title = f"{reader.title} {reader.version}"
        notify(
            Warn(
                (
                    f"{title} computes a different change in {len(modules)} modules: {what}; ",
                    *_way_out(adapter),
                )
            )
        )


def _of_others(adapter: Adapter, target: Dialect) -> Iterator[Warn]:
    """Yield the warning of names that only one of several possible families has in a dialect."""
    detection = adapter.info.detection
    first, *others = detection.candidates or (None,)
    if first is None or not others or adapter.info.dialects.keys() <= {target.name}:
        return
    for site in for_dialect(adapter, target).deltas:
        key = target.key(first, site.modules, "up")
        if key is not None and any(target.key(f, site.modules, "up") != key for f in others):
            yield Warn(
                f"{adapter.label} may be of {detection.name}, which have different names in the "
                f"dialect {target.name}; the result has those of {first.name}. `loramerge meta FILE "
                "--set modelspec.architecture=NAME` says of which it is"
            )
            return


def _tell(adapter: Adapter, target: Dialect, notify: Notify) -> None:
    """Warn about the programs that compute a different change from the result."""
    if all(delta.pair is not None for delta in adapter.deltas.values()):
        return
    titles = [found.program.title for found in readings(adapter, target) if found.otherwise]
    if titles:
        verb = "computes" if len(titles) == 1 else "compute"
        notify(
            Note(
                (
                    f"{listed(titles)} {verb} a different change in some modules; ",
                    *_way_out(adapter),
                )
            )
        )


def _way_out(adapter: Adapter) -> tuple[str | Setting, ...]:
    """Return the advice that gives the trained change in every program."""
    bound = any(delta.needs_base for delta in adapter.deltas.values())
    base: tuple[str | Setting, ...] = (" with the ", Setting("base")) if bound else ()
    return (Setting("to_lora", True), " of convert", *base, " gives the trained change")


def _unseen(adapter: Adapter, title: str, target: Dialect) -> str:
    naming = adapter.info.detection.naming
    what = "an unknown family" if naming is None else naming.title
    return f"it is not tested that {title} reads files for {what} in the dialect {target.name}"


def _refuse(adapter: Adapter, found: Reading, target: Dialect) -> None:
    if not found.unread and not found.refused:
        return
    reader = found.program
    total = len(adapter.deltas)
    problem = (
        f"{reader.title} {reader.version} would refuse this file: {found.refused}"
        if found.refused
        else f"{reader.title} {reader.version} would leave out {len(found.unread)} of {total} modules"
    )
    needs_base = any(delta.needs_base for delta in adapter.deltas.values())
    hint: Message = (
        "leave them out with ",
        Setting("drop", "PATTERN"),
        " of convert, or keep them with ",
        Setting("to", target.name),
    )
    if needs_base:
        hint = ("write what it reads with ", Setting("to_lora", True), " and ", Setting("base"))
    raise NotExpressible(
        problem,
        file=adapter.info.path,
        expected=f"modules that {reader.title} reads in the dialect {target.name}",
        found=listed(list(found.unread), _SHOWN) if found.unread else None,
        hint=hint,
    )
