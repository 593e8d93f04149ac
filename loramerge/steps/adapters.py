"""Results of verbs that compute an adapter: their figures, and writing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from loramerge.adapter import Adapter, Delta, Site
from loramerge.adapter.encode import Encoded, called, encode
from loramerge.adapter.save import write_encoded
from loramerge.algebra.outcome import Combined, SizeModel
from loramerge.dialects import DIALECTS
from loramerge.files.dtypes import DTYPES
from loramerge.files.spool import spool_for
from loramerge.steps.outputs import Output, output_of
from loramerge.steps.parameters import Context
from loramerge.steps.program import check_program
from loramerge.steps.provenance import (
    Made,
    header_entries,
    length_is_known,
    made_of,
    placeholder,
)
from loramerge.steps.shown import Shown
from loramerge.steps.sizes import encoded_size, size_model
from loramerge.steps.writing import WriteParameters

__all__ = [
    "AdapterResult",
    "budget",
    "encoded_for",
    "header_of",
    "lossy_json",
    "size_of_file",
    "whole_size",
    "write_result",
]


@dataclass(kw_only=True, repr=False)
class AdapterResult(Shown):
    """A computed adapter, its error, and its file.

    Args:
        adapter: the adapter; None if only its file is needed.
        output, size, dialect, dtype: of the file; None until it is written.
        worst: site of the largest relative error, and that error.
        left_out: sites of rank 0.
        size_before: bytes of the single input file, None if there is no such file.
        errors: site → relative error.
    """

    headline = ("family", "modules", "ranks", "relative_error", "output")

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
    errors: dict[str, float] = field(default_factory=dict)

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
            "errors": {one.site.name: one.relative_error for one in combined.outcomes},
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

    `scale_applied` is the factor that makes up for truncation: always 1, because this version does
    not rescale.
    """
    return {
        "relative_error": relative_error if lossy else 0.0,
        "norm_kept": norm_kept if lossy else 1.0,
        "scale_applied": 1.0,
        "worst": {"module": worst[0], "relative_error": worst[1]} if worst else None,
    }


def encoded_for(adapter: Adapter, output: Output, context: Context) -> Encoded:
    """Return an adapter encoded for writing, with its recipe in the header."""
    keep = spool_for(output.path)
    encoded = encode(adapter, output.dialect, output.dtype, keep=keep)
    late = length_is_known(made_of(adapter))
    encoded.metadata |= header_of(adapter, output, context, exact=not late)
    if late:
        encoded.late.append(lambda: header_of(adapter, output, context))
    return encoded


def header_of(
    adapter: Adapter, output: Output, context: Context, *, exact: bool = True
) -> dict[str, str]:
    """Return the header entries with the program and the recipe of an adapter.

    Args:
        exact: with digests; otherwise with placeholders of the same length.
    """
    if context.strip:
        return {}
    dialect = output.dialect
    # a lone file with the keys of a folder follows from its inputs and its name
    written = {"to": dialect.name} if DIALECTS[dialect.name] is dialect else {}
    if output.dtype or adapter.info.dtype:  # else every tensor keeps the type it is stored in
        written["dtype"] = DTYPES[output.dtype or adapter.dtype].word
    made = made_of(adapter)
    return header_entries(made, written) if exact else header_entries(made, written, placeholder)


def size_of_file(adapter: Adapter, output: Output, context: Context) -> int:
    """Return the exact bytes of the file that an adapter will be; nothing is read or written."""
    encoded = encode(adapter, output.dialect, output.dtype)
    encoded.metadata |= header_of(adapter, output, context, exact=False)
    return encoded_size(encoded)


Result = TypeVar("Result", bound=AdapterResult)


def write_result(
    result: Result,
    output: Output,
    context: Context,
    *,
    wanted: Callable[[int], bool] = lambda _: True,
    check: Callable[[Result, Path, Output, Context], None] | None = None,
) -> Result:
    """Write a computed adapter and return its result with the path.

    Args:
        wanted: function of the bytes it will take; if false, nothing is written.
        check: checks the written file before it gets its name; if it raises, no file is left.
    """
    adapter = result.adapter
    assert adapter is not None and output.path is not None
    check_program(adapter, output.program, output.dialect, context.notify)
    encoded = encoded_for(adapter, output, context)
    dtype = DTYPES[output.dtype or adapter.dtype].word
    result = replace(result, dialect=called(output.dialect), dtype=dtype)
    if not wanted(encoded_size(encoded)):
        return result

    def look(path: Path) -> None:
        if check is not None:
            check(result, path, output, context)

    size = write_encoded(encoded, output.path, force=output.force, check=look if check else None)
    return replace(result, output=str(output.path), size=size)


def budget(
    frame: Adapter,
    shapes: Mapping[Site, Delta],
    output: Output,
    made: Made | None,
    context: Context,
    *,
    stays: bool = False,
) -> SizeModel:
    """Return the model of file sizes for given ranks, including the recipe in the header.

    Args:
        frame: the adapter whose metadata and embeddings will be written.
        shapes: a delta of every site.
        stays: see `size_model`.
    """
    output = replace(output, dtype=output.dtype or frame.dtype)
    entries = header_of(frame.with_deltas({}, made=made), output, context, exact=False)
    dtype = output.dtype or frame.dtype
    return size_model(frame, shapes, output.dialect, dtype, entries, stays=stays)


def whole_size(adapters: Sequence[Adapter], parameters: WriteParameters) -> int:
    """Return the bytes that percentages of `max_size` are of: those of all inputs together."""
    return sum(_size_of(adapter, parameters) for adapter in adapters)


def _size_of(adapter: Adapter, parameters: WriteParameters) -> int:
    """Return the bytes of an adapter's file, or for a computed one those it would have."""
    if adapter.info.size is not None:
        return adapter.info.size
    output = output_of(parameters, [adapter])
    return encoded_size(encode(adapter, output.dialect, output.dtype))
