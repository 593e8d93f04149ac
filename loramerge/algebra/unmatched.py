"""Rules of values per module that match no module: a component that is absent, a misspelt pattern."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from loramerge.adapter import Adapter, Site
from loramerge.algebra.per_module import PerModule, shown
from loramerge.errors import LoramergeError
from loramerge.families.components import COMPONENT_WORDS

__all__ = ["unmatched", "unmatched_blocks"]


def unmatched(
    rules: PerModule[Any], sites: Collection[Site], also: Collection[str] = ()
) -> Iterator[str]:
    """Yield the rules for components and patterns that match none of some sites, as `te=0`, `'*attn*'`.

    A word for several components, such as `te`, matches where one of them is there.

    Args:
        also: components that count as there.
    """
    there = {site.component for site in sites}.union(also)
    for word, names, value in _components(rules.components):
        if there.isdisjoint(names):
            yield f"{word}={shown(value)}"
    modules = {module for site in sites for module in site.modules}
    for pattern, _ in rules.match:
        if not any(fnmatchcase(module, pattern) for module in modules):
            yield repr(pattern)


def unmatched_blocks(rules: PerModule[Any], adapter: Adapter) -> Iterator[str]:
    """Yield the values of blocks if no module of an adapter lies in any of them, as `MID=0`.

    A vector has a number for every block, also for those that the adapter leaves alone. So only numbers
    other than `default` are looked at, and one that matches is enough.
    """
    try:
        by_block, label_of = rules.blocks_on(adapter)
    except LoramergeError:  # whoever applies the rules refuses them
        return
    own = {label: value for label, value in by_block.items() if value != rules.default}
    modules = (
        Site((module,), site.parameter) for site in adapter.deltas for module in site.modules
    )
    if not own or any(label_of(one) in own for one in modules):
        return
    if rules.depth:  # whose values for blocks nobody wrote
        yield "depth=" + ",".join(map(shown, rules.depth))
    else:
        yield from (f"{label}={shown(value)}" for label, value in own.items())


def _components(values: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield the rules for components as they were written: a word, the components it means, a value."""
    left = dict(values)
    for word, names in COMPONENT_WORDS.items():
        if len(names) > 1 and all(name in left for name in names):
            by_value: dict[
                Any, list[str]
            ] = {}  # `te=0.5:te2=0.3` gives the second a value of its own
            for name in names:
                by_value.setdefault(left.pop(name), []).append(name)
            for value, own in by_value.items():
                yield word if len(own) > 1 else _short(own[0]), tuple(own), value
    for name, value in left.items():
        yield _short(name), (name,), value


def _short(name: str) -> str:
    return next((word for word, names in COMPONENT_WORDS.items() if names == (name,)), name)
