"""What verbs that give an adapter share: the result, how it is written, and what it will weigh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.encode import Encoded, choose_dialect, encode, suffix_of
from loramerge.adapter.save import write_encoded
from loramerge.algebra.outcome import Combined, SizeModel
from loramerge.dialects import Dialect
from loramerge.files.dtypes import DTYPES
from loramerge.steps.outputs import adapter_output, default_name, encoded_size, size_model
from loramerge.steps.parameters import Context
from loramerge.steps.provenance import (
    Made,
    header_entries,
    length_is_known,
    made_of,
    placeholder,
)
from loramerge.steps.writing import WriteParameters

__all__ = [
    "AdapterResult",
    "Target",
    "budget",
    "encoded_for",
    "header_of",
    "lossy_json",
    "target_of",
    "whole_size",
    "written",
]


@dataclass(kw_only=True)
class AdapterResult:
    """An adapter that was computed, what that lost, and where it was written.

    Args:
        adapter: the adapter; None once only its file is wanted.
        output, size, dialect, dtype: of the file; None until it is written.
        worst: site of the largest relative error, and that error.
        left_out: sites of rank 0.
        size_before: bytes of the one file it was made from, None if there is none such.
    """

    adapter: Adapter | None
    family: str | None
    modules: int
    ranks: dict[int, int]
    lossy: bool
    relative_error: float
    norm_kept: float
    worst: tuple[str, float] | None
    left_out: list[str]
    output: str | None = None
    size: int | None = None
    dialect: str | None = None
    dtype: str | None = None
    size_before: int | None = None

    @staticmethod
    def figures(adapter: Adapter, combined: Combined) -> dict[str, Any]:
        """Return the fields that follow from an adapter and how it was computed."""
        return {
            "adapter": adapter,
            "family": adapter.info.detection.name,
            "modules": len(adapter.deltas),
            "ranks": adapter.ranks(),
            "lossy": combined.lossy,
            "relative_error": combined.relative_error if combined.lossy else 0.0,
            "norm_kept": combined.norm_kept if combined.lossy else 1.0,
            "worst": combined.worst,
            "left_out": combined.left_out,
        }

    def json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "outputs": [] if self.output is None else [self.output],
            "size": self.size,
            "dialect": self.dialect,
            "dtype": self.dtype,
            "family": self.family,
            "modules": self.modules,
            "ranks": self.ranks,
            **lossy_json(self.lossy, self.relative_error, self.norm_kept, self.worst),
            "left_out": self.left_out,
        }


def lossy_json(
    lossy: bool, relative_error: float, norm_kept: float, worst: tuple[str, float] | None
) -> dict[str, Any]:
    """Return the figures every lossy step reports; exact steps report an error of 0.

    `scale_applied` is what the result was multiplied by to make up for what was cut: 1, since this
    version never does so.
    """
    return {
        "relative_error": relative_error if lossy else 0.0,
        "norm_kept": norm_kept if lossy else 1.0,
        "scale_applied": 1.0,
        "worst": {"module": worst[0], "relative_error": worst[1]} if worst else None,
    }


@dataclass(frozen=True)
class Target:
    """Where and how an adapter will be written.

    Args:
        dtype: safetensors name of the type, None for the adapter's own.
    """

    path: Path
    dialect: Dialect
    dtype: str | None
    force: bool


def target_of(parameters: WriteParameters, adapters: Sequence[Adapter], stem: str) -> Target:
    """Return where the result of adapters goes, or refuse it before any work is done.

    Args:
        stem: the default name of the file, without its suffix.

    Raises:
        UsageError, OutputExists: see `outputs.adapter_output`.
    """
    dialect = choose_dialect(parameters.target(), list(adapters))
    output = parameters.output
    path = default_name(stem, suffix_of(dialect)) if output is None else Path(output)
    adapter_output(path, dialect, force=parameters.force)
    return Target(path, dialect, parameters.float_type(), parameters.force)


def encoded_for(adapter: Adapter, target: Target, context: Context) -> Encoded:
    """Return an adapter as it will be written, with the record of what made it in the header."""
    encoded = encode(adapter, target.dialect, target.dtype)
    how = adapter, target.dialect, target.dtype, context
    late = length_is_known(made_of(adapter))
    encoded.metadata |= header_of(*how, exact=not late)
    if late:
        encoded.late.append(lambda: header_of(*how))
    return encoded


def header_of(
    adapter: Adapter, dialect: Dialect, dtype: str | None, context: Context, *, exact: bool = True
) -> dict[str, str]:
    """Return the entries of a header that say what wrote and what made an adapter.

    Args:
        exact: with digests; otherwise something of their length stands for them.
    """
    if context.strip:
        return {}
    how = {"to": dialect.name}
    if dtype or adapter.info.dtype:  # else every tensor keeps the type it is stored in
        how["dtype"] = DTYPES[dtype or adapter.dtype].word
    made = made_of(adapter)
    return header_entries(made, how) if exact else header_entries(made, how, placeholder)


Result = TypeVar("Result", bound=AdapterResult)


def written(
    result: Result,
    target: Target,
    context: Context,
    *,
    wanted: Callable[[int], bool] = lambda _: True,
    check: Callable[[Result, Path, Target, Context], None] | None = None,
) -> Result:
    """Write a computed adapter and return its result, which then says where.

    Args:
        wanted: function of the bytes it will take; if false, nothing is written.
        check: looks at the written file before it gets its name; what it raises leaves no file.
    """
    adapter = result.adapter
    assert adapter is not None
    encoded = encoded_for(adapter, target, context)
    dtype = DTYPES[target.dtype or adapter.dtype].word
    result = replace(result, dialect=target.dialect.name, dtype=dtype)
    if not wanted(encoded_size(encoded)):
        return result

    def look(path: Path) -> None:
        if check is not None:
            check(result, path, target, context)

    size = write_encoded(encoded, target.path, force=target.force, check=look if check else None)
    return replace(result, output=str(target.path), size=size)


def budget(
    adapters: Sequence[Adapter],
    frame: Adapter,
    shapes: Mapping[Site, Delta],
    parameters: WriteParameters,
    made: Made | None,
    context: Context,
) -> SizeModel:
    """Return what files of given ranks weigh, the record in their header included.

    Args:
        adapters: the inputs.
        frame: the adapter whose metadata and embeddings will be written.
        shapes: a delta of every site.
    """
    dialect = choose_dialect(parameters.target(), list(adapters))
    dtype = parameters.float_type() or frame.dtype
    entries = header_of(frame.with_deltas({}).made_by(made), dialect, dtype, context, exact=False)
    return size_model(frame, shapes, dialect, dtype, entries)


def whole_size(adapters: Sequence[Adapter], parameters: WriteParameters) -> int:
    """Return the bytes that percentages of `max_size` are of: those of all inputs together."""
    return sum(_size_of(adapter, parameters) for adapter in adapters)


def _size_of(adapter: Adapter, parameters: WriteParameters) -> int:
    """Return the bytes of an adapter's file, or for a computed one those it would have."""
    if adapter.info.size is not None:
        return adapter.info.size
    dialect = choose_dialect(parameters.target(), [adapter])
    return encoded_size(encode(adapter, dialect, parameters.float_type()))
