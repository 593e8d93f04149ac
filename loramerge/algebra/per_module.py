"""A value for every module: one for all, or some by component, block, depth or pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any, Generic, TypeVar

from loramerge.adapter import Adapter, Site
from loramerge.algebra.blocks import (
    FLUX,
    FLUX_LENGTHS,
    LENGTHS,
    VECTORS,
    block_label,
    block_order,
    check_vector,
    flux_labels,
    preset,
    unet_family,
)
from loramerge.errors import UsageError, suggestion
from loramerge.families import Family
from loramerge.families.blocks import flux_blocks
from loramerge.families.components import COMPONENT_WORDS

__all__ = ["Blocks", "PerModule", "content_of", "shown", "shown_number", "values_of"]

Value = TypeVar("Value")

Blocks = tuple[Mapping[str, Any], Callable[[Site], str | None]]  # block → value; site → its block


def shown_number(value: float) -> str:
    """Return a number with as few digits as represent it exactly."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


@dataclass(frozen=True)
class PerModule(Generic[Value]):
    """A value for every site. The most specific one counts.

    The last pattern that matches the module's name, else its component's, else its block's, else
    `default`.

    Args:
        default: also for blocks that a vector does not name; None leaves modules that nothing names
            without a value.
        components: component name → value; `text_encoder` does not include `text_encoder_2`.
        blocks: a block vector of 12, 17, 20, 26, 57 or 61 values, see `algebra.blocks`.
        depth: numbers at equal steps from the first block of the UNet to the last, interpolated.
        match: (case-sensitive pattern on the module's name, value) pairs, the last match counts.
    """

    default: Value | None = None
    components: Mapping[str, Value] = field(default_factory=dict)
    blocks: tuple[Value, ...] = ()
    depth: tuple[float, ...] = ()
    match: tuple[tuple[str, Value], ...] = ()

    what = "value"  # the word for it in errors

    def __post_init__(self) -> None:
        if self.blocks and len(self.blocks) not in VECTORS:
            raise UsageError(
                f"a block vector cannot have {len(self.blocks)} values",
                expected=LENGTHS,
            )
        if self.blocks and self.depth:
            raise UsageError(f"give a {self.what} per block or by depth, not both")

    @property
    def states_default(self) -> bool:
        """True if modules that nothing names were given a value."""
        return self.default is not None

    def of(self, site: Site, family: Family | None = None) -> Value | None:
        """Return the value of a site; blocks count only where the family is known."""
        by_block: Mapping[str, Any] = {}
        if family is not None and (self.blocks or self.depth):
            by_block = _by_block(self.blocks, self.depth, family)
        label = block_label(site, family) if by_block and family is not None else None
        return self._chosen(site, by_block.get(label or ""))

    def on(self, adapter: Adapter) -> Callable[[Site], Value | None]:
        """Return the function that gives the value of each site of an adapter.

        Raises:
            UsageError: if it names blocks that the adapter's family lacks.
        """
        if not (self.blocks or self.depth):
            return self.of
        by_block, label_of = self.blocks_on(adapter)
        return lambda site: self._chosen(site, by_block.get(label_of(site) or ""))

    def blocks_on(self, adapter: Adapter) -> Blocks:
        """Return the value of each block that is named, and the block of each site of an adapter.

        Raises:
            UsageError: see `on`.
        """
        if not (self.blocks or self.depth):
            return {}, lambda site: None
        if len(self.blocks) in FLUX_LENGTHS:
            labels = flux_labels(adapter, self.blocks)
            by_block = dict(zip(VECTORS[len(self.blocks)], self.blocks, strict=True))
            return by_block, lambda site: labels.get(site.modules[0])
        family = unet_family(adapter, self.blocks)
        # refuses vectors of other families
        return _by_block(self.blocks, self.depth, family), partial(block_label, family=family)

    def among(
        self, modules: Iterable[str], family: Family | None, label: str
    ) -> Callable[[Site], Value | None]:
        """Return the function that gives the value of each site of a checkpoint.

        What lies in no block that a vector names, such as the embedding of the time step, has the
        vector's first value, `BASE`, unless `default` says otherwise. An adapter seldom has such sites.

        Args:
            modules: names of its modules.
            family: None for other models of transformers.
            label: its name, for errors.

        Raises:
            UsageError: if it goes by blocks that the family does not have.
        """
        if not (self.blocks or self.depth):
            return self.of
        if family is not None and len(self.blocks) in FLUX_LENGTHS and family.name == FLUX:
            labels = flux_blocks(modules).labels
            by_block = dict(zip(VECTORS[len(self.blocks)], self.blocks, strict=True))
            return lambda site: self._chosen(site, by_block.get(labels.get(site.modules[0], "")))
        if family is None or len(self.blocks) in FLUX_LENGTHS or not block_order(family):
            raise UsageError(
                f"{self.what}s per block are for families whose blocks are known",
                file=label,
                expected=LENGTHS,
                found=f"{len(self.blocks)} values" if self.blocks else f"{self.what}s by depth",
                hint=f'give {self.what}s by patterns on module names: match: {{"*.3.*": 0}}',
            )
        _by_block(self.blocks, self.depth, family)  # refuses vectors of other families
        rest = self
        if self.blocks and not self.states_default:
            rest = replace(self, default=self.blocks[0])
        return lambda site: rest.of(site, family)

    def _chosen(self, site: Site, block: Value | None) -> Value | None:
        """Return the most specific value of a site, given its block's value, if any."""
        for pattern, value in reversed(self.match):
            if fnmatchcase(site.modules[0], pattern):
                return value
        if site.component in self.components:
            return self.components[site.component]
        return self.default if block is None else block

    def text(self) -> str:
        """Return it as users write it."""
        rest = [f"{name}={shown(value)}" for name, value in self.components.items()]
        if self.blocks:
            rest.insert(0, ",".join(map(shown, self.blocks)))
        if self.depth:
            rest.insert(0, "depth=" + ",".join(map(shown, self.depth)))
        rest += [f"{pattern}={shown(value)}" for pattern, value in self.match]
        stated = self.states_default or not rest
        return ":".join(([shown(self.default)] if stated else []) + rest)


