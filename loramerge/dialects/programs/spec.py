"""The parts of a program: all that tests have seen it read.

A program's file says which modules of which families it reads in which dialects, in which forms, and
where it computes another change than the one that is defined. `tests/clients` holds every line against
the program's own loader; what no test has seen is not said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

__all__ = ["FACTORS", "Program", "Reads"]

# ΔW of weights that stands in the file as factors or whole
FACTORS = ("lora", "loha", "lokr", "full")


@dataclass(frozen=True)
class Reads:
    """The modules that a program reads in some dialects of some families.

    Args:
        dialects, families: their names.
        forms: kinds of modules, as `adapter.readers` tells them apart.
        but: pattern of full module names that it does not read; none by default.
    """

    dialects: tuple[str, ...]
    families: tuple[str, ...]
    forms: tuple[str, ...]
    but: str = ""

    def module(self, name: str) -> bool:
        """Return whether it reads a module of this name."""
        return not self.but or _pattern(self.but).search(name) is None


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


@dataclass(frozen=True, eq=False)
class Program:
    """A program that loads adapters.

    Args:
        name: the word users type after `--for`.
        title: for people.
        version: that the tests have run.
        reads: what it reads; of several that fit, one is enough.
        otherwise: form → what it computes in the place of what is defined.
        refuses: forms of which one makes it refuse the whole file.
        most_unread: more tensors than this that it cannot place make it refuse the whole file.
        order: lower ones come first.
    """

    name: str
    title: str
    version: str
    reads: tuple[Reads, ...]
    otherwise: Mapping[str, str] = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()
    most_unread: int | None = None
    order: int = 100

    def knows(self, family: str, dialect: str) -> bool:
        """Return whether a test has seen it read a dialect of a family, in whatever form."""
        return any(family in r.families and dialect in r.dialects for r in self.reads)

    def reads_module(self, family: str, dialect: str, form: str, name: str) -> bool:
        """Return whether it reads a module of a form."""
        return any(
            family in r.families and dialect in r.dialects and form in r.forms and r.module(name)
            for r in self.reads
        )
