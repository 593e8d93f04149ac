"""Files of one of the two networks that a pipeline has, in words that do not say which.

Wan 2.2 has two transformers, and diffusers' names say to which of them a module belongs. Other programs
keep each network, and each adapter of one, in a file of its own, where the modules of both have the same
names. Such a file is written of one network alone, and its header says of which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.metadata import NETWORK
from loramerge.adapter.site import Site
from loramerge.dialects import DIALECTS, Dialect
from loramerge.families import Component

__all__ = [
    "as_read", "as_written", "both_networks", "by_name", "marked", "moved", "network_in",
    "network_of", "network_said", "renamed",
]  # fmt: skip

V = TypeVar("V")

# as ai-toolkit and the original name their files: for the first steps, and for the last
_FIRST, _SECOND = r"(?i)high[ _.-]?noise", r"(?i)low[ _.-]?noise"
_TITLES = ("ss_output_name", "modelspec.title", "name")


def _seconds(adapter: Adapter) -> Iterator[Component]:
    naming = adapter.info.detection.naming
    yield from (c for c in (naming.components if naming else ()) if c.second_of)


def network_in(text: str, second: Component) -> str:
    """Return the network that a name says, empty if it says none or both."""
    names = Path(text).parts
    one = re.search(_FIRST, text) is not None
    other = re.search(_SECOND, text) is not None or second.name in names
    return "" if one == other else second.second_of if one else second.name


def network_said(adapter: Adapter, second: Component) -> str:
    """Return the network that an adapter's header or name says, empty if they do not say."""
    header = adapter.info.metadata.get(NETWORK, "")
    if header in (second.second_of, second.name):
        return header
    named = Path(adapter.info.path or "").name
    titles = (adapter.info.metadata.get(key, "") for key in _TITLES)
    said = (one for text in (named, *titles) if (one := network_in(text, second)))
    return next(said, adapter.info.network)


def network_of(adapter: Adapter) -> str:
    """Return the network that an adapter with the names of the first is said to be for, or nothing."""
    has = adapter.components()
    alone = (s for s in _seconds(adapter) if s.second_of in has and s.name not in has)
    return next((said for second in alone if (said := network_said(adapter, second))), "")


def _says_neither(dialect: Dialect, adapter: Adapter, second: Component) -> bool:
    """Return whether a dialect has words for the first network alone."""
    naming = adapter.info.detection.naming
    assert naming is not None
    words = (bool(dialect.stems_of(naming, name)) for name in (second.second_of, second.name))
    return tuple(words) == (True, False)


def _said_by_no_key(adapter: Adapter, second: Component) -> bool:
    """Return whether the names in a file can say neither of the networks."""
    spoken = (DIALECTS[name] for name in adapter.info.dialects)
    return all(_says_neither(dialect, adapter, second) for dialect in spoken)


def both_networks(target: Dialect, *adapters: Adapter) -> Component | None:
    """Return the second network if adapters have modules of both, and a dialect no words for that."""
    has = {component for adapter in adapters for component in adapter.components()}
    for adapter in adapters:
        both = (s for s in _seconds(adapter) if s.name in has and s.second_of in has)
        for second in both:
            if _says_neither(target, adapter, second):
                return second
    return None


def as_read(adapter: Adapter) -> Adapter:
    """Return an adapter with the modules of the network that the header of its file names.

    What only the name of the file says is kept in `info.network` and renames nothing here, because
    weights use the names in the file.
    """
    said = adapter.info.metadata.get(NETWORK)
    for second in _seconds(adapter):
        if second.name == said and _said_by_no_key(adapter, second):
            return moved(adapter, second.second_of, second.name)
        if (named := network_of(adapter)) and _said_by_no_key(adapter, second):
            return adapter.with_deltas(adapter.deltas, network=named)
    return adapter


def by_name(adapter: Adapter) -> Adapter:
    """Return an adapter with the modules of the network that the name of its file said."""
    has = adapter.components()
    for second in _seconds(adapter):
        if adapter.info.network == second.name and {second.name, second.second_of} & has.keys() == {
            second.second_of
        }:
            return moved(adapter, second.second_of, second.name)
    return adapter


def as_written(adapter: Adapter, target: Dialect) -> tuple[Adapter, dict[str, str]]:
    """Return an adapter by the names that a dialect has words for, and the entry that tells the network.

    Adapters of both networks, and of neither, stay as they are. What only the name of a file said is
    told by the keys or the entry from then on, because the new file may have any name.
    """
    adapter = by_name(adapter)
    has = adapter.components()
    for second in _seconds(adapter):
        own = [name for name in (second.second_of, second.name) if name in has]
        if len(own) != 1 or not _says_neither(target, adapter, second):
            continue
        if own == [second.name]:
            return moved(adapter, second.name, second.second_of), {NETWORK: second.name}
        if second.second_of in (adapter.info.metadata.get(NETWORK), adapter.info.network):
            return adapter, {NETWORK: second.second_of}
    return adapter, {}


def marked(whole: Adapter, part: Adapter) -> Adapter:
    """Return a part of an adapter, told to be of one network if the whole was of both."""
    before, after = whole.components(), part.components()
    for second in _seconds(whole):
        names = {second.second_of, second.name}
        left = names & after.keys()
        if names <= before.keys() and len(left) == 1:
            said = {**part.info.metadata, NETWORK: left.pop()}
            return part.with_deltas(part.deltas, metadata=said)
    return part


def moved(adapter: Adapter, source: str, target: str, *, only: bool = False) -> Adapter:
    """Return an adapter whose modules of one component are named as those of another.

    Args:
        only: leave out all other components.
    """

    def new(site: Site) -> Site:
        return renamed(site, target) if site.component == source else site

    def of_all(found: Mapping[Site, V]) -> dict[Site, V]:
        return {new(s): value for s, value in found.items() if s.component == source or not only}

    info = adapter.info
    return adapter.with_deltas(
        of_all(adapter.deltas),
        spelling={(new(site), role): spelled for (site, role), spelled in info.spelling.items()},
        types=of_all(info.types),
    )


def renamed(site: Site, component: str) -> Site:
    """Return a site with its modules in another component."""
    modules = tuple(f"{component}.{module.partition('.')[2]}" for module in site.modules)
    return site._replace(modules=modules)
