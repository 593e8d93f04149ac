"""Inputs that a process keeps between runs, for callers that ask again with other numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from loramerge.adapter.formats.named import split_name

if TYPE_CHECKING:
    from loramerge.adapter import Adapter
    from loramerge.algebra.interference import Figures

__all__ = ["Kept", "Recent", "state_of"]

T = TypeVar("T")


class Recent(dict[Any, T]):
    """The values that were asked for last.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def of(self, key: Any, make: Callable[[], T]) -> T:
        """Return the value of a key, which is made if it is not kept."""
        found = self.pop(key) if key in self else make()
        self[key] = found
        while len(self) > self._most:
            del self[next(iter(self))]
        return found


class Kept:
    """Opened adapters, and what is known of pairs of them.

    An adapter is opened again when its file has another size, time or inode.

    Args:
        most: adapters that are kept.
        figures: see `algebra.interference`; those of an adapter go with it.
    """

    def __init__(self, most: int = 24) -> None:
        self._adapters: Recent[Adapter] = Recent(most)
        self.figures: Figures = WeakKeyDictionary()

    def adapter(self, path: Path, read: Callable[[Path], Adapter]) -> Adapter:
        """Return the adapter at a path, opened by `read` if it is not kept."""
        state = state_of(path)
        return read(path) if state is None else self._adapters.of(state, lambda: read(path))


def state_of(path: Path) -> tuple[Any, ...] | None:
    """Return what changes when a file, or one in the folder of an adapter, does; None if it is gone."""
    place, name = split_name(path)
    try:
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        seen = [(str(one), one.stat()) for one in files]
    except OSError:
        return None
    states = ((file, found.st_size, found.st_mtime_ns, found.st_ino) for file, found in seen)
    return (str(path), name, *states)
