"""Diffusion transformers as templates: stacks of equal blocks, with diffusers' and native names.

A family states its layers once, as rows of tables; `expand` gives its modules with diffusers'
paths, and `native_slots` where the original single file stores each of their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from loramerge.families.spec import Layer, Module, Parameter, Slot, Slots, Spelling, plain_slot
from loramerge.records import record

__all__ = [
    "Native",
    "Row",
    "Stack",
    "expand",
    "fused",
    "heads",
    "linear",
    "native_slots",
    "norm",
    "same",
    "transformer_spellings",
    "with_one_name",
]


class Native(NamedTuple):
    """The original name of a layer: `span` parts from `part` on, of `parts`, of its rows.

    `weight` is the word for the weight (`scale` in some norms; nothing for a bare parameter);
    `swapped`: its halves stand in the other order.
    """

    name: str
    part: int = 0
    parts: int = 1
    span: int = 1
    weight: str = ".weight"
    swapped: bool = False


class Row(NamedTuple):
    """One layer of a block: its name in diffusers, type, shape, bias, and its original name.

    A dimension is a number or a name among the sizes of the family; no original name means that
    the original network has no such layer.
    """

    name: str
    layer: Layer
    dims: tuple[str | int, ...]
    bias: bool
    native: Native | None


_DOT = "."  # what ends a level of a name


def same(name: str, layer: Layer, dims: tuple[str | int, ...], *, bias: bool = False) -> Row:
    """Return the row of a layer that both networks call alike."""
    return Row(name, layer, dims, bias, Native(name))


def linear(
    name: str,
    rows: str | int,
    columns: str | int,
    native: str | None = None,
    *,
    bias: bool = True,
    swapped: bool = False,
) -> Row:
    """Return the row of a linear layer; without an original name, both networks call it alike."""
    return Row(name, "linear", (rows, columns), bias, Native(native or name, swapped=swapped))


def norm(
    name: str,
    width: str | int,
    native: str | None = None,
    *,
    bias: bool = False,
    weight: str = ".weight",
) -> Row:
    """Return the row of a norm; without an original name, both networks call it alike."""
    return Row(name, "norm", (width,), bias, Native(native or name, weight=weight))


def fused(
    names: Sequence[str], rows: str | int, columns: str | int, native: str, *, bias: bool = True
) -> tuple[Row, ...]:
    """Return the rows of linear layers that are equal parts of one original tensor, in this order."""
    return tuple(
        Row(name, "linear", (rows, columns), bias, Native(native, part, len(names)))
        for part, name in enumerate(names)
    )


@record
class Stack:
    """Blocks that follow each other: `{}` in the names is the number of the block.

    Args:
        name, native: beginnings of the names, dot included; both empty for the layers of no block.
        numbers: of the blocks.
        rows: the layers of each.
    """

    name: str
    native: str
    numbers: Sequence[int]
    rows: tuple[Row, ...]


def expand(stacks: Sequence[Stack], sizes: Mapping[str, int]) -> Iterator[Module]:
    """Yield every layer with its diffusers path and full-width shape."""
    for stack in stacks:
        for number in stack.numbers:
            head = stack.name.format(number)
            for row in stack.rows:
                shape = tuple(sizes[d] if isinstance(d, str) else d for d in row.dims)
                yield Module(head + row.name, row.layer, shape, row.bias)


def with_one_name(stacks: Sequence[Stack]) -> tuple[Stack, ...]:
    """Return the stacks of a network whose original has the names of diffusers, and fuses nothing."""
    return tuple(
        replace(stack, native=stack.name, rows=tuple(map(_with_one_name, stack.rows)))
        for stack in stacks
    )


def _with_one_name(row: Row) -> Row:
    native = Native(row.name, weight="" if row.layer == "matrix" else ".weight")
    return row._replace(native=native)


def heads(stacks: Sequence[Stack]) -> tuple[str, ...]:
    """Return the beginnings of the names of all layers, in the original and in diffusers."""
    whole = {stack.name for stack in stacks} | {stack.native for stack in stacks}
    names = (
        name
        for stack in stacks
        if not (_DOT in stack.name and _DOT in stack.native)
        for row in stack.rows
        for name in (stack.name + row.name, stack.native + row.native.name if row.native else "")
    )
    known = (*(name for name in whole if _DOT in name), *names)
    return tuple(sorted({_head(name) for name in known if name}))


def _head(name: str) -> str:
    first, dot, _ = name.partition(".")
    return first + dot


def native_slots(stacks: Sequence[Stack], renamed: Callable[[str], str] = str) -> Slots:
    """Return the function that says where the original single file stores a parameter.

    Args:
        renamed: gives the name of a layer of a block in the file by its original one.
    """

    @cache
    def table() -> Mapping[str, Native]:
        return _natives(stacks, renamed)

    def slot(module: Module, parameter: Parameter) -> Slot | None:
        found = table().get(module.path)
        if found is None:
            return None
        name, part, parts, span, weight, swapped = found
        word = weight if parameter == "weight" else ".bias"
        return Slot(name + word, part, parts, span=span, swapped=swapped)

    return slot


def _natives(stacks: Sequence[Stack], renamed: Callable[[str], str]) -> Mapping[str, Native]:
    """Return diffusers path → original name of every layer that has one."""
    return {
        stack.name.format(number) + row.name: row.native._replace(
            name=stack.native.format(number) + renamed(row.native.name)
        )
        for stack in stacks
        for number in stack.numbers
        for row in stack.rows
        if row.native is not None
    }


def transformer_spellings(
    layout: str,
    slot: Slots,
    prefixes: Sequence[str] = ("", "model.diffusion_model.", "diffusion_model."),
) -> tuple[Spelling, ...]:
    """Return the spellings of a transformer in checkpoints: by the original's names, and by diffusers'.

    Args:
        layout: what the original's layout is called.
        slot: what it is; see `native_slots`.
        prefixes: what stands before its names in single files.
    """
    return (
        *(Spelling(layout, prefix, slot) for prefix in prefixes),
        *(Spelling("diffusers", prefix, plain_slot) for prefix in ("", "transformer.")),
    )
