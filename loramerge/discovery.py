"""Things of one sort by name: the shipped ones, one file each, and those that others add.

A file of a registry's folders holds one thing, under one attribute, and is called as the thing is,
with underscores: `flux2_dev.py` holds `flux2-dev`. It is imported when the thing is first asked for.
Other packages add theirs by an entry point. These are looked for only where a name is not known
otherwise, or where all things are walked over, because looking takes longer than reading a file does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Named", "Registry", "entry_points"]


class Named(Protocol):
    """An item of a registry: it has a name, and an order among others of its sort."""

    @property
    def name(self) -> str:
        """The word users type."""

    @property
    def order(self) -> int:
        """Lower ones come first; those of one order, by name."""


T = TypeVar("T", bound=Named)


def entry_points(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, by name.

    `importlib.metadata` takes as long to import as a header to inspect, so it is left alone where no
    installed package mentions the group.
    """
    if not _is_mentioned(f"[{group}]".encode()):
        return []
    from importlib import metadata

    return sorted(metadata.entry_points(group=group), key=lambda point: point.name)


def _is_mentioned(header: bytes) -> bool:
    """Return whether the entry points of some package on the path have a section of this header."""
    for folder in dict.fromkeys(sys.path):
        try:
            names = os.listdir(folder or os.curdir)  # noqa: PTH208 - a fifth of the time of pathlib
        except OSError:  # an archive, or not there
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                file = Path(folder, name, "entry_points.txt")
                with suppress(OSError):
                    if header in file.read_bytes():
                        return True
    return False


class Registry(Mapping[str, T]):
    """Things of one sort by name.

    Args:
        group: entry point of other packages, e.g. `loramerge.families`.
        attribute: the name under which a file holds its thing.
        folders: package → its folder, where the shipped files lie, the first ones first.
    """

    def __init__(self, group: str, attribute: str, folders: Mapping[str, str]) -> None:
        self._group, self._attribute, self._folders = group, attribute, folders
        self._added: dict[str, T] = {}
        self._loaded: dict[str, T] = {}
        self._found: dict[str, T] | None = None
        self._known: tuple[int, list[T]] | None = None
        self.version = 0

    @cached_property
    def _files(self) -> Mapping[str, str]:
        """Stem of the file → module of every shipped thing."""
        return {
            file.stem: f"{package}.{file.stem}"
            for package, folder in self._folders.items()
            for file in sorted(Path(folder).glob("[!_]*.py"))
        }

    def shipped(self, package: str | None = None) -> list[T]:
        """Return the shipped entries, of one package or of all."""
        wanted = [
            stem
            for stem, module in self._files.items()
            if package is None or module.startswith(f"{package}.")
        ]
        return [self._shipped(stem) for stem in wanted]

    def _shipped(self, stem: str) -> T:
        found = self._loaded.get(stem)
        if found is None:
            found = self._loaded[stem] = getattr(import_module(self._files[stem]), self._attribute)
        return found

    def added(self) -> list[T]:
        """Return the added entries, those of loaded entry points included."""
        return list(((self._found or {}) | self._added).values())

    def known(self) -> list[T]:
        """Return all that is known without looking for entry points, in order."""
        if self._known is None or self._known[0] != self.version:  # asked for every tensor
            by_name = {thing.name: thing for thing in (*self.shipped(), *self.added())}
            ordered = sorted(by_name.values(), key=lambda thing: thing.order)
            self._known = self.version, ordered
        return list(self._known[1])

    def look_for_others(self) -> bool:
        """Load what other packages offer; say whether this is the first time and there is any."""
        if self._found is not None:
            return False
        self._found = {}
        for point in entry_points(self._group):
            thing: Any = point.load()
            self._found[thing.name] = thing
        self.version += bool(self._found)
        return bool(self._found)

    def is_installed(self, thing: Named) -> bool:
        """Return whether every process has a thing: it is shipped, or an installed package has it."""
        if any(one is thing for one in self._loaded.values()):
            return True
        self.look_for_others()
        return any(one is thing for one in (self._found or {}).values())

    def add(self, thing: T) -> T:
        """Add a thing; one of the same name is replaced."""
        self._added[thing.name] = thing
        self.version += 1
        return thing

    @contextmanager
    def adding(self, *things: T) -> Iterator[None]:
        """Have things added for a while."""
        before = dict(self._added)
        for thing in things:
            self.add(thing)
        try:
            yield
        finally:
            self._added = before
            self.version += 1

    def __getitem__(self, name: str) -> T:
        if name in self._added:
            return self._added[name]
        stem = name.replace("-", "_")
        found = self._loaded.get(stem)  # asked for every tensor
        if found is None and stem in self._files:
            found = self._shipped(stem)
        if found is not None and found.name == name:
            return found
        self.look_for_others()
        assert self._found is not None
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        self.look_for_others()
        return iter([thing.name for thing in self.known()])

    def __len__(self) -> int:
        return len(list(iter(self)))
