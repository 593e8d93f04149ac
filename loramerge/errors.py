"""Every error loramerge raises on purpose, and the exit code each one ends the command with.

An error says which file, which module, what was expected, what was found, and one thing to do.
Only the standard library is imported here, so that any layer may raise without cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from os import PathLike, fspath
from typing import Any

from loramerge.records import NamedTuple

__all__ = [
    "AdapterError",
    "CorruptFile",
    "DiskFull",
    "FamilyError",
    "FileError",
    "ForeignFile",
    "FormatError",
    "GradientFlowError",
    "LoramergeError",
    "Message",
    "MissingExtra",
    "MissingFile",
    "NotExpressible",
    "NotFound",
    "NotLowRank",
    "NumericsError",
    "OutOfMemory",
    "OutputExists",
    "RecipeError",
    "Setting",
    "ShapeError",
    "UnsafeFile",
    "UnsupportedKind",
    "UsageError",
    "in_python",
    "in_recipe",
    "listed",
    "nearest",
    "on_command_line",
    "sized",
    "spelled",
    "suggestion",
]


class Setting(NamedTuple):
    """A parameter that a message advises, with a value or without.

    `Setting("rank", 8)` reads `--rank 8` on the command line, `rank: 8` in a recipe and `rank=8` in
    Python: whoever shows the message spells it. A flag has the value True.

    Args:
        name: the parameter's word in recipes, e.g. `max_size`.
        value: what to give; None where the reader chooses.
    """

    name: str
    value: object = None


Message = str | tuple[str | Setting, ...]  # text with settings in it, one after the other


def in_python(setting: Setting) -> str:
    """Return `rank=8`; the name alone where no value is given."""
    return setting.name if setting.value is None else f"{setting.name}={setting.value!r}"


def on_command_line(setting: Setting) -> str:
    """Return `--rank 8`; the option alone for a flag, or where no value is given."""
    option = f"--{setting.name.replace('_', '-')}"
    return option if setting.value is None or setting.value is True else f"{option} {setting.value}"


def in_recipe(setting: Setting) -> str:
    """Return `rank: 8`; the name alone where no value is given."""
    if setting.value is True:
        return f"{setting.name}: true"
    return setting.name if setting.value is None else f"{setting.name}: {setting.value}"


def spelled(message: Message, spell: Callable[[Setting], str] = in_python) -> str:
    """Return a message as text, its settings in the reader's language."""
    if isinstance(message, str):
        return message
    return "".join(part if isinstance(part, str) else spell(part) for part in message)


