"""The user's coefficient of an adapter: one number, or one per component, block or module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

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
from loramerge.errors import UsageError, nearest
from loramerge.families import Family
from loramerge.families.blocks import flux_blocks
from loramerge.families.components import COMPONENT_WORDS

_LARGEST = (2 - 2**-23) * 2.0**127  # of float32

__all__ = ["Weight", "shown_number", "weight_content", "weight_of"]


def shown_number(value: float) -> str:
    """Return a number with as few digits as represent it exactly."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


@dataclass(frozen=True)
class Weight:
    """A coefficient for every site. The most specific one counts; they never multiply.

    The last pattern that matches the module's name, else its component's, else its block's, else
    `default`.

    Args:
        default: also for blocks that a vector does not name (some programs take 0 for those).
        components: component name → weight; `text_encoder` does not include `text_encoder_2`.
        blocks: a block vector of 12, 17, 20, 26, 57 or 61 values, see `algebra.blocks`.
        depth: weights at equal steps from the first block of the UNet to the last, interpolated.
        match: (case-sensitive pattern on the module's name, weight) pairs, the last match counts.
    """

    default: float = 1.0
    components: Mapping[str, float] = field(default_factory=dict)
    blocks: tuple[float, ...] = ()
    depth: tuple[float, ...] = ()
    match: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.default, *self.components.values(), *self.blocks, *self.depth)
        for value in (*numbers, *(value for _, value in self.match)):
            if not abs(value) <= _LARGEST:  # NaN compares with nothing
                raise UsageError("a weight must be a finite number of float32", found=value)
        if self.blocks and len(self.blocks) not in VECTORS:
            raise UsageError(
                f"a block vector cannot have {len(self.blocks)} values",
                expected=LENGTHS,
            )
        if self.blocks and self.depth:
            raise UsageError("give a weight per block or by depth, not both")

    def of(self, site: Site, family: Family | None = None) -> float:
        """Return the coefficient of a site; blocks count only where the family is known."""
        by_block: Mapping[str, float] = {}
        if family is not None and (self.blocks or self.depth):
            by_block = _by_block(self.blocks, self.depth, family)
        label = block_label(site, family) if by_block and family is not None else None
        return self._chosen(site, by_block.get(label or ""))

    def on(self, adapter: Adapter) -> Callable[[Site], float]:
        """Return the function that gives the coefficient of each site of an adapter.

        Raises:
            UsageError: if the weight names blocks that the adapter's family lacks.
        """
        if not (self.blocks or self.depth):
            return self.of
        if len(self.blocks) in FLUX_LENGTHS:
            labels = flux_labels(adapter, self.blocks)
            by_block = dict(zip(VECTORS[len(self.blocks)], self.blocks, strict=True))
            return lambda site: self._chosen(site, by_block.get(labels.get(site.modules[0], "")))
        family = unet_family(adapter, self.blocks)
        _by_block(self.blocks, self.depth, family)  # refuses vectors of other families
        return lambda site: self.of(site, family)

    def among(
        self, modules: Iterable[str], family: Family | None, label: str
    ) -> Callable[[Site], float]:
        """Return the function that gives the coefficient of each site of a checkpoint.

        What lies in no block that a vector names, such as the embedding of the time step, has the
        vector's first value, `BASE`, unless `default` says otherwise. An adapter seldom has such sites.

        Args:
            modules: names of its modules.
            family: None for other models of transformers.
            label: its name, for errors.

        Raises:
            UsageError: if the weight goes by blocks that the family does not have.
        """
        if not (self.blocks or self.depth):
            return self.of
        if family is not None and len(self.blocks) in FLUX_LENGTHS and family.name == FLUX:
            labels = flux_blocks(modules).labels
            by_block = dict(zip(VECTORS[len(self.blocks)], self.blocks, strict=True))
            return lambda site: self._chosen(site, by_block.get(labels.get(site.modules[0], "")))
        if family is None or len(self.blocks) in FLUX_LENGTHS or not block_order(family):
            raise UsageError(
                "weights per block are for families whose blocks are known",
                file=label,
                expected=LENGTHS,
                found=f"{len(self.blocks)} values" if self.blocks else "weights by depth",
                hint='give weights by patterns on module names: match: {"*.3.*": 0}',
            )
        _by_block(self.blocks, self.depth, family)  # refuses vectors of other families
        rest = self
        if self.blocks and self.default == 1.0:
            rest = replace(self, default=self.blocks[0])
        return lambda site: rest.of(site, family)

    def _chosen(self, site: Site, block: float | None) -> float:
        """Return the most specific weight of a site, given its block's weight, if any."""
        for pattern, value in reversed(self.match):
            if fnmatchcase(site.modules[0], pattern):
                return value
        if site.component in self.components:
            return self.components[site.component]
        return self.default if block is None else block

    def text(self) -> str:
        """Return the weight as users write it."""
        rest = [f"{name}={shown_number(value)}" for name, value in self.components.items()]
        if self.blocks:
            rest.insert(0, ",".join(shown_number(value) for value in self.blocks))
        if self.depth:
            rest.insert(0, "depth=" + ",".join(shown_number(value) for value in self.depth))
        rest += [f"{pattern}={shown_number(value)}" for pattern, value in self.match]
        parts = [shown_number(self.default)] if self.default != 1.0 or not rest else []
        return ":".join(parts + rest)


