"""Directed graphs of names: topological order, cycles, reachable names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["find_cycle", "ordered", "reachable"]

Needs = Mapping[str, Iterable[str]]  # name → names that it needs


def find_cycle(needs: Needs) -> list[str] | None:
    """Return a cycle, in which each name needs the next and the last the first; None without one."""
    finished: set[str] = set()
    for start in needs:
        stack = [(start, iter(needs[start]))] if start not in finished else []
        path = {name: None for name, _ in stack}  # in order, with fast look-up
        while stack:
            name, rest = stack[-1]
            following = next((n for n in rest if n in needs and n not in finished), None)
            if following is None:
                finished.add(name)
                stack.pop()
                path.popitem()
            elif following in path:
                names = list(path)
                return names[names.index(following) :]
            else:
                stack.append((following, iter(needs[following])))
                path[following] = None
    return None


def ordered(needs: Needs) -> list[str]:
    """Return all names, each after those it needs, otherwise in the order given.

    Raises:
        ValueError: if there is a cycle.
    """
    if find_cycle(needs) is not None:
        raise ValueError("the graph has a cycle")
    done: dict[str, None] = {}

    for start in needs:
        stack = [start]
        while stack:
            name = stack[-1]
            missing = [n for n in needs[name] if n in needs and n not in done]
            if name in done or not missing:
                done[stack.pop()] = None
            else:
                stack += reversed(missing)
    return list(done)


def reachable(starts: Iterable[str], needs: Needs) -> set[str]:
    """Return the starts and all names that they need, directly or indirectly."""
    found: set[str] = set()
    stack = list(starts)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += [n for n in needs.get(name, ()) if n not in found]
    return found