def nearest(word: str, words: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the word of `words` most like `word`, or None if none is close.

    Words that differ in their numbers alone, as the names of layers do, are compared last.

    Args:
        likeness: what counts as close, from 0 to 1 (the ratio of `difflib`).
    """
    from difflib import get_close_matches

    alike: dict[str, list[str]] = {}
    for one in words:
        alike.setdefault(re.sub(r"\d+", "0", one), []).append(one)
    for like in get_close_matches(re.sub(r"\d+", "0", word), alike, n=3, cutoff=likeness):
        if matches := get_close_matches(word, alike[like], n=1, cutoff=likeness):
            return matches[0]
    return None


def suggestion(word: str, words: Iterable[str]) -> str | None:
    """Return `did you mean …?` with the word most like this one; None if none is close."""
    close = nearest(word, words)
    return f"did you mean {close}?" if close else None


def listed(names: Sequence[str], most: int = 10) -> str:
    """Join names for a message, cut after `most` with a count of the rest."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} … and {len(names) - most} more"


def sized(count: int) -> str:
    """Return bytes as people read them, in three digits: `999 bytes`, `1.02 kB`, `24 GB`; MB = 10⁶.

    Less than nothing is shown as nothing.
    """
    if count < 1000:
        whole = max(0, int(count))
        return "1 byte" if whole == 1 else f"{whole} bytes"
    for power, unit in enumerate(("kB", "MB", "GB", "TB", "PB"), 1):
        digits = f"{count / 1000**power:.3g}"
        if float(digits) < 1000:
            return f"{digits} {unit}"
    return f"{count / 1000**5:,.0f} PB"


class LoramergeError(Exception):
    """Base of all errors that a user can meet.

    Args:
        problem: what is wrong, in one sentence without a full stop.
        file: the file it is about.
        module: the module (or tensor) it is about.
        expected, found: both sides of a mismatch.
        hint: one thing to do; its parameters are `Setting`s.
    """

    exit_code = 70

    def __init__(
        self,
        problem: str,
        *,
        file: str | PathLike[str] | None = None,
        module: str | None = None,
        expected: object = None,
        found: object = None,
        hint: Message | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.file = fspath(file) if file is not None else None
        self.module = module
        self.expected = expected
        self.found = found
        self.hint = hint
        self.step: str | None = None  # of a recipe, set where steps are run

    def __str__(self) -> str:
        return self.text()

    def text(self, spell: Callable[[Setting], str] = in_python) -> str:
        """Return the whole message, the settings of its hint in the reader's language."""
        return spelled(self.message(), spell)

    def message(self) -> Message:
        """Return the whole message, the settings of its hint not spelled yet."""
        step = f"step {self.step}" if self.step else None
        where = ": ".join(part for part in (step, self.file, self.module) if part)
        text = f"{where}: {self.problem}" if where else self.problem
        if self.expected is not None:
            text += f"\n  expected: {self.expected}"
        if self.found is not None:
            text += f"\n  found: {self.found}"
        if not self.hint:
            return text
        hint = (self.hint,) if isinstance(self.hint, str) else self.hint
        return (f"{text}\n  hint: ", *hint)


class UsageError(LoramergeError):
    """A parameter or value that is unknown, missing or out of range."""

    exit_code = 2


class MissingExtra(UsageError):
    """The command needs a package of an optional extra that is not installed."""


class FileError(LoramergeError):
    """A file that cannot be read or written."""

    exit_code = 3


class MissingFile(FileError):
    """There is no such file."""


class NotFound(MissingFile):
    """A name that is neither a path, a registered base, nor in a library folder."""


class CorruptFile(FileError):
    """A file whose bytes contradict themselves: truncated, overlapping, out of bounds."""


class ForeignFile(FileError):
    """A file of another format than expected: a web page, an archive, a GGUF file."""


class UnsafeFile(FileError):
    """A pickle that holds more than tensors and plain containers."""


class OutputExists(FileError):
    """The output exists and `--force` was not given."""


class DiskFull(FileError):
    """There is not enough free space for the output."""


class FormatError(LoramergeError):
    """A file that is whole, but not of a dialect or layout that loramerge can use here."""

    exit_code = 4


class NotExpressible(FormatError):
    """The target dialect cannot store some modules of the adapter."""


class FamilyError(FormatError):
    """Adapter and base, or two adapters, belong to different families."""


class AdapterError(LoramergeError):
    """The content of an adapter forbids the operation."""

    exit_code = 5


class ShapeError(AdapterError):
    """Two shapes that must agree do not."""


class NotLowRank(AdapterError):
    """The delta has no exact low-rank form."""


class UnsupportedKind(AdapterError):
    """The kind is recognised, but this version cannot compute with it."""


class RecipeError(LoramergeError):
    """One or several mistakes in a recipe.

    Args:
        mistakes: a line for each, with its place.
    """

    exit_code = 6

    def __init__(self, problem: str, *, mistakes: Sequence[str] = (), **details: Any) -> None:
        super().__init__(problem, **details)
        self.mistakes = tuple(mistakes)

    def text(self, spell: Callable[[Setting], str] = in_python) -> str:
        return "\n  ".join((super().text(spell), *self.mistakes))


class NumericsError(LoramergeError):
    """NaN or infinity, an overflow on the way out, or an error above `--max-error`."""

    exit_code = 7


class OutOfMemory(LoramergeError):
    """The memory of a device is too small."""

    exit_code = 8


class GradientFlowError(NumericsError):
    """Injected modules that get no gradient, a broken one, or learned nothing.

    Args:
        modules: the full name of every one.
    """

    def __init__(self, problem: str, *, modules: Sequence[str] = (), **details: Any) -> None:
        super().__init__(problem, **details)
        self.modules = tuple(modules)