def shown(value: Any) -> str:
    """Return a value as users write it."""
    return value if isinstance(value, str) else shown_number(value)


@cache
def _by_block(
    blocks: tuple[Any, ...], depth: tuple[float, ...], family: Family
) -> Mapping[str, Any]:
    """Return block → value of a vector, or of values by depth interpolated linearly."""
    if blocks:
        return check_vector(blocks, family)
    order = block_order(family)
    last = len(depth) - 1
    found = {}
    for index, label in enumerate(order):
        place = last * index / (len(order) - 1)
        low = min(int(place), max(last - 1, 0))
        share = place - low
        found[label] = depth[low] * (1 - share) + depth[min(low + 1, last)] * share
    return found


# ---- as recipes and files have them


_FIELDS = ("default", "match", "blocks", "preset", "depth")


def values_of(
    content: Mapping[str, Any],
    where: str,
    words: tuple[str, str],
    read: Callable[[Any, str], Any],
) -> dict[str, Any]:
    """Return the arguments of a `PerModule` that a mapping states, as recipes and files have it.

    Args:
        content: `default`, component words, `match` (pattern → value), and one of `blocks` (a
            vector), `preset` (a name), `depth` (numbers).
        where: named in errors; `words`: for the mapping, and for its values, in them.
        read: function of a value and of the rule that states it, such as `te` or `match *attn*`,
            that returns the checked value.

    Raises:
        UsageError: naming the problem, with the nearest known word.
    """
    components: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for key, value in content.items():
        if key in COMPONENT_WORDS:
            components |= dict.fromkeys(COMPONENT_WORDS[key], read(value, str(key)))
        elif key in _FIELDS:
            fields[key] = value
        else:
            raise UsageError(
                f"{where}: {key!r} is not a field of a {words[0]}",
                expected=", ".join((*_FIELDS, *COMPONENT_WORDS)),
                hint=suggestion(str(key), [*_FIELDS, *COMPONENT_WORDS]),
            )
    if "preset" in fields and "blocks" in fields:
        raise UsageError(f"{where}: give preset or blocks, not both")

    def several(name: str) -> list[Any]:
        values = fields.get(name, ())
        if isinstance(values, str) or not isinstance(values, (list, tuple)):
            raise UsageError(f"{where}: {name}: expected a list of {words[1]}", found=values)
        return list(values)

    blocks = several("blocks")
    if "preset" in fields:
        blocks = list(preset(str(fields["preset"])))
    names = VECTORS.get(len(blocks), range(1, len(blocks) + 1))
    match = fields.get("match", {})
    if not isinstance(match, Mapping):
        raise UsageError(f"{where}: match must map patterns to {words[1]}", found=match)
    found: dict[str, Any] = {
        "components": components,
        "blocks": tuple(read(v, f"block {n}") for v, n in zip(blocks, names, strict=True)),
        "depth": tuple(read(v, "depth") for v in several("depth")),
        "match": tuple((str(p), read(v, f"match {p}")) for p, v in match.items()),
    }
    if "default" in fields:
        found["default"] = read(fields["default"], "default")
    return found


def content_of(values: PerModule[Any], plain: Callable[[Any], Any] = lambda v: v) -> dict[str, Any]:
    """Return the mapping that `values_of` reads, without what is not stated.

    Args:
        plain: function of a value that gives it as it is written.
    """
    components = dict(values.components)
    denoiser = components.pop("transformer", components.get("unet"))
    if denoiser is not None:  # the word `unet` means either, and no adapter has both
        components.setdefault("unet", denoiser)
    parts: dict[str, Any] = {
        "default": plain(values.default) if values.states_default else None,
        **{name: plain(value) for name, value in sorted(components.items())},
        "blocks": list(map(plain, values.blocks)) or None,
        "depth": list(map(plain, values.depth)) or None,
        "match": {pattern: plain(value) for pattern, value in values.match} or None,
    }
    return {name: value for name, value in parts.items() if value is not None}
