"""The parts of a program: all that tests have seen it read.

A program's file says which modules of which families it reads in which dialects, in which forms, and
where it computes another change than the one that is defined. `tests/clients` holds every line against
the program's own loader; what no test has seen is not said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cache, lru_cache
from typing import Literal

from loramerge.records import record

__all__ = ["ANY", "Alphas", "Program", "Reads"]

# "unseen" where no test has given it any
Alphas = Literal["read", "left out", "refused", "unseen"]

# every family, known or not: a program that takes the names of modules as they are
ANY = "any"


@record(eq=False)
class Reads:
    """The modules that a program reads in some dialects of some families.

    Args:
        dialects, families: their names, or `ANY` family.
        forms: kinds of modules, as `adapter.readers` tells them apart.
        but: pattern of full module names that it does not read; none by default.
        unseen: pattern of full module names of which no test knows; none by default.
        refuses: pattern of full module names of which one makes it refuse the whole file; none by
            default.
        told_by: pattern of full module names, one of which every tested file has, since the program
            tells by it what a file is for; none by default.
        tried: forms that tests have given it, read or not; all of them by default.
        otherwise: form → what it computes in the place of what is defined, in these dialects alone.
        alphas: what it makes of alphas beside the factors, in dialects whose own files have none.
    """

    dialects: tuple[str, ...]
    families: tuple[str, ...]
    forms: tuple[str, ...]
    but: str = ""
    unseen: str = ""
    tried: tuple[str, ...] = ()
    otherwise: Mapping[str, str] = field(default_factory=dict)
    refuses: str = ""
    told_by: str = ""
    alphas: Alphas = "read"

    def covers(self, family: str, dialect: str) -> bool:
        """Return whether it speaks of a dialect of a family."""
        return dialect in self.dialects and (family in self.families or ANY in self.families)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


@record(eq=False)
class Program:
    """A program that loads adapters.

    Args:
        name: the word users type after `--for`.
        title: for people.
        version: that the tests have run.
        reads: what it reads; of several that fit, one is enough.
        otherwise: form → what it computes in the place of what is defined, in every dialect.
        refuses: forms of which one makes it refuse the whole file.
        one_alpha: dialects in which it takes one alpha for all modules of a component, in families
            of which `Family.one_alpha` says so.
        most_unread: more tensors than this that it cannot place make it refuse the whole file.
        order: lower ones come first.
    """

    name: str
    title: str
    version: str
    reads: tuple[Reads, ...]
    otherwise: Mapping[str, str] = field(default_factory=dict)
    refuses: frozenset[str] = frozenset()
    one_alpha: tuple[str, ...] = ()
    most_unread: int | None = None
    order: int = 100

    def knows(self, family: str, dialect: str) -> bool:
        """Return whether a test has seen it read a dialect of a family, in whatever form."""
        return any(reads.covers(family, dialect) for reads in self.reads)

    def has_seen(self, family: str, dialect: str, form: str, names: frozenset[str]) -> bool:
        """Return whether tests have given it modules of a form and these names, read or not."""
        unseen = [reads.unseen for reads in _tried(self, family, dialect, form)]
        return bool(unseen) and not _matched_by_all(unseen, names)

    def unread(self, family: str, dialect: str, form: str, names: frozenset[str]) -> set[str]:
        """Return those of the names whose modules it does not read, if they are of a form."""
        but = [r.but for r in _covering(self, family, dialect) if form in r.forms]
        return _matched_by_all(but, names)

    def refused(self, family: str, dialect: str, form: str, names: frozenset[str]) -> set[str]:
        """Return those of the names whose modules make it refuse the whole file."""
        patterns = [reads.refuses for reads in _tried(self, family, dialect, form)]
        return _matched_by_all(patterns or [""], names)

    def tells(self, family: str, dialect: str, form: str, names: frozenset[str]) -> bool:
        """Return whether modules of a form and these names tell it what a file is for."""
        patterns = [reads.told_by for reads in _tried(self, family, dialect, form)]
        if not all(patterns):
            return True
        return any(_pattern(text).search(name) for text in patterns for name in names)

    def makes_of_alphas(self, family: str, dialect: str, form: str) -> Alphas:
        """Return what it makes of alphas of a form, where a dialect's own files have none."""
        found = {reads.alphas for reads in _tried(self, family, dialect, form)}
        return found.pop() if len(found) == 1 else "unseen"

    def computes(self, family: str, dialect: str, form: str) -> str | None:
        """Return the different result that it computes for a form, None for the definition."""
        found = (r.otherwise for r in _covering(self, family, dialect))
        return next((said[form] for said in found if form in said), self.otherwise.get(form))


def _matched_by_all(patterns: Sequence[str], names: frozenset[str]) -> set[str]:
    """Return the names that every pattern matches, all of them without a pattern.

    An empty pattern matches nothing.
    """
    if not all(patterns):
        return set()
    return set(names).intersection(*(_matched(text, names) for text in patterns))


@lru_cache(64)  # programs share patterns, and are asked about the same names one after the other
def _matched(pattern: str, names: frozenset[str]) -> frozenset[str]:
    found: set[str] = set()
    for start, part in _alternatives(pattern):
        may = [name for name in names if name.startswith(start)] if start else names
        found.update(filter(_pattern(part).search, may))
    return frozenset(found)


@cache
def _alternatives(pattern: str) -> tuple[tuple[str, str], ...]:
    """Return the alternatives of a pattern, each with the word that the names it matches begin with.

    A search tries every place of a name. Most alternatives speak of one component, and need not be
    tried on the names of others; those that begin with plain letters are searched fast.
    """
    parts, depth = [""], 0
    for token in re.findall(r"\\.|\[[^]]*\]|.", pattern):
        depth += (token == "(") - (token == ")")
        if token == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += token
    words = (re.match(r"\^(\w+)(?![\w?*+{])", part) for part in parts)
    return tuple((word[1] if word else "", part) for word, part in zip(words, parts, strict=True))


@cache
def _covering(program: Program, family: str, dialect: str) -> tuple[Reads, ...]:
    """Return the entries of a program for a dialect of a family; they are asked for each module."""
    return tuple(reads for reads in program.reads if reads.covers(family, dialect))


def _tried(program: Program, family: str, dialect: str, form: str) -> list[Reads]:
    """Return the entries whose tests have given the program modules of a form."""
    found = _covering(program, family, dialect)
    return [reads for reads in found if not reads.tried or form in reads.tried]