@cache
def _by_block(
    blocks: tuple[float, ...], depth: tuple[float, ...], family: Family
) -> Mapping[str, float]:
    """Return block → weight of a vector, or of weights by depth interpolated linearly."""
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


_FIELDS = ("default", "match", "blocks", "preset", "depth")


def weight_of(content: Any, where: str) -> Weight:
    """Return the weight that a number or a mapping states, as recipes and weight files have it.

    Args:
        content: a number, or a mapping of `default`, component words, `match` (pattern → number),
            and one of `blocks` (a vector), `preset` (a name), `depth` (numbers).
        where: named in errors.

    Raises:
        UsageError: naming the problem, with the nearest known word.
    """
    if not isinstance(content, Mapping):
        return Weight(_checked(content, where))
    components: dict[str, float] = {}
    fields: dict[str, Any] = {}
    for key, value in content.items():
        if key in COMPONENT_WORDS:
            components |= dict.fromkeys(COMPONENT_WORDS[key], _checked(value, f"{where}: {key}"))
        elif key in _FIELDS:
            fields[key] = value
        else:
            close = nearest(str(key), [*_FIELDS, *COMPONENT_WORDS])
            raise UsageError(
                f"{where}: {key!r} is not a field of a weight",
                expected=", ".join((*_FIELDS, *COMPONENT_WORDS)),
                hint=f"did you mean {close}?" if close else None,
            )
    if "preset" in fields and "blocks" in fields:
        raise UsageError(f"{where}: give preset or blocks, not both")
    blocks = _numbers(fields.get("blocks", ()), f"{where}: blocks")
    if "preset" in fields:
        blocks = preset(str(fields["preset"]))
    match = fields.get("match", {})
    if not isinstance(match, Mapping):
        raise UsageError(f"{where}: match must map patterns to numbers", found=match)
    return Weight(
        _checked(fields.get("default", 1.0), f"{where}: default"),
        components,
        blocks,
        _numbers(fields.get("depth", ()), f"{where}: depth"),
        tuple((str(p), _checked(v, f"{where}: match {p}")) for p, v in match.items()),
    )


def _checked(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{where}: expected a number", found=value)
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        raise UsageError(
            f"{where}: a weight must be a finite number of float32",
            found=f"a number of {int(value).bit_length()} bits",
        ) from None


def _numbers(values: Any, where: str) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, (list, tuple)):
        raise UsageError(f"{where}: expected a list of numbers", found=values)
    return tuple(_checked(value, where) for value in values)


def weight_content(weight: Weight) -> float | dict[str, Any]:
    """Return a weight as `weight_of` reads it: a number, or a mapping without default values."""
    components = dict(weight.components)
    denoiser = components.pop("transformer", components.get("unet"))
    if denoiser is not None:  # the word `unet` means either, and no adapter has both
        components.setdefault("unet", denoiser)
    parts: dict[str, Any] = {
        "default": float(weight.default) if weight.default != 1.0 else None,
        **{name: float(value) for name, value in sorted(components.items())},
        "blocks": list(map(float, weight.blocks)) or None,
        "depth": list(map(float, weight.depth)) or None,
        "match": {pattern: float(value) for pattern, value in weight.match} or None,
    }
    stated = {name: value for name, value in parts.items() if value is not None}
    return float(weight.default) if stated.keys() <= {"default"} else stated
