"""Adapters as Python users give them: in memory, by path or name, alone or with a weight.

They become references, as the command line has them, and a context that knows the ones in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from os import PathLike, fspath

from loramerge.adapter import Adapter
from loramerge.algebra.weights import Weight
from loramerge.errors import UsageError
from loramerge.steps.parameters import Context
from loramerge.steps.references import Reference, parse_reference

__all__ = ["listed_adapters", "not_one_adapter", "one_adapter", "references_to"]


def listed_adapters(adapters: object) -> list[object]:
    """Return one adapter, or several, as a list.

    Raises:
        UsageError: if this does not stand for adapters.
    """
    if isinstance(adapters, (str, PathLike, Adapter)) or _is_pair(adapters):
        return [adapters]
    if not isinstance(adapters, Iterable) or isinstance(adapters, (Mapping, bytes)):
        raise _not_an_adapter(adapters)
    return list(adapters)


def one_adapter(verb: str, adapter: object) -> object:
    """Return what stands for a single adapter, alone or with its weight.

    Raises:
        UsageError: if it does not.
    """
    if not isinstance(adapter, (str, PathLike, Adapter)) and not _is_pair(adapter):
        raise not_one_adapter(verb, adapter)
    return adapter


def _is_pair(value: object) -> bool:
    """Return whether a value is an adapter with its weight, rather than two adapters."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], (str, PathLike, Adapter))
        and isinstance(value[1], (Real, Weight))
    )


def not_one_adapter(verb: str, found: object) -> UsageError:
    """Return the error for a value where a verb takes one adapter."""
    return UsageError(
        f"{verb} takes one adapter", expected="an adapter, a path or a name", found=repr(found)
    )


def _not_an_adapter(found: object) -> UsageError:
    return UsageError(
        "this does not stand for an adapter",
        expected="an adapter, a path or a name, alone or in a pair with its weight",
        found=repr(found),
        hint='give pairs: [("character", 0.7), ("style", 0.3)]'
        if isinstance(found, Mapping)
        else None,
    )


def references_to(
    adapters: Iterable[object], context: Context
) -> tuple[tuple[Reference, ...], Context]:
    """Return references to adapters, and the context that knows those in memory.

    Raises:
        UsageError: if one does not stand for an adapter, or has two weights.
    """
    known: dict[str, Adapter] = {}
    references = []
    for index, given in enumerate(adapters, 1):
        pair = isinstance(given, (tuple, list))
        adapter, weight = _pair(given) if pair else (given, None)  # type: ignore[arg-type]
        if isinstance(adapter, Adapter):
            name = f"{index}:{adapter.label}"
            known[name] = adapter
            reference = Reference(name)
        elif isinstance(adapter, str):
            reference = parse_reference(adapter)
        elif isinstance(adapter, PathLike):
            reference = Reference(fspath(adapter))
        else:
            raise _not_an_adapter(given)
        if weight is not None and reference.weight != Weight():
            raise UsageError(
                f"{reference.name!r} gets two weights", found=f"{reference.written} and {weight}"
            )
        if weight is not None:
            whole = weight if isinstance(weight, Weight) else Weight(float(weight))
            reference = replace(reference, weight=whole, written=whole.text(), stated=True)
        references.append(reference)
    return tuple(references), replace(context, known=known)


def _pair(given: Sequence[object]) -> tuple[object, float | Weight]:
    """Return an adapter and its weight."""
    if len(given) != 2:
        raise UsageError(
            "a pair is an adapter and its weight", found=f"{len(given)} values: {given!r}"
        )
    adapter, weight = given
    if isinstance(weight, Weight):
        return adapter, weight
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise UsageError(
            "a weight must be a number or a Weight", expected="(adapter, 0.7)", found=repr(weight)
        )
    return adapter, float(weight)
