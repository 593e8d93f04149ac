"""Regular expressions that are matched in time linear in the text.

The expression becomes a network of states (Thompson's construction), and all states that are possible
after each character are followed at once; sets of states that were met are remembered. Python's own
engine tries one way after another instead, which takes exponential time for `(a+)+b`.

Source: K. Thompson, "Regular expression search algorithm", Communications of the ACM 11 (6), 1968.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Expression", "NotLinear"]

_LONGEST = 500  # characters of an expression
_MOST_STATES = 5000
_MOST_REMEMBERED = 10_000  # steps from one set of states to the next
_REPEAT = re.compile(r"(?:([*+?])|\{(\d+)\}|\{(\d*),(\d*)\})\??")
_SIGNS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_ATOM = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\[dDsSwWnrtfv]|\\\W|[^\\()|*+?]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")


class NotLinear(ValueError):
    """An expression that is too long, or has parts that cannot be matched in linear time."""


@dataclass(frozen=True)
class _Atom:
    letter: re.Pattern[str]


@dataclass(frozen=True)
class _Anchor:
    sign: str


@dataclass(frozen=True)
class _Repeat:
    item: _Item
    least: int
    most: int | None


@dataclass(frozen=True)
class _Choice:
    sequences: list[list[_Item]]


_Item = _Atom | _Anchor | _Repeat | _Choice


class Expression:
    """A regular expression with the meaning it has for `re.match`.

    Args:
        pattern: letters, classes, groups, alternatives, repetitions and the anchors `^` and `$`.

    Raises:
        re.error: if this is not a regular expression.
        NotLinear: if it is longer than 500 characters or 5000 states, or has references to groups,
            lookarounds, flags, word boundaries or possessive repetitions.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > _LONGEST:
            raise NotLinear(f"it is longer than {_LONGEST} characters")
        self._free: list[list[int]] = []  # state → states reached without a character
        self._letters: dict[
            int, tuple[re.Pattern[str], int]
        ] = {}  # state → what it takes, the next
        self._anchors: dict[int, str] = {}  # state → what must hold there
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        try:
            re.compile(pattern)
            self._start = self._state()
            self._end = self._built(_parsed(pattern), self._start)
        except (RecursionError, OverflowError):
            raise NotLinear("it is nested or repeated too much") from None

    def matches(self, text: str) -> bool:
        """Return whether the text, or a part from its start, matches."""
        states = self._reached([self._start], first=True, last=not text)
        for place, letter in enumerate(text, 1):
            if self._end in states or not states:
                break
            states = self._after(states, letter, last=place == len(text))
        return self._end in states

    def _after(self, states: frozenset[int], letter: str, *, last: bool) -> frozenset[int]:
        if not last and (states, letter) in self._known:
            return self._known[states, letter]
        steps = [self._letters[state] for state in states if state in self._letters]
        found = self._reached((then for atom, then in steps if atom.fullmatch(letter)), last=last)
        if not last:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[states, letter] = found
        return found

    def _reached(
        self, states: Iterable[int], *, first: bool = False, last: bool = False
    ) -> frozenset[int]:
        """Return states and all that follow from them without a character."""
        holds = {"^": first, "$": last}
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state not in found and holds.get(self._anchors.get(state, ""), True):
                found.add(state)
                waiting += self._free[state]
        return frozenset(found)

    def _state(self, *before: int) -> int:
        """Add a state that follows others without a character."""
        new = len(self._free)
        if new >= _MOST_STATES:
            raise NotLinear("it repeats too much")
        self._free.append([])
        for state in before:
            self._free[state].append(new)
        return new

    def _built(self, item: _Item, start: int) -> int:
        """Add the states of an item after a state; return the last of them."""
        if isinstance(item, _Choice):
            return self._state(*[self._in_turn(one, start) for one in item.sequences])
        if isinstance(item, _Repeat):
            return self._repeated(item, start)
        new = self._state() if isinstance(item, _Atom) else self._state(start)
        if isinstance(item, _Anchor):
            self._anchors[new] = item.sign
            return new
        before = self._state(start)  # one state takes one atom
        self._letters[before] = (item.letter, new)
        return new

    def _in_turn(self, items: list[_Item], start: int) -> int:
        for item in items:
            start = self._built(item, start)
        return start

    def _repeated(self, repeat: _Repeat, start: int) -> int:
        for _ in range(repeat.least):
            start = self._built(repeat.item, start)
        if repeat.most is None:
            hub = self._state(start)
            self._free[self._built(repeat.item, hub)].append(hub)
            return hub
        ends = [start]
        for _ in range(repeat.most - repeat.least):
            ends.append(self._built(repeat.item, ends[-1]))
        return self._state(*ends)


def _parsed(pattern: str) -> _Choice:
    """Return the parts of a valid expression.

    Raises:
        NotLinear: if a part has no linear meaning.
    """
    found, place = _choice(pattern, 0)
    if place != len(pattern):
        raise NotLinear(f"{pattern[place : place + 20]!r} is not supported")
    return found


def _choice(pattern: str, place: int) -> tuple[_Choice, int]:
    sequences: list[list[_Item]] = [[]]
    while place < len(pattern) and pattern[place] != ")":
        if pattern[place] == "|":
            sequences.append([])
            place += 1
            continue
        item, place = _item(pattern, place)
        item, place = _with_repeat(item, pattern, place)
        sequences[-1].append(item)
    return _Choice(sequences), place


def _item(pattern: str, place: int) -> tuple[_Item, int]:
    if group := _GROUP.match(pattern, place):
        inner, place = _choice(pattern, group.end())
        return inner, place + 1
    if pattern[place] in "^$":
        return _Anchor(pattern[place]), place + 1
    if atom := _ATOM.match(pattern, place):
        return _Atom(re.compile(atom[0])), atom.end()
    raise NotLinear(f"{pattern[place : place + 20]!r} is not supported")


def _with_repeat(item: _Item, pattern: str, place: int) -> tuple[_Item, int]:
    """Return an item with the repetition that follows it, if any."""
    repeat = _REPEAT.match(pattern, place)
    if repeat is None:
        return item, place
    if pattern[repeat.end() : repeat.end() + 1] == "+":
        raise NotLinear("possessive repetitions are not supported")
    sign, exactly, least, most = repeat.groups()
    if sign:
        low, high = _SIGNS[sign]
    elif exactly:
        low, high = int(exactly), int(exactly)
    else:
        low, high = int(least or 0), int(most) if most else None
    return _Repeat(item, low, high), repeat.end()
